"""Importing is light: heavy libraries load where they are used, and every module can be imported alone."""

import pkgutil
import subprocess
import sys

import pytest

import dreamkit

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "gradio",
    "gsplat",
    "trimesh",
    "skimage",
    "scipy",
    "matplotlib",
    "imageio",
)
# These load where they are used even below torch's floor.
LATE = tuple(name for name in HEAVY if name != "torch")
WITHOUT_TORCH = [
    "dreamkit",
    "dreamkit.errors",
    "dreamkit.checks",
    "dreamkit.files",
    "dreamkit.runs",
    "dreamkit.config",
    "dreamkit.prompts",
    "dreamkit.training.callbacks",
    "dreamkit.training.progress",
    *(f"dreamkit.cli.{module.name}" for module in pkgutil.iter_modules([f"{dreamkit.__path__[0]}/cli"])),
]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_these_modules_load_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    statement = (
        "import contextlib, io\nfrom dreamkit.cli.main import main\n"
        "for words in ([], ['--help'], ['--version'], ['generate', '--help'], ['generate', 'a', '--steps', '0']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        main(words)"
    )
    assert not loaded_by(statement) & set(HEAVY)


def test_only_networks_need_a_late_library_at_import() -> None:
    """Imports every module in turn; each late library is charged to the first module that brings it.

    But for nerfstudio's plugin, which imports its host and is imported by nobody else.
    """
    code = (
        "import importlib, pkgutil, sys, dreamkit\n"
        f"late = set({LATE!r})\n"
        "for module in pkgutil.walk_packages(dreamkit.__path__, 'dreamkit.'):\n"
        "    if module.name == 'dreamkit.nerfstudio':\n"
        "        continue\n"
        "    importlib.import_module(module.name)\n"
        "    new = late & set(sys.modules)\n"
        "    late -= new\n"
        "    if new:\n"
        "        print(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dreamkit.diffusion.hourglass"], "a diffusers model class, nothing else"
