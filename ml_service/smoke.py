"""The smoke test: does an endpoint answer a package's own examples with the values that the trained model gave?"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service import package as packages
from ml_service.errors import IntegrityError, UnhealthyError
from ml_service.ports import Endpoint, Progress

MALFORMED = b'{"data": [[1, 2'
"""A body that is cut off: whatever the model, it deserves 400."""

_STARTING = (502, 503)
_PAUSE = 0.25
_LONGEST_REQUEST = 30.0
_MOST_SHOWN = 5


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes


_Send = Callable[[bytes, str], _Answer]
"""Sends a body with a key to ``/score``; waits for the service while it is starting."""


def smoke(endpoint: Endpoint, package: Path, *, timeout: float, progress: Progress) -> None:
    """Send the examples of ``package`` to ``endpoint``; a request is repeated while the service is starting.

    ``timeout`` bounds the whole test, in seconds. Numbers may differ by the tolerance of ``examples.json`` (relative,
    absolute below 1); everything else must be equal. A malformed request must get 400 and, when the endpoint has a
    key, a wrong key 401. Where two versions answer at one address, as during a canary, those of the other do not count.

    Raises:
        UnhealthyError: the service did not start in time, or did not answer as it must: says what was
            expected and what came.
        IntegrityError: the package's examples cannot be read.
    """
    tolerance, examples = _read_examples(package)
    version = packages.read_manifest(package).model_version
    with _Sender(endpoint, version, timeout, progress) as send:
        for number, example in enumerate(examples, start=1):
            _check_example(f"example {number}", example, tolerance, send, endpoint)
        progress(f"{len(examples)} examples answered as expected")
        _check_status("a malformed request", send(MALFORMED, endpoint.key), 400, endpoint)
        if endpoint.key:
            body = json.dumps(examples[0]["request"]).encode()
            _check_status("a request with a wrong key", send(body, "not-a-key"), 401, endpoint)
        progress("bad requests are refused as they must be")


def _read_examples(package: Path) -> tuple[float, list[Mapping[str, Any]]]:
    path = package / packages.read_manifest(package).examples_file
    try:
        raw = json.loads(path.read_bytes())
        examples = [_example(example["request"], example["response"]) for example in raw["examples"]]
        tolerance = float(raw["tolerance"])
        if not 0 <= tolerance < 1:
            raise ValueError(f"a tolerance of {tolerance}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"holds no examples ({error!r})", where=str(path), next_step="package the model again"
        ) from None
    if not examples:
        raise IntegrityError("holds no example to ask for", where=str(path), next_step="let the train step write one")
    return tolerance, examples


def _example(request: Any, response: Any) -> Mapping[str, Any]:
    return {"request": request, "response": response}


class _Sender:
    """Sends requests to one model version until one deadline, which all of them share."""

    def __init__(self, endpoint: Endpoint, version: str, timeout: float, progress: Progress) -> None:
        import requests

        from ml_service.http_session import session_for

        self._requests = requests
        self._endpoint = endpoint
        self._version = version
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._progress = progress
        self._session = session_for(endpoint.url)

    def __enter__(self) -> _Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def __call__(self, body: bytes, key: str) -> _Answer:
        """One answer; none that only says that the service is not there yet."""
        trouble = ""
        while (left := self._deadline - time.monotonic()) > 0:
            answer = self._try(body, key, left)
            if isinstance(answer, _Answer):
                return answer
            if answer != trouble:
                trouble = answer
                self._progress(f"not there yet: {trouble}")
            time.sleep(min(_PAUSE, max(self._deadline - time.monotonic(), 0)))
        raise UnhealthyError(
            f"no answer within {self._timeout:g} s; last: {trouble or 'the time was used up'}",
            where=self._endpoint.url,
            next_step="look at inv logs; a slow start needs a larger SMOKE_TIMEOUT",
        )

    def _try(self, body: bytes, key: str, left: float) -> _Answer | str:
        """An answer, or what was in its way, within ``left`` seconds.

        The timeout of requests begins anew with every byte that comes. An endpoint that trickles is left to a thread
        that nobody waits for.
        """
        wait = min(left, _LONGEST_REQUEST)
        outcome: Future[_Answer | str] = Future()

        def post() -> None:
            try:
                outcome.set_result(self._post(body, key, wait))
            except Exception as error:
                outcome.set_exception(error)

        threading.Thread(target=post, name="smoke", daemon=True).start()
        try:
            return outcome.result(wait)
        except TimeoutError:
            return "no answer in time"

    def _post(self, body: bytes, key: str, wait: float) -> _Answer | str:
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self._endpoint.url.rstrip('/')}/score"
        try:
            answer = self._session.post(url, data=body, headers=headers, timeout=wait, allow_redirects=False)
        except self._requests.Timeout:
            return "no answer in time"
        except self._requests.ConnectionError:
            return "connection refused or lost"
        except self._requests.RequestException as error:
            return f"the request failed ({type(error).__name__})"
        if answer.status_code in _STARTING:
            return f"status {answer.status_code}"
        # Servers packaged before this header existed do not send it.
        if (other := answer.headers.get("X-Model-Version", self._version)) != self._version:
            self._session.close()  # a connection may belong to one version; the next one is new
            return f"version {other} answered"
        return _Answer(answer.status_code, answer.content)


def _check_example(name: str, example: Mapping[str, Any], tolerance: float, send: _Send, endpoint: Endpoint) -> None:
    answer = send(json.dumps(example["request"]).encode(), endpoint.key)
    _check_status(name, answer, 200, endpoint)
    try:
        actual = json.loads(answer.body)
    except ValueError:
        raise _wrong(f"{name}: the answer is not JSON: {_excerpt(answer.body)}", endpoint) from None
    differences = _differences("", example["response"], actual, tolerance)
    if differences:
        more = f"; and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
        raise _wrong(f"{name}: {'; '.join(differences[:_MOST_SHOWN])}{more}", endpoint)


def _check_status(name: str, answer: _Answer, expected: int, endpoint: Endpoint) -> None:
    if answer.status != expected:
        raise _wrong(f"{name}: expected status {expected}, got {answer.status}: {_excerpt(answer.body)}", endpoint)


def _wrong(what: str, endpoint: Endpoint) -> UnhealthyError:
    return UnhealthyError(what, where=f"{endpoint.url}/score", next_step="look at inv logs; this model must not serve")


def _excerpt(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace") or "(empty)"


def _differences(place: str, expected: Any, actual: Any, tolerance: float) -> list[str]:
    """Return every place where two JSON values differ, in words: ``result, row 3: expected 1.5, got 2.5``."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _dict_differences(place, expected, actual, tolerance)
    if isinstance(expected, list) and isinstance(actual, list):
        return _list_differences(place, expected, actual, tolerance)
    return [] if _equal(expected, actual, tolerance) else [f"{place}: expected {expected!r}, got {actual!r}"]


def _dict_differences(place: str, expected: dict[str, Any], actual: dict[str, Any], tolerance: float) -> list[str]:
    differences = []
    for key in sorted(expected.keys() | actual.keys()):
        inner = f"{place}, {key}" if place else key
        if key not in actual:
            differences.append(f"{inner}: missing")
        elif key not in expected:
            differences.append(f"{inner}: not expected")
        else:
            differences += _differences(inner, expected[key], actual[key], tolerance)
    return differences


def _list_differences(place: str, expected: list[Any], actual: list[Any], tolerance: float) -> list[str]:
    if len(expected) != len(actual):
        return [f"{place}: expected {len(expected)} values, got {len(actual)}"]
    word = "output" if ", row " in place else "row"
    pairs = enumerate(zip(expected, actual, strict=True), start=1)
    return [line for row, pair in pairs for line in _differences(f"{place}, {word} {row}", *pair, tolerance)]


def _equal(expected: Any, actual: Any, tolerance: float) -> bool:
    if _is_number(expected) and _is_number(actual):
        return bool(expected == actual) or math.isclose(expected, actual, rel_tol=tolerance, abs_tol=tolerance)
    return type(expected) is type(actual) and bool(expected == actual)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
