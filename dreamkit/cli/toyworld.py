"""`dreamkit toyworld capture OBJECT DIR`: posed pictures from ground truth, to try `dreamkit fit` on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dreamkit.checks import require_choice, require_integer, require_number
from dreamkit.cli.generate import SEED_LIMIT
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import Integer, parse, require_folder_name

Number = Annotated[float, tyro.conf.arg(metavar="F")]


@dataclass(frozen=True)
class ToyCapture:
    """Write a set of posed pictures of a toy-world object: RGBA pictures and their cameras, from ground truth.

    With noise, the cameras in the set are a little wrong, and the true ones are in transforms_truth.json.
    """

    object: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OBJECT")]
    """What to take pictures of, e.g. mug."""
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    colour: Annotated[str, tyro.conf.arg(metavar="NAME")] = "red"
    """Its colour."""
    material: Annotated[str, tyro.conf.arg(metavar="plain|striped|spotted|shiny")] = "striped"
    """Its material; stripes and spots show whether detail is right."""
    views: Integer = 24
    """Pictures, 1 to 1000."""
    size: Integer = 128
    """Side of the pictures in pixels, 16 to 1024."""
    elevations: Annotated[tuple[float, float], tyro.conf.arg(metavar="LOW HIGH")] = (-10.0, 60.0)
    """Degrees of the lowest and the highest camera, -90 to 90."""
    seed: Integer = 0
    """Seed of the noise and of where the spiral of cameras begins, >= 0."""
    noise_degrees: Number = 0.0
    """How far cameras are turned from the truth (root mean square), degrees, 0 to 45."""
    noise_distance: Number = 0.0
    """How far they are shifted (root mean square), world units, 0 to 1; they stand at radius 3."""
    distortion: Number = 0.0
    """k1 of the lens, -0.5 (barrel) to 0.5 (cushion)."""
    format: Annotated[str, tyro.conf.arg(metavar="transforms|blender|colmap")] = "transforms"
    """What to write: nerfstudio's transforms.json, a Blender set with test views of its own, or a COLMAP model."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def check(self) -> None:
        """Check the options that cost nothing to check.

        Raises:
            ConfigError: one out of range or unknown.
        """
        require_integer("--views", self.views, 1, 1000)
        require_integer("--size", self.size, 16, 1024)
        require_integer("--seed", self.seed, 0, SEED_LIMIT)
        require_number("--noise-degrees", self.noise_degrees, 0, 45)
        require_number("--noise-distance", self.noise_distance, 0, 1)
        require_number("--distortion", self.distortion, -0.5, 0.5)
        require_choice("--format", self.format, ("transforms", "blender", "colmap"))
        require_folder_name("DIR", self.folder)


def capture(arguments: Sequence[str]) -> int:
    """Run `toyworld capture`.

    Args:
        arguments: what follows `toyworld capture`.

    Returns:
        The exit code.
    """
    command = parse(ToyCapture, "toyworld capture", arguments)
    command.check()
    from dreamkit.toyworld.capture import CaptureRecipe, write_capture

    recipe = CaptureRecipe(
        name=command.object,
        colour=command.colour,
        material=command.material,
        views=command.views,
        size=command.size,
        elevations=command.elevations,
        seed=command.seed,
        noise_degrees=command.noise_degrees,
        noise_distance=command.noise_distance,
        distortion=command.distortion,
        format=command.format,  # type: ignore[arg-type]
    )
    folder = write_capture(recipe, Path(command.folder).expanduser())
    content = {"folder": str(folder), "views": command.views, "format": command.format}
    if command.json:
        print_json(content)
    else:
        print_rows({**content, "next": f"dreamkit fit {folder}"})
    return 0
