"""The smoke test says what is wrong with an endpoint, and waits for one that is starting."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ml_service.errors import IntegrityError, UnhealthyError
from ml_service.package import read_manifest
from ml_service.ports import Endpoint
from ml_service.smoke import MALFORMED, smoke
from tests.support.releases import make_release

pytestmark = pytest.mark.slow

KEY = "the-right-key"

Answer = Callable[[bytes, str], tuple[int, Any]]
"""What a server makes of a body and a key."""


def good(body: bytes, key: str) -> tuple[int, Any]:
    """A server that adds the two columns of each row up, and refuses what it should."""
    if key != KEY:
        return 401, {"error": "no"}
    if body == MALFORMED:
        return 400, {"error": "cut off"}
    return 200, {"result": [sum(row) for row in json.loads(body)["data"]]}


class Server(ThreadingHTTPServer):
    """Answers as ``answer`` says; each connection is of the next of ``versions``, in turn."""

    daemon_threads = True

    def __init__(self, answer: Answer, port: int = 0, versions: Sequence[str] = ("",)) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer = answer
        self.versions = itertools.cycle(versions)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.server_port}", KEY)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.model_version = next(self.server.versions)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, value = self.server.answer(body, self.headers.get("Authorization", "").removeprefix("Bearer "))
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if self.model_version:
            self.send_header("X-Model-Version", self.model_version)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Answer, port: int = 0, versions: Sequence[str] = ("",)) -> Server:
        servers.append(Server(answer, port, versions))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release").package


def write_examples(package: Path, value: Any) -> None:
    (package / "model" / "examples.json").write_text(json.dumps(value))


def instead(answer_to_examples: Any, status: int = 200) -> Answer:
    """Like ``good``, but every well-formed request gets this answer."""

    def answer(body: bytes, key: str) -> tuple[int, Any]:
        expected = good(body, key)
        return (status, answer_to_examples) if expected[0] == 200 else expected

    return answer


def complaint(server: Server, package: Path) -> UnhealthyError:
    with pytest.raises(UnhealthyError) as caught:
        smoke(server.endpoint, package, timeout=30, progress=print)
    return caught.value


def test_a_good_service_passes(serve: Callable[..., Server], package: Path) -> None:
    """The package's examples, a malformed request and a wrong key, each answered as it must be."""
    lines: list[str] = []
    smoke(serve(good).endpoint, package, timeout=30, progress=lines.append)
    assert lines == ["2 examples answered as expected", "bad requests are refused as they must be"]


def test_a_wrong_number_is_named(serve: Callable[..., Server], package: Path) -> None:
    """Which example, which row, what was expected, what came."""
    error = complaint(serve(instead({"result": [3.5]})), package)
    assert error.what == "example 1: result, row 1: expected 3.0, got 3.5"


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ([1000.0], [1000.0009], ""),
        ([1000.0], [1000.0011], "result, row 1: expected 1000.0, got 1000.0011"),
        ([0.0], [0.0000009], ""),
        ([0.0], [0.0000011], "result, row 1: expected 0.0, got 1.1e-06"),
        ([1], [1.0], ""),
        ([True], [1], "result, row 1: expected True, got 1"),
        (["red"], ["red"], ""),
        (["red", "blue"], ["red", "Blue"], "result, row 2: expected 'blue', got 'Blue'"),
        ([[0.1, 0.9]], [[0.1, 0.8]], "result, row 1, output 2: expected 0.9, got 0.8"),
        ([1.0, 2.0], [1.0], "result: expected 2 values, got 1"),
        ([1.0], [None], "result, row 1: expected 1.0, got None"),
        ([1.0], "1.0", "result: expected [1.0], got '1.0'"),
    ],
)
def test_values_are_compared_one_by_one(
    serve: Callable[..., Server], package: Path, expected: Any, actual: Any, difference: str
) -> None:
    """Numbers within the tolerance (relative, absolute below 1), everything else exactly."""
    example = {"request": {"data": [[1.0, 2.0]]}, "response": {"result": expected}}
    write_examples(package, {"tolerance": 1e-6, "examples": [example]})
    server = serve(instead({"result": actual}))
    if difference:
        assert complaint(server, package).what == f"example 1: {difference}"
    else:
        smoke(server.endpoint, package, timeout=30, progress=print)


def test_missing_and_unknown_fields_are_named(serve: Callable[..., Server], package: Path) -> None:
    """The answer has the shape of the example's."""
    error = complaint(serve(instead({"results": [3.0]})), package)
    assert error.what == "example 1: result: missing; results: not expected"


def test_only_the_first_differences_are_shown(serve: Callable[..., Server], package: Path) -> None:
    """A thousand wrong rows make a short message."""
    example = {"request": {"data": [[1.0, 2.0]]}, "response": {"result": [1.0] * 1000}}
    write_examples(package, {"tolerance": 1e-6, "examples": [example]})
    error = complaint(serve(instead({"result": [2.0] * 1000})), package)
    assert error.what.endswith("; and 995 more")


def test_an_answer_that_is_no_json(serve: Callable[..., Server], package: Path) -> None:
    """What came is shown."""
    assert "not JSON: <html>" in complaint(serve(instead(b"<html>")), package).what


