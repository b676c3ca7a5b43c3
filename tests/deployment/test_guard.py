"""The guard around the routes, without a network and without an engine."""

import asyncio
import json
import logging

import pytest

from tagsmith.deployment import guard as guards
from tagsmith.deployment.limits import OPEN_ROUTES, Hosts, Keys
from tagsmith.deployment.metrics import Metrics
from tagsmith.deployment.server import create_app, guarded
from tagsmith.deployment.supervisor import Launch
from tagsmith.deployment.versions import Plan, Versions

KEY = "k" * 24
CANARY = "a canary sings 4711"


def built(*, keys=None, hosts=None):
    """A server that never opened a bundle, with its guard."""
    versions = Versions(Plan(Launch("nowhere"), "toy", {}), Metrics())
    app = create_app(versions)
    guard = guarded(app, versions, keys=lambda: Keys(keys or {}), hosts=hosts or Hosts("127.0.0.1"))
    return guard, app, versions


async def call(app, method="POST", path="/predict", *, body=(b"{}",), headers=None, pause_s=0.0):
    """Status, headers and body of one request; `body` comes in parts, each after a pause."""
    given = {"host": "localhost", "content-type": "application/json"} | (headers or {})
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in given.items() if v is not None],
        "client": ("127.0.0.1", 9),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    parts, sent = list(body), []

    async def receive():
        if not parts:
            await asyncio.Event().wait()
        await asyncio.sleep(pause_s)
        part = parts.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": any(part is not None for part in parts)}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None, {}, b""
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def asked(app, *arguments, **options):
    return asyncio.run(call(app, *arguments, **options))


ROUTES = sorted(
    (path.replace("{model}", "toy").replace("{version}", "1"), verb.upper())
    for path, verbs in built()[1].openapi()["paths"].items()
    for verb in verbs
)


# ---- S8: keys


def test_every_route_but_the_open_ones_needs_a_key():
    guard, _, _ = built(keys={"alice": KEY})
    assert len(ROUTES) > 20
    for path, verb in [*ROUTES, ("/docs", "GET"), ("/openapi.json", "GET"), ("/nothing", "GET"), ("/ui/x", "GET")]:
        status, headers, body = asked(guard, verb, path)
        if path in OPEN_ROUTES:
            assert status in (200, 503), path
        else:
            assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
            assert "key" in str(json.loads(body)["error"])


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"x-api-key": KEY.upper()},
        {"authorization": "Bearer \xff"},
        {"authorization": "Bearer wrong", "x-api-key": KEY},
    ],
)
def test_a_wrong_key_is_refused(headers):
    guard, _, _ = built(keys={"alice": KEY})
    assert asked(guard, "GET", "/info", headers=headers)[0] == 401


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}])
def test_a_right_key_lets_in_and_only_its_name_is_logged(headers, caplog):
    guard, _, _ = built(keys={"alice": KEY})
    with caplog.at_level(logging.INFO, "tagsmith.serve"):
        status, _, _ = asked(guard, "GET", "/info", headers=headers)
    assert status == 503  # no bundle: it got as far as the route
    assert caplog.records[-1].key == "alice"
    assert KEY not in str([vars(record) for record in caplog.records])


# ---- S20: hosts and origins


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil", "", None])
def test_a_forged_host_is_refused(host):
    guard, _, _ = built()
    assert asked(guard, "GET", "/health", headers={"host": host})[0] == 400


def test_a_page_of_another_site_may_not_ask():
    guard, _, _ = built()
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        assert asked(guard, "GET", "/health", headers={"origin": origin})[0] == 403
    assert asked(guard, "GET", "/health", headers={"origin": "http://localhost:8000"})[0] == 200


def test_no_answer_lets_other_sites_read_it():
    guard, _, _ = built()
    _, headers, _ = asked(guard, "OPTIONS", "/predict", headers={"access-control-request-method": "POST"})
    assert [name for name in headers if name.startswith("access-control")] == []


# ---- S9: bodies


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": None},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-encoding": "gzip"},
        {"content-encoding": "br"},
    ],
)
def test_a_body_that_is_not_said_to_be_plain_json_is_refused(headers):
    guard, _, _ = built()
    assert asked(guard, headers=headers)[0] == 415


def test_a_body_that_says_it_is_too_large_is_refused_unread():
    guard, _, _ = built()
    status, headers, _ = asked(guard, headers={"content-length": "2000001"}, body=())
    assert (status, headers["connection"]) == (413, "close")


def test_a_body_that_does_not_say_how_large_it_is_is_counted():
    guard, _, _ = built()
    endless = [b"a" * 65536] * 100
    assert asked(guard, body=endless)[0] == 413


