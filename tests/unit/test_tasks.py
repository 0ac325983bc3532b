"""The tasks as they are invoked: help, dry runs, exit codes, and the way from publish to undeploy."""

from __future__ import annotations

import errno
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from invoke.config import Config
from invoke.context import MockContext
from invoke.exceptions import Exit
from invoke.program import Program
from invoke.tasks import Task

import tasks
from ml_service.errors import (
    ConfigurationError,
    DataError,
    IntegrityError,
    MlopsError,
    NotRegisteredError,
    UnavailableError,
    UnhealthyError,
    UsageError,
)
from ml_service.ports import Finding, Run
from ml_service.targets import TARGETS
from tests.support.fake_platform import FakePlatform
from tests.support.fake_target import FakeTarget
from tests.support.repositories import PROJECT, make_repository, set_parameters, write_data

ROOT = Path(__file__).parents[2]
TASKS: dict[str, Task[Any]] = {str(name): task for name, task in tasks.ns.tasks.items()}

CHANGES_THE_WORLD = {
    "publish": [],
    "train": [],
    "package-artifact": [],
    "withdraw": ["--model", "mean_regression:1", "--reason", "bad"],
    "build-image": [],
    "deploy": ["--target", "fake"],
    "smoke": ["--target", "fake"],
    "promote": ["--target", "fake"],
    "rollback": ["--target", "fake"],
    "undeploy": ["--target", "fake"],
    "redeploy": ["--target", "fake"],
    "ci": [],
}
"""With the options that each needs."""


