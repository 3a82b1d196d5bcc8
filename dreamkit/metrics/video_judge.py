"""The embedded video judge: what frames and clips of the moving toy world show.

Of a frame, the objects with their colours. Its convolutions leave 4x4 cells; each says what it sees and how much it
matters, so that two objects keep their own colours:

    p(object, colour | frame) = sum_k a_k p_k(object) p_k(colour),    a = softmax over the cells k

"nothing" is one of the objects: an empty floor. Of a clip of 8 frames or more, the motion, the camera's move and its
motion from frame to frame, from the optical flow of neighbouring frames, the frames and their differences, by
convolutions over space and then time. It is trained apart from the teacher, on other shapes and seeds and on every
composition, held-out ones included. It is a judge of this world only.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.checks import require
from dreamkit.errors import TeacherError
from dreamkit.files import atomic_folder, write_json
from dreamkit.metrics.flow import optical_flow
from dreamkit.metrics.judge import IMAGE_SIZE, ResidualBlock
from dreamkit.toyworld.captions import COLOURS
from dreamkit.toyworld.motion import CAMERA_MOVES, MOTION_OBJECTS, MOTIONS
from dreamkit.toyworld.motion_scripts import directions_of

COMPOSITIONS: tuple[tuple[str, str], ...] = tuple((colour, name) for name in MOTION_OBJECTS for colour in COLOURS)
"""Every (colour, object) of the moving world, in the order of the judge's classes; one more class is nothing."""
NOTHING = len(COMPOSITIONS)
MOTION_CLASSES: tuple[tuple[str, str], ...] = tuple(
    (motion, direction) for motion in MOTIONS for direction in (("",) if motion == "passing" else directions_of(motion))
)
"""Every (motion, direction). Of two that pass each other the caption chooses the first: that has no direction here."""
FEWEST_FRAMES = 8
"""Frames of a clip, at least."""
CLIP_FRAMES = 15
"""Frames of the clips that the judge was trained on."""
REACH = 4.0
"""World units from the camera to what it looks at, about: a turn by an angle shifts that by the angle times this."""
_INPUTS = 8
_FLOW_UNIT = 2.0  # pixels of frames at half size
_CAMERA_UNIT = 0.1  # world units a frame


def motion_class(motion: str, direction: str) -> int:
    """Position in `MOTION_CLASSES`."""
    return MOTION_CLASSES.index((motion, "" if motion == "passing" else direction))


def camera_motion(
    cameras: Tensor,  # [..., F, 12] camera_to_world rows, in any world
) -> Tensor:  # [..., F - 1, 3]
    """How the camera moves from frame to frame: world units to its right, world units forward, radians to its left.

    With C = [R | p] the pose, R^T p' - R^T p = (right, up, backward), and the turn about the camera's vertical is
    atan2(T_xz, T_zz) of T = R^T R'. An orbit to the right is a step to the right and a turn to the left.
    """
    rotation, position = cameras.unflatten(-1, (3, 4)).split([3, 1], dim=-1)
    to_camera = rotation[..., :-1, :, :].mT
    step = (to_camera @ (position[..., 1:, :, :] - position[..., :-1, :, :]))[..., 0]
    turn = to_camera @ rotation[..., 1:, :, :]
    return torch.stack([step[..., 0], -step[..., 2], torch.atan2(turn[..., 0, 2], turn[..., 2, 2])], dim=-1)


def motion_inputs(
    clips: Tensor,  # [B, F, 3, 64, 64] in [0, 1]
) -> Tensor:  # [B, F - 1, 8, 32, 32]
    """What the motion tower sees of each pair of frames at half size: their flow, their difference, the first."""
    small = functional.avg_pool2d(clips.flatten(0, 1), 2).unflatten(0, clips.shape[:2])
    first, second = small[:, :-1].flatten(0, 1), small[:, 1:].flatten(0, 1)
    flow = (optical_flow(first, second, iterations=3) / _FLOW_UNIT).clamp(-3, 3)
    return torch.cat([flow, 4 * (second - first), 2 * first - 1], dim=1).unflatten(0, (len(clips), -1))


