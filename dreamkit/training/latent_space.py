"""The latent space of a teacher, handed to scenes that live in it: they know no teacher themselves."""

from functools import cache

from torch import Tensor

from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.teacher import Teacher
from dreamkit.scenes.latent_nerf import LatentSpace


def space_of(teacher: Teacher) -> LatentSpace:
    """What a teacher denoises; latents from any device come back to it as pictures."""

    def decode(x: Tensor) -> Tensor:
        return teacher.decode(x.to(teacher.device)).to(x.device)

    return LatentSpace(teacher.sample_shape, teacher.encode_image, decode)


@cache
def shared_teacher(name: str, device: str) -> Teacher:
    """A teacher that is loaded once for all scenes of a process, to encode and decode.

    Args:
        name: as the settings of a run give it.
        device: auto, cpu or cuda.

    Raises:
        TeacherError: it can't be loaded.
    """
    return load_teacher(name, device)


def space_when_asked(teacher: str, device: str, shape: tuple[int, int, int]) -> LatentSpace:
    """The space of a teacher that is loaded when somebody looks.

    Args:
        teacher: as the settings of a run name it.
        device: auto, cpu or cuda.
        shape: (C, h, w) of its samples.
    """
    return LatentSpace(
        shape,
        lambda image: space_of(shared_teacher(teacher, device)).encode(image),
        lambda x: space_of(shared_teacher(teacher, device)).decode(x),
    )
