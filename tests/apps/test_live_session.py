"""A live session by itself: when it plays, what commands do, what it keeps, how it fails and ends."""

import json
import threading

import pytest
import torch
from dreamkit_apps.live.joystick import JoystickPath
from dreamkit_apps.live.limits import LiveLimits
from dreamkit_apps.live.moments import Moment, Moments
from dreamkit_apps.live.pace import Pace
from dreamkit_apps.live.packet import HEADER, MAGIC
from dreamkit_apps.live.session import LiveSession
from dreamkit_apps.live.source import StudentModel
from dreamkit_apps.live.steering import PromptClock
from dreamkit_apps.live.viewer import Viewer
from live_fakes import FakeModel, live_threads, until

from dreamkit.errors import ConfigError, DreamkitError, PromptError, TeacherError
from dreamkit.video.camera_paths import MovePath


class Eager:
    """A viewer that takes and acknowledges everything at once, in a thread of its own."""

    def __init__(self, can_control=True, acknowledges=True):
        self.woken = threading.Event()
        self.viewer = Viewer(self.woken.set, can_control)
        self.messages, self.numbers, self.controls = [], [], []
        self.acknowledges = acknowledges
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.viewer.is_closed:
            self.woken.wait(0.05)
            self.woken.clear()
            for item in self.viewer.take():
                if isinstance(item, str):
                    self.messages.append(json.loads(item))
                    continue
                magic, number, control, _ = HEADER.unpack_from(item)
                assert magic == MAGIC
                assert item[HEADER.size :].startswith(b"\xff\xd8")
                self.numbers.append(number)
                self.controls.append(control)
                if self.acknowledges:
                    self.viewer.acknowledge(number)

    def last(self, kind):
        found = [message for message in self.messages if message["type"] == kind]
        return found[-1] if found else None


@pytest.fixture
def begin(tmp_path):
    """Begin a session with a viewer; everything is closed and no thread is left."""
    begun = []

    def start(model=None, watched=True, prompt="a red cube", limits=None, **options):
        session = LiveSession(model or FakeModel(), prompt, 1, tmp_path / "films", limits, **options)
        eager = Eager()
        begun.append((session, eager))
        if watched:
            session.join(eager.viewer)
        return session, eager

    yield start
    for session, eager in begun:
        session.close()
        eager.viewer.close()
        eager.thread.join()
    assert not live_threads()


def phase(session):
    return session.state()["phase"]


def settled(numbers):
    """The count of frames once no more of them are on their way."""
    count = -1
    while count != len(numbers):
        count = len(numbers)
        threading.Event().wait(0.3)
    return count


def test_it_plays_for_whoever_watches(begin):
    session, eager = begin()
    until(lambda: len(eager.numbers) > 5)
    assert eager.numbers == sorted(eager.numbers)
    assert eager.messages[0]["type"] == "hello"
    assert eager.last("hello")["session"] == session.key
    assert (eager.last("model") or eager.last("hello")["model"])["fps"] == 30
    assert session.state()["viewers"] == 1


def test_it_waits_while_nobody_watches(begin):
    model = FakeModel()
    session, eager = begin(model, watched=False)
    until(lambda: phase(session) == "running")
    source = model.opened[0]
    assert source.made == 0
    assert source.is_paused
    session.join(eager.viewer)
    until(lambda: source.made > 3)
    session.leave(eager.viewer)
    assert source.is_paused
    assert settled(eager.numbers) == len(eager.numbers)
    made = source.made
    threading.Event().wait(0.2)
    assert source.made == made
    assert session.unwatched_s > 0


def test_a_hidden_page_costs_nothing(begin):
    session, eager = begin()
    until(lambda: len(eager.numbers) > 3)
    session.look(eager.viewer, False)
    assert not session.is_going
    settled(eager.numbers)
    session.look(eager.viewer, True)
    count = len(eager.numbers)
    until(lambda: len(eager.numbers) > count + 2)


def test_a_slow_viewer_holds_up_nobody_and_sees_the_latest(begin):
    session, eager = begin()
    stuck = Eager(acknowledges=False)
    session.join(stuck.viewer)
    until(lambda: len(eager.numbers) > 20)
    assert len(stuck.numbers) <= 2  # as many as may be on their way
    stuck.viewer.acknowledge(stuck.numbers[0])
    until(lambda: len(stuck.numbers) == 3)
    assert stuck.numbers[2] > 10  # not the third one
    session.leave(stuck.viewer)
    stuck.viewer.close()


