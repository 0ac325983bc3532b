"""The project as platforms run it: ``python -m diabetes_regression STEP …``, files in and files out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DATA = "data/diabetes.csv"
PARAMETERS = "diabetes_regression/parameters.json"


def step(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diabetes_regression", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def modules_after(*arguments: object) -> set[str]:
    """The top-level modules that a step has imported when it ends."""
    script = (
        "import sys; from diabetes_regression.__main__ import main; code = main(sys.argv[1:]);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules})); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train`` writes with the project's own data and parameters."""
    output = tmp_path_factory.mktemp("steps") / "candidate"
    done = step("train", "--data", DATA, "--parameters", PARAMETERS, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    return output


def test_the_four_steps_follow_each_other(candidate: Path, tmp_path: Path) -> None:
    """Each ends with 0, tells one line of progress, and leaves the files of the contract."""
    common = ("--data", DATA)
    verdict = tmp_path / "evaluation" / "verdict.json"
    done = [
        step("validate", *common, "--reference", "data/reference.json", "--report", tmp_path / "report.json"),
        step("evaluate", *common, "--parameters", PARAMETERS, "--candidate", candidate, "--output", verdict.parent),
        step("register", "--candidate", candidate, "--verdict", verdict, "--output", tmp_path / "registration"),
    ]
    # Nothing on standard error: no library warns about how it is used.
    assert [(one.returncode, one.stdout.count("\n"), one.stderr) for one in done] == [(0, 1, "")] * 3
    assert json.loads((tmp_path / "report.json").read_bytes())["problems"] == []
    registration = json.loads((tmp_path / "registration" / "registration.json").read_bytes())
    assert registration["metrics"]["mse"] == pytest.approx(3295.714938563238, abs=1e-6)
    assert set(registration["files"]) == {
        "metrics.json",
        "model/examples.json",
        "model/model.onnx",
        "model/signature.json",
        "training-rows.json",
    }


def test_a_rejected_candidate_is_no_failure(candidate: Path, tmp_path: Path) -> None:
    """evaluate ends with 0 and says why; register will not take it."""
    common = ("--data", DATA, "--parameters", PARAMETERS, "--candidate", candidate, "--champion", candidate)
    done = step("evaluate", *common, "--output", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("reject: not better: mse equals the champion's")
    refused = step("register", "--candidate", candidate, "--verdict", tmp_path / "verdict.json", "--output", tmp_path)
    assert refused.returncode == 3
    assert "the verdict does not accept the candidate (not better: " in refused.stderr


def test_steps_import_only_what_they_need(candidate: Path, tmp_path: Path) -> None:
    """train does not wait for pandera, evaluate not for scikit-learn or pandas, register not even for numpy."""
    common = ("--data", DATA, "--parameters", PARAMETERS)
    trained = modules_after("train", *common, "--output", tmp_path / "candidate")
    evaluated = modules_after("evaluate", *common, "--candidate", candidate, "--output", tmp_path)
    registering = ("--candidate", candidate, "--verdict", tmp_path / "verdict.json", "--output", tmp_path)
    slow = {"sklearn", "pandas", "pandera", "scipy", "matplotlib", "skl2onnx", "onnx"}
    assert trained & slow == {"sklearn", "pandas", "scipy", "onnx"}  # scikit-learn imports pandas where there is one
    assert evaluated & slow == set()
    assert modules_after("register", *registering) & (slow | {"numpy", "onnxruntime"}) == set()


@pytest.mark.parametrize("name", ["train", "validate"])
def test_bad_data_ends_with_3_and_one_line(tmp_path: Path, name: str) -> None:
    """Where, why, and the next step; no traceback."""
    data = tmp_path / "rows.csv"
    data.write_text((ROOT / DATA).read_text().replace("151.0", "many", 1))
    more = ["--parameters", PARAMETERS, "--output", tmp_path / "candidate"] if name == "train" else []
    done = step(name, "--data", data, *more)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"{data}, row 2, column Y: 'many' is not a number; next: correct the file")
    assert done.stderr.count("\n") == 1


def test_a_wrong_command_ends_with_2() -> None:
    """The usage is shown, and the steps there are."""
    done = step("trian")
    assert done.returncode == 2
    assert "invalid choice: 'trian' (choose from" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; the test is skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_plainly(small_disk: Path) -> None:
    """Exit code 5, one line; the candidate is not whole, and nothing unfinished stays to fill the disk."""
    (small_disk / "ballast").write_bytes(b"x" * 20 * 1024)
    done = step("train", "--data", DATA, "--parameters", PARAMETERS, "--output", small_disk / "candidate")
    assert done.returncode == 5
    assert "cannot be written (No space left on device); next: free some space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (small_disk / "candidate" / "files.json").exists()
    assert not [path for path in small_disk.rglob(".*") if path.is_file()]


def test_an_interrupt_ends_with_130(tmp_path: Path) -> None:
    """Ctrl-C while the data is read: one line, no traceback, nothing written."""
    data = tmp_path / "rows.csv"
    os.mkfifo(data)
    arguments = ["train", "--data", str(data), "--parameters", PARAMETERS, "--output", str(tmp_path / "candidate")]
    command = [sys.executable, "-m", "diabetes_regression", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with data.open("w"):  # opens once the step reads, which then waits for rows
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "train: interrupted; next: run it again\n")
    assert not (tmp_path / "candidate").exists()


def test_the_recipe_reproduces_from_another_folder(tmp_path: Path) -> None:
    """The published copy of the project runs alone: its folder and the data, without the rest of the repository."""
    for name in ("diabetes_regression", "data"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    arguments = ["train", "--data", DATA, "--parameters", PARAMETERS, "--output", "candidate"]
    command = [sys.executable, "-m", "diabetes_regression", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "candidate" / "files.json").is_file()