class FrameTower(nn.Module):
    """Residual stages down to 4x4 cells, and what each cell says.

    Args:
        width: channels of the first stage; the next three have twice, four times and eight times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for multiple, blocks in ((1, 1), (2, 2), (4, 2), (8, 0)):
            stages.append(nn.Conv2d(channels, multiple * width, 3, stride=2, padding=1))
            channels = multiple * width
            stages.extend(ResidualBlock(channels) for _ in range(blocks))
        self.stages = nn.Sequential(*stages, nn.GroupNorm(8, channels), nn.SiLU())
        self.head = nn.Conv2d(channels, len(MOTION_OBJECTS) + 1 + len(COLOURS) + 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What pictures [B, 3, 64, 64] in [0, 1] show.

        Returns:
            Log-probabilities [B, 193] of `COMPOSITIONS` and nothing, and features [B, 8 width].
        """
        hidden = self.stages(2 * images - 1)
        kinds, colours, matters = (
            self.head(hidden).float().flatten(2).split([len(MOTION_OBJECTS) + 1, len(COLOURS), 1], dim=1)
        )
        kinds = kinds.log_softmax(dim=1) + matters.log_softmax(dim=2)  # [B, 17, cells]
        joint = (kinds[:, :-1, None] + colours.log_softmax(dim=1)[:, None]).logsumexp(dim=3)
        return torch.cat([joint.flatten(1), kinds[:, -1:].logsumexp(dim=2)], dim=1), hidden.float().mean(dim=(2, 3))


class MotionTower(nn.Module):
    """Convolutions over the pairs of frames, then over time.

    Args:
        width: channels of the first stage; the next two have twice as many.
        features: of a pair of frames.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = _INPUTS
        for multiple, blocks in ((1, 1), (2, 1), (2, 0)):
            stages.append(nn.Conv2d(channels, multiple * width, 3, stride=2, padding=1))
            channels = multiple * width
            stages.extend(ResidualBlock(channels) for _ in range(blocks))
        self.stages = nn.Sequential(*stages, nn.GroupNorm(8, channels), nn.SiLU())
        self.flatten = nn.Linear(16 * channels, features)
        self.times = nn.ModuleList(
            nn.Conv1d(features, features, 3, padding=dilation, dilation=dilation) for dilation in (1, 2, 4)
        )
        self.camera_motion = nn.Linear(features, 3)
        self.motion = nn.Linear(2 * features, len(MOTION_CLASSES))
        self.camera_move = nn.Linear(2 * features, len(CAMERA_MOVES))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `motion_inputs` [B, T, 8, 32, 32] show.

        Returns:
            Logits of `MOTION_CLASSES` [B, 15] and of `CAMERA_MOVES` [B, 7], the camera's motion [B, T, 3] as
            `camera_motion` measures it but its turn in units of 1 / `REACH`, and features [B, 2 features].
        """
        hidden = self.flatten(self.stages(inputs.flatten(0, 1)).flatten(1))
        hidden = hidden.unflatten(0, inputs.shape[:2]).mT  # [B, features, T]
        for convolution in self.times:
            hidden = hidden + convolution(functional.silu(hidden))
        hidden = functional.silu(hidden).float()
        pooled = torch.cat([hidden.mean(dim=2), hidden.amax(dim=2)], dim=1)
        steps = _CAMERA_UNIT * self.camera_motion(hidden.mT).float()
        return self.motion(pooled).float(), self.camera_move(pooled).float(), steps, pooled


class VideoJudgeNetwork(nn.Module):
    """Both towers.

    Args:
        width: of the frame tower.
        motion_width: of the motion tower.
        features: of the motion tower.
    """

    def __init__(self, width: int = 24, motion_width: int = 24, features: int = 128) -> None:
        super().__init__()
        self.config = {"width": width, "motion_width": motion_width, "features": features}
        self.frames = FrameTower(width)
        self.clips = MotionTower(motion_width, features)


@dataclass(frozen=True)
class FrameVerdict:
    """What F frames show.

    Args:
        compositions: [F, 193] log-probabilities of `COMPOSITIONS` and nothing.
        features: [F, D] what the judge saw, for a Frechet distance.
    """

    compositions: Tensor
    features: Tensor

    @property
    def objects(self) -> Tensor:
        """[F, 16] log-probabilities of `MOTION_OBJECTS`, whatever the colour; what is missing to 1 is nothing."""
        return self.compositions[:, :NOTHING].unflatten(1, (len(MOTION_OBJECTS), -1)).logsumexp(dim=2)

    @property
    def colours(self) -> Tensor:
        """[F, 12] log-probabilities of the colours, whatever the object; what is missing to 1 is nothing."""
        return self.compositions[:, :NOTHING].unflatten(1, (len(MOTION_OBJECTS), -1)).logsumexp(dim=1)

    @property
    def empty(self) -> Tensor:
        """[F] whether nothing is the likeliest."""
        return self.compositions.argmax(dim=1) == NOTHING


