"""Learning to film a video again (RealCam), from a pool of pairs to a stream, on tiny models and drawn squares."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamkit_kernels.stream_attention import Stream
from imageio.v3 import imread, imwrite
from safetensors.torch import save_file
from toy_clips import CONFIG, use_squares, write_autoencoder

from dreamkit.cli.main import main
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.training import video_teacher
from dreamkit.training.clip_judges import ClipJudge
from dreamkit.training.compare_video.students import open_student
from dreamkit.training.rollouts import Roller
from dreamkit.training.student import StudentOptions, StudentTrainer, open_pool, train_student
from dreamkit.training.student_networks import StudentNetworks, load_networks
from dreamkit.training.video_clips import ClipPool, PoolRecipe
from dreamkit.training.video_matching import VideoMatchingOptions, VideoMatchingTrainer, train_video_matching
from dreamkit.training.video_teacher import VideoTeacherOptions, VideoTeacherTrainer, train_video_teacher
from dreamkit.video import pipeline
from dreamkit.video.attention_cache import AttentionCache
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import interleave, paired_controls, paired_stream, sources, target_levels, targets
from dreamkit.video.pipeline import load_video_teacher
from dreamkit.video.rollout import chunk_flow, denoise_chunk
from dreamkit.video.stream import StreamSession
from dreamkit.video.students import load_student, read_stream_config

pytestmark = pytest.mark.usefixtures("one_thread", "tiny")


def patch_world(patch: pytest.MonkeyPatch) -> None:
    use_squares(patch)
    patch.setattr(pipeline, "has_fast_bfloat16", lambda device: False)
    patch.setattr(video_teacher, "has_fast_bfloat16", lambda device: False)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_world(monkeypatch)


def teacher_options(vae: Path, out: Path, **changes: Any) -> VideoTeacherOptions:
    base = VideoTeacherOptions(
        out=out, autoencoder=vae, steps=3, image_steps=1, warmup=1, cooldown=1, image_batch=6, batch=2, images=3,
        short_frames=3, checkpoint_every=3, sample_every=3, clips=10, device="cpu", world=CONFIG, pairs=True,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a teacher of pairs and of one of sentences, with their pools."""
    folder = tmp_path_factory.mktemp("refilming")
    vae = write_autoencoder(folder / "vae")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch_world(patch)
        torch.set_num_threads(1)
        train_video_teacher(teacher_options(vae, folder / "pairs"))
        train_video_teacher(teacher_options(vae, folder / "plain", pairs=False, sample_every=0))
    return folder


def pool_of(place: Path, kind: str = "pairs") -> ClipPool:
    return open_pool(place / kind / "pool")


def student_options(place: Path, out: Path, **changes: Any) -> StudentOptions:
    base = StudentOptions(
        teacher=place / "pairs" / "teacher", pool=place / "pairs" / "pool", out=out, steps=2, cooldown=0, warmup=0,
        batch=2, frames=6, chunk=2, sink=2, window=2, shift=5.0, solver_steps=4, steps_per_chunk=2, checkpoint_every=2,
        sample_every=2, past_noise=0.1, device="cpu",
    )  # fmt: skip
    return replace(base, **changes)


