"""What ``inv status`` and ``inv keys`` print."""

from __future__ import annotations

import json

import pytest

from ml_service.errors import UnavailableError
from ml_service.ports import Keys, Status
from ml_service.report import keys_text, overview_json, overview_text, status_json, status_text

STATUS = Status(
    target="local",
    url="http://127.0.0.1:8080",
    model={"name": "m", "version": "2"},
    build_id="7",
    package="/packages/1",
    package_sha256="ab" * 32,
    image_digest=None,
    since="2026-01-01T00:00:00+00:00",
    previous={"name": "m", "version": "1"},
)
KEYS = Keys("first-secret", "second-secret")


def test_the_status_as_json_has_just_the_documented_names() -> None:
    """Scripts read it."""
    assert json.loads(status_json(STATUS)) == {
        "target": "local",
        "url": "http://127.0.0.1:8080",
        "model": {"name": "m", "version": "2"},
        "build_id": "7",
        "package": "/packages/1",
        "package_sha256": "ab" * 32,
        "image_digest": None,
        "since": "2026-01-01T00:00:00+00:00",
        "previous": {"name": "m", "version": "1"},
    }


def test_nothing_deployed_is_null_for_scripts_and_a_hint_for_people() -> None:
    """The hint is the command that deploys."""
    assert status_json(None) == "null"
    assert status_text("aks", None) == "nothing is deployed on aks: inv deploy --target aks"


def test_the_status_for_people_names_the_model_and_what_a_rollback_brings() -> None:
    """One fact a line."""
    lines = status_text("local", STATUS).splitlines()
    assert "model     m:2" in lines
    assert "previous  m:1" in lines
    assert "image     none" in lines
    assert "state     serving" in lines


OUTCOMES = {
    "local": STATUS,
    "docker": None,
    "aks": UnavailableError("does not answer\nsee the log", where="cluster", next_step="start it"),
}


def test_the_overview_has_a_line_for_each_target() -> None:
    """One that cannot be read says so, in one line, and hides none of the others."""
    assert overview_text(OUTCOMES).splitlines() == [
        "local    m:2 serving at http://127.0.0.1:8080/score since 2026-01-01T00:00:00+00:00, before it version 1",
        "docker   nothing is deployed",
        "aks      unknown: cluster: does not answer",
    ]


def test_the_overview_for_scripts_is_a_list() -> None:
    """Each status has the fields that it has alone."""
    rows = json.loads(overview_json(OUTCOMES))
    assert [row["target"] for row in rows] == ["local", "docker", "aks"]
    assert rows[0]["status"] == json.loads(status_json(STATUS))
    assert rows[1] == {"target": "docker", "status": None, "error": ""}
    assert rows[2] == {"target": "aks", "status": None, "error": "cluster: does not answer\nsee the log"}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_values_of_keys_are_printed_only_when_asked_for(as_json: bool) -> None:
    """Their names always are."""
    hidden = keys_text(KEYS, show=False, as_json=as_json)
    shown = keys_text(KEYS, show=True, as_json=as_json)
    assert "primary" in hidden
    assert "secret" not in hidden
    assert "first-secret" in shown
    assert "second-secret" in shown


def test_shown_keys_are_one_json_object() -> None:
    """``{primary, secondary}``."""
    assert json.loads(keys_text(KEYS, show=True, as_json=True)) == {
        "primary": "first-secret",
        "secondary": "second-secret",
    }
    assert json.loads(keys_text(KEYS, show=False, as_json=True)) == ["primary", "secondary"]
