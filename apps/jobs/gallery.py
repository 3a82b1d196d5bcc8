"""The runs under a folder: their ids, what is in them, and which of their files anybody may have.

A run lies at `<root>/<prompt>/<objective>/<time>/`; its id is `<prompt>~<objective>~<time>`. An id or a file's name
comes from strangers: only plain names count, and nothing on the way may be a link.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamkit_apps.jobs.errors import JobStateError, NotFoundError

from dreamkit.errors import ConfigError, RunError
from dreamkit.files import write_error
from dreamkit.runs import Run

MAX_PAGE = 200
REPORT = "report.html"
"""Name of the page in the folder of a comparison."""
_PART = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,119}")
_CONFIG, _PLAN = "config.yaml", "plan.json"
"""What makes a folder the run of an asset, or of a comparison."""
_MAX_FILES = 5000
_MAX_DEPTH = 6
_CACHED = 2000
_MAX_CONFIG = 2**20  # bytes of a config.yaml that is read


@dataclass(frozen=True)
class RunSummary:
    """A run in a list.

    Args:
        id: see the module.
        prompt: what it shows.
        objective: how it was made.
        scene: of what it is made; "" of a comparison.
        preset: quality against time.
        created: when, ISO 8601 in UTC; the time in its id when its configuration does not say.
        finished: whether its assets (or its report) are there.
        preview: name of a picture in it, `None` if there is none.
    """

    id: str
    prompt: str
    objective: str
    scene: str
    preset: str
    created: str
    finished: bool
    preview: str | None


@dataclass(frozen=True)
class RunFile:
    """A file of a run.

    Args:
        name: its path in the run, parts separated by "/".
        size: bytes.
    """

    name: str
    size: int


class RunFolders:
    """The runs under a folder.

    Args:
        root: the folder; it need not be there yet.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().resolve()
        self._heads: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    def run_id(self, folder: Path | str) -> str | None:
        """The id of a run's folder; `None` if it is none of these runs."""
        try:
            parts = Path(folder).absolute().relative_to(self.root).parts
        except ValueError:
            return None
        name = "~".join(parts)
        return name if len(parts) == 3 and self._find(name) is not None else None

    def folder(self, run_id: str) -> Path:
        """The folder of a run.

        Raises:
            NotFoundError: there is no such run.
        """
        found = self._find(run_id)
        if found is None:
            raise NotFoundError(f"There is no run {run_id[:200]!r}.", "The list of runs names all.")
        return found

    def new_folder(self, prompt: str, objective: str, name: str) -> Path:
        """Where a run with a given name goes; see `_PART` for what names may be."""
        return self.root / prompt / objective / name

    def _find(self, run_id: str) -> Path | None:
        parts = run_id.split("~")
        if len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
            return None
        path = self.root
        for part in parts:
            path = path / part
            if not _is(path, stat.S_ISDIR):
                return None
        return path if any(_is(path / name, stat.S_ISREG) for name in (_CONFIG, _PLAN)) else None

    def find(self, search: str = "", limit: int = 50, offset: int = 0) -> tuple[list[RunSummary], int]:
        """Runs, the newest first, and how many there are on all pages.

        Args:
            search: words that the prompt or the objective must all have in it, in any case.
            limit: how many at most, 1 to `MAX_PAGE`.
            offset: how many to leave out, >= 0.

        Raises:
            ConfigError: a number out of range.
        """
        if not 1 <= limit <= MAX_PAGE or offset < 0:
            raise ConfigError(
                f"{limit} runs from number {offset} can't be listed.", f"List 1 to {MAX_PAGE}, from 0 on."
            )
        found = [path for path in self.root.glob("*/*/*") if self._find("~".join(path.parts[-3:])) == path]
        found.sort(key=lambda path: (path.name, path.parts[-3:]), reverse=True)
        words = search.casefold().split()
        if words:
            found = [path for path in found if _holds(self._head(path), words)]
        return [self._summary(path) for path in found[offset : offset + limit]], len(found)

    def summary(self, run_id: str) -> RunSummary:
        """One run.

        Raises:
            NotFoundError: there is no such run.
        """
        return self._summary(self.folder(run_id))

    def _summary(self, path: Path) -> RunSummary:
        head = self._head(path)
        compared = _is(path / _PLAN, stat.S_ISREG)
        made = (REPORT,) if compared else ("exports/scene.ply", "exports/mesh.glb")
        preview = "renders/contact_sheet.png"
        return RunSummary(
            id="~".join(path.parts[-3:]),
            finished=any(_is(path / name, stat.S_ISREG) for name in made),
            preview=preview if _is(path / preview, stat.S_ISREG) else None,
            **head,
        )

    def _head(self, path: Path) -> dict[str, Any]:
        """What a run's configuration says, read once for each version of the file: YAML is slow."""
        file = path / (_PLAN if _is(path / _PLAN, stat.S_ISREG) else _CONFIG)
        try:
            about = file.stat()
            key = (str(file), about.st_mtime_ns)
            if key not in self._heads:
                self._heads[key] = _read_head(file, path) if about.st_size <= _MAX_CONFIG else {}
            self._heads.move_to_end(key)
        except OSError:
            return _head_of({}, path)
        while len(self._heads) > _CACHED:
            self._heads.popitem(last=False)
        return self._heads[key]

    def files(self, run_id: str) -> list[RunFile]:
        """The files of a run that anybody may have, by name: no hidden ones, no links.

        Raises:
            NotFoundError: there is no such run.
        """
        root, found = self.folder(run_id), []
        for folder, folders, names in os.walk(root, followlinks=False):
            depth = len(Path(folder).relative_to(root).parts)
            folders[:] = sorted(name for name in folders if _is_shown(name) and depth < _MAX_DEPTH)
            for name in sorted(filter(_is_shown, names)):
                path = Path(folder) / name
                with suppress(OSError):
                    about = path.lstat()
                    if stat.S_ISREG(about.st_mode):
                        found.append(RunFile(path.relative_to(root).as_posix(), about.st_size))
            if len(found) > _MAX_FILES:
                break
        return sorted(found[:_MAX_FILES], key=lambda file: file.name)

    def file(self, run_id: str, name: str) -> Path:
        """A file of a run.

        Args:
            run_id: which run.
            name: its path in the run, parts separated by "/".

        Raises:
            NotFoundError: there is none, or none that anybody may have: hidden, a link or behind one, outside.
        """
        path, parts = self.folder(run_id), name.split("/")
        good = len(name) <= 1000 and len(parts) <= _MAX_DEPTH + 1 and all(map(_is_shown, parts))
        for index, part in enumerate(parts if good else ()):
            path = path / part
            good = good and _is(path, stat.S_ISREG if index == len(parts) - 1 else stat.S_ISDIR)
        if not good:
            raise NotFoundError(f"The run has no file {name[:200]!r}.", "The list of its files names all.")
        return path

    def is_report(self, run_id: str, name: str) -> bool:
        """Whether a file is the page that a comparison wrote."""
        return name == REPORT and _is(self.folder(run_id) / _PLAN, stat.S_ISREG)

    def delete(self, run_id: str) -> None:
        """Delete a run that nobody is writing.

        Raises:
            NotFoundError: there is no such run.
            JobStateError: a process works on it.
            RunError: it can't be deleted.
        """
        path = self.folder(run_id)
        hidden = path.with_name(f".deleted-{secrets.token_hex(8)}")
        try:
            with Run(path, {}).lock():
                path.rename(hidden)  # from here on it is gone, however long the rest takes
        except RunError as error:
            raise JobStateError(error.message, error.hint) from error
        except OSError as error:
            raise write_error(path, error) from error
        shutil.rmtree(hidden, ignore_errors=True)
        for parent in path.parents[:2]:
            with suppress(OSError):
                parent.rmdir()


