"""Critics on tiny teachers of every kind: they start as the teacher, learn, own little, and leave the teacher alone."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamkit.config import Schedule
from dreamkit.diffusion.critic import CriticConfig, NetworkCritic
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.schedule import Prediction
from dreamkit.diffusion.teacher import Query
from dreamkit.errors import CheckpointError, ConfigError, TeacherError

KINDS = ("toyworld", "sd15", "sd21", "sdxl", "deepfloyd")
ROWS = 3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=KINDS)
def teacher(request: pytest.FixtureRequest, tiny_teacher: Callable[[str], NetworkTeacher]) -> NetworkTeacher:
    return tiny_teacher(request.param)


@pytest.fixture
def toy(tiny_teacher: Callable[[str], NetworkTeacher]) -> NetworkTeacher:
    return tiny_teacher("toyworld")


def samples(teacher: NetworkTeacher, seed: int = 0, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed))


def poses(seed: int = 1, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))


def question(teacher: NetworkTeacher, camera: Tensor | None = None, seed: int = 5) -> Query:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    return Query(samples(teacher, seed), t, teacher.encode_prompt(["a red mug", "a blue cube", "a red mug"]), camera)


def train(critic: NetworkCritic, teacher: NetworkTeacher, steps: int, first: int = 0, **more: Any) -> list[float]:
    """Updates on the same three samples, each with a seed of its own."""
    x, row = samples(teacher), teacher.encode_prompt(["a red mug"])
    return [
        critic.update(x, row, poses(), torch.Generator().manual_seed(step), **more)["critic_loss"]
        for step in range(first, first + steps)
    ]


def error(critic: NetworkCritic, teacher: NetworkTeacher) -> float:
    """The critic's loss on what it is trained on, over fixed noises and levels."""
    x, row = samples(teacher).repeat(4, 1, 1, 1), teacher.encode_prompt(["a red mug"])
    eps, t = samples(teacher, 77, len(x)), torch.linspace(0.1, 0.9, len(x), dtype=torch.float64)
    camera = poses().repeat(4, 1)
    answer = critic.predict_all([Query(teacher.schedule.add_noise(x, eps, t), t, row, camera)])[0]
    truth = Prediction(eps, x, answer.alpha, answer.sigma)
    kind = teacher.prediction_type
    return float((getattr(answer, kind) - getattr(truth, kind)).square().mean())


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


BOTH = pytest.mark.parametrize("kind", ["lora", "copy"])


def config(kind: str = "lora", rate: float = 5e-3, **options: Any) -> CriticConfig:
    return CriticConfig(**{"kind": kind, "rank": 4, "rate": Schedule.constant(rate), **options})


# The teacher ----------------------------------------------------------------------------------------------------------


@BOTH
def test_the_teacher_says_what_it_said(teacher: NetworkTeacher, kind: str) -> None:
    """Bitwise, before a critic is made of it, after, and after the critic has learned."""
    camera = poses() if teacher.supports_camera else None
    before, weights = teacher.predict_all([question(teacher, camera)])[0].eps, snapshot(teacher.network)
    calls = teacher.calls
    critic = NetworkCritic(teacher, config(kind))
    assert torch.equal(before, teacher.predict_all([question(teacher, camera)])[0].eps)
    train(critic, teacher, 2)
    assert torch.equal(before, teacher.predict_all([question(teacher, camera)])[0].eps)
    assert teacher.calls == calls + 2 * ROWS  # the critic counts its own
    assert critic.calls == 2 * ROWS
    after = snapshot(teacher.network)
    assert before.shape == (ROWS, *teacher.sample_shape)
    assert weights.keys() == after.keys()  # no adapter hangs in it
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.network.parameters())


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@BOTH
def test_it_starts_as_the_teacher(teacher: NetworkTeacher, kind: str) -> None:
    """Poses included: where the network takes none, what they add starts at zero."""
    critic = NetworkCritic(teacher, config(kind))
    camera = poses()
    asked = [question(teacher), question(teacher, camera)]
    answers = critic.predict_all(asked)
    without, posed = answers[0].eps, answers[1].eps
    known = teacher.predict_all([question(teacher), question(teacher, camera if teacher.supports_camera else None)])
    torch.testing.assert_close(without, known[0].eps, rtol=0, atol=1e-6)
    torch.testing.assert_close(posed, known[1].eps, rtol=0, atol=1e-6)
    assert not without.requires_grad


