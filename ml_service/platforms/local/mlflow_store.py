"""Runs and model versions in an MLflow tracking server or, by default, in SQLite on this machine.

Only MLflow's client API is used. Importing this module imports MLflow, which takes seconds: import it when it is
needed.

How a model is registered, and why nothing is ever half registered:

1. A run takes the model's lock, a file lock that holds on this machine (or on a shared disk). Under it, it reads the
   champion and the highest version number, lets the project compare, and registers.
2. The version is created by one call that carries its files' hashes, its metrics and all tags. A version without them
   was not made here, and no reader of this module sees it.
3. A remote server may have users on other machines, whom the file lock does not stop, and MLflow has no transactions.
   But it gives out version numbers one by one. Together with the number read in step 1 this is a compare-and-swap: a
   version between that number and the run's own means that another run registered after this one compared. The run
   with the higher number has lost. It deletes its version and fails; the winner's version is left as it is.
4. The alias ``champion`` is moved last. A process that is killed before that leaves a whole version that the gate has
   accepted, so whoever takes the lock next moves the alias (``settle``). The alias is thus derived, never decided: it
   belongs to the newest version that is not withdrawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ml_service.errors import ConfigurationError, MlopsError, UnavailableError, UsageError
from ml_service.package import compare_files, hash_files
from ml_service.platforms.local.mlflow_client import (
    Metric,
    MlflowClient,
    MlflowException,
    MlflowVersion,
    RunTag,
    SQLAlchemyError,
    open_client,
)
from ml_service.ports import ModelVersion

CHAMPION = "champion"
ARTIFACTS = "version"
"""The folder among a run's artifacts that holds the files of the version it registered."""

_ENDED = {"canceled": "KILLED", "completed": "FINISHED", "failed": "FAILED"}


def default_uri(store: Path) -> str:
    """Return the address of the tracking store on this machine."""
    return f"sqlite:///{store / 'mlflow.db'}"


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn what MLflow raises inside the block into an error that names the store."""
    try:
        yield
    except MlopsError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the driver {error.name} of this kind of store is not installed",
            where=_without_password(uri),
            next_step=f"run: .venv/bin/python -m pip install {error.name}, or name another: postgresql+psycopg2://…",
        ) from None
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UnavailableError(
            f"the tracking store answered: {_first_line(error)}",
            where=_without_password(uri),
            next_step="check that it can be reached and has room, then try again: nothing was half registered",
        ) from None


def _bound_retries() -> None:
    """Report a database that cannot be reached in seconds: MLflow's ten attempts take almost two minutes."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 5


def _create_database(path: Path) -> None:
    """Create the database of this machine whole or not at all. The caller holds the store's lock.

    A database whose creation was cut off, by a full disk or a kill, cannot be opened again. So it is created under
    another name, and renamed when it is complete.
    """
    if path.exists():
        return
    incomplete = path.with_name(".mlflow.db.new")
    # Also its journal, which SQLite would apply to the new one.
    for leftover in path.parent.glob(f"{incomplete.name}*"):
        leftover.unlink()
    open_client(f"sqlite:///{incomplete}")
    incomplete.rename(path)


