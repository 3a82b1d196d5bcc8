"""Run folders: everything a user gets from one job, on disk.

A run is the folder `<out>/<prompt slug>/<objective>/<timestamp>/` with

```
config.yaml      what was asked: format version, creation time, the whole configuration
metrics.jsonl    one JSON object a step
run.log          what was said
checkpoints/     step-XXXXXXXX/ folders, see `dreamkit.training.checkpoints`
renders/         pictures and films
exports/         the assets
```

It appears complete or not at all, and so does every file in it (`dreamkit.files`), but for `metrics.jsonl`
and `run.log`, which grow a line at a time.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamkit._version import __version__
from dreamkit.errors import RunError
from dreamkit.files import (
    append_jsonl,
    atomic_path,
    fsync_folder,
    plain,
    read_jsonl,
    remove_path,
    temporary_sibling,
    write_error,
    write_json,
    write_yaml,
)

__all__ = [
    "FORMAT_VERSION",
    "LATEST",
    "Run",
    "RunInterrupted",
    "append_jsonl",
    "atomic_path",
    "read_jsonl",
    "write_json",
    "write_yaml",
]

FORMAT_VERSION = 1
LATEST = "latest"


class RunInterrupted(KeyboardInterrupt):
    """A job that was stopped by the user and that `dreamkit resume` can continue.

    Args:
        run: the run folder.
        step: steps done and saved; None when it goes on from whatever checkpoint was the last.
    """

    def __init__(self, run: Path, step: int | None = None) -> None:
        super().__init__(f"interrupted, {run} can be continued")
        self.run = run
        self.step = step


@dataclasses.dataclass(frozen=True)
class Run:
    """One job's folder.

    Args:
        path: the folder.
        config: the configuration it was started with, as plain dicts and lists.
    """

    path: Path
    config: dict[str, Any]

    @property
    def config_file(self) -> Path:
        """What was asked."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        """What was said."""
        return self.path / "run.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of `step-XXXXXXXX/` folders."""
        return self.path / "checkpoints"

    @property
    def renders(self) -> Path:
        """Folder of pictures and films."""
        return self.path / "renders"

    @property
    def exports(self) -> Path:
        """Folder of assets."""
        return self.path / "exports"

    @classmethod
    def create(
        cls,
        out_root: Path | str,
        prompt_slug: str,
        objective: str,
        config: Any,
        timestamp: datetime | None = None,
    ) -> Run:
        """Make `<out_root>/<prompt_slug>/<objective>/<timestamp>/` with its config.yaml and empty folders.

        The folder appears complete or not at all; on failure, parents made on the way are removed again.

        Args:
            out_root: the output folder; made if missing.
            prompt_slug: the prompt as a folder name (`dreamkit.prompts.slug`).
            objective: the objective's name.
            config: a dataclass or mapping (see `plain`).
            timestamp: when the job started, now by default; written in UTC, like `20261122T195526Z`. A second
                run in the same second gets `-02`.

        Raises:
            RunError: `out_root` is a file, can't be written, the disk is full, or a name is no folder name.
        """
        for name in (prompt_slug, objective):
            if not name or name in {".", ".."} or "/" in name or "\0" in name:
                raise RunError(f"{name!r} is not a folder name.", "Use letters, digits and dashes.")
        created = (timestamp or datetime.now(UTC)).astimezone(UTC)
        content = {
            "format_version": FORMAT_VERSION,
            "dreamkit_version": __version__,
            "created": created.isoformat(timespec="seconds"),
            "config": plain(config),
        }
        root = Path(out_root).expanduser()
        parent = root / prompt_slug / objective
        made: list[Path] = []
        try:
            if root.exists() and not root.is_dir():
                raise RunError(f"The output path {root} is a file.", "Choose another folder with --out.")
            made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            path = _create_folder(parent, created.strftime("%Y%m%dT%H%M%SZ"), content)
        except BaseException as error:
            for folder in made:  # deepest first
                with suppress(OSError):
                    folder.rmdir()
            if isinstance(error, OSError):
                raise write_error(parent, error) from error
            raise
        return cls(path, content["config"])

    @classmethod
    def open(cls, path: Path | str, out_root: Path | str = "outputs") -> Run:
        """Open an existing run.

        Args:
            path: the run folder, or "latest" for the most recent run under `out_root`.
            out_root: where "latest" looks.

        Raises:
            RunError: no such run, not a run folder, a config.yaml that can't be read or is of a newer one.
        """
        if str(path) == LATEST:
            folder = _latest(Path(out_root).expanduser())
        else:
            folder = Path(path).expanduser()
            if not folder.is_dir():
                raise RunError(
                    f"There is no run folder {folder}.",
                    f'Give the folder that `dreamkit generate` printed, or "{LATEST}".',
                )
        return cls(folder, _read_config(folder / "config.yaml"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; the lock goes when the block ends or the process dies, however it dies.

        Raises:
            RunError: another process holds it.
        """
        try:
            import fcntl
        except ImportError:  # no such lock on this system: two writers are the user's care
            yield
            return
        try:
            file = open(self.path / ".lock", "w")  # noqa: SIM115 - closed below, after the yield
        except OSError as error:
            raise write_error(self.path, error) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"The run {self.path} is in use by another process.",
                    "Wait until it ends, or stop it first.",
                ) from error
            except OSError:
                pass  # a file system without locks (some network ones)
            yield
        finally:
            file.close()

    def rewind_metrics(self, step: int) -> None:
        """Drop the metrics rows after `step` (and a torn last line), before a job continues from there.

        Args:
            step: the last step to keep; 0 drops every row.

        Raises:
            RunError: the file can't be read or written.
        """
        rows = [row for row in read_jsonl(self.metrics_file) if row.get("step", 0) <= step]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with atomic_path(self.metrics_file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _create_folder(parent: Path, name: str, content: Mapping[str, Any]) -> Path:
    """Build the run folder under a temporary name and give it the first free of `name`, `name-02`, ..."""
    temporary = temporary_sibling(parent / name)
    try:
        for folder in ("checkpoints", "renders", "exports"):
            (temporary / folder).mkdir(parents=True)
        for file in ("metrics.jsonl", "run.log"):
            (temporary / file).touch()
        write_yaml(temporary / "config.yaml", content)
        for number in range(1, 100):
            path = parent / (name if number == 1 else f"{name}-{number:02d}")
            if path.exists():
                continue
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                    continue  # another process took the name just now
                raise
            fsync_folder(parent)
            return path
        raise RunError(f"There are already 99 runs named {parent / name}.", "Try again in a second.")
    finally:
        remove_path(temporary)


def _latest(root: Path) -> Path:
    """Return the run folder under `root` with the latest name (a UTC time), then with the latest config."""
    configs = [file for file in root.glob("*/*/*/config.yaml") if not file.parent.name.startswith(".")]
    if not configs:
        raise RunError(
            f"There is no run under {root}.",
            'Start one with `dreamkit generate "a red mug"`, or say where it is with --out.',
        )
    return max(configs, key=lambda file: (file.parent.name, file.stat().st_mtime_ns)).parent


def _read_config(path: Path) -> dict[str, Any]:
    """Read and check a run's config.yaml, without interpolation and without making objects."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{path.parent} is not a run folder: it has no config.yaml.",
            f'Give the folder that `dreamkit generate` printed, or "{LATEST}".',
        ) from error
    except OSError as error:
        raise RunError(f"Could not read {path}: {error.strerror}.", "Check the file's rights.") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} is not valid YAML: {reason}.", "Restore the file, or start a new run.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(version, int) or not isinstance(config, dict):
        raise RunError(f"{path} is not the configuration of a run.", "Restore the file, or start a new run.")
    if version > FORMAT_VERSION:
        made_by = content.get("dreamkit_version", "unknown")
        raise RunError(
            f"The run {path.parent} has format version {version} (written by DreamKit {made_by}); "
            f"this DreamKit {__version__} reads up to version {FORMAT_VERSION}.",
            "Upgrade DreamKit to continue it: nothing was changed.",
        )
    return config
