"""What ``publish`` makes in an Azure ML workspace: compute, environment, dataset, and the graph of the pipeline."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_service.config import AzureSettings
from ml_service.errors import ConfigurationError, DataError, UnavailableError
from ml_service.package import compare_files, hash_files, sha256_of, write_json
from ml_service.platforms.azureml_v1.sdk import attempt, first_line, is_missing, translated
from ml_service.platforms.azureml_v1.step import NONE, PIPELINE_JSON
from ml_service.ports import Build, PipelineDefinition, Progress

LOCK = "requirements/azureml.txt"
"""What runs on the compute: the project's libraries and the SDK."""

PYTHON = "3.11"
ENTRY = "step.py"
_ENTRY = "import sys\n\nfrom ml_service.platforms.azureml_v1.step import main\n\nsys.exit(main())\n"
_COMPUTE_MINUTES = 20
_COMING = ("Creating", "Updating", "Resizing")
_LOOK_AGAIN = 5
"""Seconds between two looks at a cluster that is being created."""


# Compute


def ensure_compute(workspace: Any, azure: AzureSettings, progress: Progress) -> Any:
    """The cluster of that name, made when there is none.

    Raises:
        UnavailableError: it cannot be made, or does not come up.
    """
    from azureml.core.compute import AmlCompute, ComputeTarget

    where = f"compute cluster {azure.compute_name} of workspace {workspace.name}"
    cluster = attempt(lambda: _find_compute(workspace, azure.compute_name), where)
    if cluster is None:
        progress(f"creating {where}: {azure.compute_sku}, at most {azure.compute_max_nodes} nodes")
        wanted = AmlCompute.provisioning_configuration(
            vm_size=azure.compute_sku,
            vm_priority=azure.compute_priority,
            min_nodes=azure.compute_min_nodes,
            max_nodes=azure.compute_max_nodes,
            idle_seconds_before_scaledown=300,
        )
        try:
            cluster = attempt(lambda: ComputeTarget.create(workspace, azure.compute_name, wanted), where)
            with translated(where):
                cluster.wait_for_completion(show_output=False, timeout_in_minutes=_COMPUTE_MINUTES)
        except UnavailableError:
            # The SDK says that it failed, the cluster says why.
            cluster = attempt(lambda: _find_compute(workspace, azure.compute_name), where)
            if cluster is None:
                raise
    cluster = _awaited(cluster, workspace, where, progress)
    refuse_failed(cluster, where)
    return cluster


def _awaited(cluster: Any, workspace: Any, where: str, progress: Progress) -> Any:
    """The cluster once it is created: another build may have begun that a moment ago."""
    if cluster.provisioning_state in _COMING:
        progress(f"waiting for {where}, which is {cluster.provisioning_state}: at most {_COMPUTE_MINUTES} minutes")
    deadline = time.monotonic() + 60 * _COMPUTE_MINUTES
    while cluster.provisioning_state in _COMING:
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"is still {cluster.provisioning_state} after {_COMPUTE_MINUTES} minutes",
                where=where,
                next_step="look at its page in https://ml.azure.com, then publish again",
            )
        time.sleep(_LOOK_AGAIN)
        cluster = attempt(lambda: _find_compute(workspace, cluster.name), where) or cluster
    return cluster


def _find_compute(workspace: Any, name: str) -> Any:
    from azureml.core.compute import ComputeTarget
    from azureml.exceptions import ComputeTargetException

    try:
        return ComputeTarget(workspace, name)
    except ComputeTargetException as error:
        if is_missing(error):
            return None
        raise


def refuse_failed(cluster: Any, where: str) -> None:
    """Raise UnavailableError unless the cluster works or is about to."""
    if cluster.provisioning_state in ("Succeeded", *_COMING):
        return
    errors = first_line(Exception(str(cluster.provisioning_errors or "it says no reason")))
    raise UnavailableError(
        f"did not come up, its state is {cluster.provisioning_state}: {errors}",
        where=where,
        next_step="look at its page in https://ml.azure.com, delete it there, then publish again",
    )


# Environment


