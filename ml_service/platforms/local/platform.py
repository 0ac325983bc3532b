"""The platform on this machine: pipelines and runs as directories, tracking and registry in MLflow.

No account needed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ml_service.config import Settings
from ml_service.errors import DataError, UnavailableError, UsageError
from ml_service.package import sha256_of
from ml_service.platforms.local.pipelines import FrozenPipeline, PipelineDirectory
from ml_service.platforms.local.run import RunSpec, read_run_spec, write_run, write_run_spec
from ml_service.platforms.local.run_process import RunProcess
from ml_service.ports import (
    Build,
    Finding,
    ModelVersion,
    PipelineDefinition,
    Platform,
    Progress,
    PublishedPipeline,
    Run,
    RunStatus,
)
from ml_service.project import LOCK

if TYPE_CHECKING:
    from ml_service.platforms.local.mlflow_store import MlflowStore


class LocalPlatform(Platform):
    """Implements ``ports.Platform`` with directories, processes and MLflow."""

    name = "local"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pipelines = PipelineDirectory(settings.store / "pipelines")
        self._runs = settings.store / "runs"

    # Pipelines

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        return self._pipelines.publish(definition, build)

    def pipelines(self, project: str, build_id: str) -> Sequence[PublishedPipeline]:
        frozen = self._pipelines.find(project, build_id)
        return [frozen.published] if frozen else []

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
            RunProcess(directory).start(self._settings.tracking_uri)
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
            experiment=self._settings.experiment,
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

    def wait(self, run: Run, progress: Progress) -> Run:
        process = self._process(run)
        process.follow(progress)
        return process.read()

    def cancel(self, run: Run) -> None:
        process = self._process(run)
        process.terminate()
        process.follow(lambda line: None)

    def _process(self, run: Run) -> RunProcess:
        directory = self._runs / run.id
        if not directory.is_dir():
            raise UsageError(f"there is no run {run.id!r}", where=str(self._runs), next_step="run: inv train")
        return RunProcess(directory)

    def runs(self, project: str, build_id: str) -> Sequence[Run]:
        records = sorted(self._runs.glob(f"{build_id}-*/run.json"), key=lambda path: path.stat().st_mtime)
        directories = [path.parent for path in records if read_run_spec(path.parent).project == project]
        runs = [RunProcess(directory).read() for directory in directories]
        # "b1-*" matches the directories of build "b1-2", too.
        return [run for run in runs if run.build.id == build_id]

    def plots(self, run: Run) -> Mapping[str, str]:
        paths = sorted((self._runs / run.id).glob("*/plots/*.svg"))
        return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths}

    # Model versions

    @cached_property
    def _store(self) -> MlflowStore:
        # Imported and opened when it is needed: both take seconds.
        from ml_service.platforms.local.mlflow_store import MlflowStore

        return MlflowStore(self._settings.tracking_uri, self._settings.store, self._settings.experiment)

    def model_of_build(self, model_name: str, build_id: str) -> ModelVersion | None:
        versions = self._store.versions(model_name)
        of_build = [each for each in versions if each.tags["build_id"] == build_id and not each.withdrawn]
        return of_build[-1] if of_build else None

    def version(self, model_name: str, version: str) -> ModelVersion:
        return self._store.version(model_name, version)

    def champion(self, model_name: str) -> ModelVersion | None:
        """Return the version that the alias names, after finishing what a killed run or withdrawal began (7)."""
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


def _existing(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path
