import dataclasses

import pytest
import torch

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.scenes.cameras import CameraSampler
from dreamkit.scenes.density import DensityConfig, DensityControl
from dreamkit.scenes.gaussians import GaussianConfig, GaussianScene

STEPS = 24
EAGER = DensityConfig(start=0.0, stop=1.0, interval=4, max_count=120, min_count=10, grow_share=0.2, split_scale=0.1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_scene(count=60, **options):
    scene = GaussianScene.initialise(GaussianConfig(count=count, background="black", **options), generator())
    scene.make_optimizers()
    return scene


def train(scene, density, steps, changes=None):
    """Draw the scene toward a red disc that only some Gaussians can make."""
    v, u = torch.meshgrid(torch.arange(24.0) - 8, torch.arange(24.0) - 11, indexing="ij")
    wanted = torch.stack([(u * u + v * v < 36).float(), torch.zeros(24, 24), torch.zeros(24, 24)])
    for step in steps:
        scene.set_learning_rates(step / STEPS)
        rendering = scene.render(CameraSampler().sample(2, generator(100 + step), 24, 24))
        density.before_backward(rendering)
        (rendering.image - wanted).square().sum().backward()
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        change = density.after_step(scene, rendering, step, STEPS)
        if changes is not None:
            changes.append(change)


def everything(scene, density):
    return {**scene.state(), **scene.optimizer_state(), **density.state()}


def assert_equal(first, second):
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("pause", [3, 8, 13])
def test_a_resumed_run_is_bitwise_equal(pause):
    config = dataclasses.replace(EAGER, reset_interval=10)
    scene, density = make_scene(), DensityControl(config, generator(7))
    train(scene, density, range(STEPS))
    assert len(scene) > 60

    first, control = make_scene(), DensityControl(config, generator(7))
    train(first, control, range(pause))
    second = GaussianScene(first.state(), first.config)
    second.make_optimizers()
    second.load_optimizer_state(first.optimizer_state())
    resumed = DensityControl(config, generator(12345))
    resumed.load_state(control.state())
    torch.manual_seed(99)  # the global generator must not matter
    train(second, resumed, range(pause, STEPS))
    assert_equal(everything(scene, density), everything(second, resumed))


def test_the_same_seed_twice_and_another_seed():
    def run(seed):
        scene, density = make_scene(), DensityControl(EAGER, generator(seed))
        train(scene, density, range(STEPS))
        return everything(scene, density)

    assert_equal(run(1), run(1))
    assert not torch.equal(run(1)["means"], run(2)["means"])


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(make_scene(), DensityControl(EAGER, generator()), range(STEPS))
    assert torch.equal(before, torch.get_rng_state())


def test_the_budget_holds_and_the_figures_add_up():
    scene, density, changes = make_scene(), DensityControl(EAGER, generator()), []
    train(scene, density, range(STEPS), changes)
    count = 60
    for change in changes:
        count += change.cloned + change.split - change.pruned
        assert change.count == count <= 120
    assert count == len(scene)
    assert sum(change.cloned for change in changes) > 0
    assert sum(change.split for change in changes) > 0
    assert [i for i, change in enumerate(changes) if change.cloned or change.split] == [3, 7, 11, 15, 19, 23][
        : sum(1 for change in changes if change.cloned or change.split)
    ]


def test_parameters_and_moments_stay_together():
    scene, density = make_scene(), DensityControl(EAGER, generator())
    train(scene, density, range(STEPS))
    for name, parameter in scene.parameters_dict().items():
        assert len(parameter) == len(scene)
        assert scene.optimizers[name].param_groups[0]["params"][0] is parameter
        moments = scene.optimizers[name].state[parameter]
        assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape
        assert float(moments["step"]) == STEPS


def change_once(scene, config, gradient):
    """One change with given mean gradients, nothing else."""
    density = DensityControl(config, generator())
    count = len(scene)
    rendering = scene.render(CameraSampler().sample(1, generator(), 8, 8))
    density.before_backward(rendering)
    rendering.image.sum().backward()
    density.load_state(
        {"gradient": gradient * 1e6, "seen": torch.ones(count), "generator": density.state()["generator"]}
    )
    return density.after_step(scene, rendering, 0, 1)


def test_split_replaces_a_large_one_and_clone_doubles_a_small_one():
    scene = make_scene(20)
    with torch.no_grad():
        scene.parameters_dict()["log_scales"].fill_(-4.0)
        scene.parameters_dict()["log_scales"][3] = -2.0
        scene.parameters_dict()["means"][3] = torch.tensor([5.0, 0.0, 0.0])
    config = DensityConfig(
        start=0.0, stop=1.0, interval=1, grow_share=0.1, split_scale=0.1, prune_radius=100.0, min_count=1
    )
    before = scene.state()
    gradient = torch.zeros(20)
    gradient[3], gradient[11] = 2.0, 1.0
    change = change_once(scene, config, gradient)
    assert (change.cloned, change.split, change.count) == (1, 1, 22)
    after = scene.state()
    assert int((after["means"] == before["means"][11]).all(-1).sum()) == 2
    assert int((after["means"] == before["means"][3]).all(-1).sum()) == 0
    children = (after["means"] - before["means"][3]).norm(dim=-1) < 1.0
    assert int(children.sum()) == 2
    assert torch.allclose(after["log_scales"][children].exp(), before["log_scales"][3].exp() / 1.6)


def test_pruning_takes_the_transparent_the_huge_and_the_lost():
    scene = make_scene(20, initial_opacity=0.5)
    with torch.no_grad():
        scene.parameters_dict()["opacity_logits"][0] = -8.0
        scene.parameters_dict()["log_scales"][1, 2] = 1.0
        scene.parameters_dict()["means"][2] = 50.0
    kept = scene.state()["means"][3:]
    config = DensityConfig(start=0.0, stop=1.0, interval=1, grow_share=0.0, min_count=1)
    assert change_once(scene, config, torch.zeros(20)).pruned == 3
    assert torch.equal(scene.state()["means"], kept)


def test_pruning_leaves_the_most_opaque():
    scene = make_scene(20)
    with torch.no_grad():
        scene.parameters_dict()["opacity_logits"].copy_(torch.arange(20.0) - 40.0)
    kept = scene.state()["means"][15:]
    config = DensityConfig(start=0.0, stop=1.0, interval=1, grow_share=0.0, min_count=5)
    assert change_once(scene, config, torch.zeros(20)).pruned == 15
    assert torch.equal(scene.state()["means"], kept)


def test_reset_lowers_opacities_only():
    scene = make_scene(20, initial_opacity=0.9)
    with torch.no_grad():
        scene.parameters_dict()["opacity_logits"][0] = -3.0
    config = DensityConfig(start=0.0, stop=1.0, interval=1000, reset_interval=1, reset_opacity=0.2)
    assert change_once(scene, config, torch.zeros(20)).reset
    opacities = scene.opacities.detach()
    assert float(opacities[0]) == pytest.approx(0.0474, abs=1e-3)
    assert torch.allclose(opacities[1:], torch.full((19,), 0.2))


def test_nothing_happens_outside_its_time():
    for config in (DensityConfig(enabled=False), dataclasses.replace(EAGER, start=0.5, stop=0.5)):
        scene, density = make_scene(), DensityControl(config, generator())
        train(scene, density, range(6))
        assert len(scene) == 60
        assert set(density.state()) == {"generator"}


@pytest.mark.parametrize("drop", ["generator", "gradient", "seen"])
def test_incomplete_states_are_refused(drop):
    density = DensityControl(EAGER, generator())
    train(make_scene(), density, range(2))
    state = density.state()
    del state[drop]
    with pytest.raises(CheckpointError):
        density.load_state(state)


@pytest.mark.parametrize(
    "values",
    [
        {"start": 0.9, "stop": 0.5},
        {"interval": 0},
        {"max_count": 0},
        {"min_count": 10_000},
        {"grow_share": 1.5},
        {"split_scale": float("nan")},
        {"reset_opacity": 0.0},
        {"grow_gradient": -1.0},
    ],
)
def test_bad_configurations_are_refused(values):
    with pytest.raises(ConfigError):
        DensityConfig(**values)
