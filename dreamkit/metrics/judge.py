"""The embedded judge: a small image-text contrastive model of the toy world that also tells the view.

It is trained apart from the teacher (other data seed, a convolutional network instead of a transformer) on clean
renders of every composition, held-out ones included, so that it can say whether a picture shows "a red mug" among
all object x colour captions, and from which side. It is a judge of this world only.

    p(caption | image) = softmax over captions of  s <f(image), g(caption)>,   f and g unit vectors (arXiv 2103.00020)
    p(view | image) = sum over the angle bins of that name of  p(azimuth bin | image) p(elevation bin | image)

Angles in fine bins teach where the borders of the view names lie, and stay multimodal where two sides look alike.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.errors import TeacherError
from dreamkit.scenes.cameras import view_name
from dreamkit.toyworld.captions import COLOURS, OBJECTS, composition, vocabulary

VIEWS: tuple[str, ...] = ("front", "side", "back", "overhead")
COMPOSITIONS: tuple[tuple[str, str], ...] = tuple((colour, name) for name in OBJECTS for colour in COLOURS)
"""Every (colour, object), in the order of the judge's classes."""
IMAGE_SIZE = 64
AZIMUTH_BINS = 32
"""Bins of 11.25 degrees from -180: the borders of the view names, 45 and 135 degrees, are borders of bins."""
ELEVATION_BINS = 14
"""Bins of 5 degrees from -10 to 60; what lies beyond falls into the outermost."""


def azimuth_bin(azimuth: Tensor) -> Tensor:
    """Bin indices [B] of azimuths [B] in degrees, any turn."""
    return ((azimuth + 180) * (AZIMUTH_BINS / 360)).floor().long() % AZIMUTH_BINS


def elevation_bin(elevation: Tensor) -> Tensor:
    """Bin indices [B] of elevations [B] in degrees."""
    return ((elevation + 10) / 5).floor().long().clamp(0, ELEVATION_BINS - 1)


def view_logits(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Log-probabilities of `VIEWS` [B, 4] from the logits of the angle bins [B, 32] and [B, 14].

    A view's share is that of the bins whose middle `view_name` calls so; overhead is decided by the elevation alone.
    """
    middles = [view_name(-180 + (index + 0.5) * 360 / AZIMUTH_BINS, 0.0) for index in range(AZIMUTH_BINS)]
    heights = [view_name(0.0, -10 + (index + 0.5) * 5) for index in range(ELEVATION_BINS)]
    above = torch.tensor([name == "overhead view" for name in heights])
    azimuth, elevation = azimuth.log_softmax(dim=-1), elevation.log_softmax(dim=-1)
    overhead = elevation[:, above].logsumexp(dim=-1)
    level = elevation[:, ~above].logsumexp(dim=-1)
    sides = [torch.tensor([middle == f"{name} view" for middle in middles]) for name in VIEWS[:3]]
    return torch.stack([*(level + azimuth[:, side].logsumexp(dim=-1) for side in sides), overhead], dim=-1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip, with group norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(hidden)))


class JudgeNetwork(nn.Module):
    """Image tower, text tower and angle heads.

    Args:
        width: channels of the first stage; each of the next three doubles them up to eight-fold.
        embedding: dimension of the shared space.
    """

    def __init__(self, width: int = 24, embedding: int = 128) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for multiple, blocks in ((1, 1), (2, 2), (4, 2), (8, 1)):
            stages.append(nn.Conv2d(channels, multiple * width, 3, stride=2, padding=1))
            channels = multiple * width
            stages.extend(ResidualBlock(channels) for _ in range(blocks))
        self.stages = nn.Sequential(*stages, nn.GroupNorm(8, channels), nn.SiLU())
        # 4x4 positions are kept: the side a beak points to is where it is, not only that it is there.
        self.flatten = nn.Linear(16 * channels, 2 * embedding)
        self.image_head = nn.Linear(2 * embedding, embedding)
        self.azimuth_head = nn.Linear(2 * embedding, AZIMUTH_BINS)
        self.elevation_head = nn.Linear(2 * embedding, ELEVATION_BINS)
        self.words = nn.EmbeddingBag(len(vocabulary()), embedding, mode="sum")
        self.text_head = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.word_index = {word: index for index, word in enumerate(vocabulary())}

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What pictures [B, 3, 64, 64] in [0, 1] hold.

        Returns:
            Unit embeddings [B, E] and the logits of azimuth bins [B, 32] and elevation bins [B, 14].
        """
        hidden = functional.silu(self.flatten(self.stages(2 * images - 1).flatten(1)))
        embedded = functional.normalize(self.image_head(hidden), dim=-1)
        return embedded, self.azimuth_head(hidden), self.elevation_head(hidden)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, E] of captions; words of no meaning to this world are passed over."""
        ids: list[int] = []
        offsets: list[int] = []
        for text in texts:
            offsets.append(len(ids))
            words = re.findall(r"[a-z]+", text.lower())
            ids.extend(self.word_index[word] for word in words if word in self.word_index)
        embedded = self.words(torch.tensor(ids, dtype=torch.long), torch.tensor(offsets))
        # The residual keeps captions of different words apart from the first step on.
        return functional.normalize(embedded + self.text_head(embedded), dim=-1)

    def forward(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled similarities [B, N] of pictures and captions, and the logits of the angle bins."""
        embedded, azimuth, elevation = self.encode_images(images)
        return self.log_scale.exp() * embedded @ self.encode_texts(texts).T, azimuth, elevation


