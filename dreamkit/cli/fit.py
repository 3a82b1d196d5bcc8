"""`dreamkit fit DATA`: a folder of posed pictures in, a scene out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dreamkit.checks import require_choice, require_integer
from dreamkit.cli.generate import SEED_LIMIT, run_job
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import Device, Folder, Integer, parse, require_device, require_folder_name
from dreamkit.errors import ConfigError

if TYPE_CHECKING:
    from dreamkit.training.fit_run import FitResult

SCENES = ("gaussians", "nerf", "sdf", "latent-nerf")


@dataclass(frozen=True)
class Fit:
    """Fit a scene to posed pictures: a run folder with renders, a splat file, a mesh and scores.

    DATA is a folder with a transforms.json (nerfstudio, instant-ngp), with transforms_train.json (Blender's synthetic
    sets), or with COLMAP's sparse/0/ and images/. Lenses are undistorted; EXIF's orientation is left alone, as those
    programs do. The subject should be cut out (RGBA, or masks): what stands behind it is fitted too, otherwise.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """The folder of the set, or its JSON file."""
    scene: Annotated[str, tyro.conf.arg(metavar="gaussians|nerf|sdf|latent-nerf")] = "gaussians"
    """What to fit: Gaussians, a NeRF of density, one of signed distance (clean surfaces), or one of a diffusion model's
    latents (to be edited there)."""
    teacher: Annotated[str, tyro.conf.arg(metavar="toyworld|PATH|HUB_ID")] = ""
    """Whose latents a latent-nerf is made of: the embedded model (by default), a folder in diffusers layout, or a hub
    id."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 2000; gaussians: 2500)")] = (
        None
    )
    """Optimisation steps, >= 1."""
    max_size: Integer = 256
    """Longest side of the pictures in pixels, 16 to 4096; larger ones are scaled down."""
    hold_out: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the set's own test views, or 8)")
    ] = None
    """Keep every N-th view for measuring, >= 2; 0 keeps none."""
    refine_poses: bool = False
    """Correct the cameras along with the scene: for poses that are a little wrong."""
    normalise: Annotated[str, tyro.conf.arg(metavar="auto|never")] = "auto"
    """Turn, shift and scale the set so that the subject fills the unit sphere, unless it does; or take it as it is."""
    up: Annotated[str, tyro.conf.arg(metavar="auto|y|z")] = "auto"
    """Axis that is up in the files' world; auto is z for transforms.json, and estimated for COLMAP."""
    seed: Integer = 0
    """Seed of everything random, >= 0; the same seed gives the same bytes on a CPU."""
    out: Folder = "outputs"
    """Where run folders go."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def check(self) -> None:
        """Check every option, before anything heavy is loaded.

        Raises:
            ConfigError: an option out of range or unknown.
        """
        require_choice("--scene", self.scene, SCENES)
        if self.teacher and self.scene != "latent-nerf":
            raise ConfigError(
                f"A fit of {self.scene} asks no teacher, and --teacher {self.teacher!r} was given.",
                "Leave it out, or use --scene latent-nerf.",
            )
        require_integer("--steps", self.steps, 1, 10**7)
        require_integer("--max-size", self.max_size, 16, 4096)
        if self.hold_out != 0:
            require_integer("--hold-out", self.hold_out, 2, 10**6)
        require_choice("--normalise", self.normalise, ("auto", "never"))
        require_choice("--up", self.up, ("auto", "y", "z"))
        require_integer("--seed", self.seed, 0, SEED_LIMIT)
        require_device(self.device)
        require_folder_name("DATA", self.data)
        require_folder_name("--out", self.out)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `fit`.

    Returns:
        The exit code.
    """
    command = parse(Fit, "fit", arguments)
    command.check()
    from dreamkit.captures import CaptureOptions
    from dreamkit.training.fit_run import fit
    from dreamkit.training.fit_settings import fit_preset

    captures = CaptureOptions(
        max_size=command.max_size,
        hold_out=command.hold_out,
        normalise=command.normalise,  # type: ignore[arg-type]
        up=command.up,  # type: ignore[arg-type]
    )
    settings = fit_preset(
        command.scene,  # type: ignore[arg-type]
        command.refine_poses,
        data=command.data,
        captures=captures,
        steps=command.steps,
        teacher=command.teacher or None,
        seed=command.seed,
        device=command.device,
    )
    print_fit(run_job(lambda callbacks: fit(settings, command.out, callbacks)), command.json)
    return 0


def print_fit(result: FitResult, as_json: bool) -> None:
    """Print what a finished fit made: one JSON object, or lines for people.

    Args:
        result: what `fit` or `resume_fit` returned.
        as_json: one JSON object.
    """
    training, held_out = result.views
    content: dict[str, Any] = {
        "run": str(result.run),
        "exports": {name: str(path) for name, path in result.exports.items()},
        "seconds": round(result.seconds, 3),
        "steps": result.steps,
        "peak_rss_mb": round(result.peak_rss_mb, 1),
        "views": {"training": training, "held_out": held_out},
        "size": list(result.size),
        "scores": result.scores,
        "warnings": list(result.warnings),
    }
    if as_json:
        print_json(content)
        return
    print_rows(
        {
            "run": content["run"],
            "time": f"{result.seconds:.1f} s, {result.steps} steps, {result.peak_rss_mb:.0f} MB",
            "views": f"{training} of {result.size[0]}x{result.size[1]} pixels, {held_out} held out",
            "exports": content["exports"],
            "scores": result.scores,
        }
    )
