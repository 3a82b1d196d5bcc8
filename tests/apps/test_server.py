"""The server around live video: what it answers, who may come in, and how it starts and stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, closing

import pytest
from dreamkit_apps.auth import COOKIE, Auth
from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore
from dreamkit_apps.login import local_path
from dreamkit_apps.server import check_exposure, is_loopback, listen, make_app
from fastapi import APIRouter
from live_fakes import FakeModel, live_threads, running, until
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dreamkit.cli.main import main
from dreamkit.errors import ConfigError, DreamkitError

LOCAL = "http://localhost"


def client(**options):
    return TestClient(make_app(FakeModel(), **options), base_url=LOCAL)


def test_it_answers_for_its_health_and_leads_home():
    with client() as web:
        assert web.get("/health").json()["status"] == "ok"
        home = web.get("/", follow_redirects=False)
        assert home.status_code == 307
        assert home.headers["location"] == "/live"
        assert "--dk-accent" in web.get("/theme.css").text
        assert web.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert not live_threads()


def test_the_page_and_its_files_are_there_and_nothing_else():
    with client() as web:
        page = web.get("/live").text
        for name in ("live.js", "live.css", "theme.js", "icon.svg"):
            assert f"/live/static/{name}" in page
            assert web.get(f"/live/static/{name}").status_code == 200
        for name in ("nothing.js", "..%2F__init__.py", "%2e%2e/source.py"):
            assert web.get(f"/live/static/{name}").status_code == 404


def test_nothing_of_the_page_is_inline_or_from_elsewhere():
    with client() as web:
        page = web.get("/live").text
    assert " style=" not in page
    assert " onclick=" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_routers_are_mounted_and_users_mistakes_are_explained():
    router = APIRouter()

    @router.get("/api/broken")
    async def broken():
        raise DreamkitError("It is broken.", "Mend it.")

    with client(routers=[router]) as web:
        answer = web.get("/api/broken")
    assert answer.status_code == 400
    assert answer.json() == {"error": "It is broken.", "hint": "Mend it."}


def test_gradio_is_not_imported_for_a_server_without_it():
    code = "import sys, dreamkit_apps.server; print('gradio' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_gradio_is_mounted_beside_live_video():
    def interface(app):
        import gradio

        with gradio.Blocks() as blocks:
            gradio.Markdown("hello")
        return gradio.mount_gradio_app(app, blocks, path="/studio")

    with client(interface=interface, auth=Auth({"ada": "pw"})) as web:
        assert web.get("/studio/").status_code == 401
        web.auth = ("ada", "pw")
        assert web.get("/", follow_redirects=False).headers["location"] == "/studio/"
        page = web.get("/studio/")
        assert page.status_code == 200
        assert "unsafe-inline" in page.headers["content-security-policy"]
        assert "unsafe" not in web.get("/live").headers["content-security-policy"]


def test_a_browser_logs_in_by_a_form():
    with client(auth=Auth({"ada": "pw"})) as web:
        assert web.get("/live", follow_redirects=False, headers={"accept": "text/html"}).status_code == 303
        form = web.get("/login?next=%2Flive%3Fsession%3D%22%3E%3Cb%3E")
        assert "<b>" not in form.text
        assert 'value="/live?session=&quot;&gt;&lt;b&gt;"' in form.text
        wrong = web.post("/login", data={"user": "ada", "password": "no", "next": "/live"})
        assert wrong.status_code == 403
        assert "do not fit" in wrong.text
        right = web.post("/login", data={"user": "ada", "password": "pw", "next": "/live"}, follow_redirects=False)
        assert right.status_code == 303
        assert right.headers["location"] == "/live"
        cookie = right.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite" in cookie
        assert web.get("/live").status_code == 200
        answer = web.post("/live/sessions", json={"prompt": "a red cube"})
        key = answer.json()["session"]
        with web.websocket_connect(f"ws://localhost/live/ws?session={key}") as one:
            assert one.receive_json()["type"] == "hello"
        web.post("/logout")
        assert COOKIE not in web.cookies
        with pytest.raises(WebSocketDisconnect), web.websocket_connect(f"ws://localhost/live/ws?session={key}"):
            pass


def test_guessing_by_the_form_is_slowed_down():
    with client(auth=Auth({"ada": "pw"})) as web:
        codes = [web.post("/login", data={"user": "ada", "password": str(n)}).status_code for n in range(11)]
        assert codes == [403] * 10 + [429]
        assert web.post("/login", data={"user": "ada", "password": "pw"}).status_code == 429


@pytest.mark.parametrize("wanted", ["//evil.com", "http://evil.com", "/\\evil.com", "javascript:x", "", "/a\r\nb"])
def test_logging_in_leads_nowhere_else(wanted):
    assert local_path(wanted) == "/"
    assert local_path("/live?session=x") == "/live?session=x"


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)])
def test_others_are_let_in_by_a_password_or_on_demand(host, own):
    assert is_loopback(host) is own
    check_exposure(host, Auth({"a": "b"}), False)
    check_exposure(host, None, True)
    if own:
        check_exposure(host, None, False)
    else:
        with pytest.raises(ConfigError, match="everybody"):
            check_exposure(host, None, False)


def test_a_taken_port_is_named(capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is taken"):
            listen("127.0.0.1", port)
        assert main(["studio", "--port", str(port)]) == 2
    assert f"Port {port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "--auth"),
        (["--port", "70000"], "--port"),
        (["--port", "-1"], "--port"),
        (["--sessions", "0"], "--sessions"),
        (["--idle-minutes", "nan"], "--idle-minutes"),
        (["--device", "tpu"], "--device"),
        (["--auth", "ada"], "USER:PASSWORD"),
        (["--workers", "65"], "--workers"),
        (["--teacher", "sd"], "NAME=FOLDER"),
        (["--teacher", "<b>=/tmp"], "NAME=FOLDER"),
        (["--teacher", "toyworld=/tmp"], "Two teachers are called toyworld"),
        (["--teacher", "sd=/no/such/folder"], "There is no folder /no/such/folder"),
        (["--max-jobs", "0"], "--max-jobs"),
        (["--host", "no.such.host.invalid", "--allow-public"], "no.such.host.invalid"),
        (["--host", "203.0.113.9", "--allow-public"], "203.0.113.9"),
    ],
)
def test_bad_options_are_explained(words, told, capsys):
    assert main(["studio", *words]) == 2
    assert told in capsys.readouterr().err


def test_stopping_ends_sessions_threads_and_connections():
    import websockets.sync.client as ws

    model, stops = FakeModel(), []
    app = make_app(model, on_stop=lambda: stops.append(len(app.state.hub.sessions)))
    with ExitStack() as connections, ExitStack() as stack:
        url = stack.enter_context(running(app))
        body = json.dumps({"prompt": "a red cube"}).encode()
        answer = urllib.request.urlopen(urllib.request.Request(f"{url}/live/sessions", body, method="POST"))
        key = json.load(answer)["session"]
        address = f"{url.replace('http', 'ws')}/live/ws?session={key}"
        one = connections.enter_context(ws.connect(address, compression=None))
        stream = urllib.request.urlopen(f"{url}/live/mjpeg?session={key}")
        assert stream.read(10)
        until(lambda: model.opened and model.opened[0].made > 2)
        stack.close()
        messages = list(one)  # until it is closed in order
        stream.close()
    assert {"type": "bye", "reason": "server"} in [json.loads(item) for item in messages if isinstance(item, str)]
    assert stops == [1]
    assert model.opened[0].is_closed
    assert not live_threads()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_command_and_leaves_nothing(number, tmp_path):
    words = [sys.executable, "-m", "dreamkit.cli.main", "studio", "--port", "0", "--model", "tiny-random", "--json"]
    words += ["--out", str(tmp_path / "runs")]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        body = json.dumps({"prompt": "a red cube"}).encode()
        request = urllib.request.Request(f"{url}live/sessions", body, method="POST")
        key = json.load(urllib.request.urlopen(request))["session"]
        # Jobs are served beside live video, and a worker is there for them.
        until(lambda: json.load(urllib.request.urlopen(f"{url}api/v1/health"))["workers"] == 1)
        assert urllib.request.urlopen(f"{url}studio/").status == 200
        with urllib.request.urlopen(f"{url}live/mjpeg?session={key}") as stream:
            seen = b""
            while seen.count(b"image/jpeg") < 3:
                seen += stream.read1(4096)
            process.send_signal(number)
            assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        assert not list(tmp_path.glob("dreamkit-live-*"))
        with closing(JobStore(tmp_path / "runs" / QUEUE_FILE)) as store:
            assert store.workers() == 0  # it has said goodbye
    finally:
        process.kill()
        process.wait()


def test_a_port_is_free_again_at_once():
    with running(make_app(FakeModel())) as url:
        port = int(url.rpartition(":")[2])
    with running(make_app(FakeModel()), port) as url:
        assert urllib.request.urlopen(f"{url}/health").status == 200


def test_a_slow_client_does_not_stop_the_others():
    with running(make_app(FakeModel())) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /live/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert urllib.request.urlopen(f"{url}/health", timeout=30).status == 200
