"""Noise schedules, guidance, prompts and the frozen teachers."""
