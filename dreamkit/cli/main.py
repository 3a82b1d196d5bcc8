"""`dreamkit`: finds the command, runs it, and is the one place where errors become messages and exit codes.

Only the module of the command that was asked for is imported, so that `--help` answers at once however many
commands there are.

Exit codes: 0 done, 1 a bug of ours, 2 a user's mistake or a machine's condition (explained), 130 interrupted,
141 the reader of our output went away.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from dreamkit._version import __version__
from dreamkit.errors import ConfigError, DreamkitError

COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("generate:run", "Turn a sentence into a 3D asset."),
    "edit": ("edit:run", "Change a finished scene to another prompt."),
    "resume": ("resume:run", "Continue an interrupted run."),
    "render": ("render:run", "Film a run's asset in several styles along a camera path."),
    "export": ("export:run", "Write a run's asset as ply, splat, glb or obj."),
    "convert": ("convert:run", "Turn a run's scene into Gaussians or a mesh."),
    "fit": ("fit:run", "Fit a scene to posed pictures (transforms.json, Blender, COLMAP)."),
    "evaluate": ("evaluate:run", "Score a run's asset against its prompt."),
    "compare": ("compare:run", "Run objectives side by side on the same prompts, with a report."),
    "compare-video": ("compare_video:run", "Stream video students side by side, with a report."),
    "stream": ("stream:run", "Make a video of a sentence that goes on and can be steered."),
    "studio": ("studio:run", "Serve the studio to a browser: live video that can be steered."),
    "sample": ("sample:run", "Draw 2D samples from a teacher."),
    "distill image": ("distill:run_image", "Make a student of one step, or a few, of an image teacher."),
    "distill video": ("distill:run_video", "Make a causal student of few steps of a video teacher."),
    "jobs list": ("jobs:list_jobs", "List the jobs of the queue."),
    "jobs show": ("jobs:show", "Show everything about a job."),
    "jobs submit": ("jobs:submit", "Queue a job."),
    "jobs cancel": ("jobs:cancel", "Cancel a job; what there is of it is kept."),
    "jobs retry": ("jobs:retry", "Queue an ended job again."),
    "jobs worker": ("jobs:work", "Run the jobs of the queue."),
    "doctor": ("doctor:run", "Show versions, devices, kernel backends and the embedded weights."),
    "objectives": ("objectives:run", "List the objectives, or explain one."),
    "bench kernels": ("bench:run", "Time the kernels against their rivals."),
    "bench scenes": ("bench_scenes:run", "Measure every kind of scene against ground truth."),
    "bench stream": ("bench_stream:run", "Measure how fast a video plays."),
    "toyworld capture": ("toyworld:capture", "Write posed pictures of a toy-world object."),
    "teachers train image": ("teachers:train_image", "Train the embedded image teacher."),
    "teachers train judge": ("teachers:train_judge", "Train the judge that scores assets."),
    "teachers train video": ("teachers:train_video", "Train the embedded video teacher."),
    "teachers train video-autoencoder": ("teachers:train_video_autoencoder", "Train its autoencoder."),
    "teachers train video-judge": ("teachers:train_video_judge", "Train the judge that scores videos."),
}
"""Command name -> module:function under dreamkit.cli, and one line of help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `dreamkit`, those of the process by default.

    Returns:
        The exit code (see the module's docstring).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _guarded(words)
        sys.stdout.flush()
    except BrokenPipeError:  # e.g. `dreamkit doctor | head -1`: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return code


def _guarded(words: list[str]) -> int:
    """Run and turn every exception into a message and an exit code."""
    as_json = "--json" in words
    try:
        return _dispatch(words)
    except SystemExit as leave:  # the parser has said what it had to say
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if code:
            _report_json(as_json, "The command line could not be read.", "The reason is on stderr.")
        return code
    except BrokenPipeError:
        raise
    except DreamkitError as error:
        from dreamkit.cli.output import print_error

        print_error(error.message, error.hint)
        _report_json(as_json, error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt, as_json)
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        hint = "This is a bug in DreamKit: please report it with the lines above."
        print(hint, file=sys.stderr)
        _report_json(as_json, message, hint)
        return 1


def _report_json(as_json: bool, message: str, hint: str | None) -> None:
    if as_json:
        from dreamkit.cli.output import print_json

        print_json({"error": message, "hint": hint})


def _interrupted(interrupt: KeyboardInterrupt, as_json: bool) -> int:
    """Say what was saved and how to go on."""
    from dreamkit.runs import RunInterrupted

    if isinstance(interrupt, RunInterrupted):
        saved = f"step {interrupt.step} is saved" if interrupt.step is not None else "its checkpoints are safe"
        message = f"Interrupted; {saved}."
        hint = f"Continue with: dreamkit resume {interrupt.run}"
    else:
        message, hint = "Interrupted.", None
    print("\n" + "\n".join(filter(None, (message, hint))), file=sys.stderr)
    _report_json(as_json, message, hint)
    return 130


def _dispatch(words: list[str]) -> int:
    """Find the command and run it, or answer --help and --version."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(""), end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"dreamkit {__version__}")
        return 0
    for name, (target, _) in COMMANDS.items():
        length = len(name.split())
        if words[:length] == name.split():
            return _load(target)(words[length:])
    group = words[0]
    if any(name.startswith(group + " ") for name in COMMANDS):
        return _group(words)
    raise _unknown(group)


def _load(target: str) -> Callable[[Sequence[str]], int]:
    module, function = target.split(":")
    command: Callable[[Sequence[str]], int] = getattr(importlib.import_module(f"dreamkit.cli.{module}"), function)
    return command


def _group(words: list[str]) -> int:
    """Answer `dreamkit teachers ...` when the words name a group of commands, whole or not."""
    plain_words = [word for word in words if not word.startswith("-")]
    prefix = " ".join(plain_words)
    if not any(name.startswith(prefix + " ") for name in COMMANDS):
        raise _unknown(prefix)
    print(_help(prefix), end="")
    return 0 if len(plain_words) < len(words) else 2


def _unknown(name: str) -> ConfigError:
    from dreamkit.checks import nearest_first

    if " " in name and name.split()[0] not in {command.split()[0] for command in COMMANDS}:
        return ConfigError(f'There is no command "{name}".', f'For a prompt: dreamkit generate "{name}"')
    nearest = nearest_first(name, COMMANDS)[0]
    return ConfigError(
        f'There is no command "{name}".', f"Did you mean `dreamkit {nearest}`? `dreamkit --help` lists all."
    )


def _help(prefix: str) -> str:
    """List the commands whose names begin with `prefix`."""
    names = [name for name in COMMANDS if name.startswith(prefix)]
    width = max(len(name) for name in names)
    lines = [
        f"usage: dreamkit {prefix + ' ' if prefix else ''}COMMAND [OPTIONS]",
        "",
        "A sentence in, a 3D asset out.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {COMMANDS[name][1]}" for name in names),
        "",
        "options:",
        "  -h, --help     show this, or a command's options: dreamkit generate --help",
        "  -V, --version  show the version",
    ]
    if not prefix:
        lines += ["", 'Begin with: dreamkit generate "a red mug"']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
