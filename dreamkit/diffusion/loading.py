"""Loading a teacher: one path for the embedded model, any folder in diffusers layout, and a hub id.

Weights are read from safetensors only, and no code that comes with a model is ever run: every class is one that
diffusers, transformers or this package defines, named in a table below.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreamkit.diffusion.hub import INDEX_FILE, PICKLE_SUFFIXES, pick_variant, teacher_folder
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.networks import NETWORKS, NetworkSupport, needs_time_ids, sample_size, text_width
from dreamkit.diffusion.picture_encoder import CLIP_MEAN, CLIP_STD, PictureEncoder
from dreamkit.diffusion.sampling import SampleClip
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.diffusion.scheduler_config import prediction_kind
from dreamkit.diffusion.students import STUDENT_KEY, NetworkStudent, StudentConfig
from dreamkit.diffusion.text import PromptEncoder
from dreamkit.diffusion.zero123 import Zero123Encoder
from dreamkit.errors import TeacherError

_NETWORK_KEYS = ("unet", "denoiser", "transformer")
_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
_TOKENIZERS = (
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)
_AUTOENCODERS = ("AutoencoderKL",)
_IMAGE_ENCODERS = ("CLIPVisionModelWithProjection",)
_PROJECTIONS = {"cc_projection": "CCProjection", "clip_camera_projection": "CLIPCameraProjection"}


@dataclass(frozen=True)
class _Folder:
    """A model folder and what its index says is in it."""

    path: Path
    classes: Mapping[str, str]  # component -> class name
    options: Mapping[str, Any]  # the pipeline's own settings

    def class_of(self, component: str, supported: tuple[str, ...]) -> str:
        """The component's class name, checked against the supported ones."""
        if component not in self.classes:
            raise TeacherError(
                f"The index of {self.path} names no {component}.", f"Supported are: {', '.join(supported)}."
            )
        name = self.classes[component]
        if name not in supported:
            raise TeacherError(
                f"The {component} of {self.path} is a {name}, which is not supported.",
                f"Supported are: {', '.join(supported)}.",
            )
        return name

    def subfolder(self, component: str) -> Path:
        """The component's folder, checked to exist."""
        path = self.path / component
        if not path.is_dir():
            raise TeacherError(
                f"The teacher in {self.path} lacks its {component} folder.",
                f"{INDEX_FILE} asks for it; copy or download the folder again.",
            )
        return path


def load_teacher(
    name: str = "toyworld",
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
) -> NetworkTeacher:
    """Load a frozen teacher; of a student's folder a `NetworkStudent`, which is sampled in its own few steps.

    Args:
        name: "toyworld" for the embedded teacher, the path of a folder in diffusers layout, or a hub id OWNER/NAME.
        device: "auto" for a GPU if there is one, "cpu", "cuda" or "cuda:N".
        dtype: compute dtype of the network and of what reads text or pictures; by default float32 on a CPU and, on a
            GPU, float16 for a U-Net and bfloat16 for the embedded network. The autoencoder is always float32: SDXL's
            overflows in half precision, and so do gradients through it.

    Raises:
        TeacherError: no such teacher, a part missing or unreadable, a class that is not supported, weights that are
            pickled, incomplete or not finite, or a device that is not there.
    """
    target = resolve_device(device)
    folder = _read_index(teacher_folder(name, prefer_half=dtype == torch.float16 or target.type == "cuda"))
    key, network_class = _network_of(folder)
    support = NETWORKS[network_class]
    if dtype is None:
        dtype = support.gpu_dtype if target.type == "cuda" else torch.float32
    scheduler = _read_json(folder.subfolder("scheduler") / "scheduler_config.json")
    schedule, kind = _read_schedule(folder, scheduler)
    with _quiet_libraries():
        network = _load_network(folder, key, network_class, support, target, dtype)
        vae = None
        if "vae" in folder.classes:
            vae_class = folder.class_of("vae", _AUTOENCODERS)
            vae = _load_weights(folder, "vae", _import_from("diffusers", vae_class), target, torch.float32)
        prompts: PromptEncoder | PictureEncoder
        if _reads_pictures(folder):
            prompts = _load_pictures(folder, network, vae, target, dtype)
        else:
            prompts = _load_text(folder, network, vae, target, dtype)
    _check_widths(folder, network, vae, prompts)
    student = _student_in(folder)
    make: Callable[..., NetworkTeacher] = NetworkTeacher if student is None else partial(NetworkStudent, student)
    return make(
        name=name,
        network=network,
        call=prompts.call if isinstance(prompts, Zero123Encoder) else support.call,
        schedule=schedule,
        prediction_type=kind,
        prompts=prompts,
        vae=vae,
        clip=SampleClip.from_diffusers(scheduler) if vae is None else None,
    )


