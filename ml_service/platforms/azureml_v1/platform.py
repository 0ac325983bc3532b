"""The platform in Azure: pipelines, runs and models in an Azure ML workspace, through azureml-sdk (v1).

The SDK has been out of support since 2026-06-30; this adapter is where its successor goes. See docs/azure-ml.md.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_service.azure_devops import sanitize_log_line
from ml_service.config import Settings
from ml_service.errors import MlopsError, UnavailableError, UsageError
from ml_service.platforms.azureml_v1.doctor import diagnose
from ml_service.platforms.azureml_v1.pipeline import (
    LOCK,
    Graph,
    datastore,
    ensure_compute,
    ensure_dataset,
    ensure_environment,
    staged,
)
from ml_service.platforms.azureml_v1.registry import Registry, newest_of_build
from ml_service.platforms.azureml_v1.runs import Watch, read_run
from ml_service.platforms.azureml_v1.sdk import (
    attempt,
    connect,
    is_missing,
    is_transient,
    status_of,
    translate,
    translated,
)
from ml_service.platforms.azureml_v1.step import PLOTS
from ml_service.ports import (
    Build,
    Finding,
    ModelVersion,
    PipelineDefinition,
    Progress,
    PublishedPipeline,
    Run,
)
from ml_service.project import read_project

_publishing = threading.Lock()

_SUBMISSION = "submission"
"""A tag with a random value: how a submission whose answer got lost is found again."""


@dataclass(frozen=True)
class _Entry:
    """A published pipeline as the workspace lists it, with what we wrote into its description."""

    published: PublishedPipeline
    sdk: Any


class AzureMlPlatform:
    """Implements ``ports.Platform`` in the workspace that the settings name. It signs in at the first call."""

    name = "azureml"

    def __init__(self, settings: Settings, progress: Progress = lambda line: None) -> None:
        self._settings = settings
        self._azure = settings.azure
        self._progress = progress

    @cached_property
    def _workspace(self) -> Any:
        return connect(self._settings)

    @cached_property
    def _registry(self) -> Registry:
        return Registry(self._workspace)

    @property
    def _experiment(self) -> str:
        return self._settings.experiment

    @property
    def _where(self) -> str:
        return f"workspace {self._azure.workspace_name}"

    # Pipelines

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        content = _content_sha256(definition)
        # The SDK keeps the last snapshot in a file that threads of one process overwrite for each other.
        with _publishing:
            return self._publish(definition, build, content)

    def _publish(self, definition: PipelineDefinition, build: Build, content: str) -> PublishedPipeline:
        if not self._published(definition.project, build.id):
            self._create(definition, build, content)
        # Whoever published this build at the same time sees the same list, and the same first entry.
        first, *later = self._published(definition.project, build.id)
        for entry in later:
            if entry.published.content_sha256 == first.published.content_sha256:
                attempt(entry.sdk.disable, f"pipeline {entry.published.id}")
        if first.published.content_sha256 != content:
            raise UsageError(
                f"build {build.id} has published other content already, as {first.published.id}",
                where="publish",
                next_step="publish under another build id, or go back to the content that was published",
            )
        return first.published

    def _create(self, definition: PipelineDefinition, build: Build, content: str) -> None:
        workspace, azure, progress = self._workspace, self._azure, self._progress
        cluster = ensure_compute(workspace, azure, progress)
        environment = ensure_environment(workspace, azure, definition.project, definition.root / LOCK, progress)
        store = datastore(workspace, azure)
        version = ensure_dataset(workspace, azure, definition.project, self._data_file(definition), progress)
        name = azure.training_pipeline_name or f"{definition.project}-training"
        with staged(definition) as sources, translated(f"pipeline {name} of {self._where}"):
            graph = Graph(azure, definition, build, cluster, store)
            pipeline = graph.pipeline(workspace, environment, sources, version)
            pipeline.publish(name, description=_description(definition, build, content), version=build.id)

    def _data_file(self, definition: PipelineDefinition) -> Path:
        described = read_project(definition.root, definition.project)
        return self._settings.data_file or definition.root / described.data

    def _published(self, project: str, build_id: str) -> list[_Entry]:
        """What a build published and nobody disabled, oldest first."""
        entries = [entry for entry in self._entries() if entry.published.build.id == build_id]
        mine = [entry for entry in entries if entry.published.project == project]
        return sorted(mine, key=_created) if len(mine) > 1 else mine

    def _entries(self) -> list[_Entry]:
        workspace = self._workspace
        from azureml.pipeline.core import PublishedPipeline as Published

        listed = attempt(lambda: Published.list(workspace), f"pipelines of {self._where}")
        return [entry for entry in map(_entry, listed) if entry]

    def pipelines(self, project: str, build_id: str) -> Sequence[PublishedPipeline]:
        return [entry.published for entry in self._published(project, build_id)]

    def pipeline(self, pipeline_id: str) -> PublishedPipeline:
        return self._get(pipeline_id).published

    def _get(self, pipeline_id: str) -> _Entry:
        workspace = self._workspace
        from azureml.pipeline.core import PublishedPipeline as Published

        def get() -> _Entry | None:
            try:
                return _entry(Published.get(workspace, pipeline_id))
            except Exception as error:
                if is_missing(error):
                    return None
                raise

        entry = attempt(get, f"pipeline {pipeline_id} of {self._where}") if _is_plain(pipeline_id) else None
        if not entry:
            raise UsageError(
                f"no pipeline {sanitize_log_line(pipeline_id)!r} is published here",
                where=self._where,
                next_step="run: inv publish",
            )
        return entry

    # Runs

    def submit(self, pipeline: PublishedPipeline, build: Build, data: Path) -> Run:
        entry = self._get(pipeline.id)
        version = ensure_dataset(self._workspace, self._azure, pipeline.project, data, self._progress)
        submission = secrets.token_hex(8)
        tags = {"BuildId": build.id, "BuildUri": build.uri, "GitCommit": build.git_commit, _SUBMISSION: submission}
        body = {
            "ExperimentName": self._experiment,
            "ParameterAssignments": {"dataset_version": version},
            "tags": {name: value for name, value in tags.items() if value},
        }
        return self._read(self._post(entry, body, submission))

    def _post(self, entry: _Entry, body: Mapping[str, Any], submission: str) -> str:
        """Start the run by the pipeline's REST endpoint, as Azure Pipelines' own task does; returns its id.

        The SDK's ``submit`` sets tags in a second call: a run whose submitter died between the two would belong to no
        build. A submission must not be repeated blindly, so what was sent is looked for before it is sent again.
        """
        import requests

        where = f"pipeline {entry.published.id} of {self._where}"
        for left in (2, 1, 0):
            # Before anything is sent: a sign-in that fails is no lost answer.
            header = attempt(self._workspace._auth.get_authentication_header, where)
            try:
                answer = requests.post(entry.sdk.endpoint, json=body, headers=header, timeout=60)
                answer.raise_for_status()
                return str(answer.json()["Id"])
            except Exception as error:
                if 400 <= status_of(error) < 500 and not is_transient(error):
                    # Refused, so nothing was started.
                    raise translate(error, where) from None
                if found := self._find_submission(submission, where):
                    return found
                if not left or not is_transient(error):
                    raise translate(error, where) from None
                time.sleep(2 * (3 - left))
        raise UnavailableError("could not be started", where=where)

    def _find_submission(self, submission: str, where: str) -> str:
        """The id of the run that a submission started, "" when it started none.

        Raises:
            UnavailableError: nobody can tell; sent again, the submission might start a second run.
        """
        try:
            runs = self._query({_SUBMISSION: submission})
        except MlopsError as error:
            raise UnavailableError(
                f"the answer was lost and the run cannot be looked for: {error.what}",
                where=where,
                next_step="run: inv check-model, before inv train again",
            ) from None
        return str(runs[0].id) if runs else ""

    def wait(self, run: Run, progress: Progress) -> Run:
        progress(f"portal: {run.url}")
        Watch(self._sdk_run(run.id), self._where, progress).until_ended()
        return self._read(run.id)

    def cancel(self, run: Run) -> None:
        current = self._sdk_run(run.id)
        watch = Watch(current, self._where, self._progress)
        if not watch.has_ended():
            attempt(current.cancel, f"run {run.id} of {self._where}")
            watch.until_ended()

    def runs(self, project: str, build_id: str) -> Sequence[Run]:
        found = [read_run(run, self._where) for run in self._query({"BuildId": build_id})]
        projects: dict[str, str] = {}
        for run in found:
            if run.pipeline_id not in projects:
                projects[run.pipeline_id] = self._project_of(run.pipeline_id)
        return [run for run in found if projects[run.pipeline_id] == project]

    def _project_of(self, pipeline_id: str) -> str:
        try:
            return self._get(pipeline_id).published.project
        except UsageError:
            return ""

    def _query(self, tags: Mapping[str, str]) -> list[Any]:
        """The pipeline runs of our experiment with these tags, oldest first."""
        workspace = self._workspace
        from azureml.core import Experiment

        def query() -> list[Any]:
            try:
                experiment = Experiment(workspace, self._experiment, _create_in_cloud=False)
                return list(experiment.get_runs(type="azureml.PipelineRun", tags=dict(tags)))
            except Exception as error:
                if is_missing(error):
                    return []
                raise

        found = attempt(query, f"experiment {self._experiment} of {self._where}")
        return sorted(found, key=lambda run: run._run_dto["created_utc"])

    def _read(self, run_id: str) -> Run:
        return read_run(self._sdk_run(run_id), self._where)

    def _sdk_run(self, run_id: str) -> Any:
        workspace = self._workspace
        from azureml.core import Run as SdkRun

        def get() -> Any:
            try:
                return SdkRun.get(workspace, run_id)
            except Exception as error:
                if is_missing(error):
                    raise UsageError(
                        f"there is no run {run_id!r}", where=self._where, next_step="run: inv train"
                    ) from None
                raise

        return attempt(get, f"run {run_id} of {self._where}")

    # Model versions

    def model_of_build(self, model_name: str, build_id: str) -> ModelVersion | None:
        return newest_of_build(self._registry.versions(model_name), build_id)

    def version(self, model_name: str, version: str) -> ModelVersion:
        return self._registry.version(model_name, version)

    def champion(self, model_name: str) -> ModelVersion | None:
        return self._registry.champion(model_name)

    def download(self, version: ModelVersion, directory: Path) -> None:
        self._registry.download(version, directory)

    def withdraw(self, version: ModelVersion, reason: str) -> ModelVersion | None:
        return self._registry.withdraw(version, reason)

    def plots(self, run: Run) -> Mapping[str, str]:
        sdk_run = self._sdk_run(run.id)
        where = f"plots of run {run.id} of {self._where}"
        with tempfile.TemporaryDirectory(prefix="mlops-plots-") as directory:
            attempt(lambda: sdk_run.download_files(prefix=PLOTS, output_directory=directory), where)
            found = sorted(Path(directory).rglob("*.svg"))
            return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in found}

    def diagnose(self) -> Sequence[Finding]:
        return diagnose(self._settings)


def _is_plain(identifier: str) -> bool:
    """Whether it can be part of an address without becoming another address."""
    return bool(identifier) and all(c.isalnum() or c == "-" for c in identifier)


def _content_sha256(definition: PipelineDefinition) -> str:
    content = [definition.model_name, sorted(definition.files.items()), sorted(definition.parameters.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _description(definition: PipelineDefinition, build: Build, content: str) -> str:
    return json.dumps(
        {
            "project": definition.project,
            "model_name": definition.model_name,
            "content_sha256": content,
            "build_uri": build.uri,
            "git_commit": build.git_commit,
        }
    )


def _created(entry: _Entry) -> str:
    """When the service created it, by its own clock; the SDK's value for a pipeline leaves it out."""
    caller = entry.sdk._pipeline_provider._service_caller
    return str(attempt(lambda: caller.get_pipeline_async(entry.sdk.id).created_date, f"pipeline {entry.sdk.id}"))


def _entry(listed: Any) -> _Entry | None:
    """Ours, or None: a workspace holds other people's pipelines too."""
    try:
        written = json.loads(listed.description or "")
        build = Build(str(listed.version), written["build_uri"], written["git_commit"])
        published = PublishedPipeline(
            str(listed.id), written["project"], written["model_name"], build, written["content_sha256"]
        )
        return _Entry(published, listed)
    except (ValueError, KeyError, TypeError):
        return None
