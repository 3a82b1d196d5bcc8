"""Streams from a moving buffer: against a plain loop written here, and against Gaussian clips whose flow is known."""

from types import SimpleNamespace

import pytest
import torch
from stream_memory import held_bytes

from dreamkit.errors import ConfigError, TeacherError
from dreamkit.video import buffer_stream
from dreamkit.video.buffer_stream import BufferDenoiser, BufferTrail, buffer_flow, buffer_levels, new_denoiser
from dreamkit.video.camera_paths import ListedPath, camera_path
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.random_models import random_student
from dreamkit.video.rollout import ChunkDenoiser, chunk_noise
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import Steering

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (16, 16)
CHUNK, BUFFER, STEPS = 2, 3, 2


@pytest.fixture(scope="module")
def student():
    return random_student("tiny-random")


@pytest.fixture(scope="module")
def wan():
    return random_student("tiny-wan-random")


def falling(steps):
    return tuple((steps - step) / steps for step in range(steps))


def config(**options):
    base = {"size": SIZE, "overlap": False, "chunk": CHUNK, "sink": 0, "buffer": BUFFER, "shift": 1.0}
    return StreamConfig(**{**base, "times": falling(BUFFER * STEPS), **options})


def play(student, frames, prompt="a red cube", seed=1, controls=None, switches=(), **options):
    with StreamSession(student, prompt, controls, seed, config(**options), frames) as session:
        for at, text in switches:
            session.say(text, at)
        return list(session)


def pixels(frames):
    return torch.stack([frame.pixels for frame in frames])


