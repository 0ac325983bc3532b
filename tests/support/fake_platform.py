"""The Platform port without a tracking service: everything in this process, and the steps of a project run for real."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ml_service.errors import DataError, MlopsError, UsageError
from ml_service.package import compare_files, hash_files, sha256_of
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
from ml_service.project import StepProcess, read_step_json


@dataclass
class _Frozen:
    published: PublishedPipeline
    sources: Path
    parameters: Mapping[str, bool]
    lock_sha256: str


@dataclass
class _Execution:
    """A run and the thread that executes it."""

    run: Run
    project: str
    directory: Path
    lines: list[str] = field(default_factory=list)
    canceled: threading.Event = field(default_factory=threading.Event)
    step: StepProcess | None = None
    thread: threading.Thread | None = None


def _unmeasured(env: Mapping[str, str]) -> dict[str, str]:
    """Without coverage.py, which would take longer to start than the step takes, and sees nothing there."""
    return {name: value for name, value in env.items() if not name.startswith("COVERAGE_")}


class _Canceled(Exception):
    """The run was asked to end."""


class FakePlatform(Platform):
    """Implements ``ports.Platform``; files are below ``directory``, all else is in memory.

    A run is a thread. Two platforms that share nothing are two stores; one object may be used from several threads.
    """

    name = "fake"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.RLock()
        self._gates: dict[str, threading.Lock] = {}
        self._published: list[_Frozen] = []
        self._executions: dict[str, _Execution] = {}
        self._versions: list[ModelVersion] = []
        self._stored: dict[str, Path] = {}

    # Pipelines

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        content = _content(definition)
        with self._lock:
            for found in self._of_build(definition.project, build.id):
                if found.content_sha256 == content:
                    return found
                raise UsageError(
                    f"build {build.id} has published other content already, as {found.id}",
                    where="publish",
                    next_step="publish under another build id",
                )
            identity = f"{definition.project}.{build.id}"
            published = PublishedPipeline(identity, definition.project, definition.model_name, build, content)
            sources = self._freeze(definition)
            self._published.append(_Frozen(published, sources, definition.parameters, definition.lock_sha256))
            return published

    def _of_build(self, project: str, build_id: str) -> list[PublishedPipeline]:
        found = [frozen.published for frozen in self._published]
        return [each for each in found if (each.project, each.build.id) == (project, build_id)]

    def _freeze(self, definition: PipelineDefinition) -> Path:
        sources = self._new("sources")
        for name in definition.files:
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(definition.root / name, sources / name)
        return sources

    def _new(self, prefix: str) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self._directory))

    def pipelines(self, project: str, build_id: str) -> Sequence[PublishedPipeline]:
        with self._lock:
            return self._of_build(project, build_id)

    def pipeline(self, pipeline_id: str) -> PublishedPipeline:
        return self._frozen(pipeline_id).published

    def _frozen(self, pipeline_id: str) -> _Frozen:
        with self._lock:
            for frozen in self._published:
                if frozen.published.id == pipeline_id:
                    return frozen
        raise UsageError(f"no pipeline {pipeline_id!r} is published here", next_step="run: inv publish")

    # Runs

    def submit(self, pipeline: PublishedPipeline, build: Build, data: Path) -> Run:
        frozen = self._frozen(pipeline.id)
        if not data.is_file():
            raise DataError("there is no such data file", where=str(data), next_step="check DATA_FILE")
        directory = self._new("run")
        shutil.copyfile(data, directory / "data.csv")
        run = Run(directory.name, pipeline.id, build, RunStatus.RUNNING, url=directory.as_uri())
        execution = _Execution(run, pipeline.project, directory)
        execution.thread = threading.Thread(target=self._execute, args=(execution, frozen), daemon=True)
        with self._lock:
            self._executions[run.id] = execution
        execution.thread.start()
        return run

    def wait(self, run: Run, progress: Progress) -> Run:
        execution = self._execution(run)
        assert execution.thread is not None
        execution.thread.join()
        for line in execution.lines:
            progress(line)
        return execution.run

    def cancel(self, run: Run) -> None:
        execution = self._execution(run)
        with self._lock:
            execution.canceled.set()
            if execution.step:
                execution.step.stop()
        self.wait(run, lambda line: None)

    def runs(self, project: str, build_id: str) -> Sequence[Run]:
        with self._lock:
            executions = [each for each in self._executions.values() if each.project == project]
        return [each.run for each in executions if each.run.build.id == build_id]

    def _execution(self, run: Run) -> _Execution:
        with self._lock:
            if run.id not in self._executions:
                raise UsageError(f"there is no run {run.id!r}", next_step="run: inv train")
            return self._executions[run.id]

    def _execute(self, execution: _Execution, frozen: _Frozen) -> None:
        try:
            execution.run = self._train(execution, frozen)
        except _Canceled:
            execution.run = replace(
                execution.run, status=RunStatus.FAILED, error="was canceled by request", exit_code=130
            )
        except MlopsError as error:
            execution.run = replace(execution.run, status=RunStatus.FAILED, error=str(error), exit_code=error.exit_code)

    def _train(self, execution: _Execution, frozen: _Frozen) -> Run:
        directory, project = execution.directory, frozen.published.project
        inputs = ["--data", str(directory / "data.csv")]
        inputs += ["--parameters", str(frozen.sources / project / "parameters.json")]
        candidate = directory / "candidate"
        self._step(execution, frozen, "train", *inputs, "--output", str(candidate))
        with self._gate(frozen.published.model_name):
            verdict = self._verdict(execution, frozen, inputs, candidate)
            run = replace(execution.run, verdict=verdict, status=RunStatus.COMPLETED)
            if not verdict["accept"]:
                return replace(run, status=RunStatus.CANCELED) if frozen.parameters["allow_run_cancel"] else run
            version = self._register(execution, frozen, candidate, directory / "evaluation" / "verdict.json")
            return replace(run, registered=version.reference)

    def _step(self, execution: _Execution, frozen: _Frozen, *arguments: str) -> None:
        with self._lock:
            if execution.canceled.is_set():
                raise _Canceled
            execution.step = StepProcess(frozen.published.project, arguments, frozen.sources, _unmeasured(os.environ))
        try:
            execution.step.finish(execution.lines.append)
        except MlopsError:
            if execution.canceled.is_set():
                raise _Canceled from None
            raise

    def _gate(self, model_name: str) -> threading.Lock:
        with self._lock:
            return self._gates.setdefault(model_name, threading.Lock())

    def _verdict(
        self, execution: _Execution, frozen: _Frozen, inputs: Sequence[str], candidate: Path
    ) -> dict[str, Any]:
        output = execution.directory / "evaluation"
        if not frozen.parameters["run_evaluation"]:
            output.mkdir()
            verdict = {"accept": True, "reason": "registered without comparing"}
            (output / "verdict.json").write_text(json.dumps(verdict))
            return verdict
        arguments = ["evaluate", *inputs, "--candidate", str(candidate), "--output", str(output)]
        if champion := self.champion(frozen.published.model_name):
            restored = execution.directory / "champion"
            restored.mkdir()
            self.download(champion, restored)
            arguments += ["--champion", str(restored)]
        self._step(execution, frozen, *arguments)
        return read_step_json(output / "verdict.json")

    def _register(self, execution: _Execution, frozen: _Frozen, candidate: Path, verdict: Path) -> ModelVersion:
        output = execution.directory / "registration"
        arguments = ["--candidate", str(candidate), "--verdict", str(verdict), "--output", str(output)]
        self._step(execution, frozen, "register", *arguments)
        registration = read_step_json(output / "registration.json")
        stored = self._new("version")
        for name in registration["files"]:
            (stored / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(candidate / name, stored / name)
        with self._lock:
            if execution.canceled.is_set():
                raise _Canceled
            version = self._numbered(execution, frozen, registration)
            self._stored[version.id] = stored
            self._versions.append(version)
            return version

    def _numbered(self, execution: _Execution, frozen: _Frozen, registration: Mapping[str, Any]) -> ModelVersion:
        name = frozen.published.model_name
        number = str(sum(version.name == name for version in self._versions) + 1)
        build = execution.run.build
        tags = {
            "run_id": execution.run.id,
            "build_id": build.id,
            "build_uri": build.uri,
            "git_commit": build.git_commit,
            "pipeline_id": frozen.published.id,
            "data_sha256": sha256_of(execution.directory / "data.csv"),
            "lock_sha256": frozen.lock_sha256,
            "training_rows_sha256": registration["training_rows_sha256"],
            "runtime": registration["runtime"],
        }
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        metrics, files = registration["metrics"], registration["files"]
        return ModelVersion(f"{name}:{number}", name, number, created, tags, metrics, files)

    # Model versions

    def _standing(self, model_name: str) -> list[ModelVersion]:
        with self._lock:
            return [version for version in self._versions if version.name == model_name and not version.withdrawn]

    def model_of_build(self, model_name: str, build_id: str) -> ModelVersion | None:
        mine = [version for version in self._standing(model_name) if version.tags["build_id"] == build_id]
        return mine[-1] if mine else None

    def version(self, model_name: str, version: str) -> ModelVersion:
        with self._lock:
            for each in self._versions:
                if (each.name, each.version) == (model_name, version):
                    return each
        raise UsageError(f"{model_name}:{version} is not registered", where="--model")

    def champion(self, model_name: str) -> ModelVersion | None:
        standing = self._standing(model_name)
        return standing[-1] if standing else None

    def download(self, version: ModelVersion, directory: Path) -> None:
        shutil.copytree(self.stored(version), directory, dirs_exist_ok=True)
        compare_files(version.files, hash_files(directory), where=directory, next_step="withdraw it")

    def stored(self, version: ModelVersion) -> Path:
        """Where the files of a version are kept; a test may damage them."""
        return self._stored[version.id]

    def withdraw(self, version: ModelVersion, reason: str) -> ModelVersion | None:
        with self._lock:
            current = self.version(version.name, version.version)
            if not current.withdrawn:
                self._versions[self._versions.index(current)] = replace(current, withdrawn=reason)
            return self.champion(version.name)

    def plots(self, run: Run) -> Mapping[str, str]:
        found = sorted(self._execution(run).directory.glob("*/plots/*.svg"))
        return {path.name: path.read_text(encoding="utf-8") for path in found}

    def diagnose(self) -> Sequence[Finding]:
        return [Finding("fake platform", True, "always there")]


def _content(definition: PipelineDefinition) -> str:
    content = [definition.model_name, sorted(definition.files.items()), sorted(definition.parameters.items())]
    return hashlib.sha256(repr(content).encode()).hexdigest()
