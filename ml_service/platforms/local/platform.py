"""The platform on this machine: pipelines and runs as directories, tracking and registry in MLflow.

No account needed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ml_service.config import Settings
from ml_service.errors import DataError, UnavailableError, UsageError
from ml_service.package import sha256_of
from ml_service.platforms.local.pipelines import FrozenPipeline, PipelineDirectory
from ml_service.platforms.local.run import LOG, RunSpec, read_run, read_run_spec, write_run, write_run_spec
from ml_service.ports import (
    Build,
    Finding,
    ModelVersion,
    PipelineDefinition,
    Progress,
    PublishedPipeline,
    Run,
    RunStatus,
)
from ml_service.project import LOCK

if TYPE_CHECKING:
    from ml_service.platforms.local.mlflow_store import MlflowStore

_POLL = 0.05
"""Seconds between two looks at a run."""

_CODE = Path(__file__).resolve().parents[3]
"""Where ``ml_service`` is found: the project that a run trains may be in another repository."""


class LocalPlatform:
    """Implements ``ports.Platform`` with directories, processes and MLflow."""

    name = "local"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pipelines = PipelineDirectory(settings.store / "pipelines")
        self._runs = settings.store / "runs"
        self._opened: MlflowStore | None = None

    # Pipelines

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        return self._pipelines.publish(definition, build)

    def pipelines(self, project: str, build_id: str) -> Sequence[PublishedPipeline]:
        found = self._pipelines.find(project, build_id)
        return [found.published] if found else []

    def pipeline(self, pipeline_id: str) -> PublishedPipeline:
        return self._pipelines.get(pipeline_id).published

    # Runs

    def submit(self, pipeline: PublishedPipeline, build: Build, data: Path) -> Run:
        frozen = self._pipelines.get(pipeline.id)
        self._pipelines.verify(frozen)
        self._refuse_other_lock(frozen)
        run = Run(
            id=f"{build.id}-{secrets.token_hex(4)}",
            pipeline_id=pipeline.id,
            build=build,
            status=RunStatus.RUNNING,
        )
        directory = self._runs / run.id
        directory.mkdir(parents=True)
        try:
            _snapshot(data, directory / "data.csv")
            write_run_spec(directory, self._run_spec(frozen, run, sha256_of(directory / "data.csv")))
            write_run(directory, run)
            self._start(directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return replace(run, url=str(directory))

    def _refuse_other_lock(self, frozen: FrozenPipeline) -> None:
        """Sources are frozen with the pipeline, libraries are those of this environment, which follows the lock."""
        lock = self._settings.root / LOCK
        if not lock.is_file() or sha256_of(lock) != frozen.lock_sha256:
            raise UsageError(
                f"the lock has changed since {frozen.published.id} was published, and its libraries with it",
                where=str(lock),
                next_step="publish again under another build id: BUILD_BUILDID=… inv publish",
            )

    def _run_spec(self, frozen: FrozenPipeline, run: Run, data_sha256: str) -> RunSpec:
        published = frozen.published
        return RunSpec(
            run_id=run.id,
            project=published.project,
            model_name=published.model_name,
            sources=str(frozen.sources),
            store=str(self._settings.store),
            experiment=self._experiment,
            run_evaluation=frozen.parameters["run_evaluation"],
            allow_run_cancel=frozen.parameters["allow_run_cancel"],
            tags={
                "run_id": run.id,
                "build_id": run.build.id,
                "build_uri": run.build.uri,
                # The sources are those of the publication, whatever is checked out by now.
                "git_commit": published.build.git_commit,
                "pipeline_id": published.id,
                "data_sha256": data_sha256,
                "lock_sha256": frozen.lock_sha256,
            },
        )

    def _start(self, directory: Path) -> None:
        # The lock belongs to the open file that the process inherits: it is held as long as the process lives.
        with (directory / "alive").open("w") as alive, (directory / LOG).open("wb") as log:
            fcntl.flock(alive, fcntl.LOCK_EX)
            process = subprocess.Popen(
                [sys.executable, "-m", "ml_service.platforms.local.run", str(directory)],
                cwd=_CODE,
                # By the environment, since an address may hold a password.
                env={**os.environ, "MLFLOW_TRACKING_URI": self._settings.tracking_uri},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[alive.fileno()],
            )
            (directory / "pid").write_text(str(process.pid))

    def wait(self, run: Run, progress: Progress) -> Run:
        directory = self._runs / run.id
        if not directory.is_dir():
            raise UsageError(f"there is no run {run.id!r}", where=str(self._runs), next_step="run: inv train")
        lines = _tail(directory / LOG)
        while _is_alive(directory):
            _pass_on(lines, progress)
            time.sleep(_POLL)
        _pass_on(lines, progress)
        return self._read(directory)

    def cancel(self, run: Run) -> None:
        directory = self._runs / run.id
        if _is_alive(directory):
            os.kill(int((directory / "pid").read_text()), signal.SIGTERM)
        self.wait(run, lambda line: None)

    def runs(self, project: str, build_id: str) -> Sequence[Run]:
        directories = sorted(self._runs.glob(f"{build_id}-*/run.json"), key=lambda path: path.stat().st_mtime)
        found = [self._read(path.parent) for path in directories if read_run_spec(path.parent).project == project]
        return [run for run in found if run.build.id == build_id]

    def plots(self, run: Run) -> Mapping[str, str]:
        found = sorted((self._runs / run.id).glob("*/plots/*.svg"))
        return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in found}

    def _read(self, directory: Path) -> Run:
        alive = _is_alive(directory)
        run = replace(read_run(directory), url=str(directory))
        if run.status is RunStatus.RUNNING and not alive:
            return replace(run, status=RunStatus.FAILED, error=_how_it_died(directory), exit_code=5)
        return run

    # Model versions

    @property
    def _experiment(self) -> str:
        return self._settings.experiment

    @property
    def _store(self) -> MlflowStore:
        if self._opened is None:
            from ml_service.platforms.local.mlflow_store import MlflowStore

            self._opened = MlflowStore(self._settings.tracking_uri, self._settings.store, self._experiment)
        return self._opened

    def model_of_build(self, model_name: str, build_id: str) -> ModelVersion | None:
        mine = [
            version
            for version in self._store.versions(model_name)
            if version.tags["build_id"] == build_id and not version.withdrawn
        ]
        return mine[-1] if mine else None

    def version(self, model_name: str, version: str) -> ModelVersion:
        return self._store.version(model_name, version)

    def champion(self, model_name: str) -> ModelVersion | None:
        with self._store.lock(model_name):
            return self._store.settle(model_name)

    def download(self, version: ModelVersion, directory: Path) -> None:
        self._store.download(version, directory)

    def withdraw(self, version: ModelVersion, reason: str) -> ModelVersion | None:
        return self._store.withdraw(version, reason)

    def diagnose(self) -> Sequence[Finding]:
        store = self._settings.store
        free = shutil.disk_usage(_existing(store)).free
        writable = os.access(_existing(store), os.W_OK)
        return [
            Finding("store", writable, f"{store} can{'' if writable else 'not'} be written", "set MLOPS_STORE"),
            Finding("disk", free > 1 << 28, f"{free >> 20} MiB free", "make room, or set MLOPS_HOME to another disk"),
            self._diagnose_tracking(),
        ]

    def _diagnose_tracking(self) -> Finding:
        if not self._settings.tracking_uri and not (self._settings.store / "mlflow.db").exists():
            return Finding("tracking store", True, "SQLite on this machine, which the first run makes")
        try:
            self._store.versions("none")
        except UnavailableError as error:
            return Finding("tracking store", False, str(error), "check MLFLOW_TRACKING_URI")
        return Finding("tracking store", True, self._settings.tracking_uri or "SQLite on this machine")


def _snapshot(data: Path, copy: Path) -> None:
    try:
        shutil.copyfile(data, copy)
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(
            "there is no such data file", where=str(data), next_step="check DATA_FILE, or the data of project.json"
        ) from None


def _is_alive(directory: Path) -> bool:
    try:
        with (directory / "alive").open("r") as alive:
            fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _tail(path: Path) -> Iterator[str | None]:
    """The lines of a growing file; None when there is no whole line for now."""
    with path.open(encoding="utf-8", errors="replace") as file:
        part = ""
        while True:
            part += file.readline()
            if part.endswith("\n"):
                yield part.rstrip("\n")
                part = ""
            else:
                yield None


def _pass_on(lines: Iterator[str | None], progress: Progress) -> None:
    while (line := next(lines)) is not None:
        progress(line)


def _how_it_died(directory: Path) -> str:
    lines = (directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    free = shutil.disk_usage(directory).free
    if free < 1 << 20:
        return f"ended without a result: the disk of {directory} is full"
    return f"ended without a result, perhaps it was killed; its log ends with: {lines[-1] if lines else 'nothing'}"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
