"""The same bytes go to h11, an implementation of HTTP/1.1 by others: both read the same requests, or both refuse.

Where we differ, ``DIFFERENCES`` says so, with the reason. If a proxy in front of us reads a request in another way than
we do, requests can be smuggled.
"""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.errors import RequestError
from scoring_service.http.request import _KEPT_FIELDS, Request, RequestReader

Verdict = tuple[object, ...]
"""(method, target, headers that matter, body, keep-alive) per request read, then "refused" or "incomplete" or "end"."""


class Limits:
    max_body = max_header = max_held = 1_000_000
    held = 0


class Recorder:
    """A consumer that answers each request at once, like a service that accepts everything."""

    def __init__(self) -> None:
        self.reader = RequestReader(self, Limits())
        self.verdict: list[object] = []
        self.is_closed = self.has_begun = False

    def on_request_begin(self) -> None:
        self.has_begun = True

    def on_head(self, request: Request, error: RequestError | None) -> None:
        if error is not None:
            self.on_refusal(error)

    def on_request(self, request: Request) -> None:
        self.has_begun = False
        headers = frozenset((name, _lower_coding(name, value)) for name, value in request.headers.items())
        self.verdict.append((request.method, request.target, headers, request.body, request.keep_alive))
        if not request.keep_alive:
            self._end("end")

    def on_refusal(self, error: RequestError) -> None:
        self._end("refused")

    def on_tunnel(self) -> None:
        self._end("tunnel")

    def _end(self, word: str) -> None:
        self.reader.stop()
        if not self.is_closed:
            self.is_closed = True
            self.verdict.append(word)


def ours(data: bytes, piece: int = 1 << 20) -> Verdict:
    """Return what we read, with ``piece`` bytes at a time."""
    recorder = Recorder()
    for start in range(0, len(data), piece):
        recorder.reader.feed(data[start : start + piece])
    if not recorder.is_closed:
        recorder.verdict.append("incomplete" if recorder.has_begun else "end")
    return tuple(recorder.verdict)


