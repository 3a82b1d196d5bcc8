"""From a teacher's name to a folder on this machine: the embedded one, a path, or a download from a model hub."""

import importlib.resources
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dreamkit.errors import TeacherError

EMBEDDED = "toyworld"
INDEX_FILE = "model_index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack")

# The folders a supported pipeline is made of; a repository's other files (demos, single-file copies) stay there.
COMPONENTS = (
    "scheduler",
    "tokenizer",
    "tokenizer_2",
    "text_encoder",
    "text_encoder_2",
    "unet",
    "denoiser",
    "transformer",
    "vae",
    "image_encoder",
    "feature_extractor",
    "cc_projection",
    "clip_camera_projection",
)
_SMALL_SUFFIXES = (".json", ".txt", ".model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[a-z]\w*))?(?:-\d+-of-\d+)?\.safetensors")
_HUB_TIMEOUT = 10.0  # seconds until the hub counts as unreachable


def teacher_folder(name: str, prefer_half: bool = False) -> Path:
    """Find the folder of a teacher, downloading it if its name is a hub id.

    Args:
        name: "toyworld" for the embedded teacher, the path of a folder in diffusers layout, or a hub id OWNER/NAME.
        prefer_half: download half-precision weights where the repository has both.

    Raises:
        TeacherError: nothing of that name exists, or the hub does not answer or does not have it.
    """
    if name == EMBEDDED:
        return _embedded_folder()
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise TeacherError(f"The teacher {name!r} is a file.", _what_a_teacher_is())
    if _HUB_ID.fullmatch(name):
        return _download(name, prefer_half)
    raise TeacherError(f"There is no teacher {name!r}.", _what_a_teacher_is())


def pick_variant(files: Iterable[str], prefer_half: bool = False) -> str | None:
    """Choose among the weights of one component folder.

    Args:
        files: file names in the folder.
        prefer_half: take "fp16" where it exists beside the full weights.

    Returns:
        `None` for the plain safetensors weights, or the name of a variant, such as "fp16".

    Raises:
        FileNotFoundError: the folder has no safetensors weights.
    """
    matches = [match for match in map(_WEIGHTS.fullmatch, files) if match]
    variants = sorted({match["variant"] or "" for match in matches})
    if not variants:
        raise FileNotFoundError("no safetensors weights")
    if "fp16" in variants and (prefer_half or "" not in variants):
        return "fp16"
    return variants[0] or None


def wanted_files(files: Sequence[str], prefer_half: bool = False) -> list[str]:
    """The files of a repository that a teacher is loaded from: its index, configurations and one set of weights.

    Args:
        files: paths inside the repository.
        prefer_half: take half-precision weights where both are there.
    """
    wanted = [INDEX_FILE]
    for component in COMPONENTS:
        inside = [file for file in files if file.startswith(f"{component}/") and file.count("/") == 1]
        names = [file.partition("/")[2] for file in inside]
        try:
            variant = pick_variant(names, prefer_half)
        except FileNotFoundError:
            variant = None
        for file, file_name in zip(inside, names, strict=True):
            weights = _WEIGHTS.fullmatch(file_name)
            if file.endswith(_SMALL_SUFFIXES) or (weights and weights["variant"] == variant):
                wanted.append(file)
    return wanted


def _what_a_teacher_is() -> str:
    return (
        f'A teacher is "{EMBEDDED}" (embedded, works offline), the path of a folder in diffusers layout '
        f"(with {INDEX_FILE} and safetensors weights), or a hub id such as OWNER/NAME."
    )


def _embedded_folder() -> Path:
    folder = Path(str(importlib.resources.files("dreamkit_assets"))) / "toyworld-teacher"
    if not folder.is_dir():
        raise TeacherError(
            f"The embedded teacher is missing from this installation ({folder}).",
            "Reinstall dreamkit, or train one: dreamkit teachers train image.",
        )
    return folder


def _download(hub_id: str, prefer_half: bool) -> Path:
    """Fetch a repository's pipeline into the hub's cache; without a network, use what the cache has."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        listing = HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT).siblings or []
        files = [entry.rfilename for entry in listing]
        if INDEX_FILE not in files:
            raise TeacherError(
                f"The hub's {hub_id} has no {INDEX_FILE}, so it is not in diffusers layout.",
                "Use a repository that diffusers' from_pretrained loads.",
            )
        return Path(snapshot_download(hub_id, allow_patterns=wanted_files(files, prefer_half)))
    except TeacherError:
        raise
    except GatedRepoError as error:
        raise TeacherError(
            f"The hub asks for an agreement before it gives out {hub_id}.",
            "Accept it on the model's page and log in with: hf auth login.",
        ) from error
    except RepositoryNotFoundError as error:
        raise TeacherError(
            f"There is no folder {hub_id!r} here and the hub has no public model of that name.",
            _what_a_teacher_is(),
        ) from error
    # The hub's client lets through whatever its HTTP library raises, and that library changes between versions.
    except Exception as error:
        try:
            return Path(snapshot_download(hub_id, local_files_only=True))
        except OSError:
            raise TeacherError(
                f"There is no folder {hub_id!r} here and the model hub can't be reached ({_first_line(error)}).",
                "Download the model's folder on a machine with a network and pass its path: --teacher PATH.",
            ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