def student_config(name: str, device: str | torch.device = "auto") -> StudentConfig | None:
    """How a teacher is sampled if it is a student; `None` for any other. Only its index is read.

    Args:
        name: as for `load_teacher`; what a hub id names is downloaded, and `load_teacher` will find it.
        device: where it will be loaded.

    Raises:
        TeacherError: no such teacher or device, or an index that can't be read.
    """
    return _student_in(_read_index(teacher_folder(name, prefer_half=resolve_device(device).type == "cuda")))


def network_component(folder: Path) -> str:
    """The component of a pipeline folder that denoises: "unet", "denoiser" or "transformer".

    Raises:
        TeacherError: there is none that is supported.
    """
    return _network_of(_read_index(folder))[0]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turn "auto" into a GPU if there is one, else the CPU; check that an explicit device exists.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or a `torch.device`.

    Raises:
        TeacherError: not a device, or one this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise TeacherError(f"{device!r} is not a device.", "Use auto, cpu, cuda or cuda:N.") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise TeacherError(
            f"The device {device!s} is not available: torch sees {found} CUDA devices.",
            "Use --device auto or cpu; dreamkit doctor shows what is there.",
        )
    return resolved


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TeacherError(
            f"The teacher lacks the file {path}.", "A teacher is a folder in diffusers layout."
        ) from error
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"The file {path} can't be read as JSON ({_first_line(error)}).", "Download it again."
        ) from error
    if not isinstance(content, dict):
        raise TeacherError(f"The file {path} holds no JSON object.", "Download it again.")
    return content


def _read_index(path: Path) -> _Folder:
    """model_index.json: {"unet": ["diffusers", "UNet2DConditionModel"], ...} plus the pipeline's settings."""
    classes: dict[str, str] = {}
    options: dict[str, Any] = {}
    for key, value in _read_json(path / INDEX_FILE).items():
        if isinstance(value, list) and len(value) == 2:
            if isinstance(value[1], str):
                classes[key] = value[1]
        elif not key.startswith("_"):
            options[key] = value
    return _Folder(path, classes, options)


def _student_in(folder: _Folder) -> StudentConfig | None:
    """The settings of a student that the index holds, if it does."""
    if STUDENT_KEY not in folder.options:
        return None
    return StudentConfig.parse(folder.options[STUDENT_KEY], folder.path)


def _network_of(folder: _Folder) -> tuple[str, str]:
    """The component that denoises, and its class."""
    for key in _NETWORK_KEYS:
        if key in folder.classes:
            return key, folder.class_of(key, tuple(NETWORKS))
    raise TeacherError(
        f"The index of {folder.path} names no denoising network ({', '.join(_NETWORK_KEYS)}).",
        f"Supported are: {', '.join(NETWORKS)}.",
    )


