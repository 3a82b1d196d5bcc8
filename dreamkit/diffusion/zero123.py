"""Zero123: a picture and where the camera goes from there (Liu et al., "Zero-1-to-3", arXiv 2303.11328).

The cross-attention reads one token, a linear projection of

    [CLIP's embedding of the picture, polar_b - polar_a, sin(azimuth_b - azimuth_a), cos(...), radius_b - radius_a]

for a picture taken from camera a and a view from camera b; polar = 90 degrees - elevation, angles in radians. The
network takes, beside the noisy latents, the latents of the picture: the mode of the autoencoder's posterior, not
scaled. "No picture" is a token of zeros, after the projection, and latents of zeros.

Layout of the folder, that of diffusers' community pipeline `Zero1to3StableDiffusionPipeline` (Zero123, Zero123-XL):

    vae/              AutoencoderKL
    image_encoder/    CLIPVisionModelWithProjection
    unet/             UNet2DConditionModel, in_channels twice the autoencoder's latent_channels
    cc_projection/    CCProjection: config.json (in_channel 772, out_channel 768, which are the defaults),
                      diffusion_pytorch_model.safetensors (projection.weight, projection.bias)
    scheduler/        scheduler_config.json
    model_index.json  names them

or with `clip_camera_projection/` (CLIPCameraProjection: proj.weight, proj.bias) for the layer. A feature_extractor is
not read: as in that pipeline, CLIP sees the picture the way Zero123's own training showed it. Stable Zero123 has the
same layout but another fourth number (the picture's polar angle), which no folder tells: it is not supported.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.picture_encoder import PictureEncoder, resized, square_on_white
from dreamkit.diffusion.teacher import POSE_WIDTH
from dreamkit.errors import TeacherError

CAMERA_FEATURES = 4
_LATENTS, _POSE = "source_latents", "source_pose"


class Zero123Encoder(PictureEncoder):
    """The image encoder, the projection and the autoencoder of a Zero123 model.

    A `Condition` of it carries the picture's embedding, "source_latents" [B, C, h, w] and "source_pose" [B, 12]; the
    projection waits for the camera of the view, so that it is part of `call`.

    Args:
        encoder: a transformers `CLIPVisionModelWithProjection`.
        projection: features [B, 1, D + 4] -> tokens [B, 1, D'].
        vae: the autoencoder.
        sample_shape: (C, h, w) of its latents.
        image_size: height and width in pixels of the pictures the model knows.

    Raises:
        TeacherError: the projection is of another image encoder.
    """

    def __init__(
        self,
        encoder: Any,
        projection: Any,
        vae: Any,
        sample_shape: tuple[int, int, int],
        image_size: int,
    ) -> None:
        super().__init__(encoder)
        self.encoders = [encoder, projection]
        self._projection = projection
        self._vae = vae
        self._sample_shape = sample_shape
        self._image_size = image_size
        self._token_width, features = map(int, next(projection.parameters()).shape)
        if features != self.embedding_width + CAMERA_FEATURES:
            raise TeacherError(
                f"The camera projection reads {features} features where the image encoder's {self.embedding_width} "
                f"and the camera's {CAMERA_FEATURES} are expected.",
                "The parts belong to different models; download the folder again.",
            )

    @property
    def width(self) -> int:
        """Number of features D' of the token that the network reads."""
        return self._token_width

    @torch.no_grad()
    def encode_picture(
        self,
        picture: Tensor,  # [3 or 4, H, W] in [0, 1]
        pose: Tensor | None = None,  # [12]
    ) -> Condition:
        """The condition that stands for a picture taken from a camera, one row.

        Args:
            picture: [3, H, W], or [4, H, W] with its transparency, in [0, 1]; see `square_on_white`.
            pose: where it was taken from, camera_to_world[:3, :4] row-major.

        Raises:
            TeacherError: another shape, or no pose.
        """
        if pose is None or pose.numel() != POSE_WIDTH:
            raise TeacherError(
                "This teacher reads a picture together with the camera it was taken from, and there is none.",
                f"Give its pose, {POSE_WIDTH} numbers.",
            )
        image = resized(square_on_white(picture).float(), self._image_size)
        latents = self._vae.encode((image * 2 - 1).to(self._vae.dtype)).latent_dist.mode()
        extra = {_LATENTS: latents.float(), _POSE: pose.reshape(1, POSE_WIDTH).to(latents.device, torch.float32)}
        return Condition(self._embedding(image), extra=extra)

    def null(self, n: int) -> Condition:
        """The condition that stands for "no picture": zeros."""
        empty = super().null(n).embeddings
        extra = {
            _LATENTS: empty.new_zeros(n, *self._sample_shape, dtype=torch.float32),
            _POSE: empty.new_zeros(n, POSE_WIDTH, dtype=torch.float32),
        }
        return Condition(empty, extra=extra)

    def tokens(self, condition: Condition, camera: Tensor | None) -> Tensor:
        """What the cross-attention reads, [B, 1, D'].

        A row that has no picture, or no camera (zeros), reads zeros: all that the network was trained to read where it
        is not told what to show.

        Args:
            condition: B pictures.
            camera: of the views, [B, 12].
        """
        embeddings = condition.embeddings
        if camera is None:
            return embeddings.new_zeros(len(condition), 1, self._token_width)
        # In half precision the picture's own view must stay exactly its own view.
        source = condition.extra[_POSE].to(camera.dtype)
        features = relative_camera(camera, source).to(embeddings)
        projected = self._projection(torch.cat([embeddings, features[:, None]], dim=-1))
        given = camera.abs().sum(dim=1).bool() & source.abs().sum(dim=1).bool()
        return torch.where(given[:, None, None], projected, torch.zeros_like(projected))

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, camera: Tensor | None) -> Tensor:
        """Run the U-Net on the noisy latents, with the picture's latents as further channels."""
        source = condition.extra[_LATENTS].to(x)
        tokens = self.tokens(condition, camera)
        return network(torch.cat([x, source], dim=1), timestep, encoder_hidden_states=tokens, return_dict=False)[0]

    def _pixels(self, image: Tensor, size: int) -> Tensor:
        """As Zero123 was trained: from corner to corner, without antialiasing."""
        return functional.interpolate(image, (size, size), mode="bicubic", align_corners=True)


