"""The stream engine: what a session plays, against a plain loop written here, from one thread and from several."""

import gc
import threading

import pytest
import torch
from stream_memory import held_bytes

from dreamkit.errors import ConfigError, PromptError, TeacherError
from dreamkit.video.camera_paths import camera_path
from dreamkit.video.random_models import random_student
from dreamkit.video.rollout import chunk_noise, prepared_cache
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import Steering

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (16, 16)
LEVELS = (1.0, 0.9375, 5 / 6, 0.625)


@pytest.fixture(scope="module")
def student():
    return random_student("tiny-random")


@pytest.fixture(scope="module")
def wan():
    return random_student("tiny-wan-random")


def config(**options):
    return StreamConfig(**{"size": SIZE, "overlap": False, "window": 4, "chunk": 2, "sink": 2, **options})


def play(student, frames, prompt="a red cube", seed=1, controls=None, switches=(), **options):
    with StreamSession(student, prompt, controls, seed, config(**options), frames) as session:
        for at, text in switches:
            session.say(text, at)
        return list(session)


def pixels(frames):
    return torch.stack([frame.pixels for frame in frames])


def stream_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("dreamkit-stream")]


@torch.no_grad()
def plain_loop(student, chunks, prompts, seed=1, guidance=1.0, recache=True, **options):
    """Frames by nothing but `step`, `recache` and `decode`: {chunk: prompt} says where prompts begin."""
    settings = config(guidance=guidance, **options)
    cache = prepared_cache(student, settings)
    shape = (1, student.autoencoder.channels, settings.chunk, 8, 8)
    if student.autoencoder.spatial_factor == 4:
        shape = (*shape[:3], 4, 4)
    latents = []
    text = None
    with torch.autocast("cpu", torch.bfloat16, enabled=student.half_precision):
        for chunk in range(chunks):
            if chunk in prompts:
                text = student.encode_prompt([prompts[chunk]])
                if guidance != 1:
                    text = torch.cat([text, student.encode_prompt([""])])
                if chunk and recache:
                    student.network.recache(text, cache)
            rows = len(text)
            noise = chunk_noise(seed, chunk, 4, shape)
            x0 = torch.zeros(shape)
            for level, eps in zip(LEVELS, noise, strict=True):
                x_t = (1 - level) * x0 + level * eps
                time = torch.full((rows,), 1000 * level)
                flow = student.network.step(x_t.repeat(rows, 1, 1, 1, 1), time, text, cache).float()
                if rows == 2:
                    flow = (flow[1] + guidance * (flow[0] - flow[1]))[None]
                x0 = x_t - level * flow
            student.network.step(x0.repeat(rows, 1, 1, 1, 1), torch.zeros(rows), text, cache, write=True)
            latents.append(x0)
    frames = student.autoencoder.decode(torch.cat(latents, dim=2))[0]
    return (255 * frames).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_a_stream_is_a_loop_of_steps_and_a_decoder(student):
    got = pixels(play(student, 12))
    want = plain_loop(student, 6, {0: "a red cube"})
    assert torch.equal(got, want)
    assert (want[0].float() - want[7].float()).abs().mean() > 1  # frames differ, or nothing is tested


def test_a_wan_stream_decodes_as_one_clip(wan):
    got = play(wan, 17, shift=5.0)
    want = plain_loop(wan, 3, {0: "a red cube"})
    assert [frame.number for frame in got] == list(range(17))
    torch.testing.assert_close(pixels(got).int(), want[:17].int(), atol=1, rtol=0)  # convolutions of other lengths


def test_guidance_mixes_prompt_and_no_prompt(student):
    got = pixels(play(student, 8, guidance=3.0))
    assert torch.equal(got, plain_loop(student, 4, {0: "a red cube"}, guidance=3.0))
    assert not torch.equal(got, pixels(play(student, 8)))


@pytest.mark.parametrize("frames", [1, 5, 12])
def test_the_number_of_frames_is_exact_and_a_prefix(student, frames):
    assert torch.equal(pixels(play(student, frames)), pixels(play(student, 12))[:frames])


def test_threads_change_no_bit(student, wan):
    for model in (student, wan):
        alone = play(model, 14, switches=[(4, "a blue ball")])
        apart = play(model, 14, switches=[(4, "a blue ball")], overlap=True, ahead=1)
        assert torch.equal(pixels(alone), pixels(apart))
        assert [frame.prompt for frame in alone] == [frame.prompt for frame in apart]
    assert not stream_threads()


