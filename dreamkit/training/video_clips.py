"""A pool of clips of the moving toy world as latents, made once by processes of its own and read by every step.

```
pool-<key>/shard-00000.safetensors    latents [n, C, F, h, w] float16, cameras [n, F, 12], tracks [n, F, N, 2],
                                      visible [n, F, N] as uint8, shapes [n, F, 4, S / 4, S / 4] as int8 in 1/127 steps;
                                      the captions in the file's metadata
```

A pool of pairs holds clips that two cameras film at once, their frames taking turns (see `dreamkit.video.pairs`).

Shard i is drawn with the seed `seed * 1_000_003 + i`, whichever process makes it and whenever, so a pool is a pure
function of its recipe; the key is a digest of the recipe and of the autoencoder's weights. Shards appear whole or not
at all and are read through memory maps: a pool may be larger than the memory.
"""

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.checks import require
from dreamkit.errors import CheckpointError, RunError
from dreamkit.files import atomic_path, remove_leftovers
from dreamkit.toyworld.motion import MotionConfig, MotionWorld, relative_cameras
from dreamkit.video.pairs import sources

_PARTS = ("latents", "cameras", "tracks", "visible", "shapes")
"""The tensors of a shard."""
_POLL = 0.5  # seconds between two looks at what the processes have made


