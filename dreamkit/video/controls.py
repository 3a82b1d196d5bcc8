"""What steers a video besides its text: the camera's pose in every frame, and the tracks of points.

Tracks follow MotionStream (Shin et al., "MotionStream: Real-Time Video Generation with Interactive Motion Controls",
arXiv 2511.01266): every track has a fixed embedding of its own, laid down where the track is seen, and a small learned
head makes features of the sum. Both heads begin at zero, so a model that knows no controls stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.checks import require
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.video.weights import load_weights, read_config, save_weights

POSE_DIM = 12  # camera_to_world[:3, :4], row-major
_CLASS_NAME = "ControlEncoder"
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Controls:
    """Controls of F frames, one entry for each frame of tokens. What is `None` is not steered.

    Raises:
        ConfigError: shapes or dtypes that don't fit. Numbers are checked by `check_values`.
    """

    camera: Tensor | None = None
    """[B, F, 12] rows of camera_to_world, relative to the clip's first camera; a row of zeros is no camera."""
    tracks: Tensor | None = None
    """[B, F, N, 2] places (x, y) of N points in the picture, in [0, 1], the origin at the top left."""
    visible: Tensor | None = None
    """[B, F, N] bool, where a point is seen; `None` is everywhere."""

    def __post_init__(self) -> None:
        shapes = []
        if self.camera is not None:
            shape = list(self.camera.shape)
            require("The camera's shape", len(shape) == 3 and shape[2] == POSE_DIM, shape, "[batch, frames, 12]")
            require("The camera's dtype", self.camera.is_floating_point(), self.camera.dtype, "floating numbers")
            shapes.append(shape[:2])
        if self.tracks is not None:
            shape = list(self.tracks.shape)
            require("The tracks' shape", len(shape) == 4 and shape[3] == 2, shape, "[batch, frames, points, 2]")
            require("The tracks' dtype", self.tracks.is_floating_point(), self.tracks.dtype, "floating numbers")
            shapes.append(shape[:2])
        if self.visible is not None:
            wanted = None if self.tracks is None else list(self.tracks.shape[:3])
            shape = list(self.visible.shape)
            require("The visibility's shape", shape == wanted, shape, f"{wanted}, as the tracks have")
            require("The visibility's dtype", self.visible.dtype == torch.bool, self.visible.dtype, "bool")
        if len(shapes) == 2:
            require("The tracks' [batch, frames]", shapes[0] == shapes[1], shapes[1], f"{shapes[0]}, as the camera has")

    @property
    def shape(self) -> tuple[int, int] | None:
        """Batch and frames; `None` where nothing is steered."""
        for item in (self.camera, self.tracks):
            if item is not None:
                return item.shape[0], item.shape[1]
        return None

    def check_values(self) -> Self:
        """Check every number, for controls that come from outside; on a GPU it waits for them. Returns the controls.

        Raises:
            ConfigError: a pose that is not finite, or a visible point that is not finite or outside of the picture.
        """
        if self.camera is not None:
            require("A camera's pose", bool(torch.isfinite(self.camera).all()), "not finite", "finite numbers")
        if self.tracks is not None:
            seen = self.tracks if self.visible is None else self.tracks[self.visible]
            finite = bool(torch.isfinite(seen).all())
            require("A visible point of a track", finite, "not finite", "finite places, or mark it as not visible")
            outside = seen[((seen < 0) | (seen > 1)).any(dim=-1)]
            if len(outside):
                place = ", ".join(f"{number:g}" for number in outside[0].tolist())
                raise ConfigError(
                    f"A visible point of a track is at ({place}), outside of the picture.",
                    "Give x and y from 0 to 1 (top left to bottom right), or mark it as not visible.",
                )
        return self

    def frames(self, start: int, stop: int) -> Controls:
        """The controls of frames start to stop (views, no copies)."""
        return self._map(lambda item: item[:, start:stop])

    def rows(self, start: int, stop: int) -> Controls:
        """The controls of clips start to stop (views, no copies)."""
        return self._map(lambda item: item[start:stop])

    def twice(self) -> Controls:
        """The whole batch, one after the other two times: with and without a prompt, for guidance."""
        return self._map(lambda item: torch.cat([item, item]))

    def to(self, device: torch.device | str | None = None) -> Controls:
        """The same on a device."""
        return self._map(lambda item: item.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Controls:
        parts = (None if item is None else function(item) for item in (self.camera, self.tracks, self.visible))
        return Controls(*parts)


def track_identities(count: int, dim: int, device: torch.device | None = None) -> Tensor:
    """A fixed embedding for each track by its number: random-looking, of length 1, no two alike.

        e_n = sqrt(2 / dim) (cos(w_j n), sin(w_j n)),   w_j = 2 pi frac(phi j^3),   n, j = 1, 2, ...,   phi golden ratio

    Powers of j above one matter: with phi j itself two tracks a Fibonacci number apart would be almost equal. In 64
    features no two of 1,000 tracks overlap by more than 0.43, as random directions do.

    Args:
        count: tracks.
        dim: even number of features.
        device: where it is made.

    Returns:
        [count, dim] float32.
    """
    index = torch.arange(1, dim // 2 + 1, device=device, dtype=torch.float64)
    number = torch.arange(1, count + 1, device=device, dtype=torch.float64)
    angles = 2 * math.pi * (number[:, None] * (index**3 * _GOLDEN).frac())
    return (torch.cat([angles.cos(), angles.sin()], dim=-1) * math.sqrt(2 / dim)).float()


def splat_tracks(tracks: Tensor, visible: Tensor | None, identities: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay the tracks' embeddings onto a grid of tokens, bilinearly between the four nearest centres, and add them up.

    A token's centre is at ((column + 0.5) / w, (row + 0.5) / h); nearer to the border than that a point belongs to the
    border's tokens alone. The weights of a visible point sum to one. The order of summing is fixed, on a GPU too.

    Args:
        tracks: [B, F, N, 2] places in [0, 1].
        visible: [B, F, N] bool, or `None` for all. Where it is false the place may be anything, NaN included.
        identities: [N, E].
        grid: rows and columns, (h, w).

    Returns:
        [B, F, h * w, E] in the dtype of the identities.
    """
    seen = torch.ones_like(tracks[..., 0], dtype=torch.bool) if visible is None else visible
    places = torch.where(seen[..., None], tracks, 0.0)
    weights = []
    for axis, size in ((1, grid[0]), (0, grid[1])):
        centre = (places[..., axis] * size - 0.5).clamp(0, size - 1)
        distance = (centre[..., None] - torch.arange(size, device=tracks.device)).abs()
        weights.append((1 - distance).clamp(min=0).to(identities.dtype))
    rows, columns = weights
    rows = rows * seen[..., None]
    return torch.einsum("bfny,bfnx,ne->bfyxe", rows, columns, identities).flatten(2, 3)


class ControlEncoder(nn.Module):
    """Controls to features that are added to a video transformer's embedded patches.

    Neither head has a bias: no camera (a row of zeros) and a token that no track touches give exactly zero.

    Args:
        dim: width of the transformer's tokens.
        track_dim: features of a track's identity, even.
        hidden: width of the camera's hidden layer.

    Raises:
        ConfigError: a size out of range.
    """

    def __init__(self, dim: int, track_dim: int = 64, hidden: int = 256) -> None:
        super().__init__()
        for name, value in (("width", dim), ("track width", track_dim), ("hidden width", hidden)):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(f"The control encoder's {name}", whole, value, "a whole number of at least 1")
        require("The control encoder's track width", track_dim % 2 == 0, track_dim, "an even number")
        self.config = {"dim": dim, "track_dim": track_dim, "hidden": hidden}
        self.camera = nn.ModuleList([nn.Linear(POSE_DIM, hidden, bias=False), nn.Linear(hidden, dim, bias=False)])
        self.tracks = nn.ModuleList([nn.Linear(track_dim, dim, bias=False), nn.Linear(dim, dim, bias=False)])
        for head in (self.camera, self.tracks):
            nn.init.zeros_(_weight(head, 1))

    def forward(self, controls: Controls, grid: tuple[int, int]) -> Tensor | None:
        """Encode the controls of F frames.

        Args:
            controls: of the frames.
            grid: rows and columns of tokens in a frame, (h, w).

        Returns:
            [B, F, h * w, dim] for `control_features` of `CausalTransformer`, or `None` where nothing is steered.
        """
        shape = controls.shape
        if shape is None:
            return None
        weight = _weight(self.camera, 1)
        features = torch.zeros(*shape, math.prod(grid), self.config["dim"], dtype=weight.dtype, device=weight.device)
        if controls.camera is not None:
            features = features + _two_layers(self.camera, controls.camera.to(weight.dtype))[:, :, None]
        if controls.tracks is not None:
            identities = track_identities(controls.tracks.shape[2], self.config["track_dim"], weight.device)
            splats = splat_tracks(controls.tracks, controls.visible, identities.to(weight.dtype), grid)
            features = features + _two_layers(self.tracks, splats)
        return features

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """Load a controls/ folder that `save_pretrained` wrote, in float32 unless a dtype is given.

        Raises:
            CheckpointError: something is missing, unreadable, of another class or shape, or not finite.
        """
        config = read_config(folder)
        if config.pop("_class_name", None) != _CLASS_NAME:
            raise CheckpointError(f"{folder} holds no {_CLASS_NAME}.", "Give the controls/ folder of a video model.")
        try:
            encoder = cls(**config)
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"The configuration in {folder} does not fit: {error}.", "Copy it again.") from error
        load_weights(encoder, folder)
        return encoder.to(device=device, dtype=dtype).eval()

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float16) -> None:
        """Write config.json and safetensors.

        Raises:
            CheckpointError: weights that are not finite in that dtype.
            RunError: the system refused the write.
        """
        save_weights(self, {"_class_name": _CLASS_NAME, **self.config}, folder, dtype)


def _two_layers(head: nn.ModuleList, x: Tensor) -> Tensor:
    return head[1](functional.gelu(head[0](x)))


def _weight(head: nn.ModuleList, layer: int) -> Tensor:
    linear = head[layer]
    assert isinstance(linear, nn.Linear)
    return linear.weight
