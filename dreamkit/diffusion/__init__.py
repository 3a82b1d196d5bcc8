"""Noise schedules, guidance, prompts and the frozen teachers.

- `schedule`, `betas`, `scheduler_config`: alpha(t), sigma(t) and every conversion between predictions.
- `guidance`: classifier-free guidance in one convention.
- `prompts`: what is accepted as a prompt; imports no torch.
- `teacher`, `condition`, `text`, `networks`, `sampling`: the frozen model, what it is told, and its own samples.
- `loading`, `hub`: from a name, a folder or a hub id to a `Teacher`.
- `hourglass`: the embedded teacher's network.

Nothing is imported here, so that `prompts` stays light.
"""
