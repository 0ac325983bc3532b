"""The step ``train``: fetch the data, train, log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ml_service.errors import DataError, IntegrityError
from ml_service.package import sha256_of, write_json
from ml_service.platforms.azureml_v1.sdk import attempt, translated
from ml_service.platforms.azureml_v1.step_context import NONE, Step, say
from ml_service.project import read_step_json


def train(step: Step) -> None:
    """Write the candidate to ``OUTPUT/candidate``, and the data that it was trained on to ``OUTPUT/data.csv``.

    Raises:
        DataError: the project refuses the data.
        IntegrityError: the dataset's content is not what was registered.
        UnavailableError: the data cannot be read.
    """
    output = Path(step.options.output)
    output.mkdir(parents=True, exist_ok=True)
    data = output / "data.csv"
    source = _fetch_data(step, data)
    candidate = output / "candidate"
    step.project("train", "--data", str(data), "--parameters", step.snapshot.parameters, "--output", str(candidate))
    write_json(output / "source.json", {"dataset": source, "data_sha256": sha256_of(data)})
    step.log_metrics(step.run, read_step_json(candidate / "metrics.json"))


def _fetch_data(step: Step, data: Path) -> str:
    """Write the data to the file ``data``, and return the dataset version that holds it."""
    name, from_file = step.options.dataset_name, step.options.data_file_path != NONE
    where, dataset = _file_dataset(step) if from_file else _registered_dataset(step)
    digest = _download(dataset, data, where)
    if from_file:
        # Registered afterwards, so that the run's data has a version that the verdict can name.
        with translated(f"dataset {name}"):
            dataset = dataset.register(step.workspace, name, tags={"sha256": digest}, create_new_version=True)
    elif dataset.tags.get("sha256", digest) != digest:
        raise IntegrityError(
            "its content is not what was registered", where=where, next_step="register the data again: inv publish"
        )
    say(f"data: {name}:{dataset.version}, SHA-256 {digest[:12]}")
    return f"{name}:{dataset.version}"


def _file_dataset(step: Step) -> tuple[str, Any]:
    from azureml.core import Dataset, Datastore

    options = step.options
    datastore = attempt(lambda: Datastore.get(step.workspace, options.datastore), f"datastore {options.datastore}")
    where = f"{options.data_file_path} in datastore {options.datastore}"
    with translated(where):
        return where, Dataset.File.from_files((datastore, options.data_file_path), validate=False)


def _registered_dataset(step: Step) -> tuple[str, Any]:
    from azureml.core import Dataset

    name, version = step.options.dataset_name, step.options.dataset_version
    where = f"dataset {name}:{version}"
    return where, attempt(lambda: Dataset.get_by_name(step.workspace, name, version=version), where)


def _download(dataset: Any, data: Path, where: str) -> str:
    """Write the dataset's one file to ``data``, and return its SHA-256."""
    folder = Path("dataset")
    shutil.rmtree(folder, ignore_errors=True)
    files = attempt(lambda: dataset.download(str(folder), overwrite=True), where)
    if len(files) != 1:
        raise DataError(f"holds {len(files)} files instead of one", where=where, next_step="register one CSV file")
    shutil.copyfile(files[0], data)
    return sha256_of(data)
