"""Two keys, from a file or the environment; either opens, nothing else does, and none is ever shown."""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path

import pytest

from scoring_service.errors import ConfigurationError
from scoring_service.keys import KeyRing, Keys, read_file, take_from_env

PRIMARY, SECONDARY = "primary-0123456789", "secondary-0123456789"


def test_either_key_is_accepted_and_nothing_else() -> None:
    """As Authorization: Bearer KEY, whatever the case of the scheme."""
    keys = Keys(PRIMARY, SECONDARY)
    wrong = [f"Bearer {PRIMARY}x", f"Basic {PRIMARY}", PRIMARY, "Bearer ", ""]
    assert [keys.accept(value.encode()) for value in (f"Bearer {PRIMARY}", f"bearer {SECONDARY}")] == [True, True]
    assert [False] * 5 == [keys.accept(value.encode()) for value in wrong]
    assert not keys.accept(None)
    assert not keys.accept(b"Bearer \xff\xfe")


def test_both_keys_are_compared_whatever_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time, and both always: the time tells neither a byte nor which key was nearly right."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return given == key

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (PRIMARY, SECONDARY, "wrong"):
        compared.clear()
        Keys(PRIMARY, SECONDARY).accept(f"Bearer {given}".encode())
        assert [(given.encode(), PRIMARY.encode()), (given.encode(), SECONDARY.encode())] == compared


def test_keys_leave_the_environment_when_they_are_read() -> None:
    """A model's script cannot find them there."""
    env = {"SCORING_PRIMARY_KEY": PRIMARY, "SCORING_SECONDARY_KEY": SECONDARY, "OTHER": "1"}
    keys = take_from_env(env)
    assert env == {"OTHER": "1"}
    assert keys.accept(f"Bearer {SECONDARY}".encode())


NO_KEYS = [
    "",
    "[]",
    "{}",
    '{"primary": ""}',
    '{"primary": "short"}',
    '{"primary": 7}',
    '{"primary": 1234567890123456789}',
    "[" * 100_000,
]


@pytest.mark.parametrize("content", NO_KEYS, ids=range(len(NO_KEYS)))
def test_a_file_without_keys_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    """Exit code 4, the place, and nothing of the content."""
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        read_file(str(path))
    assert caught.value.exit_code == 4
    assert "short" not in str(caught.value).replace("too short", "")


def test_a_changed_file_is_noticed_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    """The old keys stay in force until the file is right again."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"primary": PRIMARY}))
    ring = KeyRing(read_file(str(path)), str(path))
    assert not ring.has_changed()
    path.write_text("{")
    os.utime(path, (1, 1))
    assert ring.has_changed()
    with pytest.raises(ConfigurationError):
        ring.reload()
    assert ring.accept(f"Bearer {PRIMARY}".encode())
    path.write_text(json.dumps({"primary": SECONDARY}))
    assert ring.has_changed()
    assert ring.reload()
    assert [ring.accept(f"Bearer {key}".encode()) for key in (PRIMARY, SECONDARY)] == [False, True]


def test_keys_are_not_shown() -> None:
    """Neither in a representation nor in a traceback's locals of ours."""
    assert PRIMARY not in repr(Keys(PRIMARY, SECONDARY)) + str(vars(KeyRing(Keys(PRIMARY, SECONDARY), "")))
