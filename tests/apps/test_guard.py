"""What stands before every request, as bare ASGI and around an application."""

import base64

import anyio
import pytest
from dreamkit_apps.auth import COOKIE, Auth, Throttle, read_credentials
from dreamkit_apps.guard import Guard, GuardPolicy, user_of
from fastapi import FastAPI, Request, WebSocket
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dreamkit.errors import ConfigError

LOCAL = "http://localhost:7860"


def guarded(policy=None, auth=None):
    app = FastAPI()

    @app.get("/page")
    async def page(request: Request):
        return {"user": user_of(request)}

    @app.post("/change")
    async def change(request: Request):
        return {"bytes": len(await request.body())}

    @app.post("/lazy")
    async def lazy():
        return {"ok": True}

    @app.websocket("/socket")
    async def socket(socket: WebSocket):
        await socket.accept()
        await socket.send_text("in")
        await socket.close()

    app.add_middleware(Guard, policy=policy or GuardPolicy(), auth=auth)
    return TestClient(app, base_url=LOCAL)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "127.0.0.1:7860", "[::1]:80", "192.168.1.7", "LOCALHOST", "localhost."]
)
def test_own_names_and_addresses_pass(host):
    assert guarded().get("/page", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "", "a@localhost", "local host"]
)
def test_foreign_names_are_refused(host):
    answer = guarded().get("/page", headers={"host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["hint"]


def test_a_name_can_be_allowed():
    client = guarded(GuardPolicy(hosts=frozenset({"studio.example.org"})))
    assert client.get("/page", headers={"host": "Studio.Example.org:443"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (LOCAL, 200),
        (None, 200),
        ("http://evil.com", 403),
        ("null", 403),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://localhost:7860.evil.com", 403),
    ],
)
def test_only_own_pages_change_state(origin, status):
    headers = {} if origin is None else {"origin": origin}
    client = guarded()
    assert client.post("/change", headers=headers).status_code == status
    assert client.get("/page", headers=headers).status_code == 200  # reading is what browsers guard
    if status == 200:
        with client.websocket_connect("/socket", headers={"host": "localhost:7860", **headers}) as socket:
            assert socket.receive_text() == "in"
    else:
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/socket", headers={"host": "localhost:7860", **headers}),
        ):
            pass


def test_a_foreign_host_opens_no_websocket():
    with pytest.raises(WebSocketDisconnect), guarded().websocket_connect("/socket", headers={"host": "evil.com"}):
        pass


def test_a_cross_site_request_without_origin_is_refused():
    assert guarded().post("/change", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_every_answer_has_the_headers():
    client = guarded()
    for answer in (client.get("/page"), client.get("/nothing"), client.get("/page", headers={"host": "evil.com"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "unsafe" not in answer.headers["content-security-policy"]


def test_the_longest_prefix_chooses_the_policy():
    client = guarded(GuardPolicy(csp={"": "default-src 'none'", "/pa": "default-src 'self'"}))
    assert client.get("/page").headers["content-security-policy"] == "default-src 'self'"
    assert client.get("/other").headers["content-security-policy"] == "default-src 'none'"


def test_a_body_that_says_it_is_too_large_is_not_read():
    answer = guarded(GuardPolicy(max_body=10)).post("/change", content=b"x" * 11)
    assert answer.status_code == 413
    assert guarded(GuardPolicy(max_body=10)).post("/change", content=b"x" * 10).json() == {"bytes": 10}


def test_a_body_is_counted_while_it_is_read():
    def chunks():
        for _ in range(5):
            yield b"x" * 4

    client = guarded(GuardPolicy(max_body=10))
    assert client.post("/change", content=chunks()).status_code == 413  # no Content-Length
    assert client.post("/lazy", content=chunks()).status_code == 200  # what is not read does no harm


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "²"])
def test_a_content_length_that_is_none_is_refused(length):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        raise AssertionError("it was let through")

    headers = [(b"host", b"localhost"), (b"content-length", length.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "client": None}
    anyio.run(Guard(app, GuardPolicy()), scope, receive, send)
    assert sent[0]["status"] == 413


def test_a_path_may_take_more():
    client = guarded(GuardPolicy(max_body=10, max_bodies={"/change": 100}))
    assert client.post("/change", content=b"x" * 90).status_code == 200
    assert client.post("/lazy", content=b"x" * 90).status_code == 413


def basic(name, password):
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_a_password_is_wanted_everywhere():
    client = guarded(auth=Auth({"ada": "s3cret:x"}))
    refused = client.get("/page")
    assert refused.status_code == 401
    assert "Basic" in refused.headers["www-authenticate"]
    assert client.get("/page", headers=basic("ada", "wrong")).status_code == 401
    assert client.get("/page", headers=basic("eve", "s3cret:x")).status_code == 401
    assert client.get("/page", headers=basic("ada", "s3cret:x")).json() == {"user": "ada"}
    assert guarded().get("/page").json() == {"user": "local"}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket", headers={"host": "localhost"}):
        pass
    with client.websocket_connect("/socket", headers={"host": "localhost", **basic("ada", "s3cret:x")}) as socket:
        assert socket.receive_text() == "in"


def test_a_page_is_led_to_the_form_and_a_script_is_not():
    client = guarded(auth=Auth({"ada": "pw"}))
    page = client.get("/page?a=1", headers={"accept": "text/html"}, follow_redirects=False)
    assert page.status_code == 303
    assert page.headers["location"] == "/login?next=%2Fpage%3Fa%3D1"
    script = client.get("/page", headers={"sec-fetch-mode": "cors"})
    assert script.status_code == 401
    assert "www-authenticate" not in script.headers


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic " + base64.b64encode(b"nocolon").decode(), "Bearer x"])
def test_a_broken_authorization_is_none(header):
    assert guarded(auth=Auth({"ada": "pw"})).get("/page", headers={"authorization": header}).status_code == 401


def test_a_cookie_lets_in_until_it_is_over():
    now = [1_000_000.0]
    auth = Auth({"ada": "pw"}, clock=lambda: now[0])
    cookie = auth.new_cookie("ädä.x")
    assert auth.read_cookie(cookie) == "ädä.x"
    assert auth.user({"cookie": f"other=1; {COOKIE}={cookie}"}, "") == "ädä.x"
    expiry, name, signature = cookie.split(".")
    for forged in (
        "",
        ".",
        "..",
        f"{int(expiry) + 1}.{name}.{signature}",
        f"{expiry}.00.{signature}",
        f"²..{signature}",
    ):
        assert auth.read_cookie(forged) is None
    assert Auth({"ada": "pw"}).read_cookie(cookie) is None  # another process's key
    now[0] += 8 * 24 * 3600
    assert auth.read_cookie(cookie) is None


def test_guessing_is_slowed_down():
    now = [0.0]
    throttle = Throttle(3, 60, clock=lambda: now[0])
    for _ in range(3):
        assert not throttle.is_blocked("a")
        throttle.fail("a")
    assert throttle.is_blocked("a")
    assert not throttle.is_blocked("b")
    now[0] = 61
    assert not throttle.is_blocked("a")
    for number in range(5000):  # in constant memory
        throttle.fail(str(number))
    assert len(throttle._failures) <= 1024


def test_a_right_password_does_not_pass_once_too_many_were_wrong():
    client = guarded(auth=Auth({"ada": "pw"}))
    for _ in range(10):
        assert client.get("/page", headers=basic("ada", "no")).status_code == 401
    assert client.get("/page", headers=basic("ada", "pw")).status_code == 401


def test_credentials_come_from_words_or_a_file(tmp_path):
    assert read_credentials("ada:a:b") == {"ada": "a:b"}
    file = tmp_path / "users"
    file.write_text("# ours\nada:one\n\nbob:two\n")
    assert read_credentials(str(file)) == {"ada": "one", "bob": "two"}


@pytest.mark.parametrize("text", ["ada", ":pw", "ada:", ""])
def test_bad_credentials_are_explained_without_telling_them(text, tmp_path):
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        read_credentials(text)
    file = tmp_path / "users"
    file.write_text("good:pw\nhunter2\n")
    with pytest.raises(ConfigError) as caught:
        read_credentials(str(file))
    assert "hunter2" not in str(caught.value)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="names no user"):
        read_credentials(str(file))
