"""The platform in Azure: pipelines, runs and models in an Azure ML workspace, through azureml-sdk (v1).

The SDK has been out of support since 2026-06-30; this adapter is where its successor goes. See docs/azure-ml.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_service.config import Settings
from ml_service.platforms.azureml_v1.assets import ensure_dataset
from ml_service.platforms.azureml_v1.doctor import diagnose
from ml_service.platforms.azureml_v1.experiment import Experiment
from ml_service.platforms.azureml_v1.publications import Publications
from ml_service.platforms.azureml_v1.registry import Registry, newest_of_build
from ml_service.platforms.azureml_v1.runs import Watch, read_run
from ml_service.platforms.azureml_v1.sdk import attempt, connect
from ml_service.platforms.azureml_v1.step_context import PLOTS
from ml_service.ports import (
    Build,
    Finding,
    ModelVersion,
    PipelineDefinition,
    Platform,
    Progress,
    PublishedPipeline,
    Run,
)


class AzureMlPlatform(Platform):
    """Implements ``ports.Platform`` in the workspace that the settings name. It signs in at the first call."""

    name = "azureml"

    def __init__(self, settings: Settings, progress: Progress = lambda line: None) -> None:
        self._settings = settings
        self._azure = settings.azure
        self._progress = progress
        self._where = f"workspace {settings.azure.workspace_name}"

    @cached_property
    def _workspace(self) -> Any:
        return connect(self._settings)

    @cached_property
    def _publications(self) -> Publications:
        return Publications(self._workspace, self._settings, self._progress)

    @cached_property
    def _experiment(self) -> Experiment:
        return Experiment(self._workspace, self._settings.experiment, self._where)

    @cached_property
    def _registry(self) -> Registry:
        return Registry(self._workspace)

    # Pipelines

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        """Freeze ``definition`` under the build's id. Make the compute, environment and dataset it needs (1)."""
        return self._publications.publish(definition, build)

    def pipelines(self, project: str, build_id: str) -> Sequence[PublishedPipeline]:
        return [entry.published for entry in self._publications.of_build(project, build_id)]

    def pipeline(self, pipeline_id: str) -> PublishedPipeline:
        return self._publications.get(pipeline_id).published

    # Runs

    def submit(self, pipeline: PublishedPipeline, build: Build, data: Path) -> Run:
        entry = self._publications.get(pipeline.id)
        version = ensure_dataset(self._workspace, self._azure, pipeline.project, data, self._progress)
        where = f"pipeline {pipeline.id} of {self._where}"
        return self._read(self._experiment.submit(entry.sdk.endpoint, build, version, where))

    def wait(self, run: Run, progress: Progress) -> Run:
        progress(f"portal: {run.url}")
        Watch(self._experiment.run(run.id), self._where, progress).until_ended()
        return self._read(run.id)

    def cancel(self, run: Run) -> None:
        sdk_run = self._experiment.run(run.id)
        watch = Watch(sdk_run, self._where, self._progress)
        if not watch.has_ended():
            attempt(sdk_run.cancel, f"run {run.id} of {self._where}")
            watch.until_ended()

    def runs(self, project: str, build_id: str) -> Sequence[Run]:
        runs = [read_run(run, self._where) for run in self._experiment.runs({"BuildId": build_id})]
        projects = {pipeline_id: self._publications.project_of(pipeline_id) for pipeline_id in _pipeline_ids(runs)}
        return [run for run in runs if projects[run.pipeline_id] == project]

    def _read(self, run_id: str) -> Run:
        return read_run(self._experiment.run(run_id), self._where)

    def plots(self, run: Run) -> Mapping[str, str]:
        sdk_run = self._experiment.run(run.id)
        where = f"plots of run {run.id} of {self._where}"
        with tempfile.TemporaryDirectory(prefix="mlops-plots-") as directory:
            attempt(lambda: sdk_run.download_files(prefix=PLOTS, output_directory=directory), where)
            paths = sorted(Path(directory).rglob("*.svg"))
            return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths}

    # Model versions

    def model_of_build(self, model_name: str, build_id: str) -> ModelVersion | None:
        return newest_of_build(self._registry.versions(model_name), build_id)

    def version(self, model_name: str, version: str) -> ModelVersion:
        return self._registry.version(model_name, version)

    def champion(self, model_name: str) -> ModelVersion | None:
        """Return the newest version that is not withdrawn, or None: the registry has no aliases (7)."""
        return self._registry.champion(model_name)

    def download(self, version: ModelVersion, directory: Path) -> None:
        self._registry.download(version, directory)

    def withdraw(self, version: ModelVersion, reason: str) -> ModelVersion | None:
        return self._registry.withdraw(version, reason)

    def diagnose(self) -> Sequence[Finding]:
        return diagnose(self._settings)


def _pipeline_ids(runs: Sequence[Run]) -> set[str]:
    return {run.pipeline_id for run in runs}
