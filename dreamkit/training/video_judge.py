"""Trains the embedded video judge on the moving toy world: `dreamkit teachers train video-judge`.

Clips are rendered at the start, of every composition, held-out ones included, of other shapes and seeds than the
teacher's. Each step draws frames and clips from them and minimises

    -mean log p(object, colour | frame) + CE(motion) + CE(camera move) + huber(camera motion)

Frames are zoomed, blurred, dimmed or brightened and shifted a little, clips are blurred, dimmed and made noisy before
their flow is taken, so that the judge looks at what is shown and not at how crisp it is. Half of the clips are
mirrored, and left and right with them. Frames that hardly show an object that is there have no label.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.metrics.judge import JudgeNetwork, load_judge
from dreamkit.metrics.video_judge import (
    COMPOSITIONS,
    MOTION_CLASSES,
    NOTHING,
    REACH,
    VideoJudge,
    VideoJudgeNetwork,
    camera_motion,
    load_video_judge,
    motion_class,
    motion_inputs,
    save_video_judge,
)
from dreamkit.toyworld.motion import CAMERA_MOVES, Clips, MotionConfig, MotionWorld, build_motion_cache
from dreamkit.training.judge import disturb
from dreamkit.training.teacher_loop import Report, Tell, Trainer, require_positive, run_training
from dreamkit.video.pipeline import has_fast_bfloat16

_SEEN = 0.3
"""Share of an object's points inside the picture from which on a frame shows it."""
_HIDDEN = 0.1
"""Share of its points that are seen, of all round it, below which another object hides it."""
_PAIRS = 4.0
"""How often a frame of two objects is drawn for one of one object; they are hard and few."""
_AT_ONCE = 20
"""Clips rendered at a time."""


