"""A set of posed pictures on a disk, as captures of ideal pinhole cameras in DreamKit's world."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.captures import colmap, transforms
from dreamkit.captures.lens import ideal_focal
from dreamkit.captures.normalise import UPRIGHT, Similarity, shrinking, stands, to_radius, upright
from dreamkit.captures.options import EVERY, CaptureOptions
from dreamkit.captures.photos import Photo, develop, is_file
from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture

MOST_PIXELS = 2**26
"""Of all pictures of a set together: they take a gigabyte."""
_SAME_SHAPE = 0.01  # relative difference of aspect ratios that is rounding
_RAYS = 2**20  # of the subject, at which its size is measured
_LARGEST = 1e9  # coordinate of a camera in its own world
_FARTHEST = 50.0  # that a camera may stand from the origin, world units
_NO_POINTS = torch.zeros(0, 3)


@dataclass(frozen=True)
class CaptureSet:
    """What a folder of posed pictures holds.

    Args:
        training: the views to fit to.
        held_out: the views to measure on; `None` if there are none.
        names: of the files, those for training before those held out.
        points: [M, 3] of the surface as COLMAP found them, in DreamKit's world; M may be 0.
        colors: [M, 3] of those.
        masked: whether anything is transparent: whether the subject is told from what is behind it.
    """

    training: Capture
    held_out: Capture | None
    names: tuple[str, ...]
    points: Tensor
    colors: Tensor
    masked: bool


def read_capture(path: Path | str, options: CaptureOptions | None = None) -> Capture:
    """All views of a set, see `read_capture_set`; those that its own split keeps for tests come last."""
    return read_capture_set(path, options, split=False).training


def read_capture_set(
    path: Path | str,
    options: CaptureOptions | None = None,
    on_picture: Callable[[int, int], None] | None = None,
    split: bool = True,
) -> CaptureSet:
    """Read a set of posed pictures: a transforms.json, a Blender set, or the output of COLMAP, whichever is there.

    Every picture is undistorted and resampled into a `Camera`: an ideal pinhole about the picture's centre, the widest
    that sees only what the lens saw. All get one size, that of the first scaled to `options.max_size`; where pictures
    are of several shapes (some upright) it is a square.

    Args:
        path: the set's folder, or its JSON file.
        options: how to read it.
        on_picture: told the pictures read and their number.
        split: whether to hold views out; without, all are for training.

    Returns:
        The views, in DreamKit's world (y up, the subject about the origin).

    Raises:
        SceneError: no set of a known format, or one that is damaged, empty, too large, or names files elsewhere.
        ConfigError: nothing would be left for training.
    """
    options = options or CaptureOptions()
    folder = Path(path).expanduser()
    photos, up, points, colors = _find(folder)
    order = _split(photos, options, str(path)) if split else ([*range(len(photos))], [])
    wanted = [photos[index] for index in order[0] + order[1]]
    poses = _stacked(wanted)
    move = _move(poses, up if options.up == "auto" else options.up, options, str(path))
    _check_distances(wanted, move.poses(poses))
    cameras, layers = _develop(wanted, move.poses(poses), options, on_picture)
    if options.normalise == "auto":
        factor = _subject_factor(cameras, layers[:, 3:])
        if factor < 1:
            move = replace(Similarity.identity(), scale=factor).after(move)
            cameras = replace(cameras, camera_to_world=move.poses(poses).float())
    count = len(order[0])
    masked = bool((layers[:, 3] < 1).any())
    capture = _over(cameras, layers, options.background)
    held_out = Capture(cameras[count:], capture.images[count:], capture.alphas[count:], capture.background)
    return CaptureSet(
        training=Capture(cameras[:count], capture.images[:count], capture.alphas[:count], capture.background),
        held_out=held_out if order[1] else None,
        names=tuple(photo.picture.name for photo in wanted),
        points=move.points(points).float(),
        colors=colors,
        masked=masked,
    )


def _find(path: Path) -> tuple[list[Photo], str, Tensor, Tensor]:
    """The photos of a set, which axis is up in their world, and the points that come with them."""
    nothing = (torch.zeros(0, 3, dtype=torch.float64), _NO_POINTS)
    try:
        if path.suffix == ".json" and is_file(path):
            return transforms.read_photos(path.parent, path), "z", *nothing
        if not path.is_dir():
            raise SceneError(f"There is no folder {path}.", "Give the folder of a set of posed pictures.")
    except (OSError, ValueError) as error:
        raise SceneError(f"{str(path)[:200]!r} can't be read: {error}.", "Give a folder.") from error
    if is_file(path / "transforms.json"):
        return transforms.read_photos(path, path / "transforms.json"), "z", *nothing
    if is_file(path / "transforms_train.json"):
        return transforms.read_blender_photos(path), "z", *nothing
    model = colmap.find_model(path)
    if model is not None:
        photos, points, colors = colmap.read_photos(path, model)
        return photos, "estimate", points, colors
    raise SceneError(
        f"{path} holds no set of posed pictures.",
        "It needs a transforms.json, a transforms_train.json, or COLMAP's sparse/0/ with cameras and images.",
    )


def _split(photos: Sequence[Photo], options: CaptureOptions, place: str) -> tuple[list[int], list[int]]:
    """Indices of the photos for training, and of those held out."""
    every = options.hold_out
    own = [index for index, photo in enumerate(photos) if photo.held_out]
    rest = [index for index, photo in enumerate(photos) if not photo.held_out]
    if every is None and own:
        training, held_out = rest, own
    else:
        every = EVERY if every is None else every
        held_out = [index for number, index in enumerate(rest) if every and number % every == every - 1]
        training = [index for index in rest if index not in set(held_out)]
    if not training:
        raise ConfigError(
            f"Of the {len(photos)} views of {place}, none is left for training.", "Hold fewer out with --hold-out."
        )
    return training, held_out


def _move(poses: Tensor, up: str, options: CaptureOptions, place: str) -> Similarity:
    """From the set's world to DreamKit's."""
    first = Similarity.identity()
    if up == "z":
        first = replace(first, turn=UPRIGHT)
    if options.normalise == "never" or stands(first.poses(poses)):
        return first
    if up == "estimate":
        first = replace(first, turn=upright(poses))
    return to_radius(first.poses(poses), place).after(first)


def _stacked(photos: Sequence[Photo]) -> Tensor:
    """Poses [V, 4, 4].

    Raises:
        SceneError: a place so far off that sums of squares would not be numbers.
    """
    poses = torch.stack([photo.pose for photo in photos])
    for photo, place in zip(photos, poses[:, :3, 3], strict=True):
        if not bool((place.abs() < _LARGEST).all()):
            raise SceneError(f"The camera of {photo.picture} stands at {place.tolist()}.", "Check its pose.")
    return poses


def _check_distances(photos: Sequence[Photo], poses: Tensor) -> None:
    """Refuse cameras from which nothing of the subject is to be seen: most likely, their poses are wrong."""
    radius = poses[:, :3, 3].norm(dim=1)
    worst = int(radius.argmax())
    if not float(radius[worst]) <= _FARTHEST:
        raise SceneError(
            f"The camera of {photos[worst].picture} stands {float(radius[worst]):.4g} from the subject, "
            f"the middle one {float(radius.median()):.4g}.",
            "Take the picture out of the set, or use --normalise auto.",
        )


def _develop(
    photos: Sequence[Photo], poses: Tensor, options: CaptureOptions, on_picture: Callable[[int, int], None] | None
) -> tuple[Camera, Tensor]:
    """The cameras, and [V, 4, H, W] pictures with premultiplied colours; one is decoded at a time."""
    height, width = _common_size(photos, options.max_size)
    if len(photos) * height * width > MOST_PIXELS:
        raise SceneError(
            f"{len(photos)} pictures of {width}x{height} pixels don't fit into memory: {MOST_PIXELS:,} pixels do.",
            f"Use a --max-size of {int(math.sqrt(MOST_PIXELS / len(photos)))} or less, or fewer pictures.",
        )
    layers = torch.empty(len(photos), 4, height, width)
    fov_y = []
    focals: dict[object, float] = {}  # most sets have one lens
    for index, photo in enumerate(photos):
        if photo.lens not in focals:
            focals[photo.lens] = ideal_focal(photo.lens, height, width)
        focal = focals[photo.lens]
        layers[index] = develop(photo, focal, height, width)
        fov_y.append(math.degrees(2 * math.atan(0.5 * height / focal)))
        if on_picture is not None:
            on_picture(index + 1, len(photos))
    cameras = Camera(poses.float(), torch.tensor(fov_y, dtype=torch.float64).float(), height, width)
    return cameras, layers


def _common_size(photos: Sequence[Photo], max_size: int) -> tuple[int, int]:
    """Height and width for all pictures: the first one's shape, or a square if there are several."""
    ratios = [photo.lens.width / photo.lens.height for photo in photos]
    width, height = photos[0].lens.width, photos[0].lens.height
    if max(ratios) > min(ratios) * (1 + _SAME_SHAPE):
        width = height = min(min(photo.lens.width, photo.lens.height) for photo in photos)
    scale = min(1.0, max_size / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _subject_factor(cameras: Camera, alphas: Tensor) -> float:
    """How much smaller the set must be for the subject to lie in the unit sphere; 1 where nobody says what it is."""
    if not bool((alphas < 0.5).any()):
        return 1.0
    stride = max(1, math.ceil(math.sqrt(alphas.numel() / _RAYS)))
    origins, directions = [], []
    for index in range(len(cameras)):  # one at a time: rays of all would take twice the pictures' memory
        first, along = cameras[index].rays()
        seen = alphas[index, 0, ::stride, ::stride] > 0.5
        origins.append(first[0, ::stride, ::stride][seen])
        directions.append(along[0, ::stride, ::stride][seen])
    return shrinking(torch.cat(origins), torch.cat(directions))


def _over(cameras: Camera, layers: Tensor, background: float) -> Capture:
    """Premultiplied pictures laid over a gray, in place."""
    alphas = layers[:, 3:]
    layers[:, :3] += (1 - alphas) * background
    return Capture(cameras, layers[:, :3], alphas, torch.full((3,), background))