@torch.no_grad()
def plain_latents(student, chunks, prompts, seed=1, guidance=1.0, reference=0, shift=1.0):
    """Chunks by nothing but calls of the network, every chunk with a level of its own: {chunk: prompt}."""
    grid = [shift * t / (1 + (shift - 1) * t) for t in (*falling(BUFFER * STEPS), 0.0)]
    shape = (1, student.autoencoder.channels, CHUNK, *(side // student.autoencoder.spatial_factor for side in SIZE))
    texts = {chunk: student.encode_prompt([prompt, ""]) for chunk, prompt in prompts.items()}

    def move(parts, places, text):
        """Every part from its level to the next one; a part whose place is `None` is finished."""
        t = [0.0 if place is None else grid[place] for place in places]
        times = torch.tensor([1000 * level for level, part in zip(t, parts, strict=True) for _ in range(part.shape[2])])
        x = torch.cat(parts, dim=2)
        flow, without = (student.network(x, times[None], row[None], None).float() for row in text)
        flow = without + guidance * (flow - without) if guidance != 1 else flow
        flows = flow.split([part.shape[2] for part in parts], dim=2)
        return [
            part if place is None else part + (grid[place + 1] - grid[place]) * own
            for part, place, own in zip(parts, places, flows, strict=True)
        ]

    with torch.autocast("cpu", torch.bfloat16, enabled=student.half_precision):
        clip = [chunk_noise(seed, chunk, 1, shape)[0] for chunk in range(BUFFER)]
        kept = [clip]  # every moment of an ordinary clip
        for place in range((BUFFER - 1) * STEPS):
            kept.append(move(kept[-1], [place] * BUFFER, texts[0]))
        parts = [kept[(BUFFER - 1 - index) * STEPS][index] for index in range(BUFFER)]
        shown, text = [], None
        for chunk in range(chunks):
            text = texts.get(chunk, text)
            before = torch.cat(shown, dim=2)[:, :, -reference:] if shown and reference else None
            finished = [] if before is None else [before]
            for step in range(STEPS):
                places = [(BUFFER - 1 - index) * STEPS + step for index in range(BUFFER)]
                moved = move([*finished, *parts], [*(None for _ in finished), *places], text)
                parts = moved[len(finished) :]
            shown.append(parts.pop(0))
            parts.append(chunk_noise(seed, chunk + BUFFER, 1, shape)[0])
    return torch.cat(shown, dim=2)


def plain_loop(student, *arguments, **options):
    frames = student.autoencoder.decode(plain_latents(student, *arguments, **options))[0]
    return (255 * frames).round().to(torch.uint8).permute(0, 2, 3, 1)


def same(got, want):
    """Pixels, up to the rounding of another order of sums."""
    torch.testing.assert_close(got.int(), want.int(), atol=1, rtol=0)
    assert (want[0].float() - want[-1].float()).abs().mean() > 1  # frames differ, or nothing is tested


# The buffer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"guidance": 3.0}, {"shift": 4.0}, {"reference": 1}, {"reference": 3}], ids=str
)
def test_a_stream_is_a_loop_of_calls_and_a_decoder(student, options):
    got = play(student, 14, **options)
    assert [frame.number for frame in got] == list(range(14))
    same(pixels(got), plain_loop(student, 7, {0: "a red cube"}, **options))


def test_a_wan_stream_decodes_as_one_clip(wan):
    same(pixels(play(wan, 17)), plain_loop(wan, 3, {0: "a red cube"})[:17])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_buffer_at_one_level_is_the_teachers_clip(student, guidance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 6, 8, 8, generator=generator)
    controls = Controls(torch.randn(1, 6, 12, generator=generator), torch.rand(1, 6, 3, 2, generator=generator))
    text = student.encode_prompt(["a red cube", ""] if guidance != 1 else ["a red cube"])
    with torch.autocast("cpu", torch.bfloat16, enabled=student.half_precision), torch.no_grad():
        features = student.features(controls, x)
        got = buffer_flow(student.network, x, torch.full((6,), 0.6), text, features, guidance)
    asked = [student.predict(x, 0.6, row[None], controls) for row in text]
    want = asked[0] if guidance == 1 else asked[1] + guidance * (asked[0] - asked[1])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_one_chunk_is_an_ordinary_clip(student):
    """And every clip of such a stream is its own, made from the noise of its number."""
    settings = config(buffer=1, chunk=6, times=falling(5))
    denoiser = BufferDenoiser(student, settings, 3, student.encode_prompt(["a red cube"]))
    for chunk in range(2):
        with denoiser.precision():
            got = denoiser.next()
        x = chunk_noise(3, chunk, 1, (1, 4, 6, 8, 8))[0]
        for level in falling(5):
            x = x - 0.2 * student.predict(x, level, student.encode_prompt(["a red cube"]))
        torch.testing.assert_close(got, x, atol=1e-4, rtol=1e-4)


def test_the_levels_are_those_of_the_published_example():
    """Figure 13 of the paper: c = 2, s = 4, N = 2, eight levels."""
    levels = buffer_levels(config(buffer=2, chunk=2, times=falling(8)), 1.0)
    front = torch.tensor([0.5, 0.375, 0.25, 0.125, 0.0])
    assert torch.equal(levels, torch.stack([front, front, front + 0.5, front + 0.5], dim=1))
    shifted = buffer_levels(config(buffer=2, times=(1.0, 0.5)), 3.0)
    torch.testing.assert_close(shifted, torch.tensor([[0.75, 0.75, 1.0, 1.0], [0.0, 0.0, 0.75, 0.75]]))


def calls_of(student, monkeypatch):
    """Frames of every call of the network, as they come."""
    frames = []
    original = type(student.network).forward

    def noted(self, latents, *arguments, **options):
        frames.append(latents.shape[2])
        return original(self, latents, *arguments, **options)

    monkeypatch.setattr(type(student.network), "forward", noted)
    return frames


@pytest.mark.parametrize("reference", [0, 3])
def test_the_first_chunk_takes_every_level_and_all_others_the_micro_steps(student, monkeypatch, reference):
    denoiser = BufferDenoiser(student, config(reference=reference), 0, student.encode_prompt(["a cube"]))
    calls = calls_of(student, monkeypatch)
    sizes = []
    for _ in range(5):
        calls.clear()
        denoiser.next()
        sizes.append(list(calls))
    frames = BUFFER * CHUNK
    assert sizes[0] == [frames] * (BUFFER * STEPS)
    assert sizes[1:] == [[frames + min(reference, CHUNK * chunk)] * STEPS for chunk in range(1, 5)]


def test_nothing_depends_on_how_long_the_stream_has_run(student, monkeypatch):
    """The same buffer and the same noise, ten chunks and a hundred thousand after the beginning."""
    denoiser = BufferDenoiser(student, config(reference=1), 0, student.encode_prompt(["a cube"]))
    for _ in range(3):
        denoiser.next()
    made = []
    for late in (10, 100_000):
        own = BufferDenoiser(student, config(reference=1), 0, student.encode_prompt(["a cube"]))
        own.restore(denoiser.snapshot())
        own.chunk = late
        with monkeypatch.context() as patch:
            patch.setattr(buffer_stream, "chunk_noise", lambda seed, chunk, *rest, late=late: chunk_noise(
                seed, chunk - late, *rest
            ))  # fmt: skip
            made.append([own.next() for _ in range(4)])
    assert all(torch.equal(early, later) for early, later in zip(*made, strict=True))


# In distribution -----------------------------------------------------------------------------------------------------

MEAN, SPREAD, MEMORY = 0.7, 0.5, 0.8


class GaussianNetwork:
    """The exact flow of clips with mean MEAN and covariance SPREAD^2 MEMORY^|i - j| of frames, at any mix of levels.

    With D = diag(1 - t), S = diag(t) and V = D C D + S^2:  E[eps - x0 | x] = (S - C D) V^-1 (x - D mean) - mean.
    """

    def __init__(self):
        self.config = SimpleNamespace(patch_size=(1, 1, 1))
        self.proj_out = SimpleNamespace(weight=torch.zeros(1))

    def __call__(self, latents, timesteps, text, features):
        t = timesteps[0].double() / 1000
        index = torch.arange(len(t), dtype=torch.float64)
        covariance = SPREAD**2 * MEMORY ** (index[:, None] - index).abs()
        down, up = torch.diag(1 - t), torch.diag(t)
        gain = (up - covariance @ down) @ torch.linalg.inv(down @ covariance @ down + up @ up)
        middle = latents.double() - ((1 - t) * MEAN)[:, None, None]
        return torch.einsum("ij,bcjhw->bcihw", gain, middle) - MEAN


def gaussian_stream(chunks, reference=0, **options):
    """[chunks * CHUNK, samples], every place of a picture a stream of its own."""
    autoencoder = SimpleNamespace(channels=8, spatial_factor=1)
    teacher = VideoTeacher("gaussian", GaussianNetwork(), autoencoder, None)
    settings = config(size=(48, 48), reference=reference, times=falling(BUFFER * 40), **options)
    denoiser = BufferDenoiser(teacher, settings, 5, torch.zeros(1, 1, 1))
    return torch.cat([denoiser.next() for _ in range(chunks)], dim=2)[0].transpose(0, 1).flatten(1)


def ar_covariance(frames):
    index = torch.arange(frames, dtype=torch.float64)
    return SPREAD**2 * MEMORY ** (index[:, None] - index).abs()


def test_with_a_reference_a_markov_stream_has_its_law():
    """Exactly, to the steps of Euler's: given the finished frame before it nothing older tells a buffer more."""
    frames = gaussian_stream(9, reference=1)[6:]
    torch.testing.assert_close(frames.mean(dim=1), torch.full((12,), MEAN).double(), atol=0.015, rtol=0)
    torch.testing.assert_close(torch.cov(frames), ar_covariance(12), atol=0.015, rtol=0)


@pytest.mark.parametrize(("shift", "low", "high"), [(1.0, 0.65, 0.9), (3.0, 0.3, 0.45)])
def test_without_one_every_chunk_has_its_law_and_knows_the_one_before_through_noise(shift, low, high):
    """What was shown is known by what the noisy frames learned of it: less, the noisier the buffer is."""
    frames = gaussian_stream(6, shift=shift)
    torch.testing.assert_close(frames.mean(dim=1), torch.full((12,), MEAN).double(), atol=0.015, rtol=0)
    for start in range(0, 12, CHUNK):
        own = torch.cov(frames[start : start + CHUNK])
        torch.testing.assert_close(own, ar_covariance(CHUNK), atol=0.025, rtol=0)
    lags = torch.tensor([float(torch.cov(frames[start - 1 : start + 1])[0, 1]) for start in range(2, 12, 2)])
    share = lags / (MEMORY * SPREAD**2)
    assert low < float(share.min()) <= float(share.max()) < high


# Prompts, going back, threads ----------------------------------------------------------------------------------------


def test_a_switch_is_the_next_calls_text(student):
    got = play(student, 12, switches=[(5, "a blue ball")])
    assert [frame.prompt for frame in got] == ["a red cube"] * 6 + ["a blue ball"] * 6
    same(pixels(got), plain_loop(student, 6, {0: "a red cube", 3: "a blue ball"}))
    never = pixels(play(student, 12))
    assert torch.equal(pixels(got)[:6], never[:6])
    assert not torch.equal(pixels(got)[6:8], never[6:8])


def test_an_interpolated_switch_comes_in_over_chunks(student):
    got = pixels(play(student, 14, switches=[(4, "a blue ball")], switch="interpolate", blend_chunks=2))
    never = pixels(play(student, 14))
    sudden = pixels(play(student, 14, switches=[(4, "a blue ball")]))
    at_once = play(student, 14, switches=[(4, "a blue ball")], switch="interpolate", blend_chunks=1)
    assert torch.equal(pixels(at_once), sudden)
    assert torch.equal(got[:4], never[:4])
    for other in (never, sudden):
        assert not torch.equal(got[4:6], other[4:6])


@pytest.mark.parametrize("frames", [1, 5, 12])
def test_the_same_seed_gives_the_same_frames_and_a_prefix(student, frames):
    assert torch.equal(pixels(play(student, frames)), pixels(play(student, 12))[:frames])
    assert not torch.equal(pixels(play(student, frames)), pixels(play(student, frames, seed=2)))


def test_threads_change_no_bit(student, wan):
    for model in (student, wan):
        alone = play(model, 14, switches=[(4, "a blue ball")], reference=1)
        apart = play(model, 14, switches=[(4, "a blue ball")], reference=1, overlap=True, ahead=1)
        assert torch.equal(pixels(alone), pixels(apart))


def test_a_snapshot_is_gone_back_to_bit_for_bit(student):
    text = student.encode_prompt(["a cube"])
    denoiser = BufferDenoiser(student, config(reference=2, switch="interpolate"), 0, text)
    begin = denoiser.snapshot()
    first = [denoiser.next() for _ in range(3)]
    denoiser.say(student.encode_prompt(["a ball"]))
    middle = denoiser.snapshot()
    rest = [denoiser.next() for _ in range(4)]
    denoiser.restore(middle)
    assert all(torch.equal(denoiser.next(), chunk) for chunk in rest)
    denoiser.restore(begin)
    assert all(torch.equal(denoiser.next(), chunk) for chunk in first)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("every", [1, 3, 1000])
def test_going_back_plays_the_same_again(student, overlap, every):
    options = {"overlap": overlap, "snapshot_every": every, "reference": 1}
    switches = [(3, "a blue ball"), (9, "a cone")]
    steering = Steering(camera_path("orbit-left"))
    with StreamSession(student, "a red cube", steering, 1, config(**options), 16) as session:
        for at, prompt in switches:
            session.say(prompt, at)
        session.steer(Steering(camera_path("pan-right"), torch.rand(9, 3, 2)), at=8)
        first = [next(session) for _ in range(13)]
        session.rewind(5)
        second = list(session)
    assert torch.equal(pixels(first)[5:], pixels(second)[:8])
    assert [frame.number for frame in second] == list(range(5, 16))


def test_nothing_grows_with_the_stream(student):
    options = config(times=falling(BUFFER), snapshot_every=2, reference=3)
    steering = Steering(camera_path("orbit"), torch.rand(9, 3, 2))
    with StreamSession(student, "a cube", steering, 1, options) as session:
        session._engine.shelf.room = 20
        held = []
        for chunk in range(120):
            next(session), next(session)
            if chunk in (79, 119):
                held.append((held_bytes(session._engine), session.tensor_bytes, len(session.snapshots)))
        latents = session._engine.denoiser.cache.latents
    assert held[0] == held[1]
    assert held[0][0] > 16 * held[0][1]  # the snapshots were found
    assert latents.untyped_storage().nbytes() == held[0][1]
    assert latents.shape[2] == 3 + (BUFFER - 1) * CHUNK


# Controls ------------------------------------------------------------------------------------------------------------


def random_poses(count):
    generator = torch.Generator().manual_seed(3)
    turn = torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.linalg.matrix_exp(0.3 * (turn - turn.mT))
    poses[:, :3, 3] = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    return poses


def relative(poses):
    return (torch.linalg.inv(poses[0]) @ poses)[:, :3].flatten(1).float()


@pytest.fixture
def asked(student, monkeypatch):
    """The controls of every chunk, as they reach the model."""
    noted = []
    original = VideoTeacher.features

    def features(self, controls, latents):
        noted.append(controls)
        assert controls is None or controls.shape == (1, latents.shape[2])
        return original(self, controls, latents)

    monkeypatch.setattr(VideoTeacher, "features", features)
    return noted


def in_buffer(chunk, reference):
    """Frames that lie in the buffer while a chunk is made."""
    return slice(max(0, CHUNK * chunk - reference), CHUNK * (chunk + BUFFER))


@pytest.mark.parametrize("reference", [0, 3])
def test_every_frame_obeys_the_controls_of_its_own_time(student, asked, reference):
    poses, tracks = random_poses(40), torch.rand(40, 3, 2)
    visible = torch.rand(40, 3) < 0.7
    play(student, 12, controls=Steering(ListedPath(poses), tracks, visible), reference=reference)
    assert len(asked) == 6
    for chunk, controls in enumerate(asked):
        frames = in_buffer(chunk, reference)
        torch.testing.assert_close(controls.camera[0], relative(poses[frames]), atol=1e-5, rtol=0)
        assert torch.equal(controls.tracks[0], tracks[frames])
        assert torch.equal(controls.visible[0], visible[frames])


def test_a_change_begins_with_the_chunk_of_its_frame_however_far_ahead_that_is(student, asked):
    """At frame 5: chunk 3, frames 6 and 7, which enters when chunk 1 is made. Before, nothing is steered."""
    poses, tracks = random_poses(40), torch.rand(40, 2, 2)
    with StreamSession(student, "a cube", None, 1, config(), 12) as session:
        session.steer(Steering(ListedPath(poses), tracks), at=5)
        list(session)
    assert asked[0] is None
    steered = torch.cat([torch.eye(4, dtype=torch.float64).expand(5, 4, 4), torch.linalg.inv(poses[0]) @ poses])
    for chunk, controls in enumerate(asked[1:], start=1):
        frames = in_buffer(chunk, 0)
        seen = torch.arange(frames.start, frames.stop) >= 6
        want = relative(steered[frames])
        torch.testing.assert_close(controls.camera[0], want * seen[:, None], atol=1e-5, rtol=0)
        assert torch.equal(controls.visible[0], seen[:, None].expand(-1, 2))
        assert torch.equal(controls.tracks[0][seen], tracks[max(0, frames.start - 6) : frames.stop - 6])


def test_tracks_of_different_numbers_of_points_share_a_buffer(student, asked):
    with StreamSession(student, "a cube", Steering(tracks=torch.rand(20, 2, 2)), 1, config(), 8) as session:
        session.steer(Steering(tracks=torch.rand(20, 5, 2)), at=6)
        list(session)
    assert asked[1].tracks.shape == (1, 6, 5, 2)
    assert asked[1].visible[0].sum(dim=1).tolist() == [2, 2, 2, 2, 5, 5]


def test_a_change_while_playing_is_that_of_the_frames_that_enter(student, asked):
    """And going back to after it was given keeps it, to before it was given forgets it."""
    plain = pixels(play(student, 16))
    asked.clear()
    with StreamSession(student, "a red cube", None, 1, config(snapshot_every=2)) as session:
        first = [next(session) for _ in range(5)]  # chunks 0 to 2 are made
        session.steer(Steering(camera_path("pan-right")))
        first += [next(session) for _ in range(11)]
        assert [controls is None for controls in asked[:4]] == [True, True, True, False]
        assert (asked[3].camera[0].abs().sum(dim=1) > 0).tolist() == [False] * 4 + [True] * 2
        session.rewind(7)  # it was given before frame 6, for those from frame 10 on
        assert torch.equal(pixels([next(session) for _ in range(9)]), pixels(first)[7:])
        session.rewind(5)
        assert torch.equal(pixels([next(session) for _ in range(11)]), plain[5:])
    assert not torch.equal(pixels(first)[6:], plain[6:])


def test_controls_of_another_number_of_frames_are_refused(student):
    denoiser = BufferDenoiser(student, config(), 0, student.encode_prompt(["a cube"]))
    with pytest.raises(ConfigError, match="control features"):
        denoiser.next(Controls(torch.zeros(1, CHUNK, 12)))


def test_a_model_without_controls_refuses_them(wan):
    denoiser = BufferDenoiser(wan, config(), 0, wan.encode_prompt(["a cube"]))
    with pytest.raises(TeacherError, match="no cameras and no tracks"):
        denoiser.next(Controls(torch.zeros(1, 6, 12)))


def test_a_trail_goes_back(student):
    trail = BufferTrail(config(reference=1), 1)
    trail.follow(Steering(camera_path("orbit"), torch.rand(9, 3, 2)))
    trail.next(6)
    state = trail.state()
    once = trail.next(2)
    trail.next(2)
    trail.restore(state)
    again = trail.next(2)
    assert torch.equal(once.camera, again.camera)
    assert torch.equal(once.tracks, again.tracks)
    assert once.shape == (1, 7)


# Settings ------------------------------------------------------------------------------------------------------------


def test_the_configuration_says_who_denoises(student):
    text = student.encode_prompt(["a cube"])
    assert isinstance(new_denoiser(student, config(), 0, text), BufferDenoiser)
    rolling = StreamConfig(size=SIZE)
    assert isinstance(new_denoiser(student, rolling, 0, text), ChunkDenoiser)
    with pytest.raises(ConfigError, match="buffer is 0"):
        BufferDenoiser(student, rolling, 0, text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer": -1}, "buffer is -1"),
        ({"buffer": 5}, "6 noise levels can't be shared out among the 5 chunks"),
        ({"buffer": 7}, "at least 1"),  # no micro steps
        ({"reference": -1}, "reference is -1"),
        ({"buffer": 0, "reference": 2, "sink": 1}, "reference of a stream is 2.*or a moving buffer"),
        ({"sink": 3}, "sink of a moving buffer is 3"),
        ({"sparsity": "keep=0.5"}, "sparsity of a moving buffer"),
        ({"context_time": 0.1}, "context's level is 0.1"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_a_size_that_cannot_be_made_is_refused(student):
    with pytest.raises(ConfigError, match=r"height, width.*multiples of \[4, 4\]"):
        StreamSession(student, "a cube", config=config(size=(18, 16)))