def test_an_error_instead_of_an_answer(serve: Callable[..., Server], package: Path) -> None:
    """An error that no waiting mends ends the test at once, with its body."""
    error = complaint(serve(instead({"error": "out of ideas"}, status=500)), package)
    assert error.what == 'example 1: expected status 200, got 500: {"error": "out of ideas"}'


def test_a_malformed_request_must_get_400(serve: Callable[..., Server], package: Path) -> None:
    """A service that answers nonsense is not healthy."""

    def lenient(body: bytes, key: str) -> tuple[int, Any]:
        return (200, {"result": []}) if body == MALFORMED else good(body, key)

    assert "a malformed request: expected status 400, got 200" in complaint(serve(lenient), package).what


def test_a_wrong_key_must_get_401(serve: Callable[..., Server], package: Path) -> None:
    """A service that takes any key is not healthy; the message holds no key."""
    error = complaint(serve(lambda body, _: good(body, KEY)), package)
    assert "a request with a wrong key: expected status 401, got 200" in error.what
    assert KEY not in str(error)


def test_without_a_key_none_is_asked_for(serve: Callable[..., Server], package: Path) -> None:
    """An endpoint that was opened on purpose passes."""
    server = serve(lambda body, key: good(body, KEY) if not key else (500, "a key came"))
    smoke(Endpoint(server.endpoint.url), package, timeout=30, progress=print)


@pytest.mark.parametrize("status", [502, 503])
def test_a_service_that_is_starting_is_waited_for(serve: Callable[..., Server], package: Path, status: int) -> None:
    """502 and 503 are asked again."""
    asked: list[bytes] = []

    def starting(body: bytes, key: str) -> tuple[int, Any]:
        asked.append(body)
        return (status, {}) if len(asked) < 3 else good(body, key)

    lines: list[str] = []
    smoke(serve(starting).endpoint, package, timeout=30, progress=lines.append)
    assert lines[0] == f"not there yet: status {status}"


def test_refused_connections_are_waited_for(serve: Callable[..., Server], package: Path) -> None:
    """Nothing listens yet, then it does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    lines: list[str] = []
    starter = threading.Timer(0.2, serve, args=(good, port))
    starter.start()
    smoke(Endpoint(f"http://127.0.0.1:{port}", KEY), package, timeout=60, progress=lines.append)
    starter.join()
    assert lines[0] == "not there yet: connection refused or lost"


def test_it_gives_up_after_the_time_it_names(package: Path) -> None:
    """Nobody ever listens: the message says how long it waited, what it saw, and which setting helps."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnhealthyError) as caught:
        smoke(Endpoint(f"http://127.0.0.1:{port}", KEY), package, timeout=0.3, progress=print)
    assert caught.value.what == "no answer within 0.3 s; last: connection refused or lost"
    assert "SMOKE_TIMEOUT" in caught.value.next_step


def test_a_service_that_never_answers(serve: Callable[..., Server], package: Path) -> None:
    """A connection that hangs counts as starting, until the time is over."""

    def hang(_body: bytes, _key: str) -> tuple[int, Any]:
        time.sleep(2)
        return 200, {}

    with pytest.raises(UnhealthyError, match="no answer within 0.3 s; last: no answer in time"):
        smoke(serve(hang).endpoint, package, timeout=0.3, progress=print)


def test_a_service_that_trickles(package: Path) -> None:
    """A byte every now and then keeps a connection alive, and does not move the end that was named."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):  # the client ends first
                for byte in b"HTTP/1.1 200 OK\r\n" + b"X" * 200:
                    time.sleep(0.1)
                    connection.sendall(bytes([byte]))

        threading.Thread(target=trickle, daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}", KEY)
        begun = time.monotonic()
        with pytest.raises(UnhealthyError, match="no answer within 0.3 s"):
            smoke(endpoint, package, timeout=0.3, progress=print)
        assert time.monotonic() - begun < 15


def test_answers_of_another_version_do_not_count(serve: Callable[..., Server], package: Path) -> None:
    """During a canary two versions share an address: the one that was asked about is asked again."""
    version = read_manifest(package).model_version
    lines: list[str] = []
    smoke(serve(good, versions=["9", version]).endpoint, package, timeout=30, progress=lines.append)
    assert lines == [
        "not there yet: version 9 answered",
        "2 examples answered as expected",
        "bad requests are refused as they must be",
    ]


def test_another_version_that_answers_alone_is_named(serve: Callable[..., Server], package: Path) -> None:
    """Its values are not what was asked for, even where they are equal."""
    with pytest.raises(UnhealthyError, match="no answer within 0.3 s; last: version 9 answered"):
        smoke(serve(good, versions=["9"]).endpoint, package, timeout=0.3, progress=print)


def test_proxies_of_the_environment_are_left_alone(
    serve: Callable[..., Server], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build machine's proxy neither sees the key nor answers for the endpoint."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    smoke(serve(good).endpoint, package, timeout=30, progress=print)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"tolerance": 1e-6}',
        '{"tolerance": 1e-6, "examples": []}',
        '{"tolerance": -1, "examples": [{"request": {}, "response": {}}]}',
        '{"tolerance": 1e-6, "examples": [{"request": {}}]}',
    ],
)
def test_examples_that_cannot_be_read(serve: Callable[..., Server], package: Path, content: str) -> None:
    """A package without examples proves nothing, so it does not pass."""
    (package / "model" / "examples.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"examples\.json"):
        smoke(serve(good).endpoint, package, timeout=30, progress=print)