# Learning -------------------------------------------------------------------------------------------------------------


def test_adapters_learn_what_the_generator_makes(teacher: NetworkTeacher) -> None:
    critic = NetworkCritic(teacher, config("lora", 3e-2))
    first = error(critic, teacher)
    train(critic, teacher, 20)
    assert error(critic, teacher) < 0.995 * first  # the attention of networks this small decides little


@pytest.mark.parametrize("name", ["toyworld", "sd21"])
def test_a_copy_learns_what_the_generator_makes(name: str, tiny_teacher: Callable[[str], NetworkTeacher]) -> None:
    teacher = tiny_teacher(name)
    critic = NetworkCritic(teacher, config("copy", 5e-3))
    first = error(critic, teacher)
    train(critic, teacher, 20)
    assert error(critic, teacher) < 0.92 * first


def test_its_loss_is_the_noise_prediction_error(teacher: NetworkTeacher) -> None:
    """||E_phi(x_t, t, y, camera) - e||^2 in the teacher's parameterisation, with the draws made again here."""
    critic = NetworkCritic(teacher, config(camera_dropout=0.5))
    x, row, generator = samples(teacher), teacher.encode_prompt(["a red mug"]), torch.Generator().manual_seed(4)
    t = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    eps = torch.randn(x.shape, generator=generator)
    camera = poses() * (torch.rand(ROWS, 1, generator=generator) >= 0.5)
    answer = critic.predict_all([Query(teacher.schedule.add_noise(x, eps, t), t, row, camera)])[0]
    alpha, sigma = teacher.schedule.coefficients(t, x)
    wanted = {"eps": eps, "v": alpha * eps - sigma * x}[teacher.prediction_type]
    expected = (getattr(answer, teacher.prediction_type) - wanted).square().mean()
    loss = critic.update(x, row, poses(), torch.Generator().manual_seed(4))["critic_loss"]
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_it_learns_from_where_a_view_was_seen(tiny_teacher: Callable[[str], NetworkTeacher]) -> None:
    """A network that takes no pose is given one: of two views that differ, it errs less about each from its own."""
    teacher = tiny_teacher("sd15")
    critic = NetworkCritic(teacher, config("copy", 3e-3, camera_dropout=0.0))
    x = torch.cat([torch.full((4, *teacher.sample_shape), value) for value in (-1.0, 1.0)])
    camera = torch.cat([poses(1, 1).expand(4, -1), poses(2, 1).expand(4, -1)])
    row = teacher.encode_prompt(["a red mug"])
    for step in range(80):
        critic.update(x, row, camera, torch.Generator().manual_seed(step))
    eps = samples(teacher, 9, 8)
    x_t = teacher.schedule.add_noise(x, eps, 0.3)
    answers = critic.predict_all([Query(x_t, 0.3, row, where) for where in (camera, camera.flip(0))])
    own, swapped = (float((answer.eps - eps).square().mean()) for answer in answers)
    assert own < swapped - 0.002


def test_several_updates_a_step(toy: NetworkTeacher) -> None:
    critic = NetworkCritic(toy, config(updates=3))
    train(critic, toy, 1)
    assert critic.calls == 3 * ROWS
    steps = [value for name, value in critic.state().items() if name.startswith("step/")]
    assert steps
    assert all(float(step) == 3 for step in steps)


def test_the_rate_follows_the_run(toy: NetworkTeacher) -> None:
    critic = NetworkCritic(toy, CriticConfig(rate=Schedule(0.0, 1e-2, 1e-4, 1.0)))
    for progress in (0.0, 0.5, 1.0):
        train(critic, toy, 1, progress=progress)
        (group,) = critic._optimizer.param_groups
        assert group["lr"] == pytest.approx(1e-2 + progress * (1e-4 - 1e-2))


