"""Runs and model versions in an MLflow tracking server or, by default, in SQLite on this machine.

Only MLflow's client API is used. Importing this module imports MLflow, which takes seconds: import it when it is
needed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# MLflow reports usage over the network unless told not to; it reads this when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# An unreachable server is reported in seconds; MLflow's own default keeps people waiting for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


@contextmanager
def _without_pandas() -> Iterator[None]:
    """MLflow imports pandas when it finds it, and works without; the client needs none of it, and it costs a second."""
    hidden = "pandas" not in sys.modules
    if hidden:
        sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["pandas"]


with _without_pandas():
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

from ml_service.errors import ConfigurationError, MlopsError, UnavailableError, UsageError  # noqa: E402
from ml_service.package import compare_files, hash_files  # noqa: E402
from ml_service.ports import ModelVersion  # noqa: E402

CHAMPION = "champion"
ARTIFACTS = "version"
"""Where in a run's artifacts the files of the version it registered are."""

_ENDED = {"canceled": "KILLED", "completed": "FINISHED", "failed": "FAILED"}

logging.getLogger("alembic").setLevel(logging.WARNING)
# What MLflow logs as an error, traceback included, it also raises, and here that becomes a message.
logging.getLogger("mlflow").setLevel(logging.CRITICAL)


def default_uri(store: Path) -> str:
    """The tracking store on this machine."""
    return f"sqlite:///{store / 'mlflow.db'}"


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Whatever MLflow raises becomes an error that names the store."""
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
    """A database that cannot be reached is reported in seconds: MLflow's ten attempts take almost two minutes."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 5


def _create_database(path: Path) -> None:
    """Create the database of this machine whole or not at all; the caller holds the store's lock.

    One whose creation was cut off, by a full disk or a kill, could never be opened again.
    """
    if path.exists():
        return
    fresh = path.with_name(".mlflow.db.new")
    for left in path.parent.glob(f"{fresh.name}*"):
        left.unlink()
    MlflowClient(f"sqlite:///{fresh}", f"sqlite:///{fresh}")
    fresh.rename(path)


class MlflowStore:
    """One project's runs and model versions.

    ``locks`` is a directory for file locks, shared by all who use the store.
    """

    def __init__(self, uri: str, store: Path, experiment: str) -> None:
        self._uri = uri or default_uri(store)
        self._locks = store / "locks"
        self._artifacts = store / "artifacts"
        self._experiment = experiment
        self._client: MlflowClient = self._open()

    def _open(self) -> MlflowClient:
        # Two processes that migrate one empty database at once break each other, so the first call happens alone.
        with _translated(self._uri):
            self._locks.mkdir(parents=True, exist_ok=True)
            with FileLock(self._locks / "store.lock"), _without_pandas():
                if not self._is_remote:
                    _bound_retries()
                if self._uri == default_uri(self._locks.parent):
                    _create_database(self._locks.parent / "mlflow.db")
                client = MlflowClient(self._uri, self._uri)
                self._experiment_id = self._find_experiment(client) or self._create_experiment(client)
        return client

    @property
    def _is_remote(self) -> bool:
        return self._uri.startswith(("http://", "https://", "databricks"))

    def _find_experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._experiment)
        return str(found.experiment_id) if found else ""

    def _create_experiment(self, client: MlflowClient) -> str:
        # A server chooses the place of artifacts itself; for a database the place is ours.
        location = None if self._is_remote else self._artifacts.as_uri()
        try:
            return str(client.create_experiment(self._experiment, artifact_location=location))
        except MlflowException:
            # On a remote store another machine may have been faster.
            found = self._find_experiment(client)
            if not found:
                raise
            return found

    def lock(self, model_name: str) -> FileLock:
        """The lock under which a model's gate, version and alias move.

        It holds on this machine (or shared disk) only.
        """
        return FileLock(self._locks / f"model-{model_name}.lock")

    # Runs

    def start_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Record a run as running; returns MLflow's id of it."""
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
        """Record how a run ended: ``completed``, ``canceled`` or ``failed``."""
        with _translated(self._uri):
            self._client.set_terminated(run_id, _ENDED[status])

    # Model versions

    def versions(self, model_name: str) -> list[ModelVersion]:
        """The versions that the gate registered, oldest first; what others put under the name is not ours to serve."""
        with _translated(self._uri):
            found = self._client.search_model_versions(f"name = '{model_name}'", max_results=10_000)
        ours = [_version(each) for each in found if "files" in each.tags]
        return sorted(ours, key=lambda version: int(version.version))

    def version(self, model_name: str, version: str) -> ModelVersion:
        """One version.

        Raises:
            UsageError: there is none of that number that the gate registered.
        """
        for each in self.versions(model_name):
            if each.version == version:
                return each
        raise UsageError(
            f"{model_name}:{version} is not registered", where="--model", next_step="look at the versions: inv ui"
        )

    def champion(self, model_name: str) -> ModelVersion | None:
        """The version that the alias names."""
        with _translated(self._uri):
            try:
                number = str(self._client.get_model_version_by_alias(model_name, CHAMPION).version)
            except MlflowException as error:
                if _is_absent(error):
                    return None
                raise
        return self.version(model_name, number)

    def newest(self, model_name: str) -> int:
        """The highest number given to a version so far, 0 before the first."""
        return max((int(version.version) for version in self.versions(model_name)), default=0)

    def register(
        self, run_id: str, model_name: str, directory: Path, tags: Mapping[str, str], *, newest_seen: int
    ) -> ModelVersion:
        """Create a version of the files below ``directory``, whole in one call, and make it champion.

        The caller holds the model's lock, which another machine cannot see. But version numbers are given out one by
        one: whoever finds a version between ``newest_seen``, read before the gate, and its own has lost, and takes
        its own back.

        Raises:
            UnavailableError: the race was lost, or the store could not be reached.
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
        """Mark a version, and let the alias fall back; returns the champion afterwards."""
        with self.lock(version.name):
            if not self.version(version.name, version.version).withdrawn:
                with _translated(self._uri):
                    self._client.set_model_version_tag(version.name, version.version, "withdrawn", reason)
            return self._point_alias(version.name)

    def settle(self, model_name: str) -> ModelVersion | None:
        """Finish what a run that was killed between its version and its alias left.

        The caller holds the model's lock.
        """
        return self._point_alias(model_name)

    def _point_alias(self, model_name: str) -> ModelVersion | None:
        # Every version was champion when the gate registered it, so the newest that is not withdrawn is the champion.
        standing = [version for version in self.versions(model_name) if not version.withdrawn]
        expected = standing[-1] if standing else None
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
            IntegrityError: what came is not what was registered.
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


def _version(found: MlflowVersion) -> ModelVersion:
    tags: dict[str, str] = dict(found.tags)
    files: dict[str, str] = json.loads(tags.pop("files"))
    metrics: dict[str, float] = json.loads(tags.pop("metrics"))
    withdrawn = tags.pop("withdrawn", "")
    created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    return ModelVersion(
        id=f"{found.name}:{found.version}",
        name=found.name,
        version=str(found.version),
        created=created,
        tags={**tags, "mlflow_run_id": str(found.run_id)},
        metrics=metrics,
        files=files,
        withdrawn=withdrawn,
    )


def version_tags(registration: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that a version carries from the call that creates it; ``registration`` is ``registration.json``."""
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
    # MLflow repeats the address that it called, with what stands before the @.
    return re.sub(r"://[^/\s@]*@", "://", first)[:300]


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
