"""An objective of another package: found by its entry point, and held to the same contract."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import pytest
from closed_form import patterned
from contract import Case, ObjectiveContract

from dreamkit.errors import ConfigError
from dreamkit.objectives import Objective, objective_class, objective_names, registry

pytestmark = pytest.mark.usefixtures("one_thread")

PLUGIN = '''
"""Everything that a method of one's own takes."""

from dataclasses import dataclass

from dreamkit.objectives import Distillation, ObjectiveContext, Terms, register


@register("lazy")
@dataclass(frozen=True)
class LazyDistillation(Distillation):
    """SDS that does a share of the work (Nobody, arXiv 0000.00000)."""

    share: float = 0.5
    """How much of it, 0 to 1."""

    def terms(self, x, t, context: ObjectiveContext) -> Terms:
        eps = context.noise_like(x)
        guided = self.ask(context.teacher.schedule.add_noise(x, eps, t), t, context).guided
        return Terms(self.share * guided.eps, self.share * eps, guided.x0, t)
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Pretends that a package with this module is installed, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    def do(source: str) -> None:
        (tmp_path / "dreamkit_lazy.py").write_text(source)
        entry = EntryPoint("lazy", "dreamkit_lazy", registry.GROUP)._for(SimpleNamespace(name="dreamkit-lazy"))
        monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
        registry.load_plugins.cache_clear()

    yield do
    sys.modules.pop("dreamkit_lazy", None)
    registry.load_plugins.cache_clear()


def test_twenty_lines_are_an_objective(install: Callable[[str], None]) -> None:
    assert len([line for line in PLUGIN.strip().splitlines() if line]) <= 20
    assert "lazy" not in objective_names()
    install(PLUGIN)
    assert "lazy" in objective_names()
    kind = objective_class("lazy")
    assert issubclass(kind, Objective)
    assert kind.name == "lazy"
    case = Case(patterned(shape=(3, 4, 4)), prompts=("y", "y", "y"), other="n", source="n")
    ObjectiveContract(kind(), case, deterministic=False).check()


def test_the_command_line_and_settings_know_it(install: Callable[[str], None]) -> None:
    from dreamkit.training.presets import preset, with_options
    from dreamkit.training.scene import make_objective

    install(PLUGIN)
    settings = with_options(preset("draft", "lazy"), ["share=0.25", "guidance=3"])
    objective = make_objective(settings)
    assert objective.share == 0.25  # type: ignore[attr-defined]
    assert objective.guidance.at(0.5) == 3.0  # type: ignore[attr-defined]


def test_a_broken_one_names_its_package(install: Callable[[str], None]) -> None:
    install("import a_library_that_is_not_installed\n")
    with pytest.raises(ConfigError) as caught:
        objective_class("sds")
    assert "dreamkit-lazy" in str(caught.value)
    assert "a_library_that_is_not_installed" in str(caught.value)
    with pytest.raises(ConfigError, match="dreamkit-lazy"):  # not only the first time
        objective_names()


def test_a_name_that_is_taken_names_the_package_too(install: Callable[[str], None]) -> None:
    install(PLUGIN.replace('@register("lazy")', '@register("sds")'))
    with pytest.raises(ConfigError) as caught:
        objective_names()
    assert "dreamkit-lazy" in str(caught.value)
    assert "'sds'" in str(caught.value)
