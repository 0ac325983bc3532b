"""The parts of a workspace that a training pipeline needs: compute, environment, dataset. Each is made when missing.

Several builds may publish at once. Each part is therefore looked up first, made under a name that says what it holds
(the environment's name has the hash of the lock, a dataset's folder the hash of the data), and waited for when another
build is making it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_service.config import AzureSettings
from ml_service.errors import ConfigurationError, DataError, UnavailableError
from ml_service.package import sha256_of
from ml_service.platforms.azureml_v1.sdk import attempt, first_line, is_missing, translated
from ml_service.ports import Progress

PYTHON = "3.11"
_COMPUTE_MINUTES = 20
_COMING = ("Creating", "Updating", "Resizing")
_POLL_INTERVAL = 5
"""Seconds between two reads of the state of a cluster that is being created."""


# Compute


def ensure_compute(workspace: Any, azure: AzureSettings, progress: Progress) -> Any:
    """Return the cluster that the settings name, after making it when there is none.

    Raises:
        UnavailableError: it cannot be made, or did not come up within 20 minutes.
    """
    from azureml.core.compute import AmlCompute, ComputeTarget

    where = f"compute cluster {azure.compute_name} of workspace {workspace.name}"
    cluster = attempt(lambda: _find_compute(workspace, azure.compute_name), where)
    if cluster is None:
        progress(f"creating {where}: {azure.compute_sku}, at most {azure.compute_max_nodes} nodes")
        configuration = AmlCompute.provisioning_configuration(
            vm_size=azure.compute_sku,
            vm_priority=azure.compute_priority,
            min_nodes=azure.compute_min_nodes,
            max_nodes=azure.compute_max_nodes,
            idle_seconds_before_scaledown=300,
        )
        try:
            cluster = attempt(lambda: ComputeTarget.create(workspace, azure.compute_name, configuration), where)
            with translated(where):
                cluster.wait_for_completion(show_output=False, timeout_in_minutes=_COMPUTE_MINUTES)
        except UnavailableError:
            # The SDK raises without a reason. The cluster has one.
            cluster = attempt(lambda: _find_compute(workspace, azure.compute_name), where)
            if cluster is None:
                raise
    cluster = _wait_while_coming(cluster, workspace, where, progress)
    refuse_failed(cluster, where)
    return cluster


def _wait_while_coming(cluster: Any, workspace: Any, where: str, progress: Progress) -> Any:
    """Wait until the cluster is created, also when another build has begun that, and return it."""
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
        time.sleep(_POLL_INTERVAL)
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
    """Check that the cluster works or is about to.

    Raises:
        UnavailableError: it did not come up.
    """
    if cluster.provisioning_state in ("Succeeded", *_COMING):
        return
    errors = first_line(Exception(str(cluster.provisioning_errors or "no reason is given")))
    raise UnavailableError(
        f"did not come up, its state is {cluster.provisioning_state}: {errors}",
        where=where,
        next_step="look at its page in https://ml.azure.com, delete it there, then publish again",
    )


# Environment


def ensure_environment(workspace: Any, azure: AzureSettings, project: str, lock: Path, progress: Progress) -> Any:
    """Return the environment of the lock, after registering it when there is none or the settings ask for a new one.

    Its name holds the lock's hash, so that a changed lock is another environment.

    Raises:
        ConfigurationError: the lock is missing.
        UnavailableError: the environment cannot be registered.
    """
    from azureml.core import Environment

    if not lock.is_file():
        raise ConfigurationError("the lock is missing", where=str(lock), next_step="run: make lock")
    name = f"{azure.environment_name or project}-{sha256_of(lock)[:12]}"
    where = f"environment {name} of workspace {workspace.name}"
    existing = None if azure.rebuild_environment else attempt(lambda: _find_environment(workspace, name), where)
    if existing is not None:
        return existing
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
    """Yield the requirements of a lock, each in one line with its hashes."""
    joined = lock.replace("\\\n", " ")
    for line in joined.splitlines():
        words = line.partition(" #")[0].split()
        if words and not words[0].startswith("#"):
            yield " ".join(words)


# Data


def ensure_dataset(workspace: Any, azure: AzureSettings, project: str, data: Path, progress: Progress) -> str:
    """Return the version of the dataset that holds ``data``, after registering it when it is missing or changed.

    When DATASET_VERSION is a number, it names the version instead, and ``data`` is not read.

    Raises:
        DataError: there is no such file.
        UnavailableError: the data cannot be uploaded or registered.
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
    """Return DATASET_NAME, or the project's name."""
    return azure.dataset_name or project


def datastore(workspace: Any, azure: AzureSettings) -> Any:
    """Return the datastore that DATASTORE_NAME names, or the workspace's default one."""
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

    # Each content has its own path, so that a registered version never changes.
    folder = f"datasets/{name}/{digest}"
    store.upload_files([str(data)], target_path=folder, overwrite=True, show_progress=False)
    dataset = Dataset.File.from_files((store, f"{folder}/{data.name}"), validate=False)
    return str(dataset.register(workspace, name, tags={"sha256": digest}, create_new_version=True).version)
