"""NeRFs of latents: the refinement layer, compositing against the path of colours, backgrounds, pictures, state."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.config import Schedule
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.conversion import mesh_of
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.latent_nerf import LatentNerfScene, LatentSpace, latent_shape, pixel_space
from dreamkit.scenes.latent_refinement import RefinementConfig, RefinementLayer
from dreamkit.scenes.mesh import MeshConfig
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.trainable import Moment

SMALL = HashNetworkConfig(levels=4, log2_size=10, coarsest=4, finest=16, hidden=8)
DENSE = NerfConfig(grid=SMALL, blob=20.0, step=0.05, occupancy_resolution=16)
MIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
NARROW = RefinementConfig(width=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed_space(size: int = 8, factor: int = 8) -> LatentSpace:
    """Four channels that mix three colours, each of the mean of factor x factor pixels."""

    def encode(image: Tensor) -> Tensor:
        small = functional.interpolate(image, (size, size), mode="area")
        return torch.einsum("bchw,dc->bdhw", 2 * small - 1, MIX.to(image))

    def decode(x: Tensor) -> Tensor:
        pixels = torch.einsum("bdhw,cd->bchw", x, torch.linalg.pinv(MIX).to(x)) / 2 + 0.5
        return functional.interpolate(pixels, scale_factor=factor, mode="nearest").clamp(0, 1)

    return LatentSpace((4, size, size), encode, decode)


def made(space: LatentSpace | None = None, width: int = 8, **config: object) -> LatentNerfScene:
    chosen = replace(DENSE, **config)  # type: ignore[arg-type]
    return LatentNerfScene.initialise(chosen, seeded(), space or pixel_space(12), RefinementConfig(width=width))


def views(count: int = 2, height: int = 12, width: int = 12) -> Camera:
    return Camera.orbit([40.0 * k for k in range(count)], [20.0] * count, 3.0, 40.0, height, width)


class TestRefinement:
    @pytest.mark.parametrize("size", [(1, 1), (5, 9), (40, 36)])
    def test_starts_as_the_identity_at_any_size(self, size: tuple[int, int]) -> None:
        layer = RefinementLayer(4, 16, seeded())
        latents = torch.randn(2, 4, *size, generator=seeded(1))
        assert torch.equal(layer(latents), latents)

    def test_gradients_are_exact(self) -> None:
        layer = RefinementLayer(2, 8, seeded()).double()
        torch.nn.init.normal_(layer.leave.weight, generator=seeded(2))
        names = [name for name, _ in layer.named_parameters()]
        values = [value.detach().clone().requires_grad_(True) for value in layer.parameters()]

        def refined(latents: Tensor, *weights: Tensor) -> Tensor:
            out = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (latents,))
            return torch.tanh(out)

        latents = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=seeded(1), requires_grad=True)
        assert torch.autograd.gradcheck(refined, (latents, *values), fast_mode=True)

    def test_attention_reaches_from_corner_to_corner(self) -> None:
        layer = RefinementLayer(3, 8, seeded())
        torch.nn.init.normal_(layer.leave.weight, generator=seeded(2))
        latents = torch.randn(1, 3, 24, 24, generator=seeded(1)).requires_grad_(True)
        layer(latents)[0, 0, 0, 0].backward()
        assert latents.grad is not None
        assert float(latents.grad[0, :, -4:, -4:].abs().max()) > 0

    def test_nothing_random_but_the_generator(self) -> None:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        one, two = (RefinementLayer(3, 8, seeded(5)).state_dict() for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(one[name], two[name]) for name in one)

    @pytest.mark.parametrize("width", [-8, 12, 520, 8.0])
    def test_other_widths_are_refused(self, width: int) -> None:
        with pytest.raises(ConfigError, match="width"):
            RefinementConfig(width=width)

    def test_gradients_reach_the_field_and_the_layer(self) -> None:
        scene = made()
        layer = scene.modules["refinement"]
        assert isinstance(layer, RefinementLayer)
        torch.nn.init.normal_(layer.leave.weight, std=0.1, generator=seeded(2))
        rendering = scene.render_training(views(), None, Moment(0.0, 10, seeded()))
        (rendering.image * torch.randn(rendering.image.shape, generator=seeded(4))).sum().backward()
        for name, parameter in scene.parameters_dict().items():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


class TestCompositing:
    def test_three_channels_are_the_path_of_colours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scene, colors = made(width=0), NerfScene.initialise(DENSE, seeded())
        ours, theirs = scene.field.network, colors.field.network
        with torch.no_grad():
            theirs.table.copy_(ours.table)
            theirs.inner.copy_(ours.inner)
            theirs.outer[0].copy_(ours.outer[0])
        colors.update_occupancy(0.0, 1, seeded(1))
        scene.update_occupancy(0.0, 1, seeded(1))
        monkeypatch.setattr(scene.field, "latents", lambda points: 2 * colors.field.colors(points) - 1)
        behind = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.2, 0.9]])
        with torch.no_grad():
            decoded, wanted = scene.render(views(), behind), colors.render(views(), behind)
        assert 0.2 < float(wanted.alpha.mean()) < 0.9
        for name in ("image", "alpha", "depth", "normal"):
            assert torch.allclose(getattr(decoded, name), getattr(wanted, name), atol=2e-5), name

    def test_what_is_behind_is_encoded_whole_and_once(self) -> None:
        asked: list[Tensor] = []
        ramp = torch.linspace(-1, 1, 12).expand(12, 12)

        def encode(image: Tensor) -> Tensor:  # as encoders do, it knows its borders
            asked.append(image)
            return image.mean(dim=(2, 3), keepdim=True) + ramp

        space = LatentSpace((3, 12, 12), encode, lambda x: x)
        scene = made(space)
        scene.field.network.bias.data.fill_(-60.0)  # nothing is there
        for _ in range(2):
            latents = scene.latents(views(), torch.tensor([[0.5] * 3, [0.25] * 3])).image
            assert torch.allclose(latents[0], 0.5 + ramp.expand(3, 12, 12), atol=1e-4)
            assert torch.allclose(latents[1], 0.25 + ramp.expand(3, 12, 12), atol=1e-4)
        assert len(asked) == 2

    def test_backgrounds_of_training_are_few(self) -> None:
        colors = made(background="random").backgrounds(200, seeded())
        assert colors.shape == (200, 3)
        assert torch.equal(colors * 4, (colors * 4).round())
        assert len(colors.unique()) == 5


class TestPictures:
    @pytest.mark.parametrize(("height", "width"), [(12, 12), (20, 30), (7, 5)])
    def test_of_any_size_and_shape(self, height: int, width: int) -> None:
        with torch.no_grad():
            seen = made(mixed_space()).render(views(2, height, width), torch.zeros(3))
        assert seen.image.shape == seen.normal.shape == (2, 3, height, width)
        assert seen.alpha.shape == seen.depth.shape == (2, 1, height, width)
        assert float(seen.image.min()) >= 0
        assert float(seen.image.max()) <= 1

    @pytest.mark.parametrize("space", [pixel_space(16), mixed_space(16)], ids=["pixels", "mixed"])
    def test_a_mesh_has_the_colours_of_its_decoded_pictures(self, space: LatentSpace) -> None:
        scene = made(space)
        red = 2 * torch.tensor([0.8, 0.2, 0.3]) - 1
        with torch.no_grad():
            scene.field.look.outer.mul_(0)
            scene.field.look.bias.copy_(red if space.shape[0] == 3 else MIX.float() @ red)
            scene.field.look.table.mul_(0)
        mesh = mesh_of(scene, MeshConfig(resolution=32))
        assert torch.allclose(torch.as_tensor(mesh.colors).mean(dim=0), (red + 1) / 2, atol=0.02)

    def test_colours_follow_what_was_learned(self) -> None:
        scene = made()
        points = torch.zeros(1, 3)
        with torch.no_grad():
            before = scene.field.colors(points)
            scene.render_training(views(), None, Moment(0.0, 10, seeded()))
            scene.field.look.bias.add_(0.5)
            assert torch.allclose(scene.field.colors(points), before + 0.25, atol=0.02)


class TestState:
    @pytest.mark.parametrize("width", [0, 8])
    def test_round_trip_is_exact(self, width: int) -> None:
        scene = made(mixed_space(), width)
        state = scene.state()
        assert latent_shape(state) == (4, 8, 8)
        again = LatentNerfScene(state, scene.config, scene.space, scene.refinement)
        with torch.no_grad():
            assert torch.equal(again.render(views()).image, scene.render(views()).image)
            assert torch.equal(again.to("cpu").render(views()).image, scene.render(views()).image)

    def test_another_space_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="latents"):
            LatentNerfScene(made().state(), DENSE, pixel_space(16), NARROW)
        with pytest.raises(CheckpointError, match="refinement"):
            LatentNerfScene(made(width=0).state(), DENSE, pixel_space(12), NARROW)

    @pytest.mark.parametrize("shape", [[], [3, 8], [3, 8, 9], [0, 8, 8], [3, -8, -8], [4, 2**20, 2**20]])
    def test_states_of_something_else_are_refused(self, shape: list[int]) -> None:
        with pytest.raises(CheckpointError, match="latent scene"):
            latent_shape({"shape": torch.tensor(shape)})
        with pytest.raises(CheckpointError, match="latent scene"):
            latent_shape(NerfScene.initialise(DENSE, seeded()).state())

    def test_rates(self) -> None:
        scene = made()
        config = replace(RefinementConfig(), refinement_rate=Schedule.constant(0.5))
        scene.refinement = config
        rates = {name: scene.rate(name).start_value for name in scene.parameters_dict()}
        assert rates["refinement.leave.weight"] == 0.5
        assert rates["field.look.table"] == DENSE.table_rate.start_value
        assert rates["field.look.inner"] == DENSE.network_rate.start_value

    @pytest.mark.parametrize(
        "change",
        [
            lambda config: replace(config, geometry="volsdf"),
            lambda config: replace(config, background="learned"),
            lambda config: replace(config, lambertian_share=Schedule.constant(0.5)),
        ],
    )
    def test_what_latents_do_not_have_is_refused(self, change: Callable[[NerfConfig], NerfConfig]) -> None:
        with pytest.raises(ConfigError, match="latent scene"):
            LatentNerfScene.initialise(change(DENSE), seeded())