class MlflowStore:
    """One project's runs and model versions.

    ``uri`` is the tracking store's address, by default the database in the folder ``store``. The folder also holds the
    file locks, so all who use one tracking store on this machine have to name the same folder.

    Raises:
        UnavailableError: the store cannot be reached, or has no room.
        ConfigurationError: the driver of the database is not installed.
    """

    def __init__(self, uri: str, store: Path, experiment: str) -> None:
        self._uri = uri or default_uri(store)
        self._locks = store / "locks"
        self._artifacts = store / "artifacts"
        self._experiment = experiment
        self._client: MlflowClient = self._open()

    def _open(self) -> MlflowClient:
        # The first call on an empty database creates its tables. Two processes that do so at once break each other.
        with _translated(self._uri):
            self._locks.mkdir(parents=True, exist_ok=True)
            with FileLock(self._locks / "store.lock"):
                if not self._is_remote:
                    _bound_retries()
                if self._uri == default_uri(self._locks.parent):
                    _create_database(self._locks.parent / "mlflow.db")
                client = open_client(self._uri)
                self._experiment_id = self._find_experiment(client) or self._create_experiment(client)
        return client

    @property
    def _is_remote(self) -> bool:
        return self._uri.startswith(("http://", "https://", "databricks"))

    def _find_experiment(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._experiment)
        return str(experiment.experiment_id) if experiment else ""

    def _create_experiment(self, client: MlflowClient) -> str:
        # A server chooses where artifacts are stored; with a database, the folder is ours.
        location = None if self._is_remote else self._artifacts.as_uri()
        try:
            return str(client.create_experiment(self._experiment, artifact_location=location))
        except MlflowException:
            # On a remote store another machine may have been faster.
            experiment_id = self._find_experiment(client)
            if not experiment_id:
                raise
            return experiment_id

    def lock(self, model_name: str) -> FileLock:
        """Return the lock to hold while a model's champion is read, compared with and replaced.

        It holds on this machine (or on a shared disk) only. See the top of this module for what holds beyond it.
        """
        return FileLock(self._locks / f"model-{model_name}.lock")

    # Runs

    def start_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Record a run as running, and return MLflow's id of it."""
        with _translated(self._uri):
            run = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags))
            return str(run.info.run_id)

    def log(self, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Add metrics and tags to a run."""
        now = int(datetime.now(UTC).timestamp() * 1000)
        with _translated(self._uri):
            self._client.log_batch(
                run_id,
                metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )

    def log_directory(self, run_id: str, directory: Path, path: str) -> None:
        """Add the files below ``directory`` to a run's artifacts."""
        if directory.is_dir():
            with _translated(self._uri):
                self._client.log_artifacts(run_id, str(directory), path)

    def end_run(self, run_id: str, status: str) -> None:
        """Record how a run ended; ``status`` is ``completed``, ``canceled`` or ``failed``."""
        with _translated(self._uri):
            self._client.set_terminated(run_id, _ENDED[status])

    # Model versions

    def versions(self, model_name: str) -> list[ModelVersion]:
        """Return the versions that the gate registered, oldest first. Those of other tools are ignored."""
        with _translated(self._uri):
            listed = self._client.search_model_versions(f"name = '{model_name}'", max_results=10_000)
        registered = [_version(each) for each in listed if "files" in each.tags]
        return sorted(registered, key=lambda version: int(version.version))

    def version(self, model_name: str, version: str) -> ModelVersion:
        """Return one version.

        Raises:
            UsageError: the gate registered no version of this number.
        """
        for each in self.versions(model_name):
            if each.version == version:
                return each
        raise UsageError(
            f"{model_name}:{version} is not registered", where="--model", next_step="look at the versions: inv ui"
        )

    def champion(self, model_name: str) -> ModelVersion | None:
        """Return the version that the alias names, or None."""
        with _translated(self._uri):
            try:
                number = str(self._client.get_model_version_by_alias(model_name, CHAMPION).version)
            except MlflowException as error:
                if _is_absent(error):
                    return None
                raise
        return self.version(model_name, number)

    def newest(self, model_name: str) -> int:
        """Return the highest version number so far, 0 before the first. Read it before the gate; see ``register``."""
        return max((int(version.version) for version in self.versions(model_name)), default=0)

    def register(
        self, run_id: str, model_name: str, directory: Path, tags: Mapping[str, str], *, newest_seen: int
    ) -> ModelVersion:
        """Create a version of the files below ``directory``, whole in one call, and make it champion.

        Args:
            run_id: MLflow's id of the run, whose artifacts the files become.
            model_name: the registered model that gets the version.
            directory: holds the files.
            tags: as ``version_tags`` returns them.
            newest_seen: what ``newest`` returned before the gate compared. The caller has held the lock since.

        Raises:
            UnavailableError: another machine registered a version since then, or the store could not be reached.
        """
        with _translated(self._uri):
            self._client.log_artifacts(run_id, str(directory), ARTIFACTS)
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{ARTIFACTS}"
            self._create_model(model_name)
            created = self._client.create_model_version(model_name, source, run_id=run_id, tags=dict(tags))
        number = int(created.version)
        self._refuse_lost_race(model_name, newest_seen, number)
        self._point_alias(model_name)
        return self.version(model_name, str(number))

    def _create_model(self, model_name: str) -> None:
        try:
            self._client.create_registered_model(model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _refuse_lost_race(self, model_name: str, seen: int, number: int) -> None:
        # The compare of the compare-and-swap: step 3 at the top of this module.
        between = [each for each in self.versions(model_name) if seen < int(each.version) < number]
        if between:
            with _translated(self._uri):
                self._client.delete_model_version(model_name, str(number))
            raise UnavailableError(
                f"another run registered {between[0].reference} while this one was compared with the champion before",
                where=_without_password(self._uri),
                next_step="run: inv train, which compares with the new champion",
            )

    def withdraw(self, version: ModelVersion, reason: str) -> ModelVersion | None:
        """Mark a version, move the alias back, and return the champion afterwards.

        Raises:
            UsageError: there is no such version.
        """
        with self.lock(version.name):
            if not self.version(version.name, version.version).withdrawn:
                with _translated(self._uri):
                    self._client.set_model_version_tag(version.name, version.version, "withdrawn", reason)
            return self._point_alias(version.name)

    def settle(self, model_name: str) -> ModelVersion | None:
        """Move the alias where a process that was killed did not get to, and return the champion.

        The caller holds the model's lock.
        """
        return self._point_alias(model_name)

    def _point_alias(self, model_name: str) -> ModelVersion | None:
        # Every version was champion when the gate registered it, so the newest that is not withdrawn is the champion.
        candidates = [version for version in self.versions(model_name) if not version.withdrawn]
        expected = candidates[-1] if candidates else None
        if expected == self.champion(model_name):
            return expected
        with _translated(self._uri):
            if expected:
                self._client.set_registered_model_alias(model_name, CHAMPION, expected.version)
            else:
                self._client.delete_registered_model_alias(model_name, CHAMPION)
        return expected

    def download(self, version: ModelVersion, directory: Path) -> None:
        """Fill ``directory`` with a version's files.

        Raises:
            IntegrityError: a file differs from the hash that was registered.
        """
        with _translated(self._uri):
            fetched = self._client.download_artifacts(version.tags["mlflow_run_id"], ARTIFACTS, str(directory))
        for path in Path(fetched).iterdir():
            path.rename(directory / path.name)
        Path(fetched).rmdir()
        compare_files(
            version.files,
            hash_files(directory),
            where=directory,
            next_step=f"withdraw {version.reference}: what the store holds is not what was registered",
        )


def _version(listed: MlflowVersion) -> ModelVersion:
    tags: dict[str, str] = dict(listed.tags)
    files: dict[str, str] = json.loads(tags.pop("files"))
    metrics: dict[str, float] = json.loads(tags.pop("metrics"))
    withdrawn = tags.pop("withdrawn", "")
    created = datetime.fromtimestamp(listed.creation_timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    return ModelVersion(
        id=f"{listed.name}:{listed.version}",
        name=listed.name,
        version=str(listed.version),
        created=created,
        tags={**tags, "mlflow_run_id": str(listed.run_id)},
        metrics=metrics,
        files=files,
        withdrawn=withdrawn,
    )


def version_tags(registration: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that a version carries from the call that creates it.

    ``registration`` is the project's ``registration.json``, ``tags`` are those of the run.
    """
    return {
        **tags,
        "runtime": registration["runtime"],
        "training_rows_sha256": registration["training_rows_sha256"],
        "files": json.dumps(registration["files"], sort_keys=True),
        "metrics": json.dumps(registration["metrics"], sort_keys=True),
    }


def _is_absent(error: MlflowException) -> bool:
    # A missing alias is INVALID_PARAMETER_VALUE, a missing model RESOURCE_DOES_NOT_EXIST.
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def _first_line(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    # MLflow repeats the address that it called, with the user and password before the @.
    return re.sub(r"://[^/\s@]*@", "://", first)[:300]


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