def test_with_slow_viewers_alone_nothing_is_computed_in_vain(begin):
    model = FakeModel()
    session, _ = begin(model, watched=False)
    stuck = Eager(acknowledges=False)
    session.join(stuck.viewer)
    until(lambda: len(stuck.numbers) == 2)
    settled(stuck.numbers)
    assert model.opened[0].made <= 4
    session.leave(stuck.viewer)
    stuck.viewer.close()


def test_a_prompt_applies_while_playing_and_frames_tell_when(begin):
    model = FakeModel()
    session, eager = begin(model)
    until(lambda: len(eager.numbers) > 3)
    number, warnings = session.say("  a blue   ball ")
    assert number == 1
    assert warnings == []
    until(lambda: eager.controls[-1] == 1)
    assert model.opened[0].prompt == "a blue ball"
    assert session.state()["prompt"] == "a blue ball"
    assert session.say("a blue ball") == (0, [])  # it shows that already
    assert session.say("a zebra")[1]


@pytest.mark.parametrize(("prompt", "error"), [("", PromptError), ("x" * 3000, PromptError), ("nonsense", PromptError)])
def test_a_bad_prompt_leaves_everything_as_it_was(begin, prompt, error):
    session, eager = begin()
    until(lambda: len(eager.numbers) > 3)
    with pytest.raises(error):
        session.say(prompt)
    assert session.state()["prompt"] == "a red cube"
    count = len(eager.numbers)
    until(lambda: len(eager.numbers) > count + 3)
    number, _ = session.say("a blue ball")
    until(lambda: eager.controls[-1] == number)


def test_pause_stops_frames_and_play_goes_on(begin):
    session, eager = begin()
    until(lambda: len(eager.numbers) > 3)
    session.play(False)
    count = settled(eager.numbers)
    assert eager.last("state")["paused"]
    session.play(True)
    until(lambda: len(eager.numbers) > count + 3)
    assert eager.numbers[count] == eager.numbers[count - 1] + 1  # none is left out


def test_a_seed_restarts_also_from_a_pause(begin):
    model = FakeModel()
    session, eager = begin(model)
    until(lambda: len(eager.numbers) > 3)
    session.move(JoystickPath(orbit=1))
    session.play(False)
    session.restart(9)
    until(lambda: len(model.opened) == 2 and model.opened[1].made > 2)
    assert model.opened[0].is_closed
    assert model.opened[1].seed == 9
    assert session.state()["seed"] == "9"
    assert 0 in eager.numbers[4:]
    with pytest.raises(ConfigError):
        session.restart(-1)


def test_the_joystick_moves_the_camera(begin):
    model = FakeModel()
    session, eager = begin(model)
    until(lambda: len(eager.numbers) > 1)
    session.move(JoystickPath(orbit=0.5, dolly=1))
    session.move(JoystickPath(orbit=0.5, dolly=1))  # nothing new
    session.move(JoystickPath())
    cameras = [controls.camera for controls in model.opened[0].steered]
    assert cameras == [JoystickPath(0.5, 1), JoystickPath()]


def test_a_joystick_mixes_the_moves_of_training():
    times = torch.arange(7)
    for path, move in (
        (JoystickPath(orbit=1), "orbit-right"),
        (JoystickPath(orbit=-1), "orbit-left"),
        (JoystickPath(dolly=1), "dolly-in"),
        (JoystickPath(dolly=-1), "dolly-out"),
        (JoystickPath(pan=1), "pan-right"),
        (JoystickPath(), "static"),
    ):
        torch.testing.assert_close(path.poses(times), MovePath(move).poses(times))
    half = JoystickPath(orbit=0.5).poses(2 * times)
    torch.testing.assert_close(half, MovePath("orbit-right").poses(times))
    for wrong in (1.01, float("nan"), float("inf")):
        with pytest.raises(ConfigError):
            JoystickPath(orbit=wrong)