class Judge:
    """A trained judge, ready to give verdicts.

    Args:
        network: the trained network.
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)
        self._captions = network.encode_texts([composition(*pair) for pair in COMPOSITIONS])

    @torch.no_grad()
    def verdicts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What pictures show.

        Args:
            images: [B, 3, H, W] in [0, 1]; resized to 64x64 where they are larger.

        Returns:
            Logits over `COMPOSITIONS` [B, 360] and over `VIEWS` [B, 4].
        """
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = functional.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
        logits, views = [], []
        for chunk in images.float().cpu().split(256):
            embedded, azimuth, elevation = self.network.encode_images(chunk)
            logits.append(self.network.log_scale.exp() * embedded @ self._captions.T)
            views.append(view_logits(azimuth, elevation))
        return torch.cat(logits), torch.cat(views)


def level_views(view_logits: Tensor) -> Tensor:
    """Which of front, side and back (positions in `VIEWS`) each view is, from logits [B, 4]: [B].

    For cameras at a moderate elevation, where overhead is no answer.
    """
    return view_logits[:, :3].argmax(dim=-1)


def save_judge(network: JudgeNetwork, folder: Path) -> None:
    """Write a judge as config.json and float16 model.safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read
    config = {"width": network.stages[0].out_channels, "embedding": network.image_head.out_features}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_network(folder: Path) -> JudgeNetwork:
    """The network that `save_judge` wrote, in float32.

    Raises:
        TeacherError: the folder holds no readable judge of this toy world.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network = JudgeNetwork(**json.loads((folder / "config.json").read_text()))
        state = load_file(folder / "model.safetensors")
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise TeacherError(f"No readable judge in {folder}: {error}.", "Reinstall dreamkit, or retrain it.") from error
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise TeacherError(f"The judge in {folder} has weights that are not finite.", "Reinstall dreamkit.")
    return network


def load_judge(folder: Path | None = None) -> Judge:
    """Load a judge.

    Args:
        folder: where `save_judge` wrote it; `None` is the embedded one.

    Raises:
        TeacherError: the folder holds no readable judge of this toy world.
    """
    if folder is None:
        from importlib.resources import files

        folder = Path(str(files("dreamkit_assets") / "toyworld-judge"))
    return Judge(load_network(folder))