def ensure_environment(workspace: Any, azure: AzureSettings, project: str, lock: Path, progress: Progress) -> Any:
    """The environment of our lock. Its name holds the lock's hash, so that a changed lock is a changed environment."""
    from azureml.core import Environment

    if not lock.is_file():
        raise ConfigurationError("the lock is missing", where=str(lock), next_step="run: make lock")
    name = f"{azure.environment_name or project}-{sha256_of(lock)[:12]}"
    where = f"environment {name} of workspace {workspace.name}"
    found = None if azure.rebuild_environment else attempt(lambda: _find_environment(workspace, name), where)
    if found is not None:
        return found
    progress(f"registering {where}")
    environment = Environment(name)
    environment.python.conda_dependencies = _conda(lock)
    environment.environment_variables = {"PYTHONDONTWRITEBYTECODE": "1"}
    return attempt(lambda: environment.register(workspace), where)


def _find_environment(workspace: Any, name: str) -> Any:
    from azureml.core import Environment

    try:
        return Environment.get(workspace, name)
    except Exception as error:
        if is_missing(error):
            return None
        raise


def _conda(lock: Path) -> Any:
    from azureml.core.conda_dependencies import CondaDependencies

    dependencies = CondaDependencies.create(python_version=PYTHON, pin_sdk_version=False)
    dependencies.set_pip_requirements(list(requirements(lock.read_text(encoding="utf-8"))))
    return dependencies


def requirements(lock: str) -> Iterator[str]:
    """The requirements of a lock, each in one line with its hashes."""
    joined = lock.replace("\\\n", " ")
    for line in joined.splitlines():
        words = line.partition(" #")[0].split()
        if words and not words[0].startswith("#"):
            yield " ".join(words)


# Data


def ensure_dataset(workspace: Any, azure: AzureSettings, project: str, data: Path, progress: Progress) -> str:
    """The version of the dataset that holds ``data``, registered when it is missing or changed.

    DATASET_VERSION, when it is a number, names the version instead, and ``data`` is not looked at.
    """
    if azure.dataset_version != "latest":
        return azure.dataset_version
    if not data.is_file():
        raise DataError(
            "there is no such data file", where=str(data), next_step="check DATA_FILE, or the data of project.json"
        )
    name, digest = dataset_name(azure, project), sha256_of(data)
    where = f"dataset {name} of workspace {workspace.name}"
    latest = attempt(lambda: _find_dataset(workspace, name), where)
    if latest is not None and latest.tags.get("sha256") == digest:
        return str(latest.version)
    progress(f"uploading {data.name} and registering it in {where}")
    return attempt(lambda: _register_dataset(datastore(workspace, azure), workspace, name, data, digest), where)


def dataset_name(azure: AzureSettings, project: str) -> str:
    """DATASET_NAME, or the project's."""
    return azure.dataset_name or project


def datastore(workspace: Any, azure: AzureSettings) -> Any:
    """DATASTORE_NAME, or the workspace's default."""
    from azureml.core import Datastore

    if azure.datastore_name:
        return attempt(lambda: Datastore.get(workspace, azure.datastore_name), f"datastore {azure.datastore_name}")
    return attempt(workspace.get_default_datastore, f"the default datastore of workspace {workspace.name}")


def _find_dataset(workspace: Any, name: str) -> Any:
    from azureml.core import Dataset
    from azureml.exceptions import UserErrorException

    try:
        return Dataset.get_by_name(workspace, name)
    except UserErrorException as error:
        if "Cannot find dataset" in str(error):
            return None
        raise


def _register_dataset(store: Any, workspace: Any, name: str, data: Path, digest: str) -> str:
    from azureml.core import Dataset

    # A path of its own for each content, so that a registered version never changes.
    folder = f"datasets/{name}/{digest}"
    store.upload_files([str(data)], target_path=folder, overwrite=True, show_progress=False)
    dataset = Dataset.File.from_files((store, f"{folder}/{data.name}"), validate=False)
    return str(dataset.register(workspace, name, tags={"sha256": digest}, create_new_version=True).version)


# Sources and graph


@contextmanager
def staged(definition: PipelineDefinition) -> Iterator[Path]:
    """A folder with just what is published: the definition's files, and our code that runs around the steps."""
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

    Training is reused when the same sources, lock and dataset version come again: its inputs are all named in its
    arguments. The other two look at the registry, which changes, so they always run.
    """

    def __init__(
        self, azure: AzureSettings, definition: PipelineDefinition, build: Build, cluster: Any, store: Any
    ) -> None:
        self._azure, self._definition, self._build = azure, definition, build
        self._cluster, self._store = cluster, store

    def pipeline(self, workspace: Any, environment: Any, sources: Path, dataset_version: str) -> Any:
        """The SDK's pipeline, to publish."""
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
