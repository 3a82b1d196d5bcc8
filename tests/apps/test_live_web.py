"""Live video over HTTP and WebSockets: sessions, roles, frames with acknowledgements, messages good and bad, MJPEG."""

import json
import threading

import pytest
from dreamkit_apps.live.limits import LiveLimits
from dreamkit_apps.live.messages import COMMANDS, MAX_MESSAGE, TokenBucket
from dreamkit_apps.live.packet import HEADER
from dreamkit_apps.live.socket import GONE, RUDE
from dreamkit_apps.server import make_app
from live_fakes import FakeModel, live_threads, running, until
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect


@pytest.fixture
def serve():
    """A client of a server with a model; nothing is left of it."""
    opened = []

    def start(model=None, **limits):
        client = TestClient(make_app(model or FakeModel(), limits=LiveLimits(**limits)), base_url="http://localhost")
        opened.append(client)
        return client.__enter__()

    yield start
    for client in opened:
        client.__exit__(None, None, None)
    assert not live_threads()


class Watcher:
    """A connection that acknowledges frames while it waits for messages."""

    def __init__(self, socket):
        self.socket = socket
        self.numbers, self.controls = [], []

    def next(self):
        """The next message, or a frame's number."""
        event = self.socket.receive()
        if event["type"] == "websocket.close":
            raise WebSocketDisconnect(event["code"])
        if event.get("text") is not None:
            return json.loads(event["text"])
        _, number, control, _ = HEADER.unpack_from(event["bytes"])
        self.numbers.append(number)
        self.controls.append(control)
        self.socket.send_json({"type": "ack", "frame": number})
        return number

    def wait(self, wanted):
        """The first message that fits."""
        for _ in range(2000):
            message = self.next()
            if isinstance(message, dict) and wanted(message):
                return message
        raise AssertionError("it did not come")

    def frames(self, count):
        """Until so many more frames have come."""
        goal = len(self.numbers) + count
        while len(self.numbers) < goal:
            self.next()

    def ask(self, **message):
        """Send a message; its answer."""
        self.socket.send_json({"id": 7, **message})
        return self.wait(lambda answer: answer.get("id") == 7)