def test_no_randomness_of_its_own(toy: NetworkTeacher) -> None:
    """The seed makes the weights, the generator the rest; the global one plays no part."""
    states = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        critic = NetworkCritic(toy, config(), seed=5)
        train(critic, toy, 2)
        assert torch.equal(before, torch.random.get_rng_state())
        states.append(critic.state())
    assert same(*states)
    assert not same(*(NetworkCritic(toy, config(), seed=seed).state() for seed in (5, 6)))


# Its own weights ------------------------------------------------------------------------------------------------------


def pointers(network: nn.Module) -> dict[int, int]:
    """Address -> bytes of every weight."""
    return {p.data_ptr(): p.numel() * p.element_size() for p in network.parameters()}


def test_adapters_share_the_frozen_weights(teacher: NetworkTeacher) -> None:
    critic = NetworkCritic(teacher, config(rank=2))
    base, own = pointers(teacher.network), pointers(critic._model.network)
    pose = 0 if critic._pose is None else sum(pointers(critic._pose).values())
    assert set(base) <= set(own)
    assert sum(own.values()) == sum(base.values()) + critic.trainable_bytes - pose
    assert 0 < critic.trainable_bytes - pose < 0.25 * sum(base.values())
    trainable = [name for name, p in critic._model.network.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".critic." in name for name in trainable)


def test_a_copy_is_a_network_of_its_own(teacher: NetworkTeacher) -> None:
    critic = NetworkCritic(teacher, config("copy"))
    base, own = pointers(teacher.network), pointers(critic._model.network)
    assert not set(base) & set(own)
    assert sum(own.values()) == sum(base.values())
    pose = 0 if critic._pose is None else sum(pointers(critic._pose).values())
    assert critic.trainable_bytes == sum(own.values()) + pose


def test_critics_of_one_teacher_do_not_know_each_other(teacher: NetworkTeacher) -> None:
    one, two = NetworkCritic(teacher, config(), 1), NetworkCritic(teacher, config(), 2)
    before = two.predict_all([question(teacher, poses())])[0].eps
    train(one, teacher, 2)
    assert torch.equal(before, two.predict_all([question(teacher, poses())])[0].eps)
    assert not torch.equal(before, one.predict_all([question(teacher, poses())])[0].eps)


def test_adapters_of_a_half_precision_network_are_float32(checkpoint: Callable[[str], Path]) -> None:
    """Where AdamW's steps don't vanish; and it learns."""
    teacher = load_teacher(str(checkpoint("toyworld")), "cpu")
    assert isinstance(teacher, NetworkTeacher)
    teacher.network.to(torch.bfloat16)
    for kind in ("lora", "copy"):
        critic = NetworkCritic(teacher, config(kind))
        assert all(value.dtype == torch.float32 for value in critic._parameters.values())
        before = critic.state()
        (loss,) = train(critic, teacher, 1)
        assert loss == loss
        after = critic.state()
        assert any(not torch.equal(before[name], after[name]) for name in before)
        assert teacher.dtype == torch.bfloat16


def test_a_network_without_attention(toy: NetworkTeacher) -> None:
    bare = copy.copy(toy)
    bare.network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 3))
    with pytest.raises(TeacherError, match="copy"):
        NetworkCritic(bare, config())


# Cameras --------------------------------------------------------------------------------------------------------------


@BOTH
def test_no_camera_is_a_row_of_zeros(teacher: NetworkTeacher, kind: str) -> None:
    """For ESD's marginal score; also after it has learned what poses mean."""
    critic = NetworkCritic(teacher, config(kind))
    train(critic, teacher, 3)
    none, zeros = critic.predict_all([question(teacher)])[0], critic.predict_all([question(teacher, poses() * 0)])[0]
    torch.testing.assert_close(none.eps, zeros.eps, rtol=0, atol=1e-5)
    camera = poses()
    camera[1] = 0
    partly = critic.predict_all([question(teacher, camera)])[0].eps
    torch.testing.assert_close(partly[1], none.eps[1], rtol=0, atol=1e-5)
    assert not torch.allclose(partly[0], none.eps[0], rtol=0, atol=1e-5)
    # Both in one pass, as ESD asks.
    both = critic.predict_all([question(teacher), question(teacher, camera)])
    torch.testing.assert_close(both[0].eps, none.eps, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1].eps, partly, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0.0, 0.0), (0.3, 0.15, 0.45), (1.0, 1.0, 1.0)])