@dataclass(frozen=True)
class PoolRecipe:
    """What a pool holds.

    Args:
        world: of the clips.
        meshes: file that `build_motion_cache` made for it.
        autoencoder: folder of the autoencoder that makes the latents.
        clips: in all, rounded up to whole shards.
        shard: clips a file.
        seed: of everything drawn.
        loops: of a pool of pairs, the share whose second camera comes back; `None` is a pool of single clips.
    """

    world: MotionConfig
    meshes: Path
    autoencoder: Path
    clips: int
    shard: int = 100
    seed: int = 0
    loops: float | None = None

    @property
    def shards(self) -> int:
        """Files in all."""
        return -(-self.clips // self.shard)

    @property
    def key(self) -> str:
        """Name of this pool: of everything that decides what a shard holds, so not of the number of clips."""
        weights = self.autoencoder / "diffusion_pytorch_model.safetensors"
        try:
            digest = hashlib.sha256(weights.read_bytes() + (self.autoencoder / "config.json").read_bytes())
        except OSError as error:
            raise CheckpointError(
                f"There is no autoencoder in {self.autoencoder}: {error.strerror}.",
                "Train one with `dreamkit teachers train video-autoencoder`, or give --autoencoder.",
            ) from error
        content = [asdict(self.world), self.meshes.name, self.shard, self.seed, _PARTS]
        if self.loops is not None:
            content.append({"loops": self.loops})
        digest.update(json.dumps(content).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class LatentClips:
    """B clips of F frames.

    Args:
        latents: [B, C, F, h, w] float32.
        captions: B strings.
        cameras: [B, F, 12] relative to each clip's first.
        tracks: [B, F, N, 2].
        visible: [B, F, N] bool.
        shapes: [B, F, 4, S / 4, S / 4], see `Clips`.
        pairs: whether they are pairs, F twice the frames of a camera: the cameras of source frames are zeros then, and
            no point is visible.
    """

    latents: Tensor
    captions: list[str]
    cameras: Tensor
    tracks: Tensor
    visible: Tensor
    shapes: Tensor
    pairs: bool = False


class ClipPool:
    """Reads what is there of a pool.

    Args:
        folder: of the shards.
        limit: shards at most; a folder may hold more, of a larger pool.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self._files: list[Any] = []
        self._captions: list[list[str]] = []
        self._pairs = False

    @property
    def pairs(self) -> bool:
        """Whether it holds pairs."""
        return self.shards > 0 and self._pairs

    @property
    def shards(self) -> int:
        """How many shards are there, counted from the first without a gap."""
        while len(self._files) != self.limit and _shard_path(self.folder, len(self._files)).exists():
            self._open(_shard_path(self.folder, len(self._files)))
        return len(self._files)

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(path, framework="pt")
            metadata = file.metadata() or {}
            captions, self._pairs = json.loads(metadata["captions"]), "pairs" in metadata
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} is damaged: {error}.", "Delete it: it is made again.") from error
        self._files.append(file)
        self._captions.append(captions)

    def draw(self, count: int, frames: int, generator: torch.Generator, shards: int | None = None) -> LatentClips:
        """Draw parts of clips: which clip, and where in it the part begins, are equally likely.

        Args:
            count: B, at least 1.
            frames: F, at most those of a clip; of pairs, that many pairs.
            generator: source of every choice.
            shards: how many of the shards to draw from, those that are there by default.

        Raises:
            ConfigError: no shards, or more frames than a clip has.
        """
        there = self.shards if shards is None else shards
        require("The pool's number of shards", there > 0, there, "a pool with at least one")
        parts: dict[str, list[Tensor]] = {name: [] for name in _PARTS}
        captions, step = [], 1 + self._pairs
        for which in torch.randint(there, (count,), generator=generator).tolist():
            file = self._files[which]
            length = file.get_slice("cameras").get_shape()[1] // step
            require("The number of frames", 1 <= frames <= length, frames, f"1 to {length}")
            row = int(torch.randint(len(self._captions[which]), (), generator=generator))
            start = step * int(torch.randint(length - frames + 1, (), generator=generator))
            captions.append(self._captions[which][row])
            for name, items in parts.items():
                whole = file.get_slice(name)
                stop = start + step * frames
                items.append(whole[row, :, start:stop] if name == "latents" else whole[row, start:stop])
        stacked = {name: torch.stack(items) for name, items in parts.items()}
        cameras, visible = relative_cameras(stacked["cameras"]), stacked["visible"].bool()
        if self._pairs:
            sources(cameras, 1).zero_()
            visible = torch.zeros_like(visible)
        return LatentClips(
            latents=stacked["latents"].float(),
            captions=captions,
            cameras=cameras,
            tracks=stacked["tracks"],
            visible=visible,
            shapes=stacked["shapes"].float() / 127,
            pairs=self._pairs,
        )


@contextmanager
def growing_pool(
    recipe: PoolRecipe,
    folder: Path,
    workers: int = 1,
    wait_for: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[ClipPool]:
    """Let processes fill a pool while the block runs; it begins when enough of it is there.

    Args:
        recipe: what the pool holds.
        folder: where pools live; shards of the same recipe that are there already are kept.
        workers: processes, at least 1.
        wait_for: clips that must be there before the block begins; all by default, which is what makes trainings
            on the pool repeatable.
        report: called with (clips done, clips in all) while waiting.

    Yields:
        The pool.

    Raises:
        RunError: a process failed before enough was there.
        CheckpointError: no autoencoder to make latents with.
    """
    place = folder / f"pool-{recipe.key}"
    place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place)
    pool, wanted = ClipPool(place, recipe.shards), recipe.shards
    if wait_for is not None:
        wanted = min(wanted, max(1, -(-wait_for // recipe.shard)))
    processes = _start(recipe, place, workers) if pool.shards < recipe.shards else []
    try:
        while (done := pool.shards) < wanted:
            report(done * recipe.shard, wanted * recipe.shard)
            if not any(process.is_alive() for process in processes) and pool.shards < wanted:
                raise RunError(
                    f"The processes that fill {place} ended early, with {pool.shards} of {wanted} shards.",
                    "Their error is above; with too little memory, use --workers 1.",
                )
            time.sleep(_POLL)
        yield pool
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _start(recipe: PoolRecipe, place: Path, workers: int) -> list[BaseProcess]:
    context = get_context("spawn")  # forking after torch has used its threads hangs
    processes: list[BaseProcess] = [
        context.Process(target=_fill, args=(recipe, place, worker, workers), daemon=True) for worker in range(workers)
    ]
    for process in processes:
        process.start()
    return processes


def _fill(recipe: PoolRecipe, place: Path, worker: int, workers: int) -> None:
    """Make every shard of a worker that is not there yet."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the training, which ends this process
    torch.set_num_threads(1)
    maker = ShardMaker(recipe)
    for index in range(worker, recipe.shards, workers):
        if not _shard_path(place, index).exists():
            maker.make(index, place)


class ShardMaker:
    """Renders and encodes clips.

    Args:
        recipe: what the pool holds.
    """

    def __init__(self, recipe: PoolRecipe) -> None:
        from dreamkit.video.autoencoders import load_autoencoder

        self.recipe = recipe
        self.world = MotionWorld(recipe.meshes, recipe.world)
        self.autoencoder = load_autoencoder(recipe.autoencoder)

    def make(self, index: int, place: Path) -> Path:
        """Write shard `index` into the folder `place`."""
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + index)
        parts: dict[str, list[Tensor]] = {name: [] for name in _PARTS}
        captions: list[str] = []
        for _ in range(self.recipe.shard):
            loops = self.recipe.loops
            clips = self.world.sample(1, generator) if loops is None else self.world.sample_pairs(1, generator, loops)
            captions += clips.captions
            parts["latents"].append(self.autoencoder.encode(clips.frames).half())
            parts["cameras"].append(clips.cameras)
            parts["tracks"].append(clips.tracks)
            parts["visible"].append(clips.visible.to(torch.uint8))
            parts["shapes"].append((127 * clips.shapes).round().to(torch.int8))
        tensors = {name: torch.cat(items).contiguous() for name, items in parts.items()}
        path = _shard_path(place, index)
        metadata = {"captions": json.dumps(captions)} | ({} if self.recipe.loops is None else {"pairs": "true"})
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        return path


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"