@dataclass(frozen=True)
class VideoJudgeOptions:
    """How to train the video judge."""

    out: Path = Path("outputs/teachers/video-judge")
    """Folder of the training run."""
    steps: int = 800
    """Optimiser steps in all."""
    cooldown: int = 350
    """Steps at the end over which the learning rate falls to zero."""
    warmup: int = 30
    """Steps at the start over which the learning rate rises."""
    frames: int = 48
    """Frames a step."""
    batch: int = 12
    """Clips a step."""
    clips: int = 1000
    """Clips rendered at the start."""
    lr: float = 3e-3
    """Learning rate of matrices and convolutions (Muon)."""
    lr_rest: float = 3e-3
    """Learning rate of the rest (AdamW)."""
    ema: float = 0.99
    """Decay of the averaged weights that are exported."""
    seed: int = 7919
    """Seed of weights and data; another one than the teacher's."""
    meshes: Path = Path("outputs/teachers/motion-world")
    """Folder where the world's meshes are kept."""
    workers: int = 2
    """Processes that make the world's meshes."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    sample_every: int = 0
    """A judge draws no samples."""
    measured: int = 300
    """Clips that its accuracy is measured on, of shapes it never saw."""
    world: MotionConfig = field(default_factory=lambda: MotionConfig(shapes=4, seed=21, points=32))
    """What it is trained on."""
    test_world: MotionConfig = field(default_factory=lambda: MotionConfig(shapes=2, seed=22, points=32))
    """What its accuracy is measured on."""

    def __post_init__(self) -> None:
        require_positive(self, ("steps", "frames", "batch", "clips", "checkpoint_every", "measured"))


@dataclass(frozen=True)
class Lessons:
    """N clips of F frames with what is to be said of them.

    Args:
        frames: [N, F, 3, 64, 64] uint8.
        things: [N, F, 2] classes of the objects that a frame shows, `NOTHING` for an empty floor, and -1 for no
            second one; a frame of which nothing sure can be said has two -1.
        motion: [N] positions in `MOTION_CLASSES`.
        camera_move: [N] positions in `CAMERA_MOVES`.
        camera_motion: [N, F - 1, 3] as `camera_motion` measures it, the turn in units of 1 / `REACH`.
    """

    frames: Tensor
    things: Tensor
    motion: Tensor
    camera_move: Tensor
    camera_motion: Tensor


def frame_classes(clips: Clips) -> Tensor:
    """The `things` of lessons [B, F, 2], from how many of an object's points are inside the picture and unhidden."""
    points = clips.tracks.shape[2]
    count = max(1, 3 * points // 4)  # the first three quarters are on the objects
    inside = ((clips.tracks >= 0) & (clips.tracks < 1)).all(dim=-1).float()
    rows = []
    for index, script in enumerate(clips.scripts):
        things = script.things
        kinds, first = len(things), 0
        classes = torch.full((clips.tracks.shape[1], 2), -1)
        unsure = torch.zeros(len(classes), dtype=torch.bool)
        for slot, thing in enumerate(things):
            last = first + count // kinds + (slot < count % kinds)
            share = inside[index, :, first:last].mean(dim=1)
            seen = clips.visible[index, :, first:last].float().mean(dim=1)
            shown = (share >= _SEEN) & (seen >= _HIDDEN)
            unsure |= ~shown & (share > 0)
            classes[shown, slot] = COMPOSITIONS.index((thing.colour, thing.name))
            first = last
        classes = classes.sort(dim=1, descending=True).values
        classes[classes[:, 0] < 0, 0] = NOTHING
        classes[unsure] = -1
        rows.append(classes)
    return torch.stack(rows)


def draw_lessons(world: MotionWorld, count: int, seed: int) -> Lessons:
    """Render `count` clips."""
    parts = []
    for start in range(0, count, _AT_ONCE):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start // _AT_ONCE)
        parts.append(lessons_of(world.sample(min(_AT_ONCE, count - start), generator)))
    return join(parts)


def join(parts: list[Lessons]) -> Lessons:
    """All lessons of several lots."""
    names = Lessons.__dataclass_fields__
    return Lessons(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def lessons_of(clips: Clips) -> Lessons:
    """What is to be said of clips."""
    return Lessons(
        frames=(255 * clips.frames).round().to(torch.uint8),
        things=frame_classes(clips),
        motion=torch.tensor([motion_class(script.motion, script.direction) for script in clips.scripts]),
        camera_move=torch.tensor([CAMERA_MOVES.index(script.camera_move) for script in clips.scripts]),
        camera_motion=camera_motion(clips.cameras) * torch.tensor([1.0, 1.0, REACH]),
    )


def _swapped(names: list[str]) -> Tensor:
    """For each name the position of its mirror image, left for right."""
    swap = {"left": "right", "right": "left"}
    return torch.tensor([names.index(" ".join(swap.get(word, word) for word in name.split(" "))) for name in names])


MIRRORED_MOTION = _swapped([" ".join(pair) for pair in MOTION_CLASSES])
"""For each motion class what a mirror makes of it."""
MIRRORED_MOVE = _swapped(list(CAMERA_MOVES))
"""For each move of the camera what a mirror makes of it."""


def disturb_clips(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the clips [B, F, 3, H, W], dim or brighten all a little and add noise, different in each frame."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)

    padded = functional.pad(clips.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    blurred = functional.avg_pool2d(padded, 3, stride=1).view_as(clips)
    noise = draw(0.0, 0.015) * torch.randn(clips.shape, generator=generator)
    return (draw(0.85, 1.15) * torch.where(draw(0, 1) < 0.5, blurred, clips) + noise).clamp(0, 1)


def composition_loss(verdicts: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log p over the objects of each frame, and over frames.

    Args:
        verdicts: log-probabilities [B, 193].
        classes: [B, 2], -1 for no second object.
    """
    each = -verdicts.gather(1, classes.clamp_min(0))
    counts = (classes >= 0).float()
    return ((each * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)).mean()


class VideoJudgeTrainer(Trainer):
    """The state of a training run and one step of it.

    The frame tower starts from the convolutions of the pictures' judge, which knows the objects from all sides.

    Args:
        options: settings.
        lessons: what to learn from.
        network: an untrained judge, by default the embedded one's size.
    """

    def __init__(self, options: VideoJudgeOptions, lessons: Lessons, network: VideoJudgeNetwork | None = None) -> None:
        self.options, self.lessons = options, lessons
        torch.manual_seed(options.seed)
        self.network = network or VideoJudgeNetwork()
        self._start_from(load_judge().network)
        super().__init__(self.network, options, lambda _, parameter: parameter.ndim > 1)
        self.half_precision = has_fast_bfloat16(torch.device("cpu"))
        self.labelled = (lessons.things[..., 0] >= 0).nonzero()
        paired = lessons.things[self.labelled[:, 0], self.labelled[:, 1], 1] >= 0
        self.chances = torch.where(paired, _PAIRS, 1.0)
        self.inputs = self._inputs()

    def _start_from(self, known: JudgeNetwork) -> None:
        """Copy the first stages of the pictures' judge, where their shapes are the same."""
        own = list(self.network.frames.stages)[:-2]
        for new, old in zip(own, known.stages, strict=False):
            if all(a.shape == b.shape for a, b in zip(new.parameters(), old.parameters(), strict=True)):
                new.load_state_dict(old.state_dict())

    def _inputs(self) -> Tensor:
        """What the motion tower sees of every clip, taken once."""
        generator = torch.Generator().manual_seed(self.options.seed)
        chunks = self.lessons.frames.split(_AT_ONCE)
        return torch.cat([motion_inputs(disturb_clips(chunk.float() / 255, generator)).half() for chunk in chunks])

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """See the module's docstring."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        lessons, mirrored = self.lessons, bool(torch.rand((), generator=generator) < 0.5)
        drawn = torch.multinomial(self.chances, self.options.frames, replacement=True, generator=generator)
        clip, frame = self.labelled[drawn].T
        images = disturb(lessons.frames[clip, frame].float() / 255, generator)
        rows = torch.randint(len(lessons.motion), (self.options.batch,), generator=generator)
        inputs, steps = self.inputs[rows].float(), lessons.camera_motion[rows]
        motion, move = lessons.motion[rows], lessons.camera_move[rows]
        if mirrored:
            images, inputs = images.flip(-1), inputs.flip(-1)
            inputs[:, :, 0] *= -1
            steps = steps * torch.tensor([-1.0, 1.0, -1.0])
            motion, move = MIRRORED_MOTION[motion], MIRRORED_MOVE[move]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half_precision):
            verdicts, _ = self.network.frames(images)
            said, moves, steered, _ = self.network.clips(inputs)
        parts = {
            "frames": composition_loss(verdicts, lessons.things[clip, frame]),
            "motion": functional.cross_entropy(said, motion),
            "camera_move": functional.cross_entropy(moves, move),
            "camera_motion": 10 * functional.huber_loss(10 * steered, 10 * steps),
        }
        total = torch.stack(list(parts.values())).sum()
        return total, {"loss": float(total.detach())} | {name: float(part.detach()) for name, part in parts.items()}

    def export(self, folder: Path) -> Path:
        """Write the averaged weights."""
        with self.averaged():
            save_video_judge(self.network, folder)
        return folder

    def draw_samples(self, folder: Path, picture: Path) -> None:
        """A judge draws nothing."""


def train_video_judge(
    options: VideoJudgeOptions,
    report: Report = lambda step, metrics: None,
    tell: Tell = lambda text: None,
) -> tuple[Path, dict[str, float]]:
    """Train a video judge, or continue, and measure it.

    Args:
        options: settings.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The judge's folder and its accuracies on shapes it never saw, see `measure_video_judge`.

    Raises:
        KeyboardInterrupt: it was interrupted; the same call goes on from its checkpoint.
    """
    tell("rendering the clips to learn from")
    trainer = VideoJudgeTrainer(options, _render(options, options.world, options.clips, options.seed))
    folder = run_training(trainer, "judge", report, tell)
    fresh = _render(options, options.test_world, options.measured, options.seed + 1)
    return folder, measure_video_judge(load_video_judge(folder), fresh)


def _render(options: VideoJudgeOptions, config: MotionConfig, count: int, seed: int) -> Lessons:
    path = build_motion_cache(config, options.meshes, options.workers)
    return draw_lessons(MotionWorld(path, config, hold_out=False), count, seed)


def measure_video_judge(judge: VideoJudge, lessons: Lessons) -> dict[str, float]:
    """Accuracies of a judge.

    Returns:
        Shares of the labelled frames of one object whose `object`, `colour` and `composition` is told right (nothing is
        never right); of the empty ones that are called `empty`; of those of two objects whose two likeliest
        compositions are theirs, `pair`; shares of clips whose `motion` (with direction, as `MOTION_CLASSES`) and
        `camera_move` is told right; and `camera_error`, sum |said - true| / sum |true| over the clips whose camera
        moves (vectors as `Lessons.camera_motion`). A share of none is NaN.
    """

    def share(hits: Tensor) -> float:
        return float(hits.float().mean())

    first, second = lessons.things.flatten(0, 1).unbind(dim=1)
    chunks = [chunk.float() / 255 for chunk in lessons.frames.split(_AT_ONCE)]
    verdicts = torch.cat([judge.frames(chunk.flatten(0, 1)).compositions for chunk in chunks])
    best = verdicts.argmax(dim=1)
    said = [judge.clips(chunk) for chunk in chunks]
    single, pairs = (first >= 0) & (first < NOTHING) & (second < 0), second >= 0
    two = torch.stack([first, second], dim=1)[pairs].sort(dim=1).values
    colours = len(COMPOSITIONS) // len({name for _, name in COMPOSITIONS})
    told, true = best[single], first[single]
    steps = torch.cat([verdict.camera_motion for verdict in said]) * torch.tensor([1.0, 1.0, REACH])
    moving = lessons.camera_move != CAMERA_MOVES.index("static")
    error = (steps - lessons.camera_motion).norm(dim=2)[moving].sum()
    return {
        "object": share(told // colours == true // colours),
        "colour": share((told % colours == true % colours) & (told != NOTHING)),
        "composition": share(told == true),
        "empty": share(best[first == NOTHING] == NOTHING),
        "pair": share((verdicts[pairs].topk(2).indices.sort(dim=1).values == two).all(dim=1)),
        "motion": share(torch.cat([verdict.motion for verdict in said]).argmax(dim=1) == lessons.motion),
        "camera_move": share(torch.cat([verdict.camera_move for verdict in said]).argmax(dim=1) == lessons.camera_move),
        "camera_error": float(error / lessons.camera_motion.norm(dim=2)[moving].sum()),
    }