def test_a_client_that_sends_too_slowly_is_told_so(monkeypatch):
    monkeypatch.setattr(guards, "BODY_S", 0.1)
    guard, _, _ = built()
    status, headers, _ = asked(guard, body=[b"{"] * 50, pause_s=0.03)
    assert (status, headers["connection"]) == (408, "close")


def test_a_stream_that_falls_silent_is_ended(monkeypatch):
    monkeypatch.setattr(guards, "BODY_S", 0.1)
    timed = guards._timed(lambda: asyncio.Event().wait())
    with pytest.raises(guards.Problem) as failure:
        asyncio.run(timed())
    assert failure.value.status == 408


# ---- Life


def test_while_there_is_no_bundle_it_lives_and_is_not_ready():
    guard, _, _ = built()
    assert asked(guard, "GET", "/health", body=())[0] == 200
    for path in ("/ready", "/ping", "/info", "/v2/health/ready"):
        status, headers, _ = asked(guard, "GET", path, body=())
        assert (status, int(headers["retry-after"])) == (503, 5), path


def test_while_it_stops_it_takes_nothing_and_closes_connections():
    guard, _, versions = built()
    versions.draining = True
    status, headers, _ = asked(guard)
    assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
    assert asked(guard, "GET", "/ready", body=())[0] == 503
    assert asked(guard, "GET", "/health", body=())[0] == 200


def test_a_request_whose_client_goes_is_stopped():
    stopped = []

    async def forever(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(scope["path"])
            raise

    guard, _, versions = built()
    guard._app = forever
    assert asked(guard, body=[b"{}", None]) == (None, {}, b"")
    assert stopped == ["/predict"]
    assert b'rejected_total{reason="disconnect"} 1.0' in versions.metrics.text()


# ---- S15: nothing is told that should not be


def test_a_fault_inside_is_a_500_that_says_nothing_and_a_line_that_says_where(caplog):
    async def broken(scope, receive, send):
        raise ValueError(CANARY)

    guard, _, _ = built()
    guard._app = broken
    with caplog.at_level(logging.DEBUG):
        status, _, body = asked(guard, body=[json.dumps({"inputs": CANARY}).encode()])
    assert status == 500
    assert CANARY not in body.decode()
    from tagsmith.deployment.service_log import JsonLines

    lines = [JsonLines().format(record) for record in caplog.records]
    assert not [line for line in lines if CANARY in line]
    failed = [json.loads(line) for line in lines if "failed" in line]
    assert failed[0]["error"] == "ValueError"
    assert failed[0]["at"][-1].startswith("test_guard.py:")


def test_an_id_that_is_no_plain_word_is_replaced():
    guard, _, _ = built()
    for given in ("a\r\nset-cookie: x", "<script>", "x" * 200, "é"):
        _, headers, _ = asked(guard, "GET", "/health", headers={"x-request-id": given})
        assert headers["x-request-id"] != given
    assert asked(guard, "GET", "/health", headers={"x-request-id": "ok-1"})[1]["x-request-id"] == "ok-1"


TRAVERSALS = [
    *("../" * n + "etc/passwd" for n in range(1, 9)),
    *("..%2f" * n + "etc%2fpasswd" for n in range(1, 9)),
    *("%2e%2e/" * n + "etc/passwd" for n in range(1, 5)),
    *("..\\" * n + "windows\\win.ini" for n in range(1, 5)),
    *("....//" * n + "etc/passwd" for n in range(1, 4)),
    *("..%252f" * n + "etc%252fpasswd" for n in range(1, 4)),
    *("%c0%ae%c0%ae/" * n + "etc/passwd" for n in range(1, 4)),
    *("．．/" * n + "etc/passwd" for n in range(1, 4)),
    *("/etc/passwd", "//etc/passwd", "/etc/passwd%00.json", "etc/passwd\0", "\0", "%00", "."),
    *("CON", "NUL", "aux", "COM1", "LPT1", "con.txt", "C:\\boot.ini", "C:/boot.ini", "\\\\host\\share"),
    *("~", "~root", "$HOME", "${HOME}", "file:///etc/passwd", "http://evil.example/x", "toy/../../x", "a\nb"),
]


@pytest.mark.parametrize("route", ["/{}", "/v2/models/{}", "/v2/models/{}/infer", "/v2/models/toy/versions/{}"])
def test_no_path_leads_out_of_the_routes(route):
    guard, _, _ = built()
    assert len(TRAVERSALS) >= 60
    for traversal in TRAVERSALS:
        path = route.format(traversal)
        for verb in ("GET", "POST"):
            status, _, body = asked(guard, verb, path, body=(b'{"inputs": []}',))
            assert status in (404, 405, 415, 422, 503), path
            assert b"root:" not in body
            assert traversal.encode("utf-8", "replace") not in body or len(traversal) < 4