def theirs(data: bytes) -> Verdict:
    """Return what h11 reads."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
    if data:  # h11 takes none for the end of the connection
        connection.receive_data(data)
    verdict: list[object] = []
    try:
        while isinstance(request := connection.next_event(), h11.Request):
            body = _body(connection)
            if body is None:
                return (*verdict, "incomplete")
            is_tunnel = request.method == b"CONNECT"
            is_kept = is_tunnel or _answered(connection)
            verdict.append((*_described(request), body, is_kept))
            if is_tunnel or not is_kept:
                return (*verdict, "tunnel" if is_tunnel else "end")
    except h11.RemoteProtocolError:
        return (*verdict, "refused")
    return (*verdict, "incomplete" if connection.trailing_data[0] else "end")


def _body(connection: h11.Connection) -> bytes | None:
    """Return the whole body, or None if it has not arrived."""
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    return body if isinstance(event, h11.EndOfMessage) else None


def _lower_coding(name: bytes, value: bytes) -> bytes:
    """h11 returns transfer codings in small letters."""
    return value.lower() if name == b"transfer-encoding" else value


def _described(request: h11.Request) -> tuple[bytes, bytes, frozenset[tuple[bytes, bytes]]]:
    headers = {name: value for name, value in request.headers if name in _KEPT_FIELDS}
    if request.http_version == b"1.0":
        headers.pop(b"expect", None)
    return request.method, request.target, frozenset(headers.items())


def _answered(connection: h11.Connection) -> bool:
    """Answer, and return whether the connection is kept."""
    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    if connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
        connection.start_next_cycle()
        return True
    return False


def post(
    head: bytes = b"", body: bytes = b"", *, line: bytes = b"POST /score HTTP/1.1", host: bytes = b"Host: x"
) -> bytes:
    """Return the bytes of a request. ``head`` is further header lines."""
    lines = [line, *([host] if host else []), *([head] if head else [])]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


CASES = {
    "no body": post(),
    "a length": post(b"Content-Length: 5", b"hello"),
    "a length of 0": post(b"Content-Length: 0"),
    "a short body": post(b"Content-Length: 6", b"hello"),
    "more than the length": post(b"Content-Length: 4", b"hello"),
    "two requests": post(b"Content-Length: 5", b"hello") + post(),
    "get, query": post(line=b"GET /score?a=b HTTP/1.1"),
    "absolute target": post(line=b"GET http://x/score HTTP/1.1"),
    "OPTIONS *": post(line=b"OPTIONS * HTTP/1.1"),
    "HEAD": post(line=b"HEAD / HTTP/1.1"),
    "chunked": post(b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
    "two chunks": post(b"Transfer-Encoding: chunked", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    "chunked, then another": post(b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n") + post(),
    "chunked in capitals": post(b"Transfer-Encoding: CHUNKED", b"5\r\nhello\r\n0\r\n\r\n"),
    "chunk size in hexadecimal": post(b"Transfer-Encoding: chunked", b"A\r\n0123456789\r\n0\r\n\r\n"),
    "leading zeros": post(b"Transfer-Encoding: chunked", b"005\r\nhello\r\n0\r\n\r\n"),
    "chunk extension": post(b"Transfer-Encoding: chunked", b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with a line feed": post(b"Transfer-Encoding: chunked", b"5;a\nhello\r\n0\r\n\r\n"),
    "trailer": post(b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
    "trailer that is a framing header": post(
        b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n"
    ),
    "invalid trailer": post(b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nX y\r\n\r\n"),
    "chunk size not a number": post(b"Transfer-Encoding: chunked", b"x\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0x": post(b"Transfer-Encoding: chunked", b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size negative": post(b"Transfer-Encoding: chunked", b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk size plus": post(b"Transfer-Encoding: chunked", b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with a blank": post(b"Transfer-Encoding: chunked", b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": post(b"Transfer-Encoding: chunked", b"F" * 17 + b"\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than its size": post(b"Transfer-Encoding: chunked", b"4\r\nhello\r\n0\r\n\r\n"),
    "chunk with a line feed": post(b"Transfer-Encoding: chunked", b"5\nhello\r\n0\r\n\r\n"),
    "chunk end with a line feed": post(b"Transfer-Encoding: chunked", b"5\r\nhello\n0\r\n\r\n"),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
    "chunked, gzip": post(b"Transfer-Encoding: chunked, gzip", b"0\r\n\r\n"),
    "chunked, identity": post(b"Transfer-Encoding: chunked, identity", b"0\r\n\r\n"),
    "identity": post(b"Transfer-Encoding: identity"),
    "xchunked": post(b"Transfer-Encoding: xchunked", b"0\r\n\r\n"),
    "chunked with a vertical tab": post(b"Transfer-Encoding: \x0bchunked", b"0\r\n\r\n"),
    "chunked in quotes": post(b'Transfer-Encoding: "chunked"', b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "chunked, chunked": post(b"Transfer-Encoding: chunked, chunked", b"0\r\n\r\n"),
    "coding and length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
    "length and coding": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "blank before the colon, coding": post(b"Transfer-Encoding : chunked", b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 5\r\nContent-Length: 6", b"hello!"),
    "equal lengths": post(b"Content-Length: 5\r\nContent-Length: 5", b"hello"),
    "length 5, 5": post(b"Content-Length: 5, 5", b"hello"),
    "length -5": post(b"Content-Length: -5", b"hello"),
    "length +5": post(b"Content-Length: +5", b"hello"),
    "length 5x": post(b"Content-Length: 5x", b"hello"),
    "length 0x5": post(b"Content-Length: 0x5", b"hello"),
    "length empty": post(b"Content-Length:", b""),
    "length with zeros": post(b"Content-Length: 005", b"hello"),
    "length with a blank inside": post(b"Content-Length: 5 5", b"hello"),
    "length with blanks around": post(b"Content-Length:   5  ", b"hello"),
    "length beyond 64 bits": post(b"Content-Length: 99999999999999999999999", b""),
    "no host": post(host=b""),
    "two hosts": post(b"Host: y"),
    "host empty": post(host=b"Host:"),
    "no host, 1.0": post(host=b"", line=b"GET / HTTP/1.0"),
    "1.0": post(line=b"GET / HTTP/1.0"),
    "1.0 keep-alive": post(b"Connection: keep-alive", line=b"GET / HTTP/1.0") + post(),
    "1.0 with a length": post(b"Content-Length: 5", b"hello", line=b"POST / HTTP/1.0"),
    "1.0 chunked": post(b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n", line=b"POST / HTTP/1.0"),
    "1.0 expects": post(b"Expect: 100-continue\r\nContent-Length: 5", b"hello", line=b"POST / HTTP/1.0"),
    "close": post(b"Connection: close") + post(),
    "Close, keep-alive": post(b"Connection: Close, keep-alive") + post(),
    "keep-alive": post(b"Connection: keep-alive") + post(),
    "1.2": post(line=b"GET / HTTP/1.2"),
    "0.9": post(line=b"GET / HTTP/0.9"),
    "2.0": post(line=b"GET / HTTP/2.0"),
    "9.9": post(line=b"GET / HTTP/9.9"),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": post(line=b"GET /"),
    "http": post(line=b"GET / http/1.1"),
    "11": post(line=b"GET / HTTP/11"),
    "1.10": post(line=b"GET / HTTP/1.10"),
    "no target": post(line=b"GET  HTTP/1.1"),
    "two blanks": post(line=b"GET  / HTTP/1.1"),
    "tab": post(line=b"GET\t/ HTTP/1.1"),
    "blank at the end": post(line=b"GET / HTTP/1.1 "),
    "target with a blank": post(line=b"GET /a b HTTP/1.1"),
    "target without slash": post(line=b"GET score HTTP/1.1"),
    "target with a byte over 127": post(line=b"GET /\xe9 HTTP/1.1"),
    "target with NUL": post(line=b"GET /\x00 HTTP/1.1"),
    "target with a fragment": post(line=b"GET /a#b HTTP/1.1"),
    "target with odd printable characters": post(line=b'GET /"<>\\^`{|} HTTP/1.1'),
    "unknown method": post(line=b"FETCH / HTTP/1.1"),
    "method in small letters": post(line=b"get / HTTP/1.1"),
    "method with a slash": post(line=b"G/T / HTTP/1.1"),
    "CONNECT": post(line=b"CONNECT x:1 HTTP/1.1"),
    "leading empty line": b"\r\n" + post(),
    "leading blank": b" " + post(),
    "line feeds only": post(b"Content-Length: 5", b"hello").replace(b"\r\n", b"\n"),
    "one line feed": b"GET / HTTP/1.1\nHost: x\r\n\r\n",
    "line feed in a header": b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "carriage return in a value": post(b"X: a\rb"),
    "carriage return only": b"GET / HTTP/1.1\rHost: x\r\r",
    "folded": post(b"X: a\r\n b"),
    "folded first": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "folded length": post(b"Content-Length:\r\n 5", b"hello"),
    "no colon": post(b"X"),
    "empty name": post(b": x"),
    "blank in a name": post(b"Bad Header: 1"),
    "blank before the colon": post(b"X : 1"),
    "NUL in a value": post(b"X: a\x00b"),
    "control in a value": post(b"X: a\x01b"),
    "delete in a value": post(b"X: a\x7fb"),
    "tab in a value": post(b"X: a\tb"),
    "bytes over 127 in a value": post(b"X: \xe9"),
    "byte over 127 in a name": post(b"X\xe9: 1"),
    "odd token characters in a name": post(b"X!#$%&'*+-.^_`|~: 1"),
    "empty value": post(b"X:"),
    "no blank after the colon": post(b"X-Request-Id:a"),
    "value with blanks around": post(b"X-Request-Id: \t a \t "),
    "names in capitals": post(b"CONTENT-LENGTH: 5", b"hello"),
    "authorization twice": post(b"Authorization: Bearer a\r\nAuthorization: Bearer b"),
    "type twice": post(b"Content-Type: a/b\r\nContent-Type: c/d"),
    "encoding twice": post(b"Content-Encoding: identity\r\nContent-Encoding: gzip"),
    "request id twice": post(b"X-Request-Id: a\r\nX-Request-Id: b"),
    "expects": post(b"Expect: 100-continue\r\nContent-Length: 5", b"hello"),
    "expects another thing": post(b"Expect: 200-ok\r\nContent-Length: 5", b"hello"),
    "upgrade": post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5", b"hello") + post(),
    "upgrade, chunked": post(
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"
    )
    + post(),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a head": b"GET / HTTP/1.1\r\nHost: x\r\n",
}

DIFFERENCES = {
    "trailer that is a framing header": "a proxy may merge trailers into the head",
    "chunk size with a blank": "RFC 9112, 7.1: no blanks; proxies that differ here were used for smuggling",
    "chunk size beyond 64 bits": "no such chunk can arrive; h11 waits for it",
    "coding and length": "RFC 9112, 6.1: may be refused, and is how requests are smuggled",
    "length and coding": "as before",
    "equal lengths": "RFC 9110, 8.6: may be refused; a proxy may use another one",
    "length 5, 5": "as before",
    "1.2": "only 1.0 and 1.1 are served",
    "0.9": "only 1.0 and 1.1 are served",
    "2.0": "only 1.0 and 1.1 are served",
    "9.9": "only 1.0 and 1.1 are served",
    "preface of HTTP/2": "refused at once, not after its first line",
    "more than the length": "refused at the first byte of what cannot be a request; h11 waits for a line",
    "two blanks": "RFC 9112, 3: words may be split at any blanks; the words are the same",
    "target without slash": "no path, no URL and no *",
    "unknown method": "llhttp knows the registered methods only; the service serves three of them",
    "method in small letters": "methods are case-sensitive",
    "leading empty line": "RFC 9112, 2.2: a server should ignore one",
    "line feeds only": "RFC 9112, 2.2: may be accepted; refused, since proxies differ",
    "one line feed": "as before",
    "line feed in a header": "as before",
    "carriage return only": "refused at once; h11 waits for a line feed",
    "folded": "RFC 9112, 5.2: may be refused; proxies differ",
    "folded length": "as before",
    "control in a value": "RFC 9110, 5.5: invalid",
    "delete in a value": "as before",
    "authorization twice": "a proxy may check another one than we do",
    "type twice": "as before",
    "encoding twice": "as before",
    "expects another thing": "RFC 9110, 10.1.1: 417",
}
"""The cases in which the verdicts differ, with the reason. In all but two of them (MORE_LENIENT) we are stricter."""


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_that_of_h11_or_the_difference_is_listed(name: str) -> None:
    """Requests with method, target, headers and body, and what follows them."""
    assert (ours(CASES[name]) != theirs(CASES[name])) == (name in DIFFERENCES), (ours(CASES[name]), theirs(CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_does_not_depend_on_the_pieces(name: str) -> None:
    """Byte by byte, and in pieces of seven."""
    assert ours(CASES[name]) == ours(CASES[name], 1) == ours(CASES[name], 7)


MORE_LENIENT = {"two blanks", "leading empty line"}


def test_differences_are_refusals_of_ours() -> None:
    """We accept nothing that h11 refuses, with the two exceptions."""
    refused = {name for name in CASES if "refused" in ours(CASES[name])}
    assert set(DIFFERENCES) - MORE_LENIENT == refused & set(DIFFERENCES)


PIECES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b",",
        b"0",
        b"5",
        b"F",
        b"\x00",
        b"\x0b",
        b"\xff",
        b"chunked",
        b"Host: y\r\n",
    ]
    + [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"0\r\n\r\n", b"HTTP/1.0"]
)
SOUND = [data for name, data in CASES.items() if name not in DIFFERENCES and "refused" not in theirs(data) and data]
CHANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), PIECES), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.sampled_from(SOUND), CHANGES)
def test_a_mutated_request_is_read_as_h11_reads_it_or_refused(
    data: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    """Bytes are replaced, inserted and removed. What both accept is the same. What only one accepts, we refuse."""
    mutated = bytearray(data)
    for place, length, piece in changes:
        start = place % (len(mutated) + 1)
        mutated[start : start + length] = piece
    read, expected = ours(bytes(mutated)), theirs(bytes(mutated))
    shared = min(len(read), len(expected)) - 1
    for one, other in zip(read[:shared], expected[:shared], strict=True):
        assert one == other
    if "refused" in expected and not _LENIENT.search(mutated):
        assert "refused" in read or (read[:-1] == expected[:-1] and read[-1] == "incomplete")


_LENIENT = re.compile(rb"(?:^|\r\n\r\n|hello)[\r\n]|  |^\S*[ \t]{2}")
"""What we accept on purpose: empty lines before a request, repeated blanks in its first line."""
