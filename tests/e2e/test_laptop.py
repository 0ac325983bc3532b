"""What a person with a laptop sees: the real tasks on the real data, in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("ml_service", "diabetes_regression", "scoring", "data", "requirements", "tasks.py")
NOT_REGISTERED = "Model was not registered for this run."


@dataclass
class Laptop:
    """A copy of the repository, in which tasks are run one after the other."""

    root: Path

    def inv(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """Run a task; returns what it printed."""
        done = self._run([sys.executable, "-m", "invoke", *arguments], variables)
        assert done.returncode == code, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def shell(self, command: str) -> str:
        """Run a line of a shell; return its standard output."""
        done = self._run(["bash", "-euo", "pipefail", "-c", command], {})
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _run(self, command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        ours = ("MLOPS_", "BUILD_", "MLFLOW_", "SCORING_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        env |= {"LOCAL_PORT": "0", "CI": "", "TF_BUILD": "", **variables}
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=240)

    def build(self, build_id: str, alpha: float) -> str:
        """Publish, train and check one build; returns what check-model printed."""
        parameters = {"alpha": alpha}
        (self.root / "diabetes_regression" / "parameters.json").write_text(json.dumps(parameters))
        self.inv("publish", BUILD_BUILDID=build_id)
        self.inv("train", BUILD_BUILDID=build_id)
        return self.inv("check-model", BUILD_BUILDID=build_id)

    def status(self) -> Any:
        """What serves."""
        return json.loads(self.inv("status", "--target", "local", "--json"))

    def ask(self, body: Any, *, signed: bool = True) -> requests.Response:
        """The service's answer to a question, asked with its key or without."""
        key = json.loads(self.inv("keys", "--target", "local", "--show", "--json"))["primary"]
        headers = {"Authorization": f"Bearer {key}"} if signed else {}
        return requests.post(self.status()["url"] + "/score", json=body, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """A fresh copy; whatever it deployed is removed at the end."""
    root = tmp_path_factory.mktemp("laptop")
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, root / name)
    made = Laptop(root)
    yield made
    made.inv("undeploy", "--target", "local")


@pytest.fixture(scope="module")
def first(laptop: Laptop) -> str:
    """The first model is registered, packaged and deployed; returns what training printed."""
    laptop.inv("validate-data")
    printed = laptop.build("first", 0.1)
    laptop.inv("package-artifact", BUILD_BUILDID="first")
    laptop.inv("deploy", "--target", "local")
    return printed


@pytest.fixture(scope="module")
def second(laptop: Laptop, first: str) -> str:
    """A better model took over; returns what training printed."""
    printed = laptop.build("second", 0.4)
    laptop.inv("package-artifact", BUILD_BUILDID="second")
    laptop.inv("deploy", "--target", "local")
    return printed


def test_a_model_goes_from_the_commit_to_an_answer(laptop: Laptop, first: str) -> None:
    """The first model of its name registers, is packaged, deployed, and answers its own examples."""
    assert "Model diabetes_regression:1 was registered for this run." in first
    assert "diabetes_regression:1 answers" in laptop.inv("smoke", "--target", "local")
    model = json.loads((laptop.root / "artifact" / "model.json").read_text())
    assert (model["tags"]["build_id"], model["metrics"]["mse"]) == ("first", pytest.approx(3372.6, abs=0.1))


def test_a_better_model_takes_over_and_a_worse_one_does_not(laptop: Laptop, second: str) -> None:
    """alpha 0.4 after 0.1 registers; 0.3 after 0.4 does not, and that is no failure; each build hands over its own."""
    assert "diabetes_regression:2 was registered" in second
    assert NOT_REGISTERED in laptop.build("third", 0.3).splitlines()
    laptop.inv("check-model", "--fail-if-none", BUILD_BUILDID="third", code=7)
    laptop.inv("package-artifact", BUILD_BUILDID="third", code=7)
    assert laptop.status()["model"] == {"name": "diabetes_regression", "version": "2"}
    assert laptop.status()["previous"] == {"name": "diabetes_regression", "version": "1"}


@pytest.mark.usefixtures("second")
def test_the_service_answers_what_the_readme_says(laptop: Laptop) -> None:
    """The command as it stands there, key and all, and its answer for the parameters of this repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- commands ask -->\n```\n(.*?)```\n\nIt answers `(.*?)`", text, re.DOTALL)
    assert block is not None
    command, answer = block.groups()
    here = {".venv/bin/inv": f"'{sys.executable}' -m invoke", "http://127.0.0.1:8080": laptop.status()["url"]}
    for name, value in here.items():
        assert name in command
        command = command.replace(name, value)
    assert json.loads(laptop.shell(command))["result"] == pytest.approx(json.loads(answer)["result"], rel=1e-9)


@pytest.mark.usefixtures("second")
def test_there_is_a_way_back(laptop: Laptop) -> None:
    """A rollback brings the version before back, and it answers."""
    laptop.inv("rollback", "--target", "local")
    assert laptop.status()["model"] == {"name": "diabetes_regression", "version": "1"}
    laptop.inv("smoke", "--target", "local")


@pytest.mark.usefixtures("second")
def test_a_fix_to_scoring_ships_with_the_champion(laptop: Laptop) -> None:
    """redeploy packages the champion with the scoring code as it is now; no better model is needed."""
    before = laptop.status()["package_sha256"]
    score = laptop.root / "scoring" / "score.py"
    score.write_text(score.read_text() + "\n# fixed\n")
    laptop.inv("redeploy", "--target", "local")
    after = laptop.status()
    assert after["model"] == {"name": "diabetes_regression", "version": "2"}
    assert after["package_sha256"] != before
    assert (Path(after["package"]) / "scoring" / "score.py").read_text().endswith("# fixed\n")


@pytest.mark.usefixtures("second")
def test_a_package_that_was_touched_is_refused(laptop: Laptop) -> None:
    """One byte changed after packaging: exit code 8, the file is named, and what serves stays."""
    before = laptop.status()
    with (laptop.root / "artifact" / "package" / "model" / "examples.json").open("a") as file:
        file.write(" ")
    assert "model/examples.json was changed" in laptop.inv("deploy", "--target", "local", code=8)
    assert laptop.status() == before


@pytest.mark.usefixtures("second")
def test_a_withdrawn_model_is_never_deployed_again(laptop: Laptop) -> None:
    """The alias falls back, and neither packaging nor an artifact made before can bring it back."""
    laptop.inv("package-artifact", "--model", "diabetes_regression:2")
    laptop.inv("withdraw", "--model", "diabetes_regression:2", "--reason", "trained on a broken export")
    assert "trained on a broken export" in laptop.inv("deploy", "--target", "local", code=2)
    laptop.inv("package-artifact", "--model", "diabetes_regression:2", code=2)
    laptop.inv("redeploy", "--target", "local")
    assert laptop.status()["model"] == {"name": "diabetes_regression", "version": "1"}


@pytest.mark.usefixtures("second")
def test_a_stranger_gets_no_answer(laptop: Laptop) -> None:
    """Without a key the endpoint refuses; what is wrong with a request is said with its place."""
    row = [0.0, 0.0, "x", 0, 0, 0, 0, 0, 0, 0]
    assert laptop.ask({"data": [row]}, signed=False).status_code == 401
    refused = laptop.ask({"data": [row]})
    assert refused.status_code == 400
    assert "BMI" in refused.text