def opened(client, prompt="a red cube", **more):
    answer = client.post("/live/sessions", json={"prompt": prompt, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def connected(client, key):
    return client.websocket_connect(f"ws://localhost/live/ws?session={key}")


def test_a_session_is_opened_watched_and_steered(serve):
    model = FakeModel()
    client = serve(model)
    keys = opened(client, seed="123")
    with connected(client, keys["session"]) as socket:
        watcher = Watcher(socket)
        hello = watcher.next()
        assert hello["type"] == "hello"
        assert hello["can_control"]
        watcher.frames(5)
        assert model.opened[0].seed == 123
        answer = watcher.ask(type="prompt", text="a blue ball")
        assert answer["type"] == "ok"
        while watcher.controls[-1] != answer["control"]:
            watcher.next()
        assert watcher.ask(type="camera", orbit=1, dolly=-0.5)["type"] == "ok"
        assert watcher.ask(type="tracks", tracks=[[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.5], [0.6, 0.5]]])["type"] == "ok"
        tracks = model.opened[0].steered[-1].tracks
        assert tracks.shape == (2, 2, 2)
        assert [round(value, 3) for value in tracks[1, 0].tolist()] == [0.3, 0.4]  # frame 1, point 0
        assert watcher.ask(type="tracks", tracks=[])["type"] == "ok"
        assert watcher.ask(type="speed", value=2)["type"] == "ok"
        frame = watcher.ask(type="moment")["frame"]
        watcher.frames(3)
        assert watcher.ask(type="rewind", frame=frame)["type"] == "ok"
        assert watcher.ask(type="pause")["type"] == "ok"
        assert watcher.ask(type="play")["type"] == "ok"
        assert watcher.ask(type="seed", value=5)["type"] == "ok"
        socket.send_json({"type": "ping", "id": 3})
        watcher.wait(lambda message: message["type"] == "pong")
    assert client.delete("/live/sessions", params={"session": keys["session"]}).status_code == 204
    assert client.get("/live/sessions", params={"session": keys["session"]}).status_code == 404


def test_a_link_to_watch_steers_nothing(serve):
    model = FakeModel()
    client = serve(model)
    keys = opened(client)
    with connected(client, keys["watch"]) as socket:
        watcher = Watcher(socket)
        hello = watcher.next()
        assert not hello["can_control"]
        assert hello["session"] is None
        assert keys["session"] not in json.dumps(hello)
        watcher.frames(3)
        for kind in COMMANDS:
            answer = watcher.ask(type=kind, text="x", value=1, frame=0, on=True, tracks=[])
            assert answer["type"] == "error"
            assert "watching only" in answer["message"]
    watch = {"session": keys["watch"]}
    assert client.post("/live/command", params=watch, json={"type": "pause"}).status_code == 403
    assert client.delete("/live/sessions", params=watch).status_code == 403
    assert model.opened[0].prompt == "a red cube"


def test_two_share_a_session_and_a_third_has_its_own(serve):
    client = serve()
    keys, other = opened(client), opened(client)
    with connected(client, keys["session"]) as one, connected(client, keys["session"]) as two:
        first, second = Watcher(one), Watcher(two)
        first.frames(2)
        assert second.ask(type="prompt", text="a blue ball")["type"] == "ok"
        state = first.wait(lambda message: message["type"] == "state" and message["prompt"] == "a blue ball")
        assert state["viewers"] == 2
    assert client.get("/live/sessions", params={"session": other["session"]}).json()["prompt"] == "a red cube"


def test_without_acknowledgements_no_more_frames_come(serve):
    model = FakeModel()
    client = serve(model)
    with connected(client, opened(client)["session"]) as socket:
        frames = []
        socket.send_json({"type": "pause", "id": 1})
        socket.send_json({"type": "play", "id": 2})
        while len(frames) < 2:
            event = socket.receive()
            if event.get("bytes"):
                frames.append(HEADER.unpack_from(event["bytes"])[1])
        threading.Event().wait(0.3)
        assert model.opened[0].made <= 5
        socket.send_json({"type": "ack", "frame": frames[0]})
        while not (event := socket.receive()).get("bytes"):
            pass


BAD = [
    ("not json", "no JSON"),
    ('{"type": "speed", "value": NaN}', "no JSON"),
    ('{"type": "speed", "value": Infinity}', "no JSON"),
    ('{"type": "speed", "value": 1e999}', "finite"),
    ('{"type": "speed", "value": ' + "9" * 400 + "}", "finite"),
    ('{"type": "speed", "value": ' + "9" * 5000 + "}", "no JSON"),
    ('{"type": "speed", "value": "2"}', "'2'"),
    ('{"type": "speed", "value": true}', "True"),
    ('{"type": "speed"}', "None"),
    ("[" * 5000, "no JSON"),
    ("[]", "no type"),
    ("null", "no type"),
    ('{"type": 5}', "no type"),
    ('{"type": "launch"}', "launch"),
    ('{"type": "prompt"}', "text"),
    ('{"type": "prompt", "text": ""}', "empty"),
    ('{"type": "prompt", "text": "a\\u0000b"}', "control character"),
    ('{"type": "prompt", "text": "\\ud800"}', "control character"),
    ('{"type": "prompt", "text": "' + "x" * 3000 + '"}', "characters"),
    ('{"type": "prompt", "text": "nonsense"}', "knows no word"),
    ('{"type": "prompt", "text": "' + "x" * MAX_MESSAGE + '"}', "characters"),
    ('{"type": "seed", "value": -1}', "seed"),
    ('{"type": "seed", "value": 1.5}', "seed"),
    ('{"type": "seed", "value": "abc"}', "seed"),
    ('{"type": "seed"}', "seed"),
    ('{"type": "camera", "orbit": 2}', "joystick"),
    ('{"type": "camera", "orbit": [1]}', "orbit"),
    ('{"type": "tracks"}', "no tracks"),
    ('{"type": "tracks", "tracks": [[]]}', "too long"),
    ('{"type": "tracks", "tracks": [[[0, 0]], [[0, 0], [1, 1]]]}', "one length"),
    ('{"type": "tracks", "tracks": [[[0, 2]]]}', "no place"),
    ('{"type": "tracks", "tracks": [[[0, 1e999]]]}', "no place"),
    ('{"type": "tracks", "tracks": [[[true, 0]]]}', "no place"),
    ('{"type": "tracks", "tracks": ' + json.dumps([[[0, 0]] * 4097]) + "}", "too long"),
    ('{"type": "tracks", "tracks": ' + json.dumps([[[0, 0]]] * 33) + "}", "no tracks"),
    ('{"type": "rewind", "frame": 1000000}', "rame"),
    ('{"type": "rewind", "frame": "x"}', "rame"),
    ('{"type": "record"}', "true or false"),
]


def test_bad_messages_are_answered_and_kill_nothing(serve, monkeypatch):
    monkeypatch.setattr("dreamkit_apps.live.socket._COMMANDS_AT_ONCE", 1000)
    model = FakeModel()
    client = serve(model)
    with connected(client, opened(client)["session"]) as socket:
        watcher = Watcher(socket)
        watcher.frames(3)
        for text, told in BAD:
            socket.send_text(text)
            answer = watcher.wait(lambda message: message["type"] == "error")
            assert told in json.dumps(answer), text[:80]
        socket.send_bytes(b"\xff\x00")
        assert "no JSON" in watcher.wait(lambda message: message["type"] == "error")["message"]
        watcher.frames(3)
        assert watcher.ask(type="prompt", text="a blue ball")["type"] == "ok"
    assert len(model.opened) == 1


def test_too_many_messages_are_dropped_and_then_the_connection(serve):
    client = serve()
    with connected(client, opened(client)["session"]) as socket:
        watcher = Watcher(socket)
        watcher.frames(1)
        for _ in range(500):
            socket.send_json({"type": "ping"})
        messages, code = until_closed(watcher)
        assert code == RUDE
        assert "Too many messages in a short time." in [message.get("message") for message in messages]


def test_acknowledgements_of_nothing_are_not_free(serve):
    client = serve()
    with connected(client, opened(client)["session"]) as socket:
        for _ in range(400):
            socket.send_json({"type": "ack", "frame": 10**9})
        assert until_closed(Watcher(socket))[1] == RUDE


def until_closed(watcher):
    """All messages until the server closes the connection, and its code."""
    messages = []
    try:
        while True:
            message = watcher.next()
            messages += [message] if isinstance(message, dict) else []
    except WebSocketDisconnect as left:
        return messages, left.code


def test_a_bucket_fills_again():
    now = [0.0]
    bucket = TokenBucket(10, 2, clock=lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] = 0.1
    assert [bucket.take() for _ in range(2)] == [True, False]


@pytest.mark.parametrize("key", ["", "nothing", "é", "x" * 5000])
def test_an_unknown_session_is_told_apart(serve, key):
    client = serve()
    opened(client)
    with connected(client, key) as socket:
        assert "no such stream" in socket.receive_json()["message"]
        with pytest.raises(WebSocketDisconnect) as left:
            socket.receive_json()
        assert left.value.code == GONE
    for answer in (
        client.get("/live/mjpeg", params={"session": key}),
        client.get("/live/sessions", params={"session": key}),
        client.post("/live/command", params={"session": key}, json={"type": "play"}),
        client.get("/live/films/x.mp4", params={"session": key}),
    ):
        assert answer.status_code == 404


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"no json", "prompt"),
        (b"[1]", "prompt"),
        (b"{}", "prompt"),
        (b'{"prompt": 5}', "prompt"),
        (b'{"prompt": "  "}', "empty"),
        (b'{"prompt": "a cube", "seed": -1}', "seed"),
        (b'{"prompt": "a cube", "seed": "x"}', "seed"),
        (b"[" * 100_000, "prompt"),
    ],
)
def test_a_bad_beginning_is_explained(serve, body, told):
    client = serve()
    answer = client.post("/live/sessions", content=body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]
    assert not client.app.state.hub.sessions


