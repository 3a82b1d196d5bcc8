"""The house's floors: an import goes down, never up (.importlinter holds the layers)."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_go_down_only() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_floor() -> None:
    """A package that nobody put on a floor would escape the rule."""
    named = (ROOT / ".importlinter").read_text().split()
    modules = {
        f"dreamkit.{path.stem}"
        for path in (ROOT / "dreamkit").iterdir()
        if (path.suffix == ".py" and not path.stem.startswith("_")) or (path / "__init__.py").is_file()
    }
    assert modules <= set(named), f"add to .importlinter: {sorted(modules - set(named))}"
