"""What an edit must leave alone."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkit.checks import require


@dataclass(frozen=True)
class EditConfig:
    """What a run that starts from a finished scene must leave alone. The default leaves everything free."""

    region: str = ""
    """Where the scene may change: box:..., ball:... or a picture (see `dreamkit edit --help`); everywhere if empty."""
    keep_weight: float = 10.0
    """Outside the region: weight of the squared distance to the pictures of what the run started from."""
    shape_weight: float = 0.0
    """Everywhere: weight of the squared distance to its silhouettes and depths."""

    def __post_init__(self) -> None:
        for name in ("keep_weight", "shape_weight"):
            value = getattr(self, name)
            require(f"The edit's {name}", 0 <= value < 1e6, value, "a number from 0 to 1e6")

    @property
    def confines(self) -> bool:
        """Whether there is anything to leave alone."""
        return bool(self.region) or self.shape_weight > 0