def test_tracks_are_played_out_while_the_camera_moves(begin):
    model = FakeModel()
    session, eager = begin(model)
    until(lambda: len(eager.numbers) > 1)
    session.play(False)
    settled(eager.numbers)
    tracks = torch.rand(400, 2, 2)
    session.draw(tracks)
    session.play(True)
    until(lambda: len(eager.numbers) > 10)
    session.move(JoystickPath(pan=1))
    first, second = model.opened[0].steered
    assert torch.equal(first.tracks, tracks)
    cut = len(tracks) - len(second.tracks)
    assert 0 < cut < 400
    assert torch.equal(second.tracks, tracks[cut:])
    session.draw(None)
    assert model.opened[0].steered[-1].tracks is None
    assert model.opened[0].steered[-1].camera == JoystickPath(pan=1)
    with pytest.raises(ConfigError):
        session.draw(torch.full((3, 1, 2), 2.0))


def test_a_model_without_controls_says_so(begin):
    session, eager = begin(FakeModel(has_controls=False))
    until(lambda: len(eager.numbers) > 1)
    with pytest.raises(TeacherError):
        session.move(JoystickPath(orbit=1))
    with pytest.raises(TeacherError):
        session.draw(torch.rand(3, 1, 2))


def test_moments_are_kept_and_gone_back_to(begin):
    model = FakeModel()
    session, eager = begin(model)
    with_frames = until(lambda: eager.numbers and eager.last("moments")["kept"] == [0])
    assert with_frames
    until(lambda: len(eager.numbers) > 10)
    frame = session.keep_moment()
    assert model.opened[0].snapshots
    until(lambda: frame in eager.last("moments")["kept"])
    shown = next(m["new"] for m in eager.messages if m["type"] == "moments" and m["new"] and m["new"]["frame"] == frame)
    assert shown["image"].startswith("data:image/jpeg;base64,")
    until(lambda: len(eager.numbers) > frame + 10)
    session.play(False)
    count = settled(eager.numbers)
    session.rewind(5)
    until(lambda: len(eager.numbers) > count)
    assert eager.numbers[count] == 5
    assert eager.last("moments")["kept"] == [0]
    assert not session.state()["paused"]
    with pytest.raises(ConfigError):
        session.rewind(100_000)


def test_moments_out_of_reach_are_forgotten():
    moments = Moments(room=3, reach=100)
    for frame in (0, 50, 120):
        moments.add(Moment(frame, "", is_asked=frame == 50), [0, 64])
    assert moments.frames == [0, 50, 120]
    moments.add(Moment(180, "", is_asked=False), [64, 128])
    assert moments.frames == [50, 120, 180]  # the one asked for stays
    moments.add(Moment(300, "", is_asked=False), [256])  # 120 and 180 would be computed from the beginning
    assert moments.frames == [50, 300]
    moments.forget_after(60)
    assert moments.frames == [50]


def test_it_is_recorded_by_the_librarys_writer(begin):
    import imageio_ffmpeg

    session, eager = begin()
    until(lambda: len(eager.numbers) > 1)
    session.record(True)
    assert session.state()["recording"]
    count = len(eager.numbers)
    until(lambda: len(eager.numbers) > count + 12)
    session.record(False)
    (film,) = session.state()["films"]
    path = session.film(film["name"])
    reader = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["source_size"] == (64, 64)
    assert len(list(reader)) == round(30 * film["seconds"]) >= 10
    assert session.film("../secret") is None
    session.close()
    assert not path.exists()


def test_a_recording_is_of_bounded_size_and_few_are_kept(begin):
    session, eager = begin(limits=LiveLimits(record_mb=0, recordings=2))
    until(lambda: len(eager.numbers) > 1)
    for number in range(1, 4):
        session.record(True)
        until(lambda: not session.state()["recording"])
        assert session.state()["films"][-1]["name"] == f"dreamkit-live-{number}.mp4"
    assert len(session.state()["films"]) == 2
    assert "was ended" in eager.last("warning")["message"]


def test_speed_changes_the_pace(begin):
    session, _ = begin()
    session.set_speed(2.0)
    assert session.state()["speed"] == 2.0
    for wrong in (0.0, 5.0, float("nan")):
        with pytest.raises(ConfigError):
            session.set_speed(wrong)


def test_frames_are_due_at_a_steady_rate_and_never_in_a_burst():
    pace = Pace()
    now, shown = 100.0, []
    for busy in (0.0, 0.01, 0.01, 0.5, 0.0, 0.0):
        now += busy
        now += pace.wait(now, 10)
        shown.append(round(now, 3))
    assert shown == [100.0, 100.1, 100.2, 100.7, 100.8, 100.9]


def test_statistics_are_told(begin):
    _, eager = begin()
    stats = until(lambda: eager.last("stats"))
    assert stats["denoise_fps"] == 31.0
    assert stats["drift"]["colour"] == 0.01
    assert "round_trip_ms" in stats


