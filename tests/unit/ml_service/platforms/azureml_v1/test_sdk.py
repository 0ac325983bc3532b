"""What the Azure ML adapter makes of a lock, of an exception, of the SDK's prints: no SDK is needed for these."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from ml_service.platforms.azureml_v1.assets import requirements
from ml_service.platforms.azureml_v1.sdk import (
    cached_tokens,
    first_line,
    is_missing,
    is_transient,
    quiet,
    status_of,
    translate,
)


def test_a_lock_becomes_one_line_a_requirement() -> None:
    """Hashes and markers stay, comments and continuation lines go."""
    hashed = 'a==1 ; python_version < "3.12" \\\n    --hash=sha256:0 \\\n    --hash=sha256:1\n'
    lock = f"{hashed}    # via b\n# a comment\nb==2\n"
    assert list(requirements(lock)) == ['a==1 ; python_version < "3.12" --hash=sha256:0 --hash=sha256:1', "b==2"]


class Answered(Exception):
    """An exception with a status, as most of the SDK's libraries have it."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status_code = status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Answered(503), 503),
        (Exception("Received bad response:\nResponse Code: 429\nHeaders: {}"), 429),
        (Exception('{"status_code": 404}'), 404),
        (Exception("Caused by ResponseError('too many 500 error responses')"), 500),
        (Exception("Request failed (403): no"), 403),
        (Exception("took 500 ms"), 0),
    ],
)
def test_the_status_is_found_wherever_the_sdk_hides_it(error: Exception, status: int) -> None:
    """In an attribute, or in one of its ways to write it."""
    assert status == status_of(error)


def test_only_what_may_pass_is_tried_again() -> None:
    """Too many requests, Azure's own faults, no answer; never a refusal."""
    assert [
        is_transient(error) for error in (Answered(429), Answered(500), ConnectionError(), Answered(403), KeyError("x"))
    ] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (Answered(403), "no rights"),
        (Answered(404), "does not exist"),
        (Answered(429), "too many requests"),
        (Answered(401), "the sign-in was refused"),
        (Answered(400, "exceeds the Quota"), "beyond the quota"),
        (ConnectionError("no route"), "cannot be reached"),
        (KeyError("id"), "Azure answered"),
    ],
)
def test_each_failure_says_what_and_what_next(error: Exception, what: str) -> None:
    """The resource is named by the caller."""
    translated = translate(error, "workspace w")
    assert translated.what.startswith(what)
    assert (translated.where, bool(translated.next_step)) == ("workspace w", True)


class Untold(Answered):
    """As the SDK's ServiceException for an answer without details."""

    def __str__(self) -> str:
        raise TypeError("'NoneType' object is not iterable")


def test_an_exception_that_cannot_be_shown_keeps_its_meaning() -> None:
    """Its own fault must not hide the answer of Azure's: a 503 is asked for again, a 404 is missing."""
    error = Untold(503)
    error.message = "the store is down"  # type: ignore[attr-defined]
    assert (is_transient(error), first_line(error)) == (True, "the store is down")
    assert first_line(Untold(503)) == "Untold"
    assert [is_missing(Untold(404)), is_missing(Answered(503, "upstream not found"))] == [True, False]
    assert translate(error, "run r").what.startswith("Azure has a fault of its own")


def test_of_a_long_answer_one_sanitized_line_is_shown() -> None:
    """The SDK's own layout around the message is left out."""
    error = Exception("WebserviceException:\n\tMessage: ##vso[task.complete]gone\n\tInnerException None\n")
    assert first_line(error) == "# #vso[task.complete]gone"


class Credential:
    """Signs in, and counts how often."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def get_token(self, scope: str) -> SimpleNamespace:
        self.asked.append(scope)
        return SimpleNamespace(token=f"token-{len(self.asked)}", expires_on=time.time() + self.seconds)


@pytest.mark.parametrize(("seconds", "tokens"), [(3600, ["token-1", "token-1"]), (299, ["token-1", "token-2"])])
def test_a_token_is_asked_for_once_until_shortly_before_its_end(seconds: int, tokens: list[str]) -> None:
    """Each question to the Azure CLI is a process; a token about to end would end in the middle of a call."""
    token = cached_tokens(Credential(seconds))
    assert tokens == [token("https://management.azure.com/"), token("ARM")]


def test_each_audience_has_its_own_token() -> None:
    """One for ARM is refused elsewhere."""
    credential = Credential(3600)
    token = cached_tokens(credential)
    assert [token("ARM"), token("https://storage.azure.com")] == ["token-1", "token-2"]
    assert credential.asked == ["https://management.azure.com/.default", "https://storage.azure.com/.default"]


def test_only_the_thread_that_calls_the_sdk_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Two calls that overlap leave standard output as it was."""
    inside, leave = threading.Event(), threading.Event()

    def call() -> None:
        with quiet():
            print("from the SDK")
            inside.set()
            leave.wait(10)

    original = sys.stdout
    thread = threading.Thread(target=call)
    thread.start()
    inside.wait(10)
    with quiet():
        leave.set()
        thread.join()
    print("ours")
    assert original is sys.stdout
    assert capsys.readouterr().out == "ours\n"


def test_what_the_sdk_prints_in_threads_of_its_own_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """Also from a thread that lives on into the next call."""
    again, done = threading.Event(), threading.Event()

    def work() -> None:
        print("Created step train")
        again.wait(10)
        print("Created step register")
        done.set()

    with quiet():
        threading.Thread(target=work, daemon=True).start()
    with quiet():
        again.set()
        done.wait(10)
    print("ours")
    assert capsys.readouterr().out == "ours\n"


def test_a_signed_address_is_not_shown() -> None:
    """Whoever reads the signature may read the file."""
    error = ConnectionError("Max retries exceeded with url: /azureml/m.onnx?sv=2019&sig=aB%2F3=&se=2030 (refused)")
    assert first_line(error) == "Max retries exceeded with url: /azureml/m.onnx?… (refused)"
