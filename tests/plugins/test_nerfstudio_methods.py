"""What nerfstudio is told about DreamKit, in any environment: its methods, and what happens where it is missing."""

import subprocess
import sys
import tomllib
from pathlib import Path

from dreamkit.objectives import objective_names

ROOT = Path(__file__).parents[2]


def test_every_objective_of_the_package_has_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    methods = project["entry-points"]["nerfstudio.method_configs"]
    assert methods == {f"dreamkit-{name}": f"dreamkit.nerfstudio:dreamkit_{name}" for name in objective_names()}


def test_without_nerfstudio_the_plugin_says_what_to_do() -> None:
    code = (
        "import sys\nsys.modules['nerfstudio'] = None\nfrom dreamkit.errors import DreamkitError\n"
        "try:\n    import dreamkit.nerfstudio\n"
        "except DreamkitError as error:\n    print(isinstance(error, ImportError), error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True Nerfstudio can't be imported")
    assert ".ci/nerfstudio" in done.stdout
