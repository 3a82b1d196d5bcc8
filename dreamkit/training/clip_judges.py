"""Who judges the clips of a video student: a frozen teacher and a trained critic, both seeing all of a clip at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamkit.objectives.causal_video import clean_clip
from dreamkit.training.student_networks import StudentNetworks
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import interleave, sources, target_levels, targets


class ClipCritic(nn.Module):
    """A trainable score of a student's clips, and perhaps a head that tells them from data.

    The head reads the tokens in the middle of the transformer, averaged over a clip (as the GAN head of DMD2, Yin et
    al., arXiv 2405.14867, reads the critic's).

    Args:
        networks: a copy of the teacher's.
        with_head: whether there is a head.
    """

    def __init__(self, networks: StudentNetworks, with_head: bool = False) -> None:
        super().__init__()
        self.networks = networks
        dim = networks.transformer.config.dim
        self.head = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1)) if with_head else None
        )
        self._middle: Tensor | None = None
        if with_head:
            blocks = networks.transformer.blocks
            blocks[len(blocks) // 2].register_forward_hook(self._keep_middle)

    def _keep_middle(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._middle = output

    def logits(self) -> Tensor:
        """What the head says of the clips that went through last: [B], positive for data."""
        assert self.head is not None
        assert self._middle is not None
        weight = next(self.head.parameters())
        return self.head(self._middle.mean(dim=1).to(weight.dtype))[:, 0]


@dataclass(frozen=True)
class ClipJudge:
    """A network of flows with prompts and controls bound in: a `Denoiser` of clips, see `dreamkit.objectives.matching`.

    Args:
        networks: sees whole clips.
        text: [B, L, D] of the prompts.
        empty: [1, L, D] of no prompt.
        controls: of the frames, relative to the clip's first.
        source: of pairs, the clips whose source frames are shown as they are, whatever noise they come with. What is
            predicted of them is what they are, so that no objective moves them.
    """

    networks: StudentNetworks
    text: Tensor
    empty: Tensor
    controls: Controls | None = None
    source: Tensor | None = None

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        """Clean clips x_t - t v for the prompt, [B, C, F, h, w]; levels [B] or [B, F]."""
        return self._clean(x_t, levels, self.text, self.controls)

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Clean clips for the prompt and without it, the controls on both sides."""
        text = torch.cat([self.text, self.empty.expand_as(self.text)])
        controls = None if self.controls is None else self.controls.twice()
        full, empty = self._clean(torch.cat([x_t, x_t]), torch.cat([levels, levels]), text, controls).chunk(2)
        return full, empty

    def _clean(self, x_t: Tensor, levels: Tensor, text: Tensor, controls: Controls | None) -> Tensor:
        frames = (levels if levels.ndim == 2 else levels[:, None].expand(-1, x_t.shape[2])).to(x_t)
        if self.source is not None:
            shown = sources(self.source).repeat(len(x_t) // len(self.source), 1, 1, 1, 1)  # twice where two are asked
            x_t, frames = interleave(shown, targets(x_t)), target_levels(frames)
        transformer, encoder = self.networks.transformer, self.networks.controls
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.networks.half_precision):
            features = None
            if encoder is not None and controls is not None:
                features = encoder(controls, transformer.token_grid(x_t)[1:])
            flow = transformer(x_t, 1000 * frames, text, features)
        return clean_clip(x_t, flow.to(x_t.dtype), frames)


@dataclass(frozen=True)
class ClipDiscriminator:
    """A critic's head with prompts and controls bound in: (x_t, levels) -> logits [B]."""

    critic: ClipCritic
    judge: ClipJudge

    def __call__(self, x_t: Tensor, levels: Tensor) -> Tensor:
        """Logits of noisy clips, positive for data."""
        self.judge.predict(x_t, levels)
        return self.critic.logits()
