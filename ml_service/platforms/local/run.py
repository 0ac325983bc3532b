"""A training run on this machine, as a process of its own: ``python -m ml_service.platforms.local.run RUN_DIRECTORY``.

``LocalPlatform.submit`` prepares the directory and starts the process. The process trains, lets the gate decide,
registers, and writes the result into ``run.json``. It goes on when the process that submitted it has ended;
``run_process`` says how others know that it runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ml_service.errors import MlopsError, UnavailableError
from ml_service.package import copy_registered, write_json
from ml_service.ports import Build, ModelVersion, Run, RunStatus
from ml_service.project import StepProcess, read_step_json

if TYPE_CHECKING:
    from ml_service.platforms.local.mlflow_store import MlflowStore

RUN_JSON = "run.json"
RUN_SPEC = "order.json"
"""The name on disk is older than the word "run spec": runs that an earlier version submitted stay readable."""

LOG = "log"


@dataclass(frozen=True)
class RunSpec:
    """All that a run's process needs to know, as ``submit`` wrote it into the run's directory. Paths are absolute."""

    run_id: str
    project: str
    model_name: str
    sources: str
    store: str
    experiment: str
    run_evaluation: bool
    allow_run_cancel: bool
    tags: Mapping[str, str]


def read_run_spec(directory: Path) -> RunSpec:
    """Return the spec that ``submit`` wrote."""
    return RunSpec(**json.loads((directory / RUN_SPEC).read_bytes()))


def write_run_spec(directory: Path, spec: RunSpec) -> None:
    """Write the spec that the process of this run will read."""
    write_json(directory / RUN_SPEC, asdict(spec))


def write_run(directory: Path, run: Run) -> None:
    """Write the run's state, which ``read_run`` returns."""
    write_json(directory / RUN_JSON, asdict(run))


def say(line: str) -> None:
    """Print one line to the run's log, which ``wait`` passes on as progress."""
    print(line, flush=True)


class TrainingRun:
    """One run: train, gate, register. ``directory`` holds the run spec, ``run.json`` and ``data.csv``."""

    def __init__(self, directory: Path, run: Run) -> None:
        self._directory = directory
        self._run = run
        self._spec = read_run_spec(directory)
        self._sources = Path(self._spec.sources)
        self._tags = dict(self._spec.tags)

    def execute(self) -> Run:
        """Train, compare and register; return the run as it ended.

        Raises:
            MlopsError: a step failed, or the store cannot be reached.
            Terminated: the run was asked to end.
        """
        with self._training() as training:
            # Importing and opening MLflow takes seconds, and training runs in another process meanwhile.
            from ml_service.platforms.local.mlflow_store import MlflowStore

            spec = self._spec
            store = MlflowStore(os.environ.get("MLFLOW_TRACKING_URI", ""), Path(spec.store), spec.experiment)
            mlflow_id = store.start_run(spec.run_id, self._tags)
            try:
                training.finish(self._say)
                self._log_training(store, mlflow_id)
                run = self._decide(store, mlflow_id)
            except BaseException:
                store.end_run(mlflow_id, "failed")
                raise
            store.end_run(mlflow_id, run.status.value)
            return run

    def _training(self) -> AbstractContextManager[StepProcess]:
        say(f"train: {self._spec.project}, published as {self._tags['pipeline_id']}")
        return self._started("train", *self._inputs(), "--output", str(self._candidate))

    @property
    def _candidate(self) -> Path:
        return self._directory / "candidate"

    def _inputs(self) -> list[str]:
        parameters = self._sources / self._spec.project / "parameters.json"
        return ["--data", str(self._directory / "data.csv"), "--parameters", str(parameters)]

    @contextmanager
    def _started(self, *arguments: str) -> Iterator[StepProcess]:
        """Start a step that does not outlive the block, whenever a request to end the run arrives."""
        with ExitStack() as ending:
            with _request.held_back():
                step = StepProcess(self._spec.project, arguments, self._sources, os.environ)
                ending.callback(step.stop)
            yield step

    def _step(self, *arguments: str) -> None:
        with self._started(*arguments) as step:
            step.finish(self._say)

    def _say(self, line: str) -> None:
        # The paths below the run's directory are long, and the log is in that directory.
        say(line.replace(f"{self._directory}/", ""))

    def _log_training(self, store: MlflowStore, mlflow_id: str) -> None:
        store.log(mlflow_id, read_step_json(self._candidate / "metrics.json"), {})
        store.log_directory(mlflow_id, self._candidate / "plots", "plots")

    def _decide(self, store: MlflowStore, mlflow_id: str) -> Run:
        # From here to the alias under one lock: the champion that the gate compares with is the one that it replaces.
        with store.lock(self._spec.model_name):
            champion = store.settle(self._spec.model_name)
            newest = store.newest(self._spec.model_name)
            verdict = self._verdict(store, mlflow_id, champion)
            run = replace(self._run, verdict=verdict)
            if not verdict["accept"]:
                return self._not_better(run)
            return self._register(store, mlflow_id, run, newest)

    def _verdict(self, store: MlflowStore, mlflow_id: str, champion: ModelVersion | None) -> dict[str, Any]:
        if not self._spec.run_evaluation:
            verdict: dict[str, Any] = {"accept": True, "reason": "RUN_EVALUATION=false: registered without comparing"}
            write_json(self._directory / "verdict.json", verdict)
        else:
            verdict = self._evaluate(store, champion)
            store.log_directory(mlflow_id, self._directory / "evaluation" / "plots", "plots")
        say(f"verdict: {'accepted' if verdict['accept'] else 'rejected'}: {verdict['reason']}")
        store.log(mlflow_id, {}, {"verdict": json.dumps(verdict)})
        return verdict

    def _evaluate(self, store: MlflowStore, champion: ModelVersion | None) -> dict[str, Any]:
        output = self._directory / "evaluation"
        arguments = ["evaluate", *self._inputs(), "--candidate", str(self._candidate), "--output", str(output)]
        if champion:
            say(f"evaluate: against the champion {champion.reference}")
            store.download(champion, _empty(self._directory / "champion"))
            arguments += ["--champion", str(self._directory / "champion")]
        self._step(*arguments)
        shutil.copyfile(output / "verdict.json", self._directory / "verdict.json")
        return read_step_json(output / "verdict.json")

    def _not_better(self, run: Run) -> Run:
        canceled = self._spec.allow_run_cancel
        return replace(run, status=RunStatus.CANCELED if canceled else RunStatus.COMPLETED)

    def _register(self, store: MlflowStore, mlflow_id: str, run: Run, newest: int) -> Run:
        from ml_service.platforms.local.mlflow_store import version_tags

        output = self._directory / "registration"
        verdict = self._directory / "verdict.json"
        self._step("register", "--candidate", str(self._candidate), "--verdict", str(verdict), "--output", str(output))
        registration = read_step_json(output / "registration.json")
        content = copy_registered(self._candidate, registration["files"], _empty(self._directory / "version"))
        tags = version_tags(registration, self._tags)
        version = store.register(mlflow_id, self._spec.model_name, content, tags, newest_seen=newest)
        say(f"registered: {version.reference}, the new champion")
        return replace(run, status=RunStatus.COMPLETED, registered=version.reference)


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


