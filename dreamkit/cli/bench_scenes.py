"""`dreamkit bench scenes`: what each kind of scene can do on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from dreamkit.checks import require_choice, require_integer, require_number
from dreamkit.cli.output import print_json
from dreamkit.cli.parsing import Integer, Setting, parse


@dataclass(frozen=True)
class BenchScenes:
    """Fit every kind of scene to 24 views of an object and cut its surface; with --prompts make drafts too."""

    object: Annotated[str, tyro.conf.arg(metavar="NAME")] = "mug"
    """Toy-world object to fit."""
    kinds: Annotated[str, tyro.conf.arg(metavar="KIND,KIND")] = "gaussians,nerf,sdf"
    """Kinds of scene to fit, separated by commas; nothing for none."""
    share: Annotated[float, tyro.conf.arg(metavar="F")] = 1.0
    """Share of the usual steps of a fit, 0.001 to 10."""
    prompts: Annotated[str, tyro.conf.arg(metavar="heldout|fronted|FILE")] = ""
    """Make these with every kind in --generate; half a minute to two minutes each."""
    generate: Annotated[str, tyro.conf.arg(metavar="KIND,KIND")] = "gaussians,nerf,sdf,mesh"
    """Kinds of scene to make the prompts with."""
    option: tyro.conf.UseAppendAction[tuple[Setting, ...]] = ()
    """Change an option of every run, e.g. precision=bfloat16; may be given several times."""
    jobs: Integer = 1
    """Runs at once, 1 to 64: sooner done, but each then takes longer than it would alone."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `bench scenes`.

    Returns:
        The exit code.
    """
    command = parse(BenchScenes, "bench scenes", arguments)
    require_number("--share", command.share, 0.001, 10)
    require_integer("--jobs", command.jobs, 1, 64)
    from dreamkit_kernels.bench import machine

    from dreamkit.toyworld.objects import get_object
    from dreamkit.training.compare.plan import read_prompts, split_list
    from dreamkit.training.fit_settings import FITS
    from dreamkit.training.scene_bench import BenchObject, bench_fits, bench_generate, summary
    from dreamkit.training.settings import scene_kind

    get_object(command.object)
    kinds = split_list("--kinds", command.kinds) if command.kinds else []
    for kind in kinds:
        require_choice("--kinds", kind, FITS)
    made = [scene_kind(kind) for kind in split_list("--generate", command.generate)]
    prompts = read_prompts(command.prompts) if command.prompts else []
    fits, runs = [], []
    for row in bench_fits(BenchObject(command.object), kinds, command.share):
        fits.append(row)
        if not command.json:
            _print_row(row)
    for row in bench_generate(made, prompts, options=command.option, jobs=command.jobs):
        runs.append(row)
        if not command.json:
            _print_row(row)
    if command.json:
        print_json({"machine": machine(), "fits": fits, "runs": runs, "summary": summary(runs)})
    else:
        for row in summary(runs):
            _print_row(row)
    return 0


def _print_row(row: dict[str, Any]) -> None:
    cells = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()]
    print("  ".join(cells), flush=True)
