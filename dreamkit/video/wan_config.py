"""Sizes of a Wan video transformer, as diffusers writes them into config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dreamkit.errors import CheckpointError

CLASS_NAME = "WanTransformer3DModel"
_QK_NORM = "rms_norm_across_heads"
_HINT = "Use the config.json of a text-to-video Wan model in diffusers layout."


@dataclass(frozen=True)
class WanConfig:
    """The settings of diffusers' `WanTransformer3DModel`, by their names there (Wan Team, arXiv 2503.20314)."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of a token."""
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    """Channels of a head, even."""
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    """Features of a text token."""
    freq_dim: int = 256
    """Features of a timestep, even."""
    ffn_dim: int = 13824
    """Hidden width of the feed-forward layers."""
    num_layers: int = 40
    cross_attn_norm: bool = True
    """Whether the cross-attention's input is normalised, with scale and shift of its own."""
    qk_norm: str = _QK_NORM
    eps: float = 1e-6
    """Added to the variance in every norm."""
    rope_max_seq_len: int = 1024
    """Length of diffusers' table of positions, frames; ours are computed and have no end."""

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> WanConfig:
        """Read the content of a config.json.

        Args:
            config: as diffusers writes it; keys that begin with an underscore say who wrote it.

        Raises:
            CheckpointError: of another class, of an image-to-video model, an unknown setting or a value out of range.
        """
        if not isinstance(config, Mapping):
            raise CheckpointError("The transformer's configuration is no JSON object.", _HINT)
        name = config.get("_class_name", CLASS_NAME)
        if name != CLASS_NAME:
            raise CheckpointError(f"The configuration is of a {name!r}, not of a {CLASS_NAME}.", _HINT)
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
            if given.pop(key, None) is not None:
                raise CheckpointError(
                    f"This Wan model takes the embedding of a picture ({key} is {config[key]}), which no prompt gives.",
                    "Use a text-to-video model, such as Wan2.1-T2V.",
                )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise CheckpointError(f"The transformer's configuration has unknown settings: {', '.join(unknown)}.", _HINT)
        if given.get("out_channels", cls.out_channels) is None:
            given["out_channels"] = given.get("in_channels", cls.in_channels)
        if isinstance(given.get("patch_size"), list):
            given["patch_size"] = tuple(given["patch_size"])
        read = cls(**given)
        read._check()
        return read

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as diffusers reads it."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"_class_name": CLASS_NAME, **settings}

    def _check(self) -> None:
        sizes = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim", "freq_dim")
        for name in (*sizes, "ffn_dim", "num_layers", "rope_max_seq_len"):
            _require(name, getattr(self, name), _whole(getattr(self, name)), "a whole number of at least 1")
        patch = self.patch_size
        fits = isinstance(patch, tuple) and len(patch) == 3 and all(_whole(side) for side in patch)
        _require("patch_size", patch, fits, "three whole numbers of at least 1")
        even = self.attention_head_dim % 2 == 0 and self.attention_head_dim <= 256
        _require("attention_head_dim", self.attention_head_dim, even, "an even number of at most 256")
        _require("freq_dim", self.freq_dim, self.freq_dim % 2 == 0, "an even number")
        _require("cross_attn_norm", self.cross_attn_norm, isinstance(self.cross_attn_norm, bool), "true or false")
        _require("qk_norm", self.qk_norm, self.qk_norm == _QK_NORM, repr(_QK_NORM))
        small = isinstance(self.eps, float | int) and not isinstance(self.eps, bool) and 0 <= self.eps < 1
        _require("eps", self.eps, small, "a number from 0 to 1")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise CheckpointError(f"The transformer's {name} is {value!r}; it must be {wanted}.", _HINT)
