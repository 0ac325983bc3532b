"""Log lines are JSON, one per line, whatever text comes from outside. Writing them never blocks."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from scoring_service.errors import plain, quote
from scoring_service.json_log import JsonLog, JsonLogStream


def test_lines_are_json_with_time_level_and_event(tmp_path: Path) -> None:
    """One object a line."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        log = JsonLog(file.fileno(), lambda lines: None)
        log.event("info", "one", text='a\nb"c', number=1)
        log.event("error", "two")
        log.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [("info", "one"), ("error", "two")]
    assert list(lines[0]) == ["time", "level", "event", "text", "number"]
    assert lines[0]["text"] == 'a\\u000ab"c'


@given(st.text())
def test_outside_text_is_one_line_of_printable_ascii_without_commands(text: str) -> None:
    """No control character, no line separator, no ##vso[ and no ##[."""
    for shown in (plain(text), quote(text)[1:-2]):
        assert shown.isascii() and (shown.isprintable() or not shown)
        assert "#" not in shown


def test_a_reader_that_does_not_read_never_blocks_the_service() -> None:
    """Lines are buffered up to a limit, then dropped. What is not written is counted."""
    dropped: list[int] = []
    reading, writing = os.pipe()
    log = JsonLog(writing, dropped.append)
    for number in range(30_000):
        log.event("info", "line", number=number)
    log.flush()
    assert 0 < sum(dropped) < 30_000
    accepted = 30_000 - sum(dropped)
    assert accepted * 90 < 2 * 1024 * 1024
    first = os.read(reading, 65536)
    assert first.startswith(b'{"time":')
    os.close(reading)
    log.flush()
    dropped_after = sum(dropped)
    log.flush()
    assert 30_000 - sum(dropped) == first.count(b"\n") and sum(dropped) == dropped_after
    os.close(writing)


def test_what_a_script_prints_becomes_lines_cut_to_size() -> None:
    """Empty lines are left out, long ones cut, unfinished ones wait for their end."""
    lines: list[str] = []
    stream = JsonLogStream(lines.append)
    print("one\n\ntwo", file=stream)
    print("thr", end="", file=stream)
    print("ee", file=stream)
    print("x" * 10_000, file=stream)
    assert ["one", "two", "three", "x" * 500] == lines