def test_a_bad_first_prompt_can_be_mended(begin):
    session, eager = begin(prompt="nonsense")
    until(lambda: phase(session) == "failed")
    assert "knows no word" in session.state()["problem"]["message"]
    session.say("a red cube")
    until(lambda: len(eager.numbers) > 2)
    assert session.state()["problem"] is None


def test_a_missing_student_is_a_message_and_can_be_tried_again(begin):
    model = FakeModel()
    model.problem = TeacherError("There is no student.", "Make one.")
    session, eager = begin(model)
    until(lambda: phase(session) == "failed")
    assert session.state()["problem"] == {"message": "There is no student.", "hint": "Make one."}
    with pytest.raises(DreamkitError):
        session.rewind(0)
    model.problem = None
    session.restart(1)
    until(lambda: len(eager.numbers) > 2)


def test_a_bug_in_a_stream_fails_its_session_alone(begin, caplog):
    broken, _ = begin(FakeModel(fails_at=3))
    fine, eager = begin()
    until(lambda: phase(broken) == "failed")
    assert "it broke" in broken.state()["problem"]["message"]
    count = len(eager.numbers)
    until(lambda: len(eager.numbers) > count + 3)
    assert phase(fine) == "running"


def test_a_session_nobody_steers_rests(begin):
    now = [0.0]
    session, _ = begin(limits=LiveLimits(unattended_s=60), clock=lambda: now[0])
    until(lambda: session.is_going)
    session.rest_if_unattended()
    assert session.is_going
    now[0] = 61.0
    session.rest_if_unattended()
    assert not session.is_going
    assert session.state()["resting"]
    session.play(True)
    assert session.is_going


def test_it_has_room_for_so_many(begin):
    session, _ = begin(limits=LiveLimits(viewers=1))
    with pytest.raises(ConfigError, match="watch"):
        session.join(Viewer(lambda: None))


def test_a_closed_one_takes_nobody(begin):
    session, eager = begin()
    session.close("idle")
    assert {"type": "bye", "reason": "idle"} in eager.messages or until(lambda: eager.last("bye"))
    with pytest.raises(ConfigError, match="ended"):
        session.join(Viewer(lambda: None))


def test_a_viewer_that_takes_no_messages_is_given_up():
    viewer = Viewer(lambda: None)
    for number in range(300):
        viewer.tell({"type": "state", "n": number}, "state")
    assert not viewer.is_closed  # the last one counts
    for number in range(300):
        viewer.tell({"type": "ok", "id": number})
    assert viewer.is_closed


def test_numbers_that_are_not_finite_are_null():
    viewer = Viewer(lambda: None)
    viewer.tell({"type": "stats", "fps": float("nan"), "drift": {"colour": float("inf")}, "list": [1.23456]})
    assert viewer.take() == ['{"type":"stats","fps":null,"drift":{"colour":null},"list":[1.2346]}']


def test_the_clock_of_prompts_is_not_fooled_by_others():
    clock = PromptClock()
    first, second, third = clock.give("a"), clock.give("b"), clock.give("a")
    assert clock.see("x") == 0
    assert clock.see("b") == second  # "a" was over before a chunk was made with it
    clock.take_back(third)
    assert clock.see("a") == second
    assert first < second < third


@pytest.mark.usefixtures("one_thread")
def test_a_real_student_is_streamed_steered_and_rewound(begin):
    session, eager = begin(StudentModel("tiny-random", "cpu"))
    until(lambda: len(eager.numbers) > 4, 120)
    assert (eager.last("model") or eager.last("hello")["model"])["has_controls"]
    number, _ = session.say("a blue ball")
    session.move(JoystickPath(orbit=1))
    session.draw(torch.rand(24, 3, 2))
    until(lambda: eager.controls[-1] == number, 120)
    session.play(False)
    count = settled(eager.numbers)
    session.rewind(2)
    until(lambda: len(eager.numbers) > count + 3, 120)
    assert eager.numbers[count : count + 3] == [2, 3, 4]
    session.restart(4)
    until(lambda: 0 in eager.numbers[count:], 120)


def test_a_student_that_is_not_there_is_named(begin, tmp_path):
    session, _ = begin(StudentModel(str(tmp_path / "none"), "cpu"))
    until(lambda: phase(session) == "failed", 60)
    assert "none" in session.state()["problem"]["message"]