def _read_schedule(folder: _Folder, config: Mapping[str, Any]) -> tuple[NoiseSchedule, Any]:
    try:
        return NoiseSchedule.from_diffusers(config), prediction_kind(config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise TeacherError(
            f"The scheduler configuration of {folder.path} has a value of the wrong kind ({_first_line(error)}).",
            "Download it again.",
        ) from error


def _load_network(
    folder: _Folder,
    key: str,
    network_class: str,
    support: NetworkSupport,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    network = _load_weights(folder, key, support.import_class(network_class), device, dtype)
    support.check(network)
    return network


def _load_text(folder: _Folder, network: Any, vae: Any, device: torch.device, dtype: torch.dtype) -> PromptEncoder:
    """One text encoder, or SDXL's two where the network asks for pooled text."""
    is_dual = needs_time_ids(network)
    suffixes = ("", "_2") if is_dual else ("",)
    encoders, tokenizers = [], []
    for suffix in suffixes:
        supported = ("CLIPTextModelWithProjection",) if suffix else _TEXT_ENCODERS
        encoder_class = folder.class_of(f"text_encoder{suffix}", supported)
        encoder_type = _import_from("transformers", encoder_class)
        encoders.append(_load_weights(folder, f"text_encoder{suffix}", encoder_type, device, dtype))
        tokenizers.append(_load_tokenizer(folder, f"tokenizer{suffix}"))
    if not is_dual:
        return PromptEncoder(tokenizers, encoders)
    zero_null = bool(folder.options.get("force_zeros_for_empty_prompt", True))
    return PromptEncoder(tokenizers, encoders, _image_size(network, vae), zero_null)


def _image_size(network: Any, vae: Any) -> tuple[int, int]:
    """(height, width) in pixels of the images the network knows."""
    factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = sample_size(network)
    return height * factor, width * factor


def _reads_pictures(folder: _Folder) -> bool:
    """Whether an image encoder stands where others have a text encoder (which may have one besides)."""
    return "image_encoder" in folder.classes and "text_encoder" not in folder.classes


def _load_pictures(folder: _Folder, network: Any, vae: Any, device: torch.device, dtype: torch.dtype) -> PictureEncoder:
    """What reads pictures: an image encoder, with Zero123's projection of the camera if the folder has one."""
    encoder_class = _import_from("transformers", folder.class_of("image_encoder", _IMAGE_ENCODERS))
    encoder = _load_weights(folder, "image_encoder", encoder_class, device, dtype)
    layer = next((name for name in _PROJECTIONS if name in folder.classes), None)
    if layer is None:
        return PictureEncoder(encoder, *_colour_statistics(folder))
    if vae is None:
        folder.class_of("vae", _AUTOENCODERS)  # which says that it is missing
    layer_class = folder.class_of(layer, (_PROJECTIONS[layer],))
    projection_class = _import_from("dreamkit.diffusion.zero123_layers", layer_class)
    projection = _load_weights(folder, layer, projection_class, device, dtype)
    size = sample_size(network)
    return Zero123Encoder(
        encoder, projection, vae, (int(vae.config.latent_channels), *size), _image_size(network, vae)[0]
    )


def _colour_statistics(folder: _Folder) -> tuple[list[float], list[float]]:
    """Mean and deviation of the colours an image encoder was trained on: those of CLIP, unless the folder says."""
    config: Mapping[str, Any] = {}
    if "feature_extractor" in folder.classes:
        config = _read_json(folder.subfolder("feature_extractor") / "preprocessor_config.json")
    try:
        mean, std = (
            [float(value) for value in config.get(name, default)]
            for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
        )
        if len(mean) == len(std) == 3 and all(map(math.isfinite, mean)) and all(0 < s < math.inf for s in std):
            return mean, std
    except (TypeError, ValueError):
        pass
    raise TeacherError(
        f"The feature_extractor of {folder.path} has no usable image_mean and image_std.", "Download it again."
    )


def _load_tokenizer(folder: _Folder, component: str) -> Any:
    name = folder.class_of(component, _TOKENIZERS)
    path = folder.subfolder(component)
    try:
        return _import_from("transformers", name).from_pretrained(path, local_files_only=True)
    # Tokenizers raise whatever their file format's parser raises.
    except Exception as error:
        raise TeacherError(
            f"The {component} in {path} can't be loaded ({_first_line(error)}).",
            "Download it again; a tokenizer without tokenizer.json may need: pip install sentencepiece protobuf.",
        ) from error


def _load_weights(folder: _Folder, component: str, model_class: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model from its subfolder's safetensors, complete and finite, on its device."""
    path = folder.subfolder(component)
    variant = _variant_of(path, component, prefer_half=dtype == torch.float16)
    dtype_name = "dtype" if model_class.__module__.startswith("transformers.") else "torch_dtype"
    try:
        model, report = model_class.from_pretrained(
            path,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
            **{dtype_name: dtype},
        )
    # Configuration and tensor errors arrive as anything from KeyError to SafetensorError.
    except Exception as error:
        raise TeacherError(
            f"The {component} in {path} can't be loaded ({_first_line(error)}).",
            "The file may be damaged or incomplete; download it again.",
        ) from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            first = sorted(report[problem], key=str)[0]
            raise TeacherError(
                f"The weights in {path} don't fit their configuration: {problem.replace('_', ' ')}, first {first!r}.",
                "The file may belong to another model; download it again.",
            )
    model = model.to(device)
    _check_finite(path, model)
    return model


def _variant_of(path: Path, component: str, prefer_half: bool) -> str | None:
    """Which of the weight files to read; pickled weights are refused before a library sees them."""
    names = [file.name for file in path.iterdir()]
    try:
        return pick_variant(names, prefer_half)
    except FileNotFoundError as error:
        pickled = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
        if pickled:
            raise TeacherError(
                f"The {component} in {path} has only pickled weights ({pickled[0]}), which can run code when read.",
                "Only safetensors are loaded; convert the model, or download its safetensors version.",
            ) from error
        raise TeacherError(
            f"The {component} in {path} has no weights (*.safetensors).", "Download it again."
        ) from error


def _check_finite(path: Path, model: torch.nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TeacherError(
                f"The weights in {path} are not finite: tensor {name!r} holds NaN or infinity.",
                "The file may be damaged, or its values too large for half precision; download it again.",
            )


def _check_widths(folder: _Folder, network: Any, vae: Any, prompts: PromptEncoder | PictureEncoder) -> None:
    """The parts must belong together, and the network must take nothing that no prompt or picture gives."""
    if prompts.width != text_width(network):
        read, part = ("pictures", "image") if isinstance(prompts, PictureEncoder) else ("text", "text")
        raise TeacherError(
            f"In {folder.path} the network reads {read} of {text_width(network)} features, "
            f"but the {part} encoder writes {prompts.width}.",
            "The parts belong to different models; download the folder again.",
        )
    channels, expected = int(network.config.in_channels), 3 if vae is None else int(vae.config.latent_channels)
    if isinstance(prompts, Zero123Encoder):
        if channels != 2 * expected:
            raise TeacherError(
                f"The network in {folder.path} takes {channels} channels where a sample and a picture have "
                f"{expected} each.",
                "The parts belong to different models; download the folder again.",
            )
    elif channels != expected:
        raise TeacherError(
            f"The network in {folder.path} takes {channels} channels where a sample has {expected} "
            "(an inpainting, editing or upscaling model).",
            "Use a text-to-image model, for DeepFloyd the first stage.",
        )


def _import_from(library: str, name: str) -> Any:
    """A class of diffusers or transformers; these take seconds to import, so only here."""
    return getattr(importlib.import_module(library), name)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries' progress bars and advice off the terminal while loading; errors still come as exceptions."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    had_bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, had_bar in zip(libraries, levels, had_bars, strict=True):
            library.set_verbosity(level)
            if had_bar:
                library.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
