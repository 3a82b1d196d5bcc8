"""A teacher that is a network in diffusers layout: the embedded one, Stable Diffusion, SDXL, DeepFloyd, Zero123."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.fusion import fused_references, reference_rows
from dreamkit.diffusion.networks import NetworkCall, sample_size, takes_camera
from dreamkit.diffusion.picture_encoder import PictureEncoder, resized
from dreamkit.diffusion.sampling import SampleClip
from dreamkit.diffusion.schedule import NoiseSchedule, PredictionKind
from dreamkit.diffusion.teacher import POSE_WIDTH, Query, Teacher
from dreamkit.diffusion.text import PromptEncoder
from dreamkit.diffusion.zero123 import Zero123Encoder
from dreamkit.errors import TeacherError


class NetworkTeacher(Teacher):
    """A frozen network with its text or image encoders. Made by `dreamkit.diffusion.loading.load_teacher`.

    Args:
        name: what the user called it.
        network: the denoiser.
        call: how to run it.
        schedule: the noise it was trained with.
        prediction_type: what it predicts: "eps", "x0", "v" or "flow".
        prompts: its text encoder or encoders, or what reads pictures in their place.
        vae: its autoencoder; `None` for a model of pixels.
        clip: how its samples are clipped while sampling; `None` for not at all.

    Attributes:
        dtype: compute dtype of the network; conversions are always float32 (float64 for float64 samples).
    """

    def __init__(
        self,
        name: str,
        network: Any,
        call: NetworkCall,
        schedule: NoiseSchedule,
        prediction_type: PredictionKind,
        prompts: PromptEncoder | PictureEncoder,
        vae: Any = None,
        clip: SampleClip | None = None,
    ) -> None:
        self.name = name
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.prompts = prompts
        self.vae = vae
        self.clip = clip
        self.calls = 0
        self._call = call
        for module in (network, vae, *prompts.encoders):
            if module is not None:
                module.requires_grad_(False).eval()
        height, width = sample_size(network)
        if height != width:
            raise TeacherError(f"{name} makes images of {height}x{width} cells; only square ones are supported.")
        # Beside an autoencoder's latents a network may take further channels: those of a picture (Zero123).
        channels = int(network.config.in_channels if vae is None else vae.config.latent_channels)
        self.sample_shape = (channels, height, width)
        self.image_size = height * self._pixels_per_cell
        self.reads_pictures = isinstance(prompts, PictureEncoder)
        self.supports_camera = takes_camera(network) or isinstance(prompts, Zero123Encoder)

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the network."""
        return next(self.network.parameters()).dtype

    @property
    def _pixels_per_cell(self) -> int:
        """Image pixels along one cell of x: 1 without an autoencoder, 8 for Stable Diffusion."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def __repr__(self) -> str:
        kind = "pixels" if self.vae is None else "latents"
        return (
            f"Teacher({self.name!r}, {type(self.network).__name__}, {kind} {self.sample_shape}, "
            f"{self.prediction_type}, {self.schedule}, {self.device}, {self.dtype})"
        )

    # Prompts ----------------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts for the network, one row each; strings seen before come from a cache.

        Raises:
            TeacherError: no prompt at all, a bare string in place of a list, or a teacher that reads pictures.
        """
        if isinstance(prompts, str) or not prompts:
            raise TeacherError(f"encode_prompt takes a list of at least one prompt, not {prompts!r}.")
        return self.prompts.encode(prompts)

    def encode_picture(
        self,
        picture: Tensor,  # [3 or 4, H, W] in [0, 1]
        pose: Tensor | None = None,  # [12]
    ) -> Condition:
        """Encode a picture as the network's prompt, one row; see `Teacher.encode_picture`.

        Raises:
            TeacherError: this teacher reads words, or another shape, or a pose that is needed and not given.
        """
        if not isinstance(self.prompts, PictureEncoder):
            return super().encode_picture(picture, pose)
        return self.prompts.encode_picture(picture.to(self.device), pose)

    def null_condition(self, n: int = 1) -> Condition:
        """The condition that stands for "no prompt", n rows."""
        return self.prompts.null(n)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt outside a closed vocabulary; `[]` for open-vocabulary teachers."""
        return self.prompts.unknown_words(prompt)

    def content_words(self) -> list[str] | None:
        """The words of a closed vocabulary that mean something, sorted; `None` for open-vocabulary teachers."""
        return self.prompts.content_words()

    def dropped_text(self, prompt: str) -> str:
        """The end of the prompt that does not fit in the text window, "" if all of it does."""
        return self.prompts.dropped_text(prompt)

    # Images -----------------------------------------------------------------------------------------------------------

    def encode_image(
        self,
        image: Tensor,  # [B, 3, H, W] in [0, 1]
    ) -> Tensor:
        """Turn images into x, differentiably.

        Images of another size are resized to `image_size`: averaged over areas when shrinking, bilinear when growing.
        Pixel models get 2 image - 1. Latent models get (mean - shift_factor) * scaling_factor with the mean of the
        autoencoder's posterior, so that the same image always gives the same x.

        Args:
            image: [B, 3, H, W] in [0, 1].

        Returns:
            x, [B, C, h, w] float32.

        Raises:
            TeacherError: not a batch of RGB images.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise TeacherError(f"Images are [B, 3, H, W], not {tuple(image.shape)}.")
        pixels = resized(image.to(self.device, torch.float32), self.image_size) * 2 - 1
        if self.vae is None:
            return pixels
        mean = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean.float()
        return (mean - self._latent_shift) * self.vae.config.scaling_factor

    def decode(
        self,
        x: Tensor,  # [B, C, h, w]
    ) -> Tensor:
        """Turn x into images, [B, 3, image_size, image_size] float32 in [0, 1]; the inverse of `encode_image`.

        Args:
            x: clean samples, [B, C, h, w].
        """
        pixels = x.float()
        if self.vae is not None:
            latent = pixels / self.vae.config.scaling_factor + self._latent_shift
            pixels = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0].float()
        return (pixels / 2 + 0.5).clamp(0, 1)

    @property
    def _latent_shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    # Predictions ------------------------------------------------------------------------------------------------------

    def _forward(self, queries: Sequence[Query]) -> list[Tensor]:
        """Raw outputs [B, C, h, w] of each query; the rows of reference images ride along behind."""
        references = [
            Query(query.reference, query.t, query.condition, query.camera)
            for query in queries
            if query.reference is not None
        ]
        self.calls += sum(len(query) for query in references)
        asked = [*queries, *references]
        sizes = [len(query) for query in asked]
        conditions = Condition.cat([q.condition.expanded(len(q)) for q in asked]).in_dtype(self.dtype)
        times = torch.cat([self._times(query.t).expand(len(query)) for query in asked])
        with fused_references(self.network, reference_rows(queries) if references else None):
            output = self._call(
                self.network,
                torch.cat([query.x_t.to(self.device, self.dtype) for query in asked]),
                self.schedule.to_timestep(times),
                conditions,
                self._cameras(asked),
            )
        # Models with a learned variance (DeepFloyd) append it to the mean's channels.
        return list(output[:, : self.sample_shape[0]].split(sizes))[: len(queries)]

    def _cameras(self, queries: Sequence[Query]) -> Tensor | None:
        """Poses of all rows, [rows, 12]; `None` when no query has any."""
        if all(query.camera is None for query in queries):
            return None
        rows = [torch.zeros(len(q), POSE_WIDTH) if q.camera is None else q.camera for q in queries]
        return torch.cat([row.to(self.device, self.dtype) for row in rows])