def test_there_are_so_many_places(serve):
    client = serve(sessions=2)
    keys = [opened(client)["session"] for _ in range(2)]
    full = client.post("/live/sessions", json={"prompt": "a red cube"})
    assert full.status_code == 400
    assert "places" in full.json()["error"]
    client.delete("/live/sessions", params={"session": keys[0]})
    opened(client)


def test_one_that_nobody_watches_is_closed_in_time(serve):
    client = serve(idle_s=0.2)
    key = opened(client)["session"]
    with connected(client, key) as socket:
        Watcher(socket).frames(2)
        threading.Event().wait(0.5)
        assert len(client.app.state.hub.sessions) == 1  # watched
    until(lambda: not client.app.state.hub.sessions)


def test_room_is_made_by_one_that_nobody_watches(serve, monkeypatch):
    monkeypatch.setattr("dreamkit_apps.live.hub._SPARE_AFTER_S", 0.0)
    client = serve(sessions=1)
    first, second = opened(client)["session"], opened(client)["session"]
    assert client.get("/live/sessions", params={"session": first}).status_code == 404
    assert client.get("/live/sessions", params={"session": second}).status_code == 200


def test_commands_go_by_plain_requests_too(serve):
    client = serve()
    session = {"session": opened(client)["session"]}
    until(lambda: client.get("/live/sessions", params=session).json()["phase"] == "running")
    assert (
        client.post("/live/command", params=session, json={"type": "prompt", "text": "a cone"}).json()["of"] == "prompt"
    )
    wrong = client.post("/live/command", params=session, json={"type": "prompt", "text": ""})
    assert wrong.status_code == 400
    assert wrong.json()["type"] == "error"
    assert client.post("/live/command", params=session, content=b"\xff{").status_code == 400


def test_a_recording_is_downloaded(serve):
    client = serve()
    key = opened(client)["session"]
    with connected(client, key) as socket:
        watcher = Watcher(socket)
        watcher.frames(1)
        assert watcher.ask(type="record", on=True)["type"] == "ok"
        watcher.frames(12)
        assert watcher.ask(type="record", on=False)["type"] == "ok"
        state = client.get("/live/sessions", params={"session": key}).json()
        answer = client.get(f"/live/films/{state['films'][0]['name']}", params={"session": key})
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.content[4:8] == b"ftyp"


def test_mjpeg_shows_frames_and_leaves():
    import urllib.request

    model = FakeModel()
    app = make_app(model)
    with running(app) as url:
        request = urllib.request.Request(f"{url}/live/sessions", b'{"prompt": "a red cube"}', method="POST")
        key = json.load(urllib.request.urlopen(request))["session"]
        with urllib.request.urlopen(f"{url}/live/mjpeg?session={key}") as stream:
            assert stream.headers["content-type"].startswith("multipart/x-mixed-replace")
            seen = b""
            while seen.count(b"\xff\xd8\xff") < 5:
                seen += stream.read1(65536)
            assert len(app.state.hub.sessions) == 1
            assert app.state.hub.sessions[0].viewers == 1
        until(lambda: app.state.hub.sessions[0].viewers == 0)
        assert model.opened[0].is_paused
    assert not live_threads()