def test_the_seed_decides(student):
    assert torch.equal(pixels(play(student, 4, seed=5)), pixels(play(student, 4, seed=5)))
    assert not torch.equal(pixels(play(student, 4, seed=5)), pixels(play(student, 4, seed=6)))


def test_the_noise_of_a_chunk_is_its_own():
    assert torch.equal(chunk_noise(3, 7, 2, (4, 5)), chunk_noise(3, 7, 2, (4, 5)))
    several = torch.stack([chunk_noise(seed, chunk, 1, (64, 64)) for seed, chunk in ((0, 1), (1, 0), (1, 1), (0, 0))])
    correlation = torch.corrcoef(several.flatten(1))
    assert (correlation - torch.eye(4)).abs().max() < 0.06
    assert abs(float(several.mean())) < 0.05
    assert abs(float(several.std()) - 1) < 0.05


# Prompts -------------------------------------------------------------------------------------------------------------


def test_a_switch_waits_for_the_next_chunk_and_recaches(student):
    got = play(student, 12, switches=[(5, "a blue ball")])
    assert [frame.prompt for frame in got] == ["a red cube"] * 6 + ["a blue ball"] * 6
    assert torch.equal(pixels(got), plain_loop(student, 6, {0: "a red cube", 3: "a blue ball"}))
    plain = plain_loop(student, 6, {0: "a red cube", 3: "a blue ball"}, recache=False)
    assert not torch.equal(pixels(got), plain)


def test_a_recached_switch_within_the_window_is_a_stream_that_knew_it_from_the_cache_on(student):
    # Nothing has left sink and window: the cache afterwards is that of a stream written with the new prompt.
    with StreamSession(student, "a red cube", seed=1, config=config(snapshot_mb=0)) as session:
        first = [next(session) for _ in range(4)]
        session.say("a blue ball", at=4)
        after = [next(session) for _ in range(4)]
    assert torch.equal(pixels(first + after), plain_loop(student, 4, {0: "a red cube", 2: "a blue ball"}))


def test_an_interpolated_switch_comes_in_over_chunks(student):
    got = play(student, 14, switches=[(4, "a blue ball")], switch="interpolate", blend_chunks=2)
    never = play(student, 14, switch="interpolate")
    sudden = play(student, 14, switches=[(4, "a blue ball")], switch="interpolate", blend_chunks=1)
    without = plain_loop(student, 7, {0: "a red cube", 2: "a blue ball"}, recache=False, switch="interpolate")
    assert torch.equal(pixels(sudden), without)
    assert torch.equal(pixels(got)[:4], pixels(never)[:4])
    for other in (never, sudden):
        assert not torch.equal(pixels(got)[4:6], pixels(other)[4:6])


def test_a_switch_at_frame_zero_is_the_prompt(student):
    assert torch.equal(pixels(play(student, 4, "a blue ball")), pixels(play(student, 4, switches=[(0, "a blue ball")])))


def test_a_switch_while_playing_comes_with_the_next_chunk(student):
    with StreamSession(student, "a red cube", seed=1, config=config(), frames=12) as session:
        frames = []
        for frame in session:
            frames.append(frame)
            if frame.number == 4:
                session.say("  a blue   ball ")
    assert [frame.prompt for frame in frames] == ["a red cube"] * 6 + ["a blue ball"] * 6
    assert torch.equal(pixels(frames), pixels(play(student, 12, switches=[(6, "a blue ball")])))


@pytest.mark.parametrize("prompt", ["", " \n "])
def test_an_empty_prompt_is_refused(student, prompt):
    with pytest.raises(PromptError, match="empty"):
        StreamSession(student, prompt)
    with StreamSession(student, "a red cube", config=config()) as session, pytest.raises(PromptError, match="empty"):
        session.say(prompt)


def test_a_switch_past_the_end_is_refused(student):
    with StreamSession(student, "a cube", config=config(), frames=10) as session:
        with pytest.raises(ConfigError, match="at frame 10 comes too late: the stream has 10 frames"):
            session.say("a ball", at=10)
        with pytest.raises(ConfigError, match="-1"):
            session.say("a ball", at=-1)


