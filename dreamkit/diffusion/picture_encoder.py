"""From a picture to a `Condition`, for networks that were trained to read a picture where others read a sentence.

Stable Diffusion Image Variations, as diffusers' `StableDiffusionImageVariationPipeline` does it: the cross-attention
reads one token, CLIP's projected embedding of the picture; "no picture" is a token of zeros. The folder has an
`image_encoder` (`CLIPVisionModelWithProjection`) and a `feature_extractor` in the place of the text's parts.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.diffusion.condition import Condition
from dreamkit.errors import TeacherError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class PictureEncoder:
    """A frozen image encoder, in the role that `PromptEncoder` has for sentences.

    Args:
        encoder: a transformers `CLIPVisionModelWithProjection`.
        mean: of the colours [R, G, B] that it was trained on.
        std: their standard deviations.
    """

    def __init__(self, encoder: Any, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> None:
        self.encoders = [encoder]
        self._encoder = encoder
        self._mean = torch.tensor(mean).reshape(3, 1, 1)
        self._std = torch.tensor(std).reshape(3, 1, 1)

    @property
    def width(self) -> int:
        """Number of features D of the token that the network reads."""
        return self.embedding_width

    @property
    def embedding_width(self) -> int:
        """Number of features of an embedded picture."""
        return int(self._encoder.config.projection_dim)

    @torch.no_grad()
    def encode_picture(
        self,
        picture: Tensor,  # [3 or 4, H, W] in [0, 1]
        pose: Tensor | None = None,  # [12]
    ) -> Condition:
        """The condition that stands for a picture, one row: [1, 1, D].

        Args:
            picture: [3, H, W], or [4, H, W] with its transparency, in [0, 1]; see `square_on_white`.
            pose: where it was taken from, camera_to_world[:3, :4] row-major; read by models that need it.

        Raises:
            TeacherError: another shape.
        """
        return Condition(self._embedding(square_on_white(picture)))

    def null(self, n: int) -> Condition:
        """The condition that stands for "no picture": zeros, [n, 1, D]."""
        weights = next(self._encoder.parameters())
        return Condition(weights.new_zeros(n, 1, self.embedding_width))

    def encode(self, prompts: Sequence[str]) -> NoReturn:
        """Refuse prompts.

        Raises:
            TeacherError: always.
        """
        raise TeacherError(
            "This teacher reads a picture, not words.",
            "Make 3D from a picture with it: dreamkit generate NAME --teacher FOLDER --pictures FILE.",
        )

    def unknown_words(self, prompt: str) -> list[str]:
        """None: the words are only a name."""
        return []

    def content_words(self) -> list[str] | None:
        """No vocabulary."""
        return None

    def dropped_text(self, prompt: str) -> str:
        """Nothing: no text is read."""
        return ""

    def _embedding(self, image: Tensor) -> Tensor:
        """CLIP's projected embedding of square images [B, 3, S, S] in [0, 1]: [B, 1, D]."""
        weights = next(self._encoder.parameters())
        pixels = self._pixels(image.float(), int(self._encoder.config.image_size))
        pixels = (pixels - self._mean.to(pixels)) / self._std.to(pixels)
        return self._encoder(pixels.to(weights)).image_embeds[:, None]

    def _pixels(self, image: Tensor, size: int) -> Tensor:
        """Images of the encoder's size, as its feature extractor makes them: bicubic, antialiased."""
        return functional.interpolate(image, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def square_on_white(
    picture: Tensor,  # [3 or 4, H, W] in [0, 1]
) -> Tensor:
    """The middle square of a picture, as high as the picture, on white: [1, 3, H, H].

    Models that read pictures were trained on white backgrounds. Cameras are told apart by their vertical field of
    view, so what is seen in the square is what a square view of the same camera shows.

    Args:
        picture: [3, H, W], or [4, H, W] with its transparency; a narrow one gets white beside it.

    Raises:
        TeacherError: another shape.
    """
    if picture.ndim != 3 or picture.shape[0] not in (3, 4) or 0 in picture.shape:
        raise TeacherError(f"A picture is [3, H, W], or [4, H, W] with transparency, not {tuple(picture.shape)}.")
    colour = picture[:3]
    if len(picture) == 4:
        colour = colour * picture[3:] + (1 - picture[3:])
    height, width = colour.shape[1:]
    left = (height - width) // 2  # below zero: columns too many
    return functional.pad(colour, (left, height - width - left), value=1.0)[None]


def resized(
    image: Tensor,  # [B, 3, H, W]
    size: int,
) -> Tensor:
    """Square images of `size` pixels, [B, 3, size, size]: averaged over areas when shrinking, bilinear when growing."""
    height, width = image.shape[2:]
    if (height, width) == (size, size):
        return image
    if height >= size and width >= size:
        return functional.interpolate(image, (size, size), mode="area")
    return functional.interpolate(image, (size, size), mode="bilinear", align_corners=False)