def _is(path: Path, kind: Any) -> bool:
    """Whether a path is there, of a kind (of `stat`), and no link."""
    try:
        return bool(kind(path.lstat().st_mode))
    except (OSError, ValueError):  # ValueError: NUL in the name, or a lone surrogate
        return False


def _is_shown(name: str) -> bool:
    """Whether a part of a file's name is one that anybody may see."""
    return bool(name) and not name.startswith(".") and "\\" not in name and name.isprintable() and "/" not in name


def _holds(head: dict[str, Any], words: list[str]) -> bool:
    text = f"{head['prompt']} {head['objective']} {head['scene']}".casefold()
    return all(word in text for word in words)


def _read_head(file: Path, path: Path) -> dict[str, Any]:
    """The head of a run's configuration; of one that can't be read what its folder's name says."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        content = {}
    return _head_of(content if isinstance(content, dict) else {}, path)


def _head_of(content: dict[str, Any], path: Path) -> dict[str, Any]:
    config = content.get("config")
    config = config if isinstance(config, dict) else {}
    prompts = content.get("prompts")
    slug, method, moment = path.parts[-3:]
    prompt = config.get("prompt") or (prompts[0] if isinstance(prompts, list) and prompts else slug)
    return {
        "prompt": str(prompt)[:2000],
        "objective": method,
        "scene": str(config.get("scene", ""))[:100],
        "preset": str(config.get("preset", ""))[:100],
        "created": str(content.get("created", moment))[:100],
    }