# Pausing, going back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("every", [1, 3, 1000])
def test_going_back_plays_the_same_again(student, overlap, every):
    options = config(overlap=overlap, snapshot_every=every)
    switches = [(3, "a blue ball"), (9, "a cone")]
    with StreamSession(student, "a red cube", seed=1, config=options, frames=16) as session:
        for at, prompt in switches:
            session.say(prompt, at)
        first = [next(session) for _ in range(13)]
        session.rewind(5)
        second = list(session)
    assert [frame.number for frame in second] == list(range(5, 16))
    whole = play(student, 16, switches=switches)
    assert torch.equal(pixels(first), pixels(whole)[:13])
    assert torch.equal(pixels(second), pixels(whole)[5:])
    assert [frame.prompt for frame in second] == [frame.prompt for frame in whole[5:]]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_wan_stream_goes_back_with_its_decoder(wan, overlap):
    with StreamSession(wan, "a cube", seed=2, config=config(overlap=overlap, snapshot_every=2)) as session:
        first = [next(session) for _ in range(40)]
        session.rewind(30)
        second = [next(session) for _ in range(10)]
    assert torch.equal(pixels(first)[30:], pixels(second))


def test_going_back_forgets_what_was_said_later_and_keeps_what_was_said_before(student):
    with StreamSession(student, "a red cube", seed=1, config=config(), frames=16) as session:
        for _ in range(4):
            next(session)
        session.say("a blue ball")
        for _ in range(6):
            last = next(session)
        session.say("a cone")
        assert last.number == 9
        assert next(session).prompt == "a cone"
        session.rewind(7)
        frames = list(session)
    assert [frame.number for frame in frames] == list(range(7, 16))
    assert {frame.prompt for frame in frames} == {"a blue ball"}
    assert torch.equal(pixels(frames), pixels(play(student, 16, switches=[(4, "a blue ball")]))[7:])


def test_going_back_and_saying_something_else_is_a_restart_from_the_snapshot(student):
    with StreamSession(student, "a red cube", seed=1, config=config(snapshot_every=2)) as session:
        for _ in range(12):
            next(session)
        session.rewind(8)
        session.say("a blue ball")
        frames = [next(session) for _ in range(6)]
    want = plain_loop(student, 7, {0: "a red cube", 4: "a blue ball"})
    assert torch.equal(pixels(frames), want[8:14])


def test_a_snapshot_that_was_asked_for_is_kept(student):
    with StreamSession(student, "a cube", config=config(snapshot_mb=0)) as session:
        for _ in range(5):
            next(session)
        session.snapshot()
        first = [next(session) for _ in range(7)]
        assert session.snapshots == [6]
        session.rewind(7)
        assert torch.equal(pixels([next(session) for _ in range(5)]), pixels(first[2:]))


@pytest.mark.parametrize("frame", [-1, 3, 2.5, True])
def test_only_frames_that_were_read_can_be_gone_back_to(student, frame):
    with StreamSession(student, "a cube", config=config()) as session:
        for _ in range(3):
            next(session)
        with pytest.raises(ConfigError, match="0 to 2, the frames that were read"):
            session.rewind(frame)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_paused_stream_hands_nothing_over(student, overlap):
    session = StreamSession(student, "a cube", seed=1, config=config(overlap=overlap), frames=8)
    frames = [next(session)]
    session.pause()
    assert session.is_paused
    reader = threading.Thread(target=lambda: frames.extend(session))
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    assert len(frames) == 1
    session.resume()
    reader.join(60)
    assert torch.equal(pixels(frames), pixels(play(student, 8, "a cube")))


def test_closing_wakes_a_reader_of_a_paused_stream(student):
    session = StreamSession(student, "a cube", config=config(overlap=True))
    next(session)
    session.pause()
    rest = []
    reader = threading.Thread(target=lambda: rest.extend(session))
    reader.start()
    session.close()
    reader.join(60)
    assert not reader.is_alive()
    assert rest == []
    assert not stream_threads()


# Threads, memory -----------------------------------------------------------------------------------------------------


def test_a_reader_that_stops_stops_everything(student):
    session = StreamSession(student, "a cube", config=config(overlap=True, ahead=2))
    next(session)
    engine = session._engine
    # One frame of chunk 0, chunk 1 and one of chunk 2 wait to be read, the decoder holds chunk 2, chunks 3 and 4 wait
    # to be decoded, the denoiser holds chunk 5.
    never = threading.Event()
    for _ in range(1200):
        if engine.denoiser.chunk >= 6:
            break
        never.wait(0.05)
    never.wait(0.5)
    assert engine.denoiser.chunk == 6
    assert len(engine._latents) <= 2
    assert len(engine._pictures) <= 4
    session.close()
    assert not stream_threads()


