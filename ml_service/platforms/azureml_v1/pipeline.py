"""The training pipeline to publish: a snapshot of the sources, and the graph of its steps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_service.config import AzureSettings
from ml_service.package import compare_files, hash_files, write_json
from ml_service.platforms.azureml_v1.assets import dataset_name
from ml_service.platforms.azureml_v1.step_context import NONE, PIPELINE_JSON
from ml_service.ports import Build, PipelineDefinition

LOCK = "requirements/azureml.txt"
"""The lock that runs on the compute: the project's libraries and the SDK."""

ENTRY = "step.py"
_ENTRY = "import sys\n\nfrom ml_service.platforms.azureml_v1.step import main\n\nsys.exit(main())\n"


@contextmanager
def staged(definition: PipelineDefinition) -> Iterator[Path]:
    """Make a folder with just what is published: the definition's files, and our code that runs around the steps.

    Raises:
        IntegrityError: a file changed between its hash and its copy.
    """
    with tempfile.TemporaryDirectory(prefix="azureml-publish-") as temporary:
        folder = Path(temporary)
        for name in definition.files:
            _copy(definition.root / name, folder / name)
        compare_files(
            definition.files,
            hash_files(folder),
            where=definition.root,
            next_step="the files changed while they were published: run inv publish again",
        )
        ours = Path(__file__).resolve().parents[2]
        for path in [
            *ours.glob("*.py"),
            *ours.glob("config/*.py"),
            ours / "platforms" / "__init__.py",
            *ours.glob("platforms/azureml_v1/*.py"),
        ]:
            _copy(path, folder / "ml_service" / path.relative_to(ours))
        (folder / ENTRY).write_text(_ENTRY)
        record = {"project": definition.project, "files": dict(definition.files), "lock_sha256": definition.lock_sha256}
        write_json(folder / PIPELINE_JSON, record)
        yield folder


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


class Graph:
    """The steps of the training pipeline: train → evaluate → register, or train → register without the gate.

    Azure ML reuses the output of an earlier step with the same sources, lock and arguments when a step allows it.
    Training does: its arguments name all its inputs. The other two read the registry, which changes, so they always
    run.
    """

    def __init__(
        self, azure: AzureSettings, definition: PipelineDefinition, build: Build, cluster: Any, store: Any
    ) -> None:
        self._azure, self._definition, self._build = azure, definition, build
        self._cluster, self._store = cluster, store

    def pipeline(self, workspace: Any, environment: Any, sources: Path, dataset_version: str) -> Any:
        """Return the SDK's pipeline, to publish."""
        from azureml.core.runconfig import RunConfiguration
        from azureml.pipeline.core import Pipeline, PipelineData, PipelineParameter

        configuration = RunConfiguration()
        configuration.environment = environment
        self._common = {"source_directory": str(sources), "runconfig": configuration, "compute_target": self._cluster}
        self._parameters = {
            name: PipelineParameter(name, default)
            for name, default in (
                ("model_name", self._definition.model_name),
                ("dataset_version", dataset_version),
                ("data_file_path", NONE),
                ("caller_run_id", NONE),
            )
        }
        trained = PipelineData("trained", datastore=self._store)
        steps = [self._train(trained)]
        if self._definition.parameters["run_evaluation"]:
            evaluation = PipelineData("evaluation", datastore=self._store)
            steps += [self._evaluate(trained, evaluation), self._register(trained, evaluation)]
        else:
            steps.append(self._register(trained, None))
        return Pipeline(workspace, steps=steps)

    def _step(self, name: str, arguments: list[Any], inputs: list[Any], outputs: list[Any], reuse: bool) -> Any:
        from azureml.pipeline.steps import PythonScriptStep

        return PythonScriptStep(
            ENTRY,
            name=name,
            arguments=[name, *arguments],
            inputs=inputs,
            outputs=outputs,
            allow_reuse=reuse,
            **self._common,
        )

    def _train(self, trained: Any) -> Any:
        arguments = [
            "--dataset-name",
            dataset_name(self._azure, self._definition.project),
            "--datastore",
            self._store.name,
            "--dataset-version",
            self._parameters["dataset_version"],
            "--data-file-path",
            self._parameters["data_file_path"],
            "--output",
            trained,
        ]
        return self._step("train", arguments, [], [trained], reuse=True)

    def _evaluate(self, trained: Any, evaluation: Any) -> Any:
        cancel = "true" if self._definition.parameters["allow_run_cancel"] else "false"
        arguments = [*self._identity(), "--trained", trained, "--allow-run-cancel", cancel, "--output", evaluation]
        return self._step("evaluate", arguments, [trained], [evaluation], reuse=False)

    def _register(self, trained: Any, evaluation: Any) -> Any:
        gate = ["--evaluation", evaluation] if evaluation is not None else []
        inputs = [trained] + ([evaluation] if evaluation is not None else [])
        return self._step("register", [*self._identity(), "--trained", trained, *gate], inputs, [], reuse=False)

    def _identity(self) -> list[Any]:
        build = self._build
        return [
            "--model-name",
            self._parameters["model_name"],
            "--caller-run-id",
            self._parameters["caller_run_id"],
            "--build-id",
            build.id,
            "--build-uri",
            build.uri or NONE,
            "--git-commit",
            build.git_commit or NONE,
        ]
