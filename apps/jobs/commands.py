"""The command that runs a job, as a list of arguments: no shell, and nothing a user wrote is read as an option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from dreamkit_apps.jobs.job import Job
from dreamkit_apps.jobs.settings import CompareSettings, Rules, stored_settings

from dreamkit.files import atomic_path
from dreamkit.prompts import slug

DREAMKIT = (sys.executable, "-m", "dreamkit.cli.main")


class CommandBuilder(Protocol):
    """What a worker knows of commands."""

    def main(self, job: Job, run: Path | None, logs: Path) -> list[str]:
        """The command that does the job, or what is left of it.

        Args:
            job: which.
            run: folder of the run that it began, if it did.
            logs: a folder of its own, for whatever the command needs.

        Raises:
            DreamkitError: the job can't be done any more.
        """
        ...

    def run_folder(self, job: Job) -> Path | None:
        """Where the run will be, if that is known before the command says so."""
        ...

    def keeping(self, job: Job, run: Path) -> list[list[str]]:
        """Commands that make something to look at of the run of a cancelled job, the more important first."""
        ...


class Commands:
    """The commands of `dreamkit`.

    Args:
        rules: where runs are.
        device: auto, cpu or cuda.
        checkpoint_every: steps between checkpoints: what a killed machine costs at most.
        program: what stands before the words.
        preview_every: steps between pictures for who watches (`dreamkit.training.previews`), at the most often.
    """

    def __init__(
        self,
        rules: Rules,
        device: str = "auto",
        checkpoint_every: int = 20,
        program: Sequence[str] = DREAMKIT,
        preview_every: int = 5,
    ) -> None:
        self.rules, self.device, self.checkpoint_every = rules, device, checkpoint_every
        self.preview_every = preview_every
        self.program = list(program)

    def main(self, job: Job, run: Path | None, logs: Path) -> list[str]:
        """See `CommandBuilder.main`: `resume` where there is a run, otherwise the job from its start."""
        settings = stored_settings(job.kind, job.settings)
        if isinstance(settings, CompareSettings):
            prompts = logs / "prompts.txt"
            with atomic_path(prompts) as temporary:
                temporary.write_text(settings.prompt + "\n", encoding="utf-8")
            # What is done is not done again: the same command starts and resumes.
            return self._with_flags(settings.words(self.rules), f"--out={self.run_folder(job)}", f"--prompts={prompts}")
        if run is not None:
            return [*self.program, "resume", "--json", "--", str(run)]
        flags = (f"--out={self.rules.runs.root}", f"--option=preview_every={self.preview_every}")
        return self._with_flags(settings.words(self.rules), *flags)

    def _with_flags(self, words: list[str], *flags: str) -> list[str]:
        """A command with what only the worker decides, before its prompt."""
        own = [f"--option=checkpoint_every={self.checkpoint_every}", f"--device={self.device}", "--json"]
        return [*self.program, words[0], *flags, *own, *words[1:]]

    def run_folder(self, job: Job) -> Path | None:
        """See `CommandBuilder.run_folder`: comparisons go into a folder named after their job."""
        if job.kind != CompareSettings.kind:
            return None
        created = datetime.fromtimestamp(job.created, UTC).strftime("%Y%m%dT%H%M%SZ")
        return self.rules.runs.new_folder(slug(job.prompt), CompareSettings.kind, f"{created}-{job.id[:8]}")

    def keeping(self, job: Job, run: Path) -> list[list[str]]:
        """See `CommandBuilder.keeping`: pictures and asset files of the last checkpoint."""
        if job.kind == CompareSettings.kind or not any((run / "checkpoints").glob("step-*")):
            return []
        return [[*self.program, *words, "--", str(run)] for words in (["render"], ["export", "--format=ply,glb"])]


def shown_command(job: Job, rules: Rules) -> str:
    """A job for a shell, to copy; a teacher of the server by its name only.

    Raises:
        DreamkitError: the run that an edit starts from is gone.
    """
    settings = stored_settings(job.kind, job.settings)
    return replace(settings, teacher=rules.teacher_name(settings.teacher)).as_command(rules)