def test_nothing_grows_with_the_stream(student):
    options = config(times=(1.0,), snapshot_every=5, snapshot_mb=1)
    with StreamSession(student, "a cube", Steering(camera_path("orbit")), 1, options) as session:
        held = []
        for chunk in range(300):
            next(session), next(session)
            if chunk in (199, 299):
                held.append((held_bytes(session._engine), session.tensor_bytes, len(session.snapshots)))
    assert held[0] == held[1]
    assert held[0][0] > 16 * held[0][1]  # the snapshots were found


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("part", ["denoise", "decode"])
def test_an_error_surfaces_where_frames_are_read(student, monkeypatch, overlap, part):
    session = StreamSession(student, "a cube", config=config(overlap=overlap))
    trouble = MemoryError("no more")
    calls = []

    def fail(*given):
        calls.append(given)
        if len(calls) == 3:
            raise trouble
        return original(*given)

    engine = session._engine
    owner, name = (engine.denoiser, "next") if part == "denoise" else (engine._decoder, "decode")
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, fail)
    frames = []
    with pytest.raises(MemoryError) as caught:
        frames.extend(frame for frame in session)
    assert caught.value is trouble
    assert session.is_closed
    assert session.metrics.frames == 4  # what was made before is handed over
    assert not stream_threads()
    assert list(session) == []


def test_ctrl_c_leaves_no_thread(student, monkeypatch):
    session = StreamSession(student, "a cube", config=config(overlap=True))
    next(session)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(session._engine, "_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(session)
    assert not stream_threads()


def test_a_session_that_is_dropped_closes_itself(student):
    session = StreamSession(student, "a cube", config=config(overlap=True))
    next(session)
    assert len(stream_threads()) == 2
    del session
    gc.collect()
    assert not stream_threads()


def test_a_closed_session_takes_no_commands(student):
    session = StreamSession(student, "a cube", config=config(), frames=2)
    assert len(list(session)) == 2
    for command in (lambda: session.say("a ball"), session.pause, lambda: session.rewind(0), session.snapshot):
        with pytest.raises(ConfigError, match="over"):
            command()
    session.close()
    assert list(session) == []


def test_old_commands_are_forgotten_with_the_beginning(student, monkeypatch):
    monkeypatch.setattr("dreamkit.video.stream_engine._MAX_EVENTS", 3)
    with StreamSession(student, "a cube", config=config(snapshot_mb=0)) as session:
        for number in range(6):
            session.say(f"a ball {number}")
            frames = [next(session) for _ in range(2)]
        assert len(session._engine._schedule) <= 4
        assert session._engine.earliest > 0
        with pytest.raises(ConfigError, match="to 11, the frames"):
            session.rewind(0)
        session.rewind(10)
        assert torch.equal(pixels(frames), pixels([next(session) for _ in range(2)]))


# Controls ------------------------------------------------------------------------------------------------------------


def test_controls_change_what_is_seen(student):
    still = pixels(play(student, 8))
    camera = pixels(play(student, 8, controls=Steering(camera_path("orbit-left"))))
    tracks = pixels(play(student, 8, controls=Steering(tracks=torch.full((8, 2, 2), 0.5))))
    assert not torch.equal(still, camera)
    assert not torch.equal(still, tracks)


@pytest.mark.parametrize("overlap", [False, True])
def test_controls_change_at_a_chunk_and_come_again_after_going_back(student, overlap):
    plain = pixels(play(student, 12))
    with StreamSession(student, "a red cube", seed=1, config=config(overlap=overlap), frames=12) as session:
        session.steer(Steering(camera_path("pan-right"), torch.rand(9, 3, 2)), at=5)
        first = [next(session) for _ in range(11)]
        session.rewind(3)
        second = list(session)
    assert torch.equal(pixels(first)[:6], plain[:6])
    assert not torch.equal(pixels(first)[6:8], plain[6:8])
    assert torch.equal(pixels(first)[3:], pixels(second)[:-1])


def test_a_model_without_controls_refuses_them(wan):
    with pytest.raises(TeacherError, match="no cameras and no tracks"):
        StreamSession(wan, "a cube", Steering(camera_path("static")))


def test_a_size_that_cannot_be_made_is_refused(student):
    with pytest.raises(ConfigError, match=r"height, width.*multiples of \[4, 4\]"):
        StreamSession(student, "a cube", config=config(size=(18, 16)))