class Terminated(Exception):
    """The run was asked to end (SIGTERM)."""


class Request:
    """A request to end the run (SIGTERM). It raises Terminated wherever the run is, except while it is held back.

    Without holding back, the signal might arrive after a step's process has started and before the run knows of it:
    the run would end, and the step would go on without it.
    """

    def __init__(self) -> None:
        self._held_back = False
        self._arrived = False

    def arrive(self, signum: int, frame: FrameType | None) -> None:
        """Handle the signal.

        A second signal is ignored from here on: it must not interrupt the writing of the result.

        Raises:
            Terminated: unless the request is held back.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._arrived = True
        if not self._held_back:
            raise Terminated

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Hold back a request that arrives inside the block until its end.

        Raises:
            Terminated: a request has arrived.
        """
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
        if self._arrived:
            raise Terminated


_request = Request()


def main(directory: Path) -> int:
    """Execute the run in ``directory``, write its result, and return the exit code of its error, 0 without one."""
    signal.signal(signal.SIGTERM, _request.arrive)
    run = read_run(directory)
    try:
        ended = TrainingRun(directory, run).execute()
    except Terminated:
        ended = replace(run, status=RunStatus.FAILED, error="was canceled by request", exit_code=130)
    except MlopsError as error:
        ended = _failed(run, error)
    except OSError as error:
        ended = _failed(run, UnavailableError(error.strerror or str(error), where=str(error.filename or directory)))
    say(f"run {run.id}: {ended.status.value}" + (f": {ended.error}" if ended.error else ""))
    write_run(directory, ended)
    return ended.exit_code


def _failed(run: Run, error: MlopsError) -> Run:
    return replace(run, status=RunStatus.FAILED, error=str(error), exit_code=error.exit_code)


def read_run(directory: Path) -> Run:
    """Return the run's state as it was last written. It may say RUNNING of a process that was killed."""
    raw = json.loads((directory / RUN_JSON).read_bytes())
    return Run(**{**raw, "build": Build(**raw["build"]), "status": RunStatus(raw["status"])})


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip interpreter shutdown: tearing MLflow down takes over a second, and the result is written.
    os._exit(code)