def test_cameras_are_dropped_now_and_then(
    toy: NetworkTeacher, dropout: float, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = NetworkCritic(toy, config(camera_dropout=dropout))
    shown: list[Tensor] = []
    ask = critic._model.predict_all

    def note(queries: list[Query], differentiable: bool = False) -> list[Prediction]:
        assert queries[0].camera is not None
        shown.append(queries[0].camera)
        return ask(queries, differentiable)

    monkeypatch.setattr(critic._model, "predict_all", note)
    train(critic, toy, 30)
    rows = torch.cat(shown)
    dropped = rows.abs().sum(dim=1) == 0
    assert low <= float(dropped.double().mean()) <= high
    assert torch.equal(rows[~dropped], poses().repeat(30, 1)[~dropped])


def test_without_poses_it_learns_all_the_same(teacher: NetworkTeacher) -> None:
    critic = NetworkCritic(teacher, config())
    before = critic.state()
    x, row = samples(teacher), teacher.encode_prompt(["a red mug"])
    critic.update(x, row, None, torch.Generator().manual_seed(0))
    after = critic.state()
    assert any(not torch.equal(before[name], after[name]) for name in before)


# Saving ---------------------------------------------------------------------------------------------------------------


@BOTH
def test_resuming_is_not_having_stopped(teacher: NetworkTeacher, kind: str) -> None:
    """Train 3, save, train 2; and load what was saved into another critic of the same teacher, train 2: the same."""
    one = NetworkCritic(teacher, config(kind), 1)
    train(one, teacher, 3)
    saved = one.state()
    train(one, teacher, 2, first=3)
    two = NetworkCritic(teacher, config(kind), 2)
    two.load_state(saved)
    train(two, teacher, 2, first=3)
    ended = one.state()
    assert same(ended, two.state())
    assert any(not torch.equal(ended[name], saved[name]) for name in saved)  # what is saved stays as it was
    query = question(teacher, poses())
    assert torch.equal(one.predict_all([query])[0].eps, two.predict_all([query])[0].eps)


def test_a_fresh_state_loads_too(toy: NetworkTeacher) -> None:
    """Before the first update there are no moments."""
    saved = NetworkCritic(toy, config(), 1).state()
    two = NetworkCritic(toy, config(), 2)
    two.load_state(saved)
    assert same(two.state(), saved)


def test_a_fresh_state_resets_one_that_has_learned(toy: NetworkTeacher) -> None:
    fresh = NetworkCritic(toy, config(), 1).state()
    used, new = NetworkCritic(toy, config(), 1), NetworkCritic(toy, config(), 1)
    train(used, toy, 2)
    used.load_state(fresh)
    train(used, toy, 1)
    train(new, toy, 1)
    assert same(new.state(), used.state())


def test_another_critics_state_is_refused(toy: NetworkTeacher, tiny_teacher: Callable[[str], NetworkTeacher]) -> None:
    critic = NetworkCritic(toy, config())
    kept = critic.state()
    wrong = {
        "rank": NetworkCritic(toy, config(rank=2)).state(),
        "kind": NetworkCritic(toy, config("copy")).state(),
        "teacher": NetworkCritic(tiny_teacher("sd15"), config()).state(),
        "nothing": {},
        "a part": dict(list(kept.items())[:-1]),
    }
    for state in wrong.values():
        with pytest.raises(CheckpointError, match="critic"):
            critic.load_state(state)
    assert same(kept, critic.state())


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "full"}, {"rank": 0}, {"rate": Schedule.constant(0.0)}, {"rate": Schedule(0.0, 1e-4, 0.0, 1.0)},
        {"rate": Schedule(0, 1e-4, 1e-5, 300)}, {"weight_decay": -0.1}, {"updates": 0}, {"camera_dropout": 1.1},
        {"camera_dropout": -0.1}, {"camera_dropout": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_bad_configurations(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        CriticConfig(**options)


def test_a_configuration_is_data() -> None:
    assert CriticConfig().rate == Schedule.constant(1e-4)
    assert CriticConfig().camera_dropout == 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        CriticConfig().rank = 3  # type: ignore[misc]
