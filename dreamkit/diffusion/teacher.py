"""A teacher: a frozen diffusion model that is asked which way a sample should move.

Images outside a teacher are float32 [B, 3, H, W] in [0, 1]. Inside, x is what the model denoises: pixels in [-1, 1],
or the latent of a variational autoencoder. `encode_image` goes from one to the other with gradients; `predict`,
`predict_all` and `predict_guided` do not track gradients unless asked to.

Whatever is asked at once goes through the model in ONE forward pass: a `Query` is a batch of noisy samples with their
prompts, and a pass takes any number of queries.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import GuidedPrediction, Repulsion, guidance_rescale, guide, repelled
from dreamkit.diffusion.sampling import SampleClip, ddim
from dreamkit.diffusion.schedule import NoiseSchedule, Prediction, PredictionKind
from dreamkit.errors import TeacherError

__all__ = ["Condition", "GuidedPrediction", "Prediction", "Query", "Teacher"]

POSE_WIDTH = 12  # camera_to_world[:3, :4], row-major


@dataclass(frozen=True)
class Query:
    """A batch of noisy samples, and what they are taken for.

    Args:
        x_t: noisy samples, [B, C, h, w].
        t: their noise level, [B] or one number, in [0, 1].
        condition: their prompts, B rows or 1 for all.
        camera: camera_to_world[:3, :4] row-major, [B, 12]; a row of zeros is no camera.
        reference: noisy samples of an image that these should resemble, at the same t, [B, C, h, w].
    """

    x_t: Tensor  # [B, C, h, w]
    t: Tensor | float  # [B] or one number
    condition: Condition
    camera: Tensor | None = None  # [B, 12]
    reference: Tensor | None = None  # [B, C, h, w]

    def __len__(self) -> int:
        return self.x_t.shape[0]


class Teacher(ABC):
    """A frozen text-to-image diffusion model.

    Attributes:
        name: what the user called it.
        schedule: the noise it was trained with.
        prediction_type: what it predicts: "eps", "x0", "v" or "flow".
        clip: how its samples are clipped while sampling; `None` for not at all.
        sample_shape: (C, h, w) of x.
        image_size: height and width in pixels of the images it knows.
        supports_camera: whether `camera` may be given.
        reads_pictures: whether its prompt is a picture, not a sentence.
        calls: number of samples that went through the model so far (a guided call counts each of its rows).
    """

    name: str
    schedule: NoiseSchedule
    prediction_type: PredictionKind
    clip: SampleClip | None = None
    sample_shape: tuple[int, int, int]
    image_size: int
    supports_camera: bool
    reads_pictures: bool = False
    calls: int = 0

    # What a kind of teacher has to say -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts, one row each.

        Raises:
            TeacherError: no prompt at all, or a bare string in place of a list.
        """

    @abstractmethod
    def null_condition(self, n: int = 1) -> Condition:
        """The condition that stands for "no prompt", n rows.

        Raises:
            TeacherError: this teacher was not trained without a prompt.
        """

    @abstractmethod
    def encode_image(
        self,
        image: Tensor,  # [B, 3, H, W] in [0, 1]
    ) -> Tensor:
        """Turn images into x, [B, C, h, w] float32, differentiably.

        Raises:
            TeacherError: not a batch of RGB images.
        """

    @abstractmethod
    def decode(
        self,
        x: Tensor,  # [B, C, h, w]
    ) -> Tensor:
        """Turn x into images, [B, 3, image_size, image_size] float32 in [0, 1]; the inverse of `encode_image`."""

    @abstractmethod
    def _forward(self, queries: Sequence[Query]) -> list[Tensor]:
        """Raw outputs of the kind `prediction_type`, shaped like each query's x_t, from one forward pass."""

    def encode_picture(
        self,
        picture: Tensor,  # [3 or 4, H, W] in [0, 1]
        pose: Tensor | None = None,  # [12]
    ) -> Condition:
        """Encode a picture that takes the place of the prompt, one row; only where `reads_pictures`.

        Args:
            picture: [3, H, W], or [4, H, W] with its transparency, which is laid on white; its middle square is read.
            pose: where it was taken from, camera_to_world[:3, :4] row-major; needed where `supports_camera`.

        Raises:
            TeacherError: this teacher reads words, or another shape, or a pose that is needed and not given.
        """
        raise TeacherError(f"{self.name} reads words, not pictures.", "Use a teacher with an image encoder.")

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt outside a closed vocabulary; `[]` for open-vocabulary teachers."""
        return []

    def content_words(self) -> list[str] | None:
        """The words of a closed vocabulary that mean something, sorted; `None` for open-vocabulary teachers."""
        return None

    def dropped_text(self, prompt: str) -> str:
        """The end of the prompt that does not fit in the text window, "" if all of it does."""
        return ""

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
        return self.predict_all([Query(x_t, t, condition, camera)], differentiable)[0]

    def predict_all(self, queries: Sequence[Query], differentiable: bool = False) -> list[Prediction]:
        """What the teacher believes about several batches, in one forward pass.

        Args:
            queries: the batches; each may have its own noise level, prompts and cameras.
            differentiable: whether gradients may flow through the network.

        Raises:
            TeacherError: as for `predict`.
        """
        with _grad_mode(differentiable):
            outputs = self._run(queries)
            return [self._convert(output, query) for output, query in zip(outputs, queries, strict=True)]

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
        reference: Tensor | None = None,  # [B, C, h, w]
        repulsion: Repulsion | None = None,
        also: Sequence[Query] = (),
    ) -> GuidedPrediction:
        """Predict with classifier-free guidance, everything in one forward pass.

        Args:
            x_t: noisy samples, [B, C, h, w].
            t: their noise level, [B] or one number for all.
            positive: the prompts, B rows or 1 for all.
            negative: the negative prompts, B rows or 1 for all; `null_condition(1)` where there is none.
            scale: s of E(n) + s (E(y) - E(n)), one number or [B].
            camera: poses, [B, 12], given to every row; only where `supports_camera`.
            null: the empty prompt, to get E(0) as well; the very object given as `negative` costs nothing.
            rescale: strength of guidance rescaling, 0 for none.
            differentiable: whether gradients may flow through the network to `x_t`.
            reference: the image that E(y) should resemble, noised to t like `x_t`.
            repulsion: views that the guided prediction is pushed away from (Perp-Neg).
            also: other questions for the same pass; answered in `GuidedPrediction.also`.

        Raises:
            TeacherError: shapes that don't fit, or a camera or reference for a teacher that takes none.
        """
        asked = [Query(x_t, t, positive, camera, reference), Query(x_t, t, negative, camera)]
        with_null = null is not None and null is not negative
        if null is not None and with_null:
            asked.append(Query(x_t, t, null, camera))
        repelling = () if repulsion is None else repulsion.conditions
        asked.extend(Query(x_t, t, condition, camera) for condition in repelling)
        with _grad_mode(differentiable):
            outputs = self._run([*asked, *also])
            guided = guide(outputs[0], outputs[1], scale)
            if repulsion is not None:
                views = outputs[len(asked) - len(repelling) : len(asked)]
                guided = repelled(guided, outputs[0], outputs[1], views, repulsion.weights, scale)
            if rescale:
                guided = guidance_rescale(guided, outputs[0], rescale)
            answers = [self._convert(o, query) for o, query in zip(outputs, [*asked, *also], strict=True)]
            return GuidedPrediction(
                guided=self._convert(guided, asked[0]),
                positive=answers[0],
                negative=answers[1],
                null=None if null is None else answers[2 if with_null else 1],
                also=answers[len(asked) :],
            )

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

    def _run(self, queries: Sequence[Query]) -> list[Tensor]:
        """Raw outputs of checked queries; counts their rows."""
        for query in queries:
            self._check_query(query)
        self.calls += sum(len(query) for query in queries)
        return self._forward(queries)

    def _convert(self, output: Tensor, query: Query) -> Prediction:
        return self.schedule.convert(output, query.x_t, self._times(query.t), self.prediction_type)

    def _times(self, t: Tensor | float) -> Tensor:
        """T as a tensor on the teacher's device; float64 for a number, so that it stays exact."""
        if isinstance(t, Tensor):
            return t.to(self.device)
        return torch.tensor(t, dtype=torch.float64, device=self.device)

    def _check_query(self, query: Query) -> None:
        batch = len(query)
        if tuple(query.x_t.shape[1:]) != self.sample_shape:
            raise TeacherError(
                f"{self.name} denoises samples of {self.sample_shape}, not {tuple(query.x_t.shape[1:])}."
            )
        if len(query.condition) not in (1, batch):
            raise TeacherError(f"{len(query.condition)} prompts were given for {batch} samples.")
        if query.reference is not None and query.reference.shape != query.x_t.shape:
            raise TeacherError(
                f"The reference image has shape {tuple(query.reference.shape)} for samples of {tuple(query.x_t.shape)}."
            )
        if query.camera is None:
            return
        if not self.supports_camera:
            raise TeacherError(
                f"{self.name} has no camera conditioning.",
                "Give no camera, and name the view in the prompt.",
            )
        if tuple(query.camera.shape) != (batch, POSE_WIDTH):
            raise TeacherError(f"Cameras are [{batch}, {POSE_WIDTH}], not {tuple(query.camera.shape)}.")


def _grad_mode(differentiable: bool) -> AbstractContextManager[Any]:
    return nullcontext() if differentiable else torch.no_grad()
