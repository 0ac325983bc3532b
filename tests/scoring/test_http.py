"""What the service answers, and to what: routes, keys, and requests that are wrong as HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import time
from typing import Any

import pytest

from tests.support.scoring_server import KEY, OTHER_KEY, TIMEOUT, Answer, Client, Server, request

GOOD = b'{"data": [[1, 2, 3]]}'


def error_of(answer: Any) -> tuple[int, str]:
    body = answer.json
    assert set(body["error"]) == {"code", "message", "place", "request_id"}
    return answer.status, body["error"]["code"]


def test_scoring(shared_server: Server) -> None:
    """Rows in, results out, with the id under which the request is logged."""
    answer = shared_server.score([[1, 2, 3], {"AGE": 1, "BMI": 1, "BP": 1}])
    assert (answer.status, answer.json) == (200, {"result": [14.0, 6.0]})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]


def test_an_answer_says_which_version_scored(shared_server: Server) -> None:
    """During a canary two versions answer at one address. An error tells nothing."""
    assert shared_server.score([[1, 2, 3]]).headers["x-model-version"] == "3"
    assert "x-model-version" not in shared_server.ask("POST", "/score", b"{").headers


def test_health_needs_no_key(shared_server: Server) -> None:
    """GET / and /health/* are for those who watch."""
    for path in ("/", "/health/live", "/health/ready"):
        assert shared_server.ask("GET", path, Authorization="").status == 200


@pytest.mark.parametrize("path", ["/score", "/metrics", "/swagger.json", "/model"])
def test_everything_else_needs_a_key(shared_server: Server, path: str) -> None:
    """401 without, or with a wrong one; either of the two opens."""
    method, body = ("POST", GOOD) if path == "/score" else ("GET", b"")
    for header in ("", "Bearer wrong", "Basic " + KEY):
        answer = shared_server.ask(method, path, body, Authorization=header)
        assert error_of(answer) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'Bearer realm="scoring"'
    for key in (KEY, OTHER_KEY):
        assert shared_server.ask(method, path, body, Authorization=f"Bearer {key}").status == 200


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/metrics", "/model", "/swagger.json"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 16777216\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\nab\r\n" * 40000]
)
def test_only_scoring_takes_a_body(shared_server: Server, path: str, body: bytes) -> None:
    """Elsewhere nothing of it is kept: a stranger's body must not take up memory, whatever its size and its parts."""
    with shared_server.connect() as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode() + body)
        answer = client.answer()
        assert error_of(answer) == (413, "unexpected_body")
        assert client.is_closed()


def test_the_model_and_its_description(shared_server: Server) -> None:
    """Which model answers, and an OpenAPI document with the package's examples."""
    about = shared_server.ask("GET", "/model").json
    assert (about["name"], about["version"], about["runtime"]) == ("test_model", "3", "onnx")
    document = shared_server.ask("GET", "/swagger.json?format=openapi").json
    content = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"]["example1"]["value"] == {"data": [[1.0, 1.0, 1.0]]}


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/nothing", {}, (404, "not_found")),
        ("GET", "/score/", {}, (404, "not_found")),
        ("GET", "/score", {}, (405, "method_not_allowed")),
        ("DELETE", "/model", {}, (405, "method_not_allowed")),
        ("POST", "/score", {"Content-Type": "text/csv"}, (415, "unsupported_media_type")),
        ("POST", "/score", {"Content-Type": "application/json; charset=latin-1"}, (415, "unsupported_media_type")),
        ("POST", "/score", {"Content-Encoding": "gzip"}, (415, "unsupported_media_type")),
        ("POST", "/score", {"Expect": "200-ok"}, (417, "bad_request")),
        ("POST", "/score", {"Host": ""}, (400, "bad_request")),
        ("POST", "/score", {"HOST": "another"}, (400, "bad_request")),
        ("POST", "/score", {"AUTHORIZATION": "Bearer another"}, (400, "bad_request")),
        ("POST", "/score", {"Transfer-Encoding": "gzip, chunked", "Content-Length": ""}, (501, "bad_request")),
    ],
)
def test_requests_that_cannot_be_served(
    shared_server: Server, method: str, path: str, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """Each with its status, a JSON body, and a connection that still works where HTTP allows it."""
    with shared_server.connect() as client:
        answer = client.request(method, path, GOOD, headers)
        assert expected == error_of(answer)
        if answer.status == 405:
            assert "GET, HEAD" == answer.headers["allow"] if path == "/model" else "POST" == answer.headers["allow"]
        if answer.headers.get("connection") == "close":
            assert client.is_closed()
        else:
            assert client.request("POST", "/score", GOOD).status == 200


JSON_KINDS = ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"', ""]


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_content_types_that_are_json(shared_server: Server, kind: str) -> None:
    """In any spelling, or left out."""
    assert shared_server.ask("POST", "/score", GOOD, Content_Type=kind).status == 200


def test_an_error_says_where(shared_server: Server) -> None:
    """Row, column, and what was found instead."""
    error = shared_server.score([[1, 2, 3], [1, 2, 3], [1, "x", 3]]).json["error"]
    assert error["place"] == "row 3, column BMI"
    assert error["message"] == 'row 3, column BMI: expected a number, got "x"'


def test_too_large(shared_server: Server) -> None:
    """Bodies, rows, heads and targets over their limit; what is still being sent does not hinder the answer."""
    large = b'{"data": [' + b" " * 300_000 + b"]}"
    assert error_of(shared_server.ask("POST", "/score", large)) == (413, "body_too_large")
    assert error_of(shared_server.score([[1, 2, 3]] * 1001)) == (413, "too_many_rows")
    assert error_of(shared_server.ask("GET", "/", X_Large="x" * 20_000)) == (431, "header_too_large")
    many = {f"X-{i}": "1" for i in range(200)}
    with shared_server.connect() as client:
        assert error_of(client.request("GET", "/", headers=many)) == (431, "header_too_large")
    assert error_of(shared_server.ask("GET", "/" + "x" * 9_000)) == (414, "target_too_long")


def test_a_chunked_body(shared_server: Server) -> None:
    """Is served, and limited like any other."""
    with shared_server.connect() as client:
        head = request("POST", "/score", headers={"Transfer-Encoding": "chunked", "Content-Length": ""})
        client.send(head + b'5\r\n{"dat\r\n')
        client.send(b'10\r\na": [[1, 2, 3]]}\r\n0\r\n\r\n')
        assert client.answer().json == {"result": [14.0]}
        client.send(head + b"40000\r\n" + b" " * 0x40000 + b"\r\n")
        assert error_of(client.answer()) == (413, "body_too_large")
        assert client.is_closed()


def test_expect_100_continue(shared_server: Server) -> None:
    """A client that asks first is told to go on, or why not."""
    with shared_server.connect() as client:
        client.send(request("POST", "/score", headers={"Expect": "100-continue", "Content-Length": str(len(GOOD))}))
        assert client.answer().status == 100
        client.send(GOOD)
        assert client.answer().status == 200
        client.send(request("POST", "/score", headers={"Expect": "100-continue", "Content-Length": "1000000"}))
        assert error_of(client.answer()) == (413, "body_too_large")


def test_pipelined_requests_are_answered_in_order(shared_server: Server) -> None:
    """Also when one of them is wrong, and when the client ends its side at once."""
    with shared_server.connect() as client:
        bodies = [json.dumps({"data": [[i, 0, 0]]}).encode() for i in range(50)]
        bodies[7] = b"{"
        client.send(b"".join(request("POST", "/score", body) for body in bodies))
        client.socket.shutdown(1)
        answers = [client.answer() for _ in bodies]
        assert [400 if i == 7 else 200 for i in range(50)] == [answer.status for answer in answers]
        assert [float(i) for i in range(50) if i != 7] == [a.json["result"][0] for a in answers if a.status == 200]
        assert client.is_closed()


def test_requests_that_come_together_get_each_its_own_answer(shared_server: Server) -> None:
    """One by one from each of 50 connections, all there before a worker looks; some wrong, some gone again."""
    workers = shared_server.worker_pids()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(shared_server.connect()) for _ in range(50)]
        for client in clients:  # each is taken, and its worker knows it
            assert client.request("GET", "/health/live").status == 200
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            for number, client in enumerate(clients):
                value = '"x"' if number % 7 == 1 else str(number)
                client.send(request("POST", "/score", f'{{"data": [[{value}, 0, 0]]}}'.encode()))
            for client in clients[::10]:
                client.close()
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        for number, client in enumerate(clients):
            if number % 10:
                answer = client.answer()
                expected = (400, None) if number % 7 == 1 else (200, [float(number)])
                assert expected == (answer.status, answer.json.get("result")), number


def test_one_byte_at_a_time(shared_server: Server) -> None:
    """A request may come in any pieces."""
    with shared_server.connect() as client:
        for byte in request("POST", "/score", GOOD):
            client.send(bytes([byte]))
        assert client.answer().json == {"result": [14.0]}


def test_a_head_in_two_pieces_with_a_large_body(shared_server: Server) -> None:
    """The limit of the head does not count the body that arrives with its end."""
    body = b'{"data": [[1, 2, 3]' + b", [1, 2, 3]" * 900 + b" " * 100_000 + b"]}"
    whole = request("POST", "/score", body)
    with shared_server.connect() as client:
        client.send(whole[:40])
        assert shared_server.ask("GET", "/").status == 200
        client.send(whole[40:])
        assert len(client.answer().json["result"]) == 901


def test_head_requests_have_no_body(shared_server: Server) -> None:
    """But the length that GET would have."""
    with shared_server.connect() as client:
        answer = client.request("HEAD", "/")
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "20")
        assert client.request("GET", "/").status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_400_and_the_end(shared_server: Server, garbage: bytes) -> None:
    """Never silence, never another request's answer: two lengths are how requests are smuggled."""
    with shared_server.connect() as client:
        client.send(garbage)
        assert client.answer().status in (400, 505)
        assert client.is_closed()
    assert shared_server.ask("GET", "/").status == 200


def test_an_upgrade_is_ignored(shared_server: Server) -> None:
    """The request is answered as HTTP/1.1 with its body, as Java's client sends it, and so are those after it."""
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    chunked = {**upgrade, "Transfer-Encoding": "chunked", "Content-Length": ""}
    with shared_server.connect() as client:
        assert client.request("GET", "/", headers=upgrade).status == 200
        assert client.request("POST", "/score", GOOD, upgrade).json == {"result": [14.0]}
        client.send(request("POST", "/score", headers=chunked) + b"15\r\n" + GOOD + b"\r\n0\r\n\r\n")
        client.send(request("POST", "/score", GOOD, upgrade) * 2 + request("GET", "/", headers=upgrade))
        assert [{"result": [14.0]}] * 3 == [client.answer().json for _ in range(3)]
        assert client.answer().status == 200
        closing = {**upgrade, "Connection": "Upgrade, close"}
        assert client.request("POST", "/score", GOOD, closing).json == {"result": [14.0]}
        assert client.is_closed()


def test_a_trailer_is_limited_like_a_head(shared_server: Server) -> None:
    """It is read after a body whose length nobody knows, and kept nowhere."""
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": ""}
    with shared_server.connect() as client:
        start = request("POST", "/score", headers=chunked) + b"15\r\n" + GOOD + b"\r\n0\r\n"
        client.send(start + b"X-Small: 1\r\n\r\n")
        assert client.answer().status == 200
        client.send(start + b"X-Large: ")
        assert error_of(answer_while_sending(client, b"x" * 1000, 200)) == (431, "header_too_large")
        assert client.is_closed()


def test_a_refused_request_without_length_is_not_read_on(shared_server: Server) -> None:
    """Without a key nobody can make the service take in chunks and trailers."""
    with shared_server.connect() as client:
        headers = {"Authorization": "", "Transfer-Encoding": "chunked", "Content-Length": ""}
        client.send(request("POST", "/score", headers=headers))
        assert error_of(client.answer()) == (401, "unauthorized")
        assert client.is_closed()


def answer_while_sending(client: Client, piece: bytes, most: int) -> Answer:
    """Send ``piece`` again and again, until there is an answer."""
    for _ in range(most):
        client.send(piece)
        if select.select([client.socket], [], [], 0.01)[0]:
            break
    return client.answer()


def test_request_ids_and_traceparent(shared_server: Server) -> None:
    """A plain id is kept, another replaced; a valid traceparent keeps its trace and gets a span of ours."""
    assert shared_server.ask("GET", "/", X_Request_Id="job-7.2").headers["x-request-id"] == "job-7.2"
    replaced = shared_server.ask("GET", "/", X_Request_Id="a b##vso[task.complete]").headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{12}-\d+", replaced)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answered = shared_server.ask("GET", "/", traceparent=f"00-{trace}-00f067aa0ba902b7-01").headers["traceparent"]
    assert re.fullmatch(rf"00-{trace}-(?!00f067aa0ba902b7)[0-9a-f]{{16}}-01", answered)
    for wrong in (f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{trace}-00f067aa0ba902b7-01", "x"):
        assert "traceparent" not in shared_server.ask("GET", "/", traceparent=wrong).headers


def test_the_log_has_a_line_a_request_that_outside_text_cannot_break(shared_server: Server) -> None:
    """Id, trace, method, path, status, milliseconds and predictions; ##vso[ never appears."""
    trace = "5bf92f3577b34da6a3ce929d0e0e4736"
    shared_server.score([[1, 2, 3], [1, 2, 3]], X_Request_Id="logged-1", traceparent=f"00-{trace}-00f067aa0ba902b7-00")
    shared_server.ask("GET", '/##vso[task.setvariable]"\\', X_Request_Id="logged-2")
    shared_server.score([["##vso[task.complete]\n\u2028", 2, 3]], X_Request_Id="logged-3")
    deadline = time.monotonic() + TIMEOUT
    while len(lines := [line for line in shared_server.log() if "logged-" in line.get("request_id", "")]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    one, two, three = sorted(lines, key=lambda line: str(line["request_id"]))
    assert (one["method"], one["path"], one["status"], one["predictions"]) == ("POST", "/score", 200, 2)
    assert trace in one["traceparent"] and one["ms"] > 0
    assert two["path"] == '/\\u0023\\u0023vso[task.setvariable]"\\'
    assert (three["error"]["code"], three["error"]["place"]) == ("wrong_type", "row 1, column AGE")
    assert "##" not in shared_server.raw_log()
