"""The layer of Zero123 that joins a picture's embedding with a camera, under the names that folders give it.

Ordinary diffusers models: `save_pretrained` / `from_pretrained` and a config. The classes are defined by community
code, not by diffusers; these read the same files.
"""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class CCProjection(ModelMixin, ConfigMixin):
    """One linear layer, `projection`: that of diffusers' community pipeline `Zero1to3StableDiffusionPipeline`.

    Args:
        in_channel: features of the embedding, and 4 of the camera.
        out_channel: features of the token that the network reads.
    """

    @register_to_config
    def __init__(self, in_channel: int = 772, out_channel: int = 768) -> None:
        super().__init__()
        self.projection = nn.Linear(in_channel, out_channel)

    def forward(self, features: Tensor) -> Tensor:
        """Tokens [..., out_channel] of features [..., in_channel]."""
        return self.projection(features)


class CLIPCameraProjection(ModelMixin, ConfigMixin):
    """The same layer called `proj`: that of the `Zero123Pipeline` folders of threestudio and DreamGaussian.

    Args:
        embedding_dim: features of the embedding, and of the token that the network reads.
        additional_embeddings: features of the camera.
    """

    @register_to_config
    def __init__(self, embedding_dim: int = 768, additional_embeddings: int = 4) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding_dim + additional_embeddings, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Tokens [..., embedding_dim] of features [..., embedding_dim + additional_embeddings]."""
        return self.proj(features)
