"""Published training pipelines as directories: ``STORE/pipelines/PROJECT/BUILD/{pipeline.json, sources/}``.

To publish is to freeze: the project's files are copied, so that a run days later trains with the code of the commit
that was published. The copies are made in a temporary directory beside the final one, hashed again (a file may have
been edited between its hash and its copy), and the directory is then renamed. A rename within one folder is atomic, so
a reader sees a whole pipeline or none, and of two processes that publish one build at once exactly one succeeds: the
other finds the directory there and compares contents. Before each run the hashes are checked once more (``verify``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service.errors import IntegrityError, UsageError
from ml_service.package import compare_files, hash_files, write_json
from ml_service.ports import Build, PipelineDefinition, PublishedPipeline


@dataclass(frozen=True)
class FrozenPipeline:
    """A published pipeline, the directory of its frozen sources, and their hashes."""

    published: PublishedPipeline
    sources: Path
    files: Mapping[str, str]
    parameters: Mapping[str, bool]
    lock_sha256: str


class PipelineDirectory:
    """The published pipelines below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        """Freeze ``definition`` under the build's id. The contract is that of ``Platform.publish``.

        Raises:
            UsageError: the build has published other content.
            IntegrityError: a file changed while it was copied.
        """
        content = _content_sha256(definition)
        final = self._directory / definition.project / build.id
        if not final.is_dir():
            self._freeze(definition, build, content, final)
        published = self._read(final).published
        if published.content_sha256 != content:
            raise UsageError(
                f"build {build.id} has published other content already, as {published.id}",
                where="publish",
                next_step="publish under another build id, or go back to the content that was published",
            )
        return published

    def find(self, project: str, build_id: str) -> FrozenPipeline | None:
        """Return the pipeline that a build published, or None.

        Raises:
            IntegrityError: its record cannot be read.
        """
        directory = self._directory / project / build_id
        return self._read(directory) if directory.is_dir() else None

    def get(self, pipeline_id: str) -> FrozenPipeline:
        """Return the pipeline with this id.

        Raises:
            UsageError: there is none.
            IntegrityError: a record cannot be read.
        """
        for directory in self._directory.glob("*/*"):
            frozen = self._read(directory) if not directory.name.startswith(".") else None
            if frozen and frozen.published.id == pipeline_id:
                return frozen
        raise UsageError(
            f"no pipeline {pipeline_id!r} is published here", where=str(self._directory), next_step="run: inv publish"
        )

    def verify(self, frozen: FrozenPipeline) -> None:
        """Compare the frozen sources with the hashes in the record.

        Raises:
            IntegrityError: a file is missing, differs, or was added.
        """
        compare_files(
            frozen.files,
            hash_files(frozen.sources),
            where=frozen.sources,
            next_step="publish again under another build id",
        )

    def _freeze(self, definition: PipelineDefinition, build: Build, content: str, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{build.id}.", dir=final.parent))
        try:
            for name in definition.files:
                copy = temporary / "sources" / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(definition.root / name, copy)
            write_json(temporary / "pipeline.json", _record(definition, build, content))
            compare_files(
                definition.files,
                hash_files(temporary / "sources"),
                where=definition.root,
                next_step="the files changed while they were published: run inv publish again",
            )
            try:
                os.rename(temporary, final)
            except OSError:
                # Another process published this build in the meantime; publish() compares the two.
                if not final.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _read(self, directory: Path) -> FrozenPipeline:
        path = directory / "pipeline.json"
        try:
            raw = json.loads(path.read_bytes())
            published = PublishedPipeline(
                id=raw["id"],
                project=raw["project"],
                model_name=raw["model_name"],
                build=Build(**raw["build"]),
                content_sha256=raw["content_sha256"],
            )
            return FrozenPipeline(published, directory / "sources", raw["files"], raw["parameters"], raw["lock_sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"not a pipeline's record as publish writes it ({error!r})",
                where=str(path),
                next_step=f"remove {directory} and publish again",
            ) from None


def _content_sha256(definition: PipelineDefinition) -> str:
    content = [definition.model_name, sorted(definition.files.items()), sorted(definition.parameters.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _record(definition: PipelineDefinition, build: Build, content: str) -> dict[str, Any]:
    return {
        "id": f"{definition.project}.{build.id}.{content[:12]}",
        "project": definition.project,
        "model_name": definition.model_name,
        "build": {"id": build.id, "uri": build.uri, "git_commit": build.git_commit},
        "content_sha256": content,
        "files": dict(definition.files),
        "parameters": dict(definition.parameters),
        "lock_sha256": definition.lock_sha256,
    }