def relative_camera(
    camera: Tensor,  # [B, 12]
    source: Tensor,  # [B, 12]
) -> Tensor:
    """[polar_b - polar_a, sin(azimuth_b - azimuth_a), cos(...), radius_b - radius_a] of views b and pictures a, [B, 4].

    Angles are seen from the origin, in radians; the world has y up, azimuth 0 at +z and 90 degrees at +x. (Zero123's
    own has z up and azimuths from x to y; they grow the same way round, and only differences count.)

    Args:
        camera: poses of the views, camera_to_world[:3, :4] row-major.
        source: poses of the pictures.
    """
    elevation, azimuth, radius = _spherical(camera.float())
    source_elevation, source_azimuth, source_radius = _spherical(source.float())
    turn = azimuth - source_azimuth
    return torch.stack([source_elevation - elevation, turn.sin(), turn.cos(), radius - source_radius], dim=-1)


def _spherical(pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Elevation and azimuth in radians and distance to the origin, each [B], of poses [B, 12]."""
    x, y, z = pose[:, 3], pose[:, 7], pose[:, 11]
    horizontal, radius = torch.hypot(x, z), pose[:, 3::4].norm(dim=1)
    # Straight above the origin the position says nothing of the azimuth; the camera's right axis does.
    at_pole = horizontal < 1e-5 * radius
    azimuth = torch.where(at_pole, torch.atan2(-pose[:, 8], pose[:, 0]), torch.atan2(x, z))
    return torch.atan2(y, horizontal), azimuth, radius