@dataclass(frozen=True)
class ClipVerdict:
    """What B clips show.

    Args:
        motion: [B, 15] log-probabilities of `MOTION_CLASSES`.
        camera_move: [B, 7] log-probabilities of `CAMERA_MOVES`.
        camera_motion: [B, F - 1, 3] as the function of that name measures it.
        features: [B, D] what the judge saw, for a Frechet distance.
    """

    motion: Tensor
    camera_move: Tensor
    camera_motion: Tensor
    features: Tensor


class VideoJudge:
    """A trained judge, ready to give verdicts, on the CPU.

    Args:
        network: the trained network.
    """

    def __init__(self, network: VideoJudgeNetwork) -> None:
        self.network = network.float().eval().requires_grad_(False)

    @torch.no_grad()
    def frames(
        self,
        images: Tensor,  # [F, 3, H, W] in [0, 1]
    ) -> FrameVerdict:
        """What frames show; they are resized to 64x64.

        Raises:
            ConfigError: another shape, no frames, or numbers that are not finite.
        """
        check_frames(images)
        said = [self.network.frames(chunk) for chunk in resized(images).split(256)]
        return FrameVerdict(torch.cat([verdict for verdict, _ in said]), torch.cat([seen for _, seen in said]))

    @torch.no_grad()
    def clips(
        self,
        clips: Tensor,  # [B, F, 3, H, W] in [0, 1], F >= 8
    ) -> ClipVerdict:
        """What clips show; their frames are resized to 64x64.

        Raises:
            ConfigError: another shape, too few frames, or numbers that are not finite.
        """
        fine = clips.ndim == 5 and clips.shape[1] >= FEWEST_FRAMES
        require(
            "The shape of the clips", fine, tuple(clips.shape), f"[B, F, 3, H, W] with F of {FEWEST_FRAMES} or more"
        )
        check_frames(clips.flatten(0, 1))
        small = resized(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        said = [self.network.clips(motion_inputs(chunk)) for chunk in small.split(16)]
        motion, move, steps, seen = (torch.cat(parts) for parts in zip(*said, strict=True))
        steps = steps * torch.tensor([1.0, 1.0, 1 / REACH])
        return ClipVerdict(motion.log_softmax(dim=1), move.log_softmax(dim=1), steps, seen)


def check_frames(images: Tensor) -> None:
    """Check that frames are [F, 3, H, W], at least one, of at least 16 pixels each way, and finite.

    Raises:
        ConfigError: they are not.
    """
    fine = images.ndim == 4 and images.shape[1] == 3 and len(images) > 0 and min(images.shape[2:]) >= 16
    require("The shape of the frames", fine, tuple(images.shape), "[F, 3, H, W] of 16 pixels or more each way")
    require("A frame", bool(torch.isfinite(images).all()), "not finite", "numbers in [0, 1]")


def resized(images: Tensor) -> Tensor:
    """Frames [F, 3, H, W] at the judge's size, [F, 3, 64, 64], float32 on the CPU."""
    images = images.float().cpu()
    if images.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE):
        return images
    return functional.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")


def save_video_judge(network: VideoJudgeNetwork, folder: Path) -> None:
    """Write a judge as config.json and float16 model.safetensors; the folder appears whole or not at all."""
    from safetensors.torch import save_file

    state = {name: value.detach().half().contiguous() for name, value in network.state_dict().items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / "model.safetensors")
        (temporary / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read
        write_json(temporary / "config.json", network.config)


def load_video_judge(folder: Path | None = None) -> VideoJudge:
    """Load a video judge.

    Args:
        folder: where `save_video_judge` wrote it; `None` is the embedded one.

    Raises:
        TeacherError: the folder holds no readable video judge of this toy world.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if folder is None:
        from importlib.resources import files

        folder = Path(str(files("dreamkit_assets") / "motion-judge"))
    try:
        network = VideoJudgeNetwork(**json.loads((folder / "config.json").read_text()))
        state = load_file(folder / "model.safetensors")
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise TeacherError(
            f"No readable video judge in {folder}: {error}.", "Reinstall dreamkit, or retrain it."
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise TeacherError(f"The video judge in {folder} has weights that are not finite.", "Reinstall dreamkit.")
    return VideoJudge(network)