def one_coloured_pool(folder: Path) -> ClipPool:
    """Pairs whose every frame is one colour, the same in source and target."""
    colours = torch.randn(64, 4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    tensors = {
        "latents": colours.expand(64, 4, 12, 4, 4).half().contiguous(),
        "cameras": torch.eye(3, 4).flatten().expand(64, 12, 12).contiguous(),
        "tracks": torch.zeros(64, 12, 3, 2),
        "visible": torch.zeros(64, 12, 3, dtype=torch.uint8),
        "shapes": torch.zeros(64, 12, 4, 4, 4, dtype=torch.int8),
    }
    metadata = {"captions": json.dumps(["a red cube"] * 64), "pairs": "true"}
    save_file(tensors, folder / "shard-00000.safetensors", metadata=metadata)
    return ClipPool(folder)


class TestPool:
    def test_parts_of_clips_begin_with_a_source(self, place: Path) -> None:
        pool = pool_of(place)
        assert pool.pairs
        assert not pool_of(place, "plain").pairs
        clips = pool.draw(20, 3, torch.Generator().manual_seed(0))
        assert clips.pairs
        assert clips.latents.shape[2] == 6
        assert clips.cameras[:, ::2].abs().max() == 0
        # The source stands still; the target's camera goes along x, a unit a frame from wherever the part begins.
        steps = clips.cameras[:, 1::2].unflatten(2, (3, 4))[..., 0, 3].diff(dim=1)
        torch.testing.assert_close(steps, torch.ones_like(steps))
        assert not clips.visible.any()

    def test_a_pool_of_pairs_is_another_pool(self, place: Path) -> None:
        recipe = PoolRecipe(CONFIG, Path("motion-none.safetensors"), place / "vae", 10)
        keys = {replace(recipe, loops=loops).key for loops in (None, 0.0, 0.5)}
        assert len(keys) == 3


class TestTeacher:
    def make(self, place: Path, **changes: Any) -> VideoTeacherTrainer:
        return VideoTeacherTrainer(teacher_options(place / "vae", place / "unused", **changes), pool_of(place))

    def test_sources_are_clean_and_cameras_stay(self, place: Path) -> None:
        trainer = self.make(place, camera_dropout=1.0, forcing=0.5)
        for step in (0, 4):
            for lesson in trainer.draw(step):
                assert lesson.t[:, ::2].abs().max() == 0
                assert lesson.t[:, 1::2].min() > 0
                assert lesson.controls is not None
                assert lesson.controls.camera[:, 1::2].abs().amax(dim=2).min() > 0

    def test_only_targets_are_learned(self, place: Path) -> None:
        """An untrained network says zero: the loss is the mean square of the targets' flow."""
        trainer = self.make(place, images=0, shape_weight=0.0)
        trainer.step = 4
        lesson = trainer.draw(4)[0]
        _, metrics = trainer.losses()
        expected = targets(lesson.noise - lesson.latents).square().mean()
        assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)
        assert metrics["frames"] in (3, 6)

    def test_it_learns_to_look_at_the_source(self, place: Path, tmp_path: Path) -> None:
        """Targets that have their source's colour: after some steps another clip's source is worse, and by far."""
        options = teacher_options(
            place / "vae", tmp_path, steps=300, image_steps=0, short=0.0, images=0, batch=16, lr=1e-2, lr_rest=1e-2,
            shape_weight=0.0, text_dropout=1.0, shift=5.0, forcing=0.0,
        )  # fmt: skip
        trainer = VideoTeacherTrainer(options, one_coloured_pool(tmp_path))
        for _ in range(150):
            trainer.train_step()
        lesson = trainer.draw(1000)[0]
        errors = []
        for source in (sources(lesson.latents), sources(lesson.latents).roll(1, dims=0)):
            level = lesson.t[:, None, :, None, None]
            noisy = (1 - level) * lesson.latents + level * lesson.noise
            with torch.no_grad():
                flow, _ = trainer.networks(
                    interleave(source, targets(noisy)), 1000 * lesson.t, lesson.tokens, lesson.controls
                )
            errors.append(float(targets(flow - (lesson.noise - lesson.latents)).square().mean()))
        assert errors[0] < 0.8 * errors[1], errors

    def test_its_folder_says_what_it_is(self, place: Path) -> None:
        teacher = load_video_teacher(place / "pairs" / "teacher")
        assert teacher.pairs
        assert not load_video_teacher(place / "plain" / "teacher").pairs
        assert (place / "pairs" / "samples-000003.png").exists()
        with pytest.raises(ConfigError, match="films a video again, and there is none"):
            teacher.sample(["a red cube"], 3, size=(16, 16))
        source = torch.randn(1, 4, 3, 4, 4)
        made = teacher.sample(["a red cube"], 3, 2, size=(16, 16), source=source)
        other = teacher.sample(["a red cube"], 3, 2, size=(16, 16), source=-source)
        assert made.shape == source.shape
        assert not torch.equal(made, other)


