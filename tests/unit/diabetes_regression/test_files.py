"""Writing: whole or not at all. Plots: SVG that any viewer reads. The command line: help, usage, interruption."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from diabetes_regression import __main__ as command
from diabetes_regression import files, plots
from diabetes_regression.errors import DataError, StorageError

SVG = "{http://www.w3.org/2000/svg}"


def test_a_file_is_replaced_in_one_move(tmp_path: Path) -> None:
    """Folders are made on the way, and nothing else is left behind."""
    path = tmp_path / "a" / "b.json"
    files.write(path, b"one")
    files.write(path, b"two")
    assert [(entry.name, entry.read_bytes()) for entry in path.parent.iterdir()] == [("b.json", b"two")]


def test_a_reader_of_the_old_file_never_sees_the_new_one(tmp_path: Path) -> None:
    """It is moved into place, not written over."""
    path = tmp_path / "b.json"
    files.write(path, b"old content")
    with path.open("rb") as reader:
        files.write(path, b"new")
        assert reader.read() == b"old content"


def test_half_a_candidate_over_an_old_one_is_no_candidate(tmp_path: Path) -> None:
    """Training that fails half way leaves no manifest, so the mixture of old and new is not taken for a whole."""
    files.write_candidate(tmp_path, {"a": b"old", "b": b"old"})
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageError):
        files.write_candidate(tmp_path, {"a": b"new", "b": b"new"})
    with pytest.raises(DataError, match=r"files\.json: cannot be read"):
        files.verify_candidate(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The message names the file and the system's reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/b\.json: cannot be written \(.+\); next: free some space"):
        files.write(tmp_path / "file" / "b.json", b"one")


def test_a_place_that_cannot_be_cleared_is_refused(tmp_path: Path) -> None:
    """A folder stands where an old result should be."""
    (tmp_path / "verdict.json").mkdir()
    with pytest.raises(StorageError, match=r"verdict\.json: cannot be written"):
        files.remove(tmp_path / "verdict.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """And no part of the new one; here the place of the unfinished file is taken by a folder."""
    path = tmp_path / "b.json"
    files.write(path, b"old")
    (tmp_path / f".b.json.{os.getpid()}").mkdir()
    with pytest.raises(StorageError):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"


def test_json_has_no_not_a_number() -> None:
    """Readers in other languages would refuse it."""
    with pytest.raises(ValueError, match="Out of range float"):
        files.to_json({"mse": float("nan")})


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_plot_is_svg_with_axes_and_points() -> None:
    """Every point lies inside the frame; the title counts the rows on which the candidate is closer."""
    generator = np.random.default_rng(0)
    truth = generator.normal(100, 30, size=50)
    drawn = plots.comparison(truth, truth + 1, truth + 2)
    assert "Candidate against champion: closer on 50 of 50 rows" in texts(drawn)
    circles = list(ElementTree.fromstring(plots.predictions(truth, truth + 1)).iter(f"{SVG}circle"))
    assert len(circles) == 50
    assert all(plots.LEFT <= float(circle.get("cx", 0)) <= plots.WIDTH - plots.RIGHT for circle in circles)
    assert all(plots.TOP <= float(circle.get("cy", 0)) <= plots.HEIGHT - plots.BOTTOM for circle in circles)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_axes_have_round_ticks_at_any_scale(scale: float) -> None:
    """From four to ten on each axis."""
    ticks = plots._ticks((-0.3 * scale, 1.1 * scale))
    assert 4 <= len(ticks) <= 10
    assert min(ticks) >= -0.3 * scale and max(ticks) <= 1.1 * scale


def test_a_plot_of_one_value_can_be_drawn() -> None:
    """Constant predictions are no reason to fail training."""
    assert b"<circle" in plots.residuals(np.full(3, 2.0), np.zeros(3))


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """For the command and for every step."""
    for arguments in ([], ["validate"], ["train"], ["evaluate"], ["register"], ["reference"]):
        with pytest.raises(SystemExit) as ending:
            command.main([*arguments, "--help"])
        assert ending.value.code == 0
        assert f"python -m diabetes_regression {' '.join(arguments)}".strip() in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["train", "--data"], ["register", "--candidate", "x"]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    """Exit code 2, as everywhere."""
    with pytest.raises(SystemExit) as ending:
        command.main(arguments)
    assert ending.value.code == 2


def test_an_interrupt_and_a_failing_disk_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its exit code; the step is made to fail as the system would make it."""
    for failure, code, line in (
        (KeyboardInterrupt(), 130, "register: interrupted; next: run it again\n"),
        (OSError(5, "Input/output error", "disk/file"), 5, "disk/file: Input/output error; next: look at that place\n"),
    ):
        monkeypatch.setattr(command, "_run", _raise(failure))
        assert command.main(["register", "--candidate", "c", "--verdict", "v", "--output", "o"]) == code
        assert capsys.readouterr().err == line


def _raise(failure: BaseException) -> Callable[[object], str]:
    def run(options: object) -> str:
        raise failure

    return run
