"""The contract of every registered objective, on a tiny teacher of each kind with a critic of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from contract import Case, ObjectiveContract

from dreamkit.diffusion.critic import CriticConfig, NetworkCritic
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.objectives import objective_class, objective_names

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("toyworld", "sd15", "sd21", "sdxl")
DETERMINISTIC = {"csm", "ism", "sdi", "tsm"}  # they draw nothing but the level


@pytest.fixture(scope="module")
def contract_of(checkpoint: Callable[[str], Path]) -> Callable[[str, str], ObjectiveContract]:
    """The contract of an objective on a kind of teacher; made once, so that what it compares with is computed once."""
    cases: dict[str, Case] = {}
    contracts: dict[tuple[str, str], ObjectiveContract] = {}

    def get(name: str, kind: str) -> ObjectiveContract:
        if kind not in cases:
            teacher = load_teacher(str(checkpoint(kind)), "cpu")
            assert isinstance(teacher, NetworkTeacher)
            cases[kind] = Case(teacher, NetworkCritic(teacher, CriticConfig(rank=2), seed=3))
        if (name, kind) not in contracts:
            objective = objective_class(name)()
            contracts[name, kind] = ObjectiveContract(objective, cases[kind], name in DETERMINISTIC)
        return contracts[name, kind]

    return get


@pytest.mark.parametrize("check", ObjectiveContract.CHECKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", objective_names())
def test_contract(name: str, kind: str, check: str, contract_of: Callable[[str, str], ObjectiveContract]) -> None:
    getattr(contract_of(name, kind), check)()
