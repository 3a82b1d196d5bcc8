"""A teacher: a frozen diffusion model that is asked which way a sample should move.

Images outside a teacher are float32 [B, 3, H, W] in [0, 1]. Inside, x is what the network denoises: pixels in [-1, 1],
or the latent of a variational autoencoder. `encode_image` goes from one to the other with gradients; `predict` and
`predict_guided` do not track gradients unless asked to.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import GuidedPrediction, guidance_rescale, guide
from dreamkit.diffusion.networks import NetworkCall, sample_size, takes_camera
from dreamkit.diffusion.sampling import SampleClip, ddim
from dreamkit.diffusion.schedule import NoiseSchedule, Prediction, PredictionKind
from dreamkit.diffusion.text import PromptEncoder
from dreamkit.errors import TeacherError

__all__ = ["Condition", "GuidedPrediction", "Prediction", "Teacher"]

POSE_WIDTH = 12  # camera_to_world[:3, :4], row-major


class Teacher:
    """A frozen text-to-image diffusion model. Made by `dreamkit.diffusion.loading.load_teacher`.

    Args:
        name: what the user called it.
        network: the denoiser.
        call: how to run it.
        schedule: the noise it was trained with.
        prediction_type: what it predicts: "eps", "x0", "v" or "flow".
        prompts: its text encoder or encoders.
        vae: its autoencoder; `None` for a model of pixels.
        clip: how its samples are clipped while sampling; `None` for not at all.

    Attributes:
        sample_shape: (C, h, w) of x.
        image_size: height and width in pixels of the images it knows.
        supports_camera: whether `camera` may be given.
        calls: number of samples that went through the network so far (a guided call counts each of its rows).
        device: where it runs.
        dtype: compute dtype of the network; conversions are always float32 (float64 for float64 samples).
    """

    def __init__(
        self,
        name: str,
        network: Any,
        call: NetworkCall,
        schedule: NoiseSchedule,
        prediction_type: PredictionKind,
        prompts: PromptEncoder,
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
        self.sample_shape = (int(network.config.in_channels), height, width)
        self.image_size = height * self._pixels_per_cell
        self.supports_camera = takes_camera(network)

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
            TeacherError: no prompt at all, or a bare string in place of a list.
        """
        if isinstance(prompts, str) or not prompts:
            raise TeacherError(f"encode_prompt takes a list of at least one prompt, not {prompts!r}.")
        return self.prompts.encode(prompts)

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
        pixels = _resize(image.to(self.device, torch.float32), self.image_size) * 2 - 1
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

    def predict(
        self,
        x_t: Tensor,  # [B, C, h, w]
        t: Tensor | float,  # [B] or one number, in [0, 1]
        condition: Condition,
        camera: Tensor | None = None,  # [B, 12]
        differentiable: bool = False,
    ) -> Prediction:
        """What the teacher believes about noisy samples.

        Args:
            x_t: noisy samples, [B, C, h, w].
            t: their noise level, [B] or one number for all.
            condition: their prompts, B rows or 1 for all.
            camera: camera_to_world[:3, :4] row-major, [B, 12]; only where `supports_camera`.
            differentiable: whether gradients may flow through the network to `x_t`.

        Raises:
            TeacherError: shapes that don't fit, or a camera for a teacher that takes none.
        """
        with _grad_mode(differentiable):
            output = self._run(x_t, t, [condition], camera)[0]
            return self.schedule.convert(output, x_t, self._times(t), self.prediction_type)

    def predict_guided(
        self,
        x_t: Tensor,  # [B, C, h, w]
        t: Tensor | float,  # [B] or one number, in [0, 1]
        positive: Condition,
        negative: Condition,
        scale: float | Tensor,
        camera: Tensor | None = None,  # [B, 12]
        null: Condition | None = None,
        rescale: float = 0.0,
        differentiable: bool = False,
    ) -> GuidedPrediction:
        """Predict with classifier-free guidance, in one forward pass over 2B rows (3B with `null`).

        Args:
            x_t: noisy samples, [B, C, h, w].
            t: their noise level, [B] or one number for all.
            positive: the prompts, B rows or 1 for all.
            negative: the negative prompts, B rows or 1 for all; `null_condition(1)` where there is none.
            scale: s of E(n) + s (E(y) - E(n)), one number or [B].
            camera: poses, [B, 12], given to every row; only where `supports_camera`.
            null: the empty prompt, to get E(0) as well.
            rescale: strength of guidance rescaling, 0 for none.
            differentiable: whether gradients may flow through the network to `x_t`.

        Raises:
            TeacherError: shapes that don't fit, or a camera for a teacher that takes none.
        """
        conditions = [positive, negative] if null is None else [positive, negative, null]
        with _grad_mode(differentiable):
            outputs = self._run(x_t, t, conditions, camera)
            guided = guide(outputs[0], outputs[1], scale)
            if rescale:
                guided = guidance_rescale(guided, outputs[0], rescale)
            times = self._times(t)
            predictions = [
                self.schedule.convert(output, x_t, times, self.prediction_type) for output in (guided, *outputs)
            ]
        return GuidedPrediction(*predictions)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        steps: int,
        guidance: float,
        generator: torch.Generator,
        camera: Tensor | None = None,  # [B, 12]
        negative: str = "",
    ) -> Tensor:
        """Draw one image for each prompt with deterministic DDIM, [B, 3, image_size, image_size] in [0, 1].

        Args:
            prompts: B cleaned prompts.
            steps: network calls, at least 1.
            guidance: scale s of E(n) + s (E(y) - E(n)); 1 is no guidance.
            generator: source of the initial noise.
            camera: poses, [B, 12]; only where `supports_camera`.
            negative: negative prompt for all; empty for none.

        Raises:
            ConfigError: fewer than 1 step.
            TeacherError: a camera for a teacher that takes none.
        """
        positive = self.encode_prompt(prompts)
        against = self.encode_prompt([negative]) if negative else self.null_condition(1)
        noise = torch.randn(len(prompts), *self.sample_shape, generator=generator, device=generator.device)
        x = ddim(self, noise.to(self.device), positive, against, steps, guidance, camera, clip=self.clip)
        return self.decode(x)

    def _run(
        self, x_t: Tensor, t: Tensor | float, conditions: Sequence[Condition], camera: Tensor | None
    ) -> list[Tensor]:
        """Raw outputs [B, C, h, w] for each of k conditions, from one forward pass over k B rows."""
        batch, copies = x_t.shape[0], len(conditions)
        self._check_inputs(x_t, conditions, camera)
        joined = Condition.cat([c.repeat(batch) if len(c) == 1 else c for c in conditions])
        timestep = self.schedule.to_timestep(self._times(t)).expand(batch).repeat(copies)
        output = self._call(
            self.network,
            x_t.to(self.device, self.dtype).repeat(copies, 1, 1, 1),
            timestep,
            Condition(
                joined.embeddings.to(self.dtype),
                None if joined.pooled is None else joined.pooled.to(self.dtype),
                joined.extra,
            ),
            None if camera is None else camera.to(self.device, self.dtype).repeat(copies, 1),
        )
        self.calls += batch * copies
        # Models with a learned variance (DeepFloyd) append it to the mean's channels.
        return list(output[:, : self.sample_shape[0]].chunk(copies))

    def _times(self, t: Tensor | float) -> Tensor:
        """T as a tensor on the teacher's device; float64 for a number, so that it stays exact."""
        if isinstance(t, Tensor):
            return t.to(self.device)
        return torch.tensor(t, dtype=torch.float64, device=self.device)

    def _check_inputs(self, x_t: Tensor, conditions: Sequence[Condition], camera: Tensor | None) -> None:
        batch = x_t.shape[0]
        if tuple(x_t.shape[1:]) != self.sample_shape:
            raise TeacherError(f"{self.name} denoises samples of {self.sample_shape}, not {tuple(x_t.shape[1:])}.")
        for condition in conditions:
            if len(condition) not in (1, batch):
                raise TeacherError(f"{len(condition)} prompts were given for {batch} samples.")
        if camera is None:
            return
        if not self.supports_camera:
            raise TeacherError(
                f"{self.name} has no camera conditioning.",
                "Give no camera, and name the view in the prompt.",
            )
        if tuple(camera.shape) != (batch, POSE_WIDTH):
            raise TeacherError(f"Cameras are [{batch}, {POSE_WIDTH}], not {tuple(camera.shape)}.")


def _grad_mode(differentiable: bool) -> AbstractContextManager[Any]:
    return nullcontext() if differentiable else torch.no_grad()


def _resize(image: Tensor, size: int) -> Tensor:
    """Square images of `size` pixels, [B, 3, size, size]."""
    height, width = image.shape[2:]
    if (height, width) == (size, size):
        return image
    if height >= size and width >= size:
        return functional.interpolate(image, (size, size), mode="area")
    return functional.interpolate(image, (size, size), mode="bilinear", align_corners=False)
