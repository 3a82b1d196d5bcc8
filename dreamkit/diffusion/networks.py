"""The denoising networks a teacher may have: how each one is imported, checked and called."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.errors import TeacherError

# (network, x_t [B, C, h, w], timestep [B], condition of B, camera [B, 12] or None) -> raw output [B, C', h, w]
NetworkCall = Callable[[Any, Tensor, Tensor, Condition, Tensor | None], Tensor]


@dataclass(frozen=True)
class NetworkSupport:
    """How a network class is used.

    Args:
        module: where the class lives.
        call: runs it.
        check: raises `TeacherError` for configurations of the class that need inputs no teacher has.
        gpu_dtype: compute dtype on a GPU when the user names none.
    """

    module: str
    call: NetworkCall
    check: Callable[[Any], None]
    gpu_dtype: torch.dtype

    def import_class(self, name: str) -> Any:
        """The class itself; this is where diffusers is first imported."""
        return getattr(importlib.import_module(self.module), name)


def call_unet(network: Any, x: Tensor, timestep: Tensor, condition: Condition, camera: Tensor | None) -> Tensor:
    """Run a `UNet2DConditionModel`, with SDXL's pooled text and time ids where the condition has them."""
    added = None
    if condition.pooled is not None:
        added = {"text_embeds": condition.pooled, "time_ids": condition.extra["time_ids"]}
    return network(
        x,
        timestep,
        encoder_hidden_states=condition.embeddings,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def call_hourglass(network: Any, x: Tensor, timestep: Tensor, condition: Condition, camera: Tensor | None) -> Tensor:
    """Run our `HourglassTransformer`, with the camera pose if one is given."""
    return network(x, timestep, encoder_hidden_states=condition.embeddings, camera=camera, return_dict=False)[0]


def check_unet(network: Any) -> None:
    """Refuse U-Nets that take more than a noisy sample, a time and a text: upscalers, inpainting, image variations."""
    config = network.config
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise TeacherError(
            "This U-Net needs class labels or a noise level besides the text (an upscaler or image-variation model).",
            "Use the base text-to-image model, for DeepFloyd the first stage.",
        )
    if config.addition_embed_type not in (None, "text", "text_time"):
        raise TeacherError(
            f"This U-Net needs an additional input of type {config.addition_embed_type!r}, which no prompt gives.",
            "Use a text-to-image model.",
        )


def check_hourglass(network: Any) -> None:
    """Accept every `HourglassTransformer`."""


NETWORKS: dict[str, NetworkSupport] = {
    "UNet2DConditionModel": NetworkSupport("diffusers", call_unet, check_unet, torch.float16),
    "HourglassTransformer": NetworkSupport(
        "dreamkit.diffusion.hourglass", call_hourglass, check_hourglass, torch.bfloat16
    ),
}


def needs_time_ids(network: Any) -> bool:
    """Whether the network is conditioned the SDXL way: pooled text and time ids besides the tokens."""
    return getattr(network.config, "addition_embed_type", None) == "text_time"


def takes_camera(network: Any) -> bool:
    """Whether the network can be told the camera's pose."""
    return bool(getattr(network.config, "camera_conditioning", False))


def text_width(network: Any) -> int:
    """Number of features of a text token the network expects."""
    config = network.config
    width = getattr(config, "encoder_hid_dim", None) or config.cross_attention_dim
    return int(width[0] if isinstance(width, (list, tuple)) else width)


def sample_size(network: Any) -> tuple[int, int]:
    """(height, width) of the network's input, in its own pixels.

    Raises:
        TeacherError: the configuration names none.
    """
    size = network.config.sample_size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, int) and size > 0:
        return size, size
    raise TeacherError(f"The network's configuration has no usable sample_size: {size!r}.")