def inv(*arguments: str) -> int:
    """What ``inv ARGUMENTS`` exits with, in this process."""
    try:
        Program(namespace=tasks.ns).run(["inv", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


# Listing and help


def test_listing_imports_no_sdk() -> None:
    """``inv --list`` is as quick as Invoke itself."""
    heavy = ["mlflow", "sklearn", "docker", "azureml", "azure", "kubernetes", "pandas", "numpy", "requests", "rich"]
    code = (
        "import sys\nfrom invoke.main import program\n"
        "try:\n    program.run(['inv', '--list'])\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stdout + done.stderr
    assert "publish" in done.stdout


@pytest.mark.parametrize("name", TASKS)
def test_every_task_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``inv --help TASK`` works, shows an example of that task."""
    assert inv("--help", name) == 0
    shown = capsys.readouterr().out
    assert f"inv {name}" in shown.partition("Examples:")[2].partition("Options:")[0]


def test_every_option_is_explained() -> None:
    """Asked in a process of its own, since Invoke hands each explanation out once."""
    code = (
        "import json, tasks\n"
        "print(json.dumps({n: {a.name: a.help for a in t.get_arguments()} for n, t in tasks.ns.tasks.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    explained = json.loads(done.stdout)
    assert explained.keys() == TASKS.keys()
    assert [(name, option) for name, options in explained.items() for option in options if not options[option]] == []


@pytest.mark.parametrize("name", TASKS)
def test_no_option_has_a_letter_of_its_own(name: str) -> None:
    """Short flags change meaning when an option is added."""
    assert [flag for argument in TASKS[name].get_arguments() for flag in argument.names if len(flag) == 1] == []


def test_every_task_takes_the_common_options() -> None:
    """``--platform``, ``--project``, ``--build-id``."""
    for task in TASKS.values():
        assert {"platform", "project", "build_id"} <= inspect.signature(task.body).parameters.keys()


# An environment with fakes


class TaskEnv:
    """A repository, and the fakes that the tasks are given for it."""

    def __init__(self, root: Path, platform: FakePlatform, target: FakeTarget) -> None:
        self.root, self.platform, self.target = root, platform, target

    def artifact(self, name: str = "artifact") -> list[str]:
        return ["--artifact", str(self.root / name)]


def use_fakes(env: TaskEnv, patch: pytest.MonkeyPatch) -> None:
    """Have the tasks work in the environment's repository, on its fakes."""
    home = env.root.parent
    for name in ("TF_BUILD", "CI", "MLFLOW_TRACKING_URI", "BUILD_BUILDID", "MLOPS_OUTPUTS"):
        patch.delenv(name, raising=False)
    patch.setenv("MLOPS_PROJECT", PROJECT)
    patch.setenv("MLOPS_HOME", str(home / "home"))
    patch.setattr(tasks, "ROOT", env.root)
    patch.setattr(tasks.Work, "platform", env.platform)
    patch.setattr(tasks.Work, "target", lambda work, name: env.target)
    patch.chdir(home)


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskEnv]:
    """A repository of the test's own."""
    with FakeTarget() as target:
        made = TaskEnv(make_repository(tmp_path / "repository"), FakePlatform(tmp_path / "store"), target)
        use_fakes(made, monkeypatch)
        yield made


@pytest.mark.slow
def test_the_way_from_publish_to_undeploy(env: TaskEnv, capsys: pytest.CaptureFixture[str]) -> None:
    """Each task finds what the one before it left, by the build id that publish generated."""
    target, artifact = ["--target", "fake"], env.artifact()
    assert inv("validate-data") == 0
    assert inv("publish") == 0
    assert inv("train") == 0
    assert inv("check-model", "--fail-if-none") == 0
    assert inv("package-artifact", "--output", artifact[1]) == 0
    assert inv("deploy", *target, *artifact) == 0
    assert inv("smoke", *target, *artifact) == 0
    capsys.readouterr()
    assert inv("status", *target, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == {"name": "mean_regression", "version": "1"}
    assert inv("keys", *target, "--show", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"primary": "fake-primary", "secondary": "fake-secondary"}
    assert inv("logs", *target, "--lines", "1") == 0
    assert capsys.readouterr().out == "starting version 1\n"
    assert inv("redeploy", *target, *env.artifact("again")) == 0
    assert inv("rollback", *target) == 2
    assert inv("promote", *target) == 2
    assert inv("doctor") == 0
    assert inv("undeploy", *target) == 0
    assert inv("withdraw", "--model", "mean_regression:1", "--reason", "an end") == 0
    assert env.platform.champion("mean_regression") is None


def test_every_task_first_says_which_build_it_works_for(env: TaskEnv, capsys: pytest.CaptureFixture[str]) -> None:
    """And where it has the id from."""
    inv("publish", "--build-id", "20260101.1")
    assert capsys.readouterr().out.startswith("build 20260101.1 (--build-id)\n")


@pytest.mark.slow
def test_not_waiting_returns_at_once(env: TaskEnv, capsys: pytest.CaptureFixture[str]) -> None:
    """``--no-wait``; check-model takes it up."""
    inv("publish")
    assert inv("train", "--no-wait") == 0
    assert "not waiting" in capsys.readouterr().out
    assert inv("check-model") == 0
    assert "was registered for this run" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rejected_model_exits_with_0_and_with_7_when_one_is_required(
    env: TaskEnv, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence is a line of its own."""
    for shift, build in ((0.0, "1"), (1.0, "2")):
        set_parameters(env.root, shift=shift)
        assert inv("publish", "--build-id", build) == 0
        assert inv("train", "--build-id", build) == 0
    capsys.readouterr()
    assert inv("check-model", "--build-id", "2") == 0
    assert "Model was not registered for this run." in capsys.readouterr().out.splitlines()
    assert inv("check-model", "--build-id", "2", "--fail-if-none") == 7


def test_what_stands_in_dot_env_counts_less_than_the_environment(
    env: TaskEnv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting may stand in .env."""
    (env.root / ".env").write_text("BUILD_BUILDID=from-file\nREQUIRE_IMAGE=perhaps\n")
    assert inv("publish") == 4
    assert "REQUIRE_IMAGE" in capsys.readouterr().err
    monkeypatch.setenv("REQUIRE_IMAGE", "false")
    assert inv("publish") == 0
    assert capsys.readouterr().out.startswith("build from-file (BUILD_BUILDID)\n")


def test_keys_are_not_shown_to_a_pipelines_log(
    env: TaskEnv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 under TF_BUILD, and no value is printed."""
    monkeypatch.setenv("TF_BUILD", "True")
    assert inv("keys", "--target", "fake", "--show") == 2
    shown = capsys.readouterr()
    assert "fake-primary" not in shown.out + shown.err


@pytest.mark.slow
@pytest.mark.parametrize("share", ["0", "-5", "ten"])
def test_a_share_that_is_none_is_no_full_deployment(env: TaskEnv, share: str) -> None:
    """``--canary 0`` reaches the target, which refuses it: nothing is deployed."""
    assert inv("publish") == inv("train") == inv("package-artifact", "--output", env.artifact()[1]) == 0
    assert inv("deploy", "--target", "fake", *env.artifact(), f"--canary={share}") == 2
    assert env.target.status() is None


def test_a_word_instead_of_a_number_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a line; Invoke by itself shows a traceback."""
    assert inv("logs", "--target", "local", "--lines", "many") == 2
    assert capsys.readouterr().err == "error: invalid number 'many': expected a whole number; see inv --help TASK\n"


def test_no_requests_are_not_the_default_number(
    env: TaskEnv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--min-requests 0`` is refused as the setting would be, not ignored."""
    monkeypatch.setattr(tasks.Work, "target", lambda work, name: work.settings and env.target)
    assert inv("promote", "--target", "fake", "--min-requests", "0") == 4
    assert "CANARY_MIN_REQUESTS" in capsys.readouterr().err


# Dry runs


def test_the_tasks_that_change_the_world_are_those_that_can_be_run_dry() -> None:
    """Whoever adds one adds it here, and to the tests below."""
    dry = {name for name, task in TASKS.items() if "dry_run" in inspect.signature(task.body).parameters}
    assert dry == set(CHANGES_THE_WORLD)


def world(env: TaskEnv) -> list[str]:
    """Everything that a task could have changed."""
    home = env.root.parent
    files = [path.relative_to(home).as_posix() for path in sorted(home.rglob("*"))]
    return [*files, repr(env.target.status()), repr(env.platform.champion("mean_regression"))]


def make_version(env: TaskEnv, build: str, shift: float) -> None:
    """Train and package the version of a build, in ``artifact-BUILD``."""
    set_parameters(env.root, shift=shift)
    inv("publish", "--build-id", build)
    inv("train", "--build-id", build)
    inv("package-artifact", "--build-id", build, "--output", env.artifact(f"artifact-{build}")[1])


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskEnv]:
    """Version 1 serves, version 2 is packaged; nothing is published for build 3. One for all, since dry runs change
    nothing."""
    home = tmp_path_factory.mktemp("deployed")
    with FakeTarget() as target:
        env = TaskEnv(make_repository(home / "repository"), FakePlatform(home / "store"), target)
        with pytest.MonkeyPatch.context() as patch:
            use_fakes(env, patch)
            make_version(env, "1", shift=1.0)
            make_version(env, "2", shift=0.0)
            inv("deploy", "--target", "fake", *env.artifact("artifact-1"))
        yield env


@pytest.fixture
def deployed(two_versions: TaskEnv, monkeypatch: pytest.MonkeyPatch) -> TaskEnv:
    """The tasks work there."""
    use_fakes(two_versions, monkeypatch)
    return two_versions


@pytest.mark.parametrize("name", CHANGES_THE_WORLD)
@pytest.mark.parametrize("how", ["--dry", "--dry-run"])
def test_a_dry_run_changes_nothing(deployed: TaskEnv, capsys: pytest.CaptureFixture[str], name: str, how: str) -> None:
    """Neither with Invoke's own option nor with ours; it says what would be done."""
    options = [*CHANGES_THE_WORLD[name], "--build-id", "2"]
    if name == "deploy":
        options += deployed.artifact("artifact-2")
    before = world(deployed)
    capsys.readouterr()
    assert inv(*(["--dry", name] if how == "--dry" else [name, "--dry-run"]), *options) == 0
    assert "a dry run: " in capsys.readouterr().out
    assert world(deployed) == before


def test_a_dry_deploy_shows_the_plan(deployed: TaskEnv, capsys: pytest.CaptureFixture[str]) -> None:
    """The very steps that the deployment would take."""
    capsys.readouterr()
    inv("--dry", "deploy", "--target", "fake", *deployed.artifact("artifact-2"))
    assert "plan for fake:\n  start 2\n  switch the traffic\n" in capsys.readouterr().out


def test_a_dry_run_looks_at_no_adapter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But for deploy, which plans: nothing is opened, not even to look."""

    def opened(*_: object) -> NoReturn:
        raise AssertionError("an adapter was opened")

    monkeypatch.setattr(tasks.Work, "platform", property(opened))
    monkeypatch.setattr(tasks.Work, "target", opened)
    for name in CHANGES_THE_WORLD.keys() - {"deploy"}:
        arguments = {"model": "m:1", "reason": "bad"} if name == "withdraw" else {}
        arguments |= {"target": "local"} if CHANGES_THE_WORLD[name][:1] == ["--target"] else {}
        TASKS[name](MockContext(Config(overrides={"run": {"dry": True}})), **arguments)
        TASKS[name](MockContext(), dry_run=True, **arguments)


# Errors


def failing(error: BaseException) -> Task[Any]:
    """A task whose work ends with ``error``."""

    def fails(work: tasks.Work) -> None:
        """Fail."""
        raise error

    return tasks.stage()(fails)


KINDS: list[tuple[type[MlopsError], int]] = [
    (UsageError, 2),
    (DataError, 3),
    (ConfigurationError, 4),
    (UnavailableError, 5),
    (UnhealthyError, 6),
    (NotRegisteredError, 7),
    (IntegrityError, 8),
]


@pytest.mark.parametrize("kind, code", KINDS)
def test_an_error_becomes_the_exit_code_of_its_kind(
    kind: type[MlopsError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where, why and the next step on standard error; nothing else."""
    with pytest.raises(Exit) as ended:
        failing(kind("went wrong", where="here", next_step="mend it"))(MockContext())
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: here: went wrong\nnext: mend it\n"


def test_a_full_disk_is_told_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """With the file, and exit code 5."""
    with pytest.raises(Exit) as ended:
        failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/store/runs/1"))(MockContext())
    assert ended.value.code == 5
    assert capsys.readouterr().err.startswith("error: /store/runs/1: No space left on device\nnext: make room")


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    """As shells have it."""
    with pytest.raises(Exit) as ended:
        failing(KeyboardInterrupt())(MockContext())
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, code, named",
    [
        (["publish", "--platform", "cloud"], 2, "cloud"),
        (["publish", "--project", "missing"], 2, "missing"),
        (["publish", "--build-id", "a/b"], 2, "--build-id"),
        (["train", "--build-id", "unknown"], 2, "unknown"),
        (["train", "--build-id", "1", "--pipeline-id", "unknown"], 2, "unknown"),
        (["test", "--suite", "unti"], 2, "unti"),
        (["package-artifact", "--model", "nonsense"], 2, "nonsense"),
    ],
)
def test_what_is_not_known_is_named_without_a_traceback(
    env: TaskEnv, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, named: str
) -> None:
    """On standard error, with the exit code of its kind."""
    (env.root / "tests").mkdir()
    assert inv(*arguments) == code
    shown = capsys.readouterr()
    assert named in shown.err + shown.out
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err + shown.out


@pytest.mark.slow
def test_rejected_data_exits_with_3(env: TaskEnv, capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of the project."""
    write_data(env.root, ["text"])
    assert inv("validate-data") == 3
    assert "not a number in column Y" in capsys.readouterr().err


def test_without_fakes_an_unknown_target_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The next step lists those that there are."""
    assert inv("status", "--target", "moon") == 2
    printed = capsys.readouterr().err
    assert "unknown target 'moon'" in printed
    assert f"use one of: {', '.join(sorted(TARGETS))}" in printed


def test_what_nobody_expected_is_told_without_its_commands(
    env: TaskEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback goes through the printer like everything else: it may hold text from outside."""

    def fail(*_: object, **__: object) -> None:
        raise LookupError("##vso[task.complete]\x1b[2J\nsecond line")

    monkeypatch.setattr("ml_service.workflows.validation.validate_data", fail)
    assert inv("validate-data") == 1
    printed = "".join(capsys.readouterr())
    assert "Traceback" in printed and "error: unexpected LookupError: # #vso[task.complete] [2J" in printed
    assert "##vso[" not in printed and "\x1b" not in printed


def test_a_file_of_settings_that_cannot_be_read_is_named(env: TaskEnv, capsys: pytest.CaptureFixture[str]) -> None:
    """Its error is told by a console that does not need it."""
    (env.root / ".env").write_bytes(b"IMAGE_NAME=\xe9\n")
    assert inv("validate-data") == 4
    assert ".env: is not UTF-8" in capsys.readouterr().err


# Tasks that hand over to a tool


def test_lint_test_and_coverage_hand_over_to_quality(
    env: TaskEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their options, in the repository."""
    from ml_service import quality

    calls: list[object] = []

    def record(name: str) -> Callable[..., None]:
        return lambda root, console, **options: calls.append((name, root, options))

    for name in ("lint", "test", "coverage"):
        monkeypatch.setattr(quality, name, record(name))
    assert inv("lint", "--junit", "l.xml") == 0
    assert inv("test", "--suite", "unit,e2e", "--failed") == 0
    assert inv("coverage", "--quick", "--xml", "c.xml") == 0
    assert calls == [
        ("lint", env.root, {"fix": False, "junit": "l.xml"}),
        ("test", env.root, {"suites": ["unit", "e2e"], "quick": False, "failed": True, "measured": True, "junit": ""}),
        ("coverage", env.root, {"quick": True, "xml": "c.xml", "html": ""}),
    ]


CI_TASKS = """
import os
from invoke import task
from invoke.exceptions import Exit

def stage(name, code=0):
    @task(name=name)
    def run(c, target=None, quick=False):
        print(name, "of build", os.environ["BUILD_BUILDID"])
        if code:
            raise Exit(code=code)
    return run

from ml_service.stages import STAGES
from invoke import Collection
ns = Collection(*(stage(each.task, CODES.get(each.task, 0)) for each in STAGES))
"""


@pytest.fixture
def serving(env: TaskEnv) -> TaskEnv:
    """A version serves in a repository of the test's own."""
    make_version(env, "1", shift=0.0)
    inv("deploy", "--target", "fake", *env.artifact("artifact-1"))
    return env


@pytest.mark.slow
@pytest.mark.parametrize("codes, expected", [({}, 0), ({"train": 3}, 3)])
def test_ci_runs_every_stage_and_ends_with_a_table(
    serving: TaskEnv,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    codes: dict[str, int],
    expected: int,
) -> None:
    """One build id for all of them; by hand the service stays, and how to stop it is told."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (serving.root / "tasks.py").write_text(f"CODES = {codes!r}\n{CI_TASKS}")
    assert inv("ci", "--build-id", "7") == expected
    shown = capfd.readouterr().out
    assert "lint of build 7" in shown
    assert ("smoke of build 7" in shown) is not bool(codes)
    assert "what to look at" in shown
    assert "stop it: inv undeploy --target local" in shown
    assert serving.target.status() is not None


@pytest.mark.slow
def test_ci_leaves_nothing_running_on_a_build_agent(
    serving: TaskEnv, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """CI=true undeploys at the end."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CI", "true")
    (serving.root / "tasks.py").write_text(f"CODES = {{}}\n{CI_TASKS}")
    assert inv("ci") == 0
    assert serving.target.status() is None


def test_ci_says_first_what_would_fail_later(
    serving: TaskEnv, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A busy port, data that is not there, a directory that it must not replace: no stage runs."""
    monkeypatch.setattr(
        FakeTarget, "diagnose", lambda self: [Finding("port", False, "8080: in use", "set LOCAL_PORT to a free one")]
    )
    assert inv("ci") == 5
    assert "error: port: 8080: in use\nnext: set LOCAL_PORT to a free one" in capfd.readouterr().err
    (serving.root.parent / "artifact").mkdir()
    (serving.root.parent / "artifact" / "diary.txt").touch()
    assert inv("ci") == 2
    assert "holds something else than an artifact" in capfd.readouterr().err
    monkeypatch.setenv("DATA_FILE", "nowhere.csv")
    assert inv("ci") == 3
    shown = capfd.readouterr()
    assert "nowhere.csv: there is no such data file" in shown.err
    assert "── inv lint" not in shown.out


class Interrupted(FakePlatform):
    """Somebody presses Ctrl-C while a run is waited for."""

    canceled = False

    def wait(self, run: Run, progress: Callable[[str], None]) -> Run:
        raise KeyboardInterrupt

    def cancel(self, run: Run) -> None:
        self.canceled = True
        self._execution(run).canceled.set()


def test_an_interrupted_training_on_this_machine_is_canceled(
    env: TaskEnv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody is asked: the run would be in nobody's sight. Exit code 130."""
    platform = Interrupted(tmp_path / "interrupted")
    monkeypatch.setattr(tasks.Work, "platform", platform)
    inv("publish")
    assert inv("train") == 130
    assert platform.canceled


@pytest.mark.parametrize("terminal, answer, canceled", [(True, "y", True), (True, "", False), (False, "y", False)])
def test_an_interrupted_training_elsewhere_goes_on_unless_a_person_says_so(
    env: TaskEnv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool, answer: str, canceled: bool
) -> None:
    """Without a terminal nobody can be asked."""
    platform = Interrupted(tmp_path / "interrupted")
    monkeypatch.setattr(tasks.Work, "platform", platform)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    inv("publish", "--platform", "azureml")
    assert inv("train", "--platform", "azureml") == 130
    assert platform.canceled is canceled
