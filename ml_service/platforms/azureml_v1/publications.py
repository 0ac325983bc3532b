"""Published pipelines in an Azure ML workspace.

The workspace has no uniqueness rule for the version of a published pipeline, and no transactions: two builds that
publish at once under one id both succeed. So nothing is locked. Each publishes, then lists what is published under the
build's id in the order of the service's own clock. Both see the same list, take its first entry for the publication,
and disable the later ones with the same content. An entry with other content is the user's mistake and is refused.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service.azure_devops import sanitize_log_line
from ml_service.config import Settings
from ml_service.errors import UsageError
from ml_service.platforms.azureml_v1.assets import datastore, ensure_compute, ensure_dataset, ensure_environment
from ml_service.platforms.azureml_v1.pipeline import LOCK, Graph, staged
from ml_service.platforms.azureml_v1.sdk import attempt, is_missing, translated
from ml_service.ports import Build, PipelineDefinition, Progress, PublishedPipeline
from ml_service.project import read_project

_publishing = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """A published pipeline as the workspace lists it, with what its description holds, and the SDK's object for it."""

    published: PublishedPipeline
    sdk: Any


class Publications:
    """The training pipelines that are published in one workspace."""

    def __init__(self, workspace: Any, settings: Settings, progress: Progress) -> None:
        self._workspace = workspace
        self._settings = settings
        self._progress = progress
        self._where = f"workspace {settings.azure.workspace_name}"

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        """Publish ``definition`` under the build's id. The contract is that of ``Platform.publish``.

        Raises:
            UsageError: the build has published other content.
            IntegrityError: a file changed while it was copied.
            ConfigurationError: the lock is missing.
            DataError: the data file is missing.
            UnavailableError: a part of the pipeline cannot be made.
        """
        content = _content_sha256(definition)
        # The SDK keeps the last snapshot in a file that the threads of one process overwrite for each other.
        with _publishing:
            if not self.of_build(definition.project, build.id):
                self._create(definition, build, content)
            return self._first(definition, build, content)

    def _first(self, definition: PipelineDefinition, build: Build, content: str) -> PublishedPipeline:
        first, *later = self.of_build(definition.project, build.id)
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
        workspace, azure, progress = self._workspace, self._settings.azure, self._progress
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
        project = read_project(definition.root, definition.project)
        return self._settings.data_file or definition.root / project.data

    def of_build(self, project: str, build_id: str) -> list[Entry]:
        """Return what a build published and nobody disabled, oldest first."""
        from azureml.pipeline.core import PublishedPipeline as SdkPipeline

        listed = attempt(lambda: SdkPipeline.list(self._workspace), f"pipelines of {self._where}")
        entries = [
            entry
            for entry in map(_entry, listed)
            if entry and (entry.published.project, entry.published.build.id) == (project, build_id)
        ]
        # The creation time costs a call for each.
        return sorted(entries, key=_created) if len(entries) > 1 else entries

    def get(self, pipeline_id: str) -> Entry:
        """Return the pipeline with this id, disabled or not.

        Raises:
            UsageError: there is none, or it was not published here.
        """
        entry = self._find(pipeline_id) if _is_plain(pipeline_id) else None
        if not entry:
            raise UsageError(
                f"no pipeline {sanitize_log_line(pipeline_id)!r} is published here",
                where=self._where,
                next_step="run: inv publish",
            )
        return entry

    def _find(self, pipeline_id: str) -> Entry | None:
        from azureml.pipeline.core import PublishedPipeline as SdkPipeline

        def find() -> Entry | None:
            try:
                return _entry(SdkPipeline.get(self._workspace, pipeline_id))
            except Exception as error:
                if is_missing(error):
                    return None
                raise

        return attempt(find, f"pipeline {pipeline_id} of {self._where}")

    def project_of(self, pipeline_id: str) -> str:
        """Return the project of a pipeline, "" when it is not one of ours."""
        try:
            return self.get(pipeline_id).published.project
        except UsageError:
            return ""


def _is_plain(identifier: str) -> bool:
    """Return whether an id can be part of an address without turning it into another address."""
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


def _created(entry: Entry) -> str:
    """Return when the service created it, by the service's clock. The SDK's own object leaves the time out."""
    caller = entry.sdk._pipeline_provider._service_caller
    return str(attempt(lambda: caller.get_pipeline_async(entry.sdk.id).created_date, f"pipeline {entry.sdk.id}"))


def _entry(listed: Any) -> Entry | None:
    """Return the entry, or None for a pipeline that others published: its description is not ours."""
    try:
        written = json.loads(listed.description or "")
        build = Build(str(listed.version), written["build_uri"], written["git_commit"])
        published = PublishedPipeline(
            str(listed.id), written["project"], written["model_name"], build, written["content_sha256"]
        )
        return Entry(published, listed)
    except (ValueError, KeyError, TypeError):
        return None