class TestStudent:
    @pytest.mark.parametrize("objective", ["teacher-forcing", "diffusion-forcing"])
    def test_it_streams_a_source(self, place: Path, tmp_path: Path, objective: str) -> None:
        folder = train_student(student_options(place, tmp_path, objective=objective))
        student, config = load_student(str(folder)), read_stream_config(folder)
        assert student.pairs
        assert config is not None
        assert (config.chunk, config.window, config.sink) == (2, 2, 2)
        with pytest.raises(TeacherError, match="films a video again; a comparison has only sentences"):
            open_student("realcam", str(folder))
        with StreamSession(student, "a red cube", config=config, source=torch.rand(5, 3, 16, 16)) as session:
            assert len(list(session)) == 5
        assert (tmp_path / "samples-000002.png").exists()

    def test_a_whole_recipe(self, place: Path, tmp_path: Path) -> None:
        """Adapt causally, make a few steps of many, match on its own history by the preset, and film a file again."""
        causal = train_student(student_options(place, tmp_path / "causal", sample_every=0))
        few = train_student(
            student_options(
                place, tmp_path / "few", teacher=causal, objective="causal-consistency", guidance=2.0, sample_every=0
            )
        )
        words = ["distill", "video", "--system", "realcam", "--teacher", str(place / "pairs" / "teacher")]
        words += ["--student", str(few), "--pool", str(place / "pairs" / "pool"), "--out", str(tmp_path / "realcam")]
        words += ["--steps", "2", "--cooldown", "0", "--warmup", "0", "--frames", "6", "--steps-per-chunk", "2"]
        assert main([*words, "--critic-steps", "1", "--sample-every", "2", "--device", "cpu"]) == 0
        folder = tmp_path / "realcam" / "student"
        assert load_student(str(folder)).pairs
        assert (tmp_path / "realcam" / "samples-000002.png").exists()
        first, out = tmp_path / "first.mp4", tmp_path / "again.mp4"
        imwrite(first, (255 * torch.rand(8, 32, 48, 3)).byte().numpy(), plugin="FFMPEG", fps=12)
        words = ["stream", "a red cube", "--model", str(folder), "--source", str(first), "--camera", "orbit-left"]
        assert main([*words, "--frames", "5", "--out", str(out), "--device", "cpu"]) == 0
        assert len(imread(out, plugin="FFMPEG")) == 5

    def test_consistency_has_no_error_at_a_source(self, place: Path, tmp_path: Path) -> None:
        """Both sides show the source itself, so the mean is over the targets, and they alone move the student."""
        causal = train_student(student_options(place, tmp_path / "causal", sample_every=0))
        options = student_options(place, tmp_path / "few", teacher=causal, objective="causal-consistency")
        trainer = StudentTrainer(options, pool_of(place))
        lesson = trainer.draw(torch.Generator().manual_seed(0))
        objective = trainer.objective
        levels = objective.made(torch.full((2, 12), 0.5))
        assert levels[:, ::2].abs().max() == 0
        assert objective.mean(torch.arange(12.0).expand(2, 12)) == 6  # of 1, 3, 5, ...
        past = objective.past(lesson, torch.Generator().manual_seed(0))
        assert torch.equal(sources(past), sources(lesson.x0))
        assert not torch.equal(targets(past), targets(lesson.x0))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"teacher": "plain"}, "was not taught to film a video again"),
            ({"pool": "plain"}, "holds no pairs"),
            ({"objective": "buffer-flow-matching", "sink": 0}, "can't learn from pairs"),
            ({"objective": "motion-consistency"}, "can't learn from pairs"),
        ],
    )
    def test_what_does_not_fit(self, place: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
        parts = {"teacher": "teacher", "pool": "pool"}
        changes = {name: place / value / parts[name] if name in parts else value for name, value in changes.items()}
        with pytest.raises(ConfigError, match=said):
            train_student(student_options(place, tmp_path, **changes))


class TestMatching:
    def trainer(self, place: Path, tmp_path: Path, **changes: Any) -> VideoMatchingTrainer:
        student = train_student(student_options(place, tmp_path / "causal", sample_every=0))
        options = VideoMatchingOptions(
            teacher=place / "pairs" / "teacher", student=student, pool=place / "pairs" / "pool", out=tmp_path / "out",
            steps=2, cooldown=0, warmup=0, frames=6, steps_per_chunk=2, critic_steps=1, sample_every=0, device="cpu",
        )  # fmt: skip
        return VideoMatchingTrainer(replace(options, **changes), open_pool(replace(options, **changes).pool))

    @pytest.mark.parametrize("changes", [{}, {"history": "data"}, {"objective": "tdm"}, {"objective": "sid"}])
    def test_targets_alone_are_matched(self, place: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
        trainer = self.trainer(place, tmp_path, **changes)
        made = trainer.make(torch.Generator().manual_seed(1), trained=True)
        data = made.context.data
        torch.testing.assert_close(sources(made.x), sources(data))
        for judge in (made.context.teacher, made.context.critic):
            noisy = [data + scale * torch.randn_like(data) for scale in (0.5, 2.0)]
            shown = [judge.predict(x, torch.full((2,), 0.7)) for x in noisy]
            for item in shown:
                torch.testing.assert_close(sources(item), sources(data))
            # What stands in a source's place matters no more than what its noise level is said to be.
            same = interleave(torch.randn_like(sources(data)), targets(noisy[0]))
            torch.testing.assert_close(judge.predict(same, torch.full((2,), 0.7)), shown[0])
        metrics = trainer.train_step()
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())

    def test_it_resumes(self, place: Path, tmp_path: Path) -> None:
        trainer = self.trainer(place, tmp_path)
        whole = train_video_matching(replace(trainer.options, out=tmp_path / "whole", checkpoint_every=1))
        train_video_matching(replace(trainer.options, out=tmp_path / "parts", steps=1, checkpoint_every=1))
        parts = train_video_matching(replace(trainer.options, out=tmp_path / "parts", checkpoint_every=1))
        for path in sorted(whole.rglob("*.safetensors")):
            assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes(), path.name

    def test_what_does_not_fit(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--before"):
            self.trainer(place, tmp_path, before=2)
        with pytest.raises(ConfigError, match="holds no pairs"):
            self.trainer(place, tmp_path, pool=place / "plain" / "pool")
        plain = place / "plain" / "teacher"
        with pytest.raises(ConfigError, match="This system films a video again"):
            self.trainer(place, tmp_path, pairs=True, teacher=plain, pool=place / "plain" / "pool")


def test_a_rollout_is_what_a_stream_makes(place: Path) -> None:
    """The same noise, cameras and source through `denoise_chunk` over a cache of pairs."""
    teacher = load_video_teacher(place / "pairs" / "teacher")
    networks: StudentNetworks = load_networks(place / "pairs" / "teacher", "cpu").train()
    stream, levels = paired_stream(Stream(2, 2, chunk=2, sink=2, window=2)), (1.0, 0.75)
    clips = pool_of(place).draw(1, 6, torch.Generator().manual_seed(2))
    source, controls = sources(clips.latents), Controls(clips.cameras)
    text = teacher.encode_prompt(["a red cube"])
    generator = torch.Generator().manual_seed(1)
    made = Roller(stream, levels).on_itself(
        networks, (1, 4, 6, 4, 4), text, controls, generator, trained=False, source=source
    )
    generator = torch.Generator().manual_seed(1)
    exit_at = int(torch.randint(2, (), generator=generator))
    cache: AttentionCache = networks.transformer.new_cache(stream)
    parts = []
    with torch.no_grad():
        for start in (0, 2, 4):
            noise = torch.randn(2, 1, 4, 2, 4, 4, generator=generator)[: exit_at + 1]
            beside = source[:, :, start : start + 2]
            camera = targets(clips.cameras, 1)[:, start : start + 2]
            features = teacher.features(paired_controls(Controls(camera), 1, 2), beside)
            x0 = denoise_chunk(networks.transformer, noise, levels[: exit_at + 1], text, cache, features, source=beside)
            chunk_flow(networks.transformer, x0, 0.0, text, cache, features, write=True, source=beside)
            parts.append(x0)
    torch.testing.assert_close(targets(made.x), torch.cat(parts, dim=2), rtol=1e-5, atol=1e-6)
    assert torch.equal(sources(made.x), source)
    assert torch.equal(made.levels, target_levels(torch.full((1, 12), levels[exit_at])))


def test_guidance_shows_the_source_on_both_sides(place: Path) -> None:
    networks = load_networks(place / "pairs" / "teacher", "cpu")
    clips = pool_of(place).draw(2, 3, torch.Generator())
    text = load_video_teacher(place / "pairs" / "teacher").encode_prompt(["a red cube", "a blue cube", ""])
    judge = ClipJudge(networks, text[:2], text[2:], Controls(clips.cameras), clips.latents)
    for item in judge.pair(torch.randn_like(clips.latents), torch.full((2,), 0.5)):
        torch.testing.assert_close(sources(item), sources(clips.latents))
