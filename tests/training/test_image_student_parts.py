"""Where an image student's prompts and pictures come from, and who judges its samples."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_caches import write_cache

from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.errors import ConfigError, SceneError, TeacherError
from dreamkit.scenes.cameras import view_name
from dreamkit.scenes.pictures import save_image
from dreamkit.toyworld.captions import COLOURS, HELD_OUT, OBJECTS, SYNONYMS, VIEW_SUFFIXES, vocabulary
from dreamkit.toyworld.dataset import ToyWorld
from dreamkit.training.image_student_maker import Maker
from dreamkit.training.image_student_networks import (
    GanHead,
    HeadDiscriminator,
    NetworkDenoiser,
    make_head,
    middle_features,
    middle_of,
    trainable_copy,
)
from dreamkit.training.image_student_sources import (
    PictureFolder,
    Sentences,
    ToyCaptions,
    ToyPictures,
    middle_square,
    picture_files,
)

pytestmark = pytest.mark.usefixtures("one_thread")

_WORDS = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def things_in(caption: str) -> list[tuple[str, str]]:
    """The (colour, object) pairs of a caption, each object with the colour before it."""
    found, colour = [], ""
    for word in (_WORDS.get(part, part) for part in caption.replace(",", " ").split()):
        colour = word if word in COLOURS else colour
        if word in OBJECTS:
            found.append((colour, word))
    return found


@pytest.fixture(scope="module")
def drawn() -> tuple[list[str], Tensor]:
    drawn = ToyCaptions().draw(4000, seeded())
    assert drawn.poses is not None
    assert drawn.pictures is None
    return drawn.prompts, drawn.poses


class TestToyCaptions:
    def test_held_out_compositions_never_occur(self, drawn: tuple[list[str], Tensor]) -> None:
        pairs = Counter(pair for caption in drawn[0] for pair in things_in(caption))
        assert len(pairs) == len(COLOURS) * len(OBJECTS) - len(HELD_OUT)  # and all others do
        assert not set(pairs) & set(HELD_OUT)

    def test_pairs_are_as_frequent_as_in_the_teachers_training(self, drawn: tuple[list[str], Tensor]) -> None:
        counts = Counter(len(things_in(caption)) for caption in drawn[0])
        assert set(counts) == {1, 2}
        assert counts[2] / 4000 == pytest.approx(150 / 870, abs=0.025)

    def test_half_name_the_view_that_the_camera_has(self, drawn: tuple[list[str], Tensor]) -> None:
        named = 0
        for caption, pose in zip(*drawn, strict=True):
            back = pose.view(3, 4)[:, 2]  # from the origin to the camera
            azimuth = float(torch.rad2deg(torch.atan2(back[0], back[2])))
            view = view_name(azimuth, float(torch.rad2deg(torch.asin(back[1])))).removesuffix(" view")
            ends = [suffix.format(view=view).replace("the overhead", "overhead") for suffix in VIEW_SUFFIXES]
            said = any(word in caption.split() for word in ("view", "seen"))
            assert said == caption.endswith(tuple(ends)), (caption, view)
            named += said
        assert named / 4000 == pytest.approx(0.5, abs=0.03)

    def test_they_are_the_teachers_words(self, drawn: tuple[list[str], Tensor]) -> None:
        known = set(vocabulary())
        assert all(word in known for caption in drawn[0] for word in caption.replace(",", " , ").split())
        assert len(ToyCaptions().shown) == 8

    def test_a_pure_function_of_the_generator(self) -> None:
        one, two, other = (ToyCaptions(cameras=False).draw(20, seeded(seed)) for seed in (1, 1, 2))
        assert one.prompts == two.prompts != other.prompts
        assert one.poses is None


class TestPictures:
    def test_of_the_toy_world(self, tmp_path: Path) -> None:
        world = ToyWorld(write_cache(tmp_path / "cache.safetensors", size=32))
        drawn, batch = ToyPictures(world).draw(5, seeded()), world.sample(5, seeded())
        assert drawn.prompts == batch.captions
        assert drawn.pictures is not None
        assert drawn.poses is not None
        assert torch.equal(drawn.pictures, batch.images)
        assert torch.equal(drawn.poses, batch.poses)
        assert ToyPictures(world, cameras=False).draw(5, seeded()).poses is None

    def test_the_middle_square(self) -> None:
        wide = torch.zeros(3, 4, 10)
        wide[:, :, 3:7] = torch.rand(3, 4, 4, generator=seeded())
        assert torch.equal(middle_square(wide, 4), wide[:, :, 3:7])
        assert torch.equal(middle_square(wide.mT, 4), wide[:, :, 3:7].mT)
        assert middle_square(wide, 2).shape == (3, 2, 2)
        torch.testing.assert_close(middle_square(wide, 2).mean(), wide[:, :, 3:7].mean())
        assert middle_square(wide, 9).shape == (3, 9, 9)

    def test_a_folder(self, tmp_path: Path) -> None:
        for index, name in enumerate(("a.png", "deep/b.PNG", "deep/er/c.webp")):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            save_image(torch.full((3, 12, 16), (index + 1) / 5), tmp_path / "x.png")
            (tmp_path / "x.png").rename(tmp_path / name)
        (tmp_path / "notes.txt").write_text("not a picture")
        folder = PictureFolder(tmp_path, 8)
        assert [file.name for file in folder.files] == ["a.png", "b.PNG", "c.webp"]
        drawn = folder.draw(60, seeded())
        assert drawn.shape == (60, 3, 8, 8)
        assert {round(float(level), 1) for level in drawn.mean(dim=(1, 2, 3))} == {0.2, 0.4, 0.6}
        assert torch.equal(drawn, folder.draw(60, seeded()))
        (tmp_path / "a.png").write_bytes(b"torn")
        with pytest.raises(SceneError, match="no picture"):
            folder.draw(60, seeded())

    def test_a_folder_without_any(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ConfigError, match="holds no pictures"):
                picture_files(folder)

    def test_sentences(self) -> None:
        drawn = Sentences(["a", "b", "c"]).draw(300, seeded())
        assert {count // 10 for count in Counter(drawn.prompts).values()} <= {8, 9, 10, 11}
        assert drawn.poses is None
        poses = Sentences(["a"], cameras=True).draw(3, seeded()).poses
        assert poses is not None
        assert poses.shape == (3, 12)
        assert Sentences([str(index) for index in range(20)]).shown == [str(index) for index in range(8)]


KINDS = ("toyworld", "sd15", "sdxl", "deepfloyd")


@pytest.fixture
def model(tiny_teacher: Callable[[str], NetworkTeacher]) -> Callable[[str], NetworkTeacher]:
    return lambda kind: trainable_copy(tiny_teacher(kind))


def denoiser(model: NetworkTeacher, prompt: str = "a red mug") -> NetworkDenoiser:
    return NetworkDenoiser(model, model.encode_prompt([prompt]).repeat(3), model.null_condition(1))


def noisy(model: NetworkTeacher, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(3, *model.sample_shape, generator=seeded(seed)), torch.tensor([0.2, 0.5, 0.9]).double()


class TestNetworks:
    def test_a_copy_shares_what_is_not_trained(self, tiny_teacher: Callable[[str], NetworkTeacher]) -> None:
        teacher = tiny_teacher("sd15")
        copied = trainable_copy(teacher)
        assert copied.prompts is teacher.prompts
        assert copied.vae is teacher.vae
        assert all(p.requires_grad for p in copied.network.parameters())
        assert not any(p.requires_grad for p in teacher.network.parameters())
        asked = [denoiser(m).predict(*noisy(teacher)) for m in (teacher, copied)]
        assert torch.equal(asked[0], asked[1].detach())

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_pair_is_two_answers(self, model: Callable[[str], NetworkTeacher], kind: str) -> None:
        asked = model(kind)
        x_t, levels = noisy(asked)
        full, empty = denoiser(asked).pair(x_t, levels)
        torch.testing.assert_close(full, denoiser(asked).predict(x_t, levels), rtol=0, atol=1e-4)
        null = asked.predict(x_t, levels, asked.null_condition(1)).x0
        torch.testing.assert_close(empty.detach(), null, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients_reach_weights_and_samples(self, model: Callable[[str], NetworkTeacher], kind: str) -> None:
        asked = model(kind)
        x_t, levels = noisy(asked)
        denoiser(asked).predict(x_t.requires_grad_(), levels).sum().backward()
        assert x_t.grad is not None
        assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in asked.network.parameters())


class TestGanHead:
    @pytest.mark.parametrize("kind", KINDS)
    def test_features_of_the_middle(self, model: Callable[[str], NetworkTeacher], kind: str) -> None:
        """What a hook sees in a whole pass, [B, N, D]; under another prompt they are others."""
        asked = model(kind)
        x_t, levels = noisy(asked)
        seen: list[Tensor] = []
        hook = middle_of(asked.network).register_forward_hook(lambda _m, _i, output: seen.append(output))
        denoiser(asked).predict(x_t, levels)
        hook.remove()
        features = middle_features(denoiser(asked), x_t, levels)
        whole = seen[0] if seen[0].ndim == 3 else seen[0].flatten(2).mT
        torch.testing.assert_close(features, whole, rtol=0, atol=1e-6)
        assert len(features) == 3
        assert not torch.allclose(features, middle_features(denoiser(asked, "the blue cube"), x_t, levels))
        assert not middle_of(asked.network)._forward_hooks

    def test_it_learns_to_tell_two_gaussians(self, model: Callable[[str], NetworkTeacher]) -> None:
        """Data is brighter than samples by one standard deviation, in every pixel."""
        critic = model("toyworld")
        head = make_head(critic, seed=0)
        discriminate = HeadDiscriminator(
            head, NetworkDenoiser(critic, critic.null_condition(1), critic.null_condition(1))
        )
        levels = torch.full((8,), 0.3).double()
        optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)

        def batch(seed: int) -> tuple[Tensor, Tensor]:
            noise = torch.randn(2, 8, *critic.sample_shape, generator=seeded(seed))
            x_t = [
                critic.schedule.add_noise(0.5 * noise[i] + shift, noise[1 - i], levels)
                for i, shift in ((0, 0.5), (1, 0))
            ]
            return x_t[0], x_t[1]

        with torch.no_grad():
            assert torch.equal(discriminate(batch(0)[0], levels), torch.zeros(8))  # at first it knows nothing
        for step in range(25):
            real, fake = (discriminate(x_t, levels) for x_t in batch(step))
            loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            real, fake = (discriminate(x_t, levels) for x_t in batch(99))
        assert float(real.min()) > 0 > float(fake.max())
        x_t = batch(98)[1].requires_grad_()
        (towards,) = torch.autograd.grad(discriminate(x_t, levels).sum(), x_t)
        assert float(towards.mean()) > 0  # brighter is more like data

    def test_the_same_seed_makes_the_same_head(self, model: Callable[[str], NetworkTeacher]) -> None:
        critic, state = model("sd15"), torch.get_rng_state()
        one, two, other = (make_head(critic, seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(one.position[1].weight, two.position[1].weight)
        assert not torch.equal(one.position[1].weight, other.position[1].weight)

    def test_a_network_without_a_middle(self) -> None:
        with pytest.raises(TeacherError, match="no middle"):
            middle_of(nn.Linear(2, 2))
        with pytest.raises(TeacherError, match="no middle"):
            middle_of(nn.ModuleDict({"mid_blocks": nn.ModuleList()}))

    def test_pictures_that_are_not_of_the_prompts_are_judged_without_them(
        self, model: Callable[[str], NetworkTeacher], tmp_path: Path
    ) -> None:
        save_image(torch.rand(3, 16, 16, generator=seeded()), tmp_path / "a.png")
        asked = model("toyworld")
        maker = Maker(asked, Sentences(["a red mug"], cameras=True), PictureFolder(tmp_path, 16), [1.0], 3)
        lesson = maker.draw(seeded())
        assert not lesson.paired
        judge = maker.judge_of_data(asked, lesson)
        x_t, levels = noisy(asked)
        plain = asked.predict(x_t, levels, asked.null_condition(1)).x0
        torch.testing.assert_close(judge.predict(x_t, levels).detach(), plain, rtol=0, atol=1e-5)
        assert isinstance(make_head(asked, 0), GanHead)
