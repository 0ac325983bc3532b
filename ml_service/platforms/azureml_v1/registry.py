"""Model versions in the registry of an Azure ML workspace, as the port defines them. See docs/adr/0051.

Used on both sides: by the adapter, and by the steps on the compute. The registry of SDK v1 has neither aliases nor
locks nor transactions. What it has: version numbers that it gives out one by one, tags that can be added, and
*properties*, which are written once and cannot be changed. That is enough for a compare-and-swap:

1. Before the gate compares, the run reads the highest number of a confirmed version (``newest``).
2. The version is registered with its files, tags and hashes. It is *pending*: no reader of this module sees a version
   that lacks the property ``champion_since``.
3. Compare: the run lists all versions between the number of step 1 and its own. A confirmed one was registered after
   this run compared. A pending one whose run is alive may be confirmed at any moment. In both cases the run has lost:
   it deletes its version and compares again. Because numbers are given out one by one, of two runs that race the one
   with the lower number never sees the other between, so at least one of them wins.
4. Swap: the run adds ``champion_since``. The version is now visible, whole, to everybody.

A run that dies between 2 and 4 leaves a pending version. Nobody sees it, and runs that come later ignore it, since its
run is not alive. The champion is derived: the highest confirmed version that has no tag ``withdrawn``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from ml_service.azure_devops import sanitize_log_line
from ml_service.errors import IntegrityError, UnavailableError, UsageError
from ml_service.package import compare_files, hash_files
from ml_service.platforms.azureml_v1.sdk import attempt, is_missing, translated
from ml_service.ports import ModelVersion

TAGS = (
    "run_id",
    "build_id",
    "build_uri",
    "git_commit",
    "pipeline_id",
    "data_sha256",
    "lock_sha256",
    "training_rows_sha256",
    "runtime",
)
"""The tags that a version carries from the call that creates it, as the port lists them."""

CONFIRMED = "champion_since"
WITHDRAWN = "withdrawn"
CONTENT = "version"
"""The folder whose files a version is made of. Its name is part of each file's path in the registry."""

_FILE, _METRIC = "file:", "metric:"
_TIMEOUTS = (10, 60)
"""Seconds to connect to the storage, and to wait for the next bytes of a file."""
_CHUNK = 1 << 20


class LostRace(UnavailableError):
    """Another run registered a version between this run's gate and its registration. This run's version is deleted."""


class Registry:
    """The model versions in one workspace."""

    def __init__(self, workspace: Any) -> None:
        self._workspace = workspace

    def versions(self, model_name: str) -> list[ModelVersion]:
        """Return the confirmed versions, oldest first; versions registered by other tools are ignored."""
        return [_version(model) for model in self._models(model_name) if CONFIRMED in model.properties]

    def version(self, model_name: str, version: str) -> ModelVersion:
        """Return one version.

        Raises:
            UsageError: the gate registered no version of this number.
        """
        for each in self.versions(model_name):
            if each.version == version:
                return each
        raise UsageError(
            f"{model_name}:{version} is not registered",
            where=f"workspace {self._workspace.name}",
            next_step="look at the models of the workspace: https://ml.azure.com",
        )

    def champion(self, model_name: str) -> ModelVersion | None:
        """Return the newest version that is not withdrawn: each was champion when it was confirmed."""
        candidates = [version for version in self.versions(model_name) if not version.withdrawn]
        return candidates[-1] if candidates else None

    def newest(self, model_name: str) -> int:
        """Return the highest number of a confirmed version so far, 0 before the first."""
        return max((int(version.version) for version in self.versions(model_name)), default=0)

    def _models(self, model_name: str) -> list[Any]:
        from azureml.core import Model

        where = f"models {model_name} of workspace {self._workspace.name}"
        models = attempt(lambda: Model.list(self._workspace, name=model_name, expand=False), where)
        exact = [model for model in models if model.name == model_name]
        return sorted(exact, key=lambda model: int(model.version))

    def register(
        self,
        model_name: str,
        directory: Path,
        tags: Mapping[str, str],
        registration: Mapping[str, Any],
        *,
        newest_seen: int,
        is_alive: Callable[[str], bool],
    ) -> ModelVersion:
        """Register the files below ``directory`` as a version, and make it champion.

        Args:
            model_name: the model that gets the version.
            directory: holds the files. It must be below the working directory: the SDK refuses any other.
            tags: a value for each of TAGS.
            registration: the project's ``registration.json``.
            newest_seen: what ``newest`` returned before the gate compared.
            is_alive: returns whether a run goes on. Pending versions of runs that have ended are ignored.

        Raises:
            LostRace: another run was faster; the version of this one is deleted.
            UnavailableError: the workspace cannot be reached.
        """
        from azureml.core import Model

        where = f"model {model_name} of workspace {self._workspace.name}"
        with translated(where):
            created = Model.register(
                self._workspace,
                str(directory),
                model_name,
                tags=_tags(tags),
                properties=_properties(registration),
            )
        self._remove_twins(model_name, created, tags["run_id"])
        self._refuse_lost_race(model_name, created, tags["run_id"], newest_seen, is_alive)
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        # The swap. A property, because a tag could be overwritten by a withdrawal at the same moment.
        attempt(lambda: self._confirm(created.id, moment), where)
        return self.version(model_name, str(created.version))

    def _confirm(self, identifier: str, moment: str) -> None:
        from azureml.core import Model

        model = Model(self._workspace, id=identifier, expand=False)
        if CONFIRMED not in model.properties:
            model.add_properties({CONFIRMED: moment})

    def _remove_twins(self, model_name: str, created: Any, run_id: str) -> None:
        # The SDK repeats a call whose response was lost, and then the registry holds the version twice.
        for model in self._models(model_name):
            if _is_pending(model) and model.tags.get("run_id") == run_id and model.version != created.version:
                self._delete(model)

    def _refuse_lost_race(
        self, model_name: str, created: Any, run_id: str, seen: int, is_alive: Callable[[str], bool]
    ) -> None:
        for model in self._models(model_name):
            between = seen < int(model.version) < int(created.version)
            if between and (not _is_pending(model) or is_alive(model.tags.get("run_id", ""))):
                self._delete(created)
                raise LostRace(
                    f"another run registered {model.name}:{model.version} while this one was compared with the "
                    "champion before",
                    where=f"workspace {self._workspace.name}",
                    next_step="run: inv train, which compares with the new champion",
                )

    def _delete(self, model: Any) -> None:
        try:
            attempt(model.delete, f"model {model.id}")
        except UnavailableError:
            # It stays pending, and its run is about to end: no reader sees it, and later runs ignore it.
            return

    def withdraw(self, version: ModelVersion, reason: str) -> ModelVersion | None:
        """Tag a version as withdrawn, and return the champion afterwards.

        Raises:
            UsageError: there is no such version.
        """
        from azureml.core import Model

        def mark() -> None:
            model = Model(self._workspace, id=version.id, expand=False)
            if WITHDRAWN not in model.tags:
                model.add_tags({WITHDRAWN: reason})

        if not self.version(version.name, version.version).withdrawn:
            attempt(mark, f"model {version.id} of workspace {self._workspace.name}")
        return self.champion(version.name)

    def download(self, version: ModelVersion, directory: Path) -> None:
        """Fill ``directory`` with a version's files.

        Raises:
            UsageError: the version has been deleted.
            IntegrityError: a file differs from its hash, or its path leads out of ``directory``.
        """
        where = f"model {version.id} of workspace {self._workspace.name}"
        addresses = attempt(lambda: self._addresses(version), where)
        for name in version.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise IntegrityError(
                    f"it names a file outside of itself: {sanitize_log_line(name)}",
                    where=where,
                    next_step=f"withdraw {version.reference}: nothing of ours registered that",
                )
            if address := addresses.get(f"{CONTENT}/{name}"):
                attempt(functools.partial(_fetch, address, directory / name), where)
        compare_files(
            version.files,
            hash_files(directory),
            where=directory,
            next_step=f"withdraw {version.reference}: what the workspace holds is not what was registered",
        )

    def _addresses(self, version: ModelVersion) -> dict[str, str]:
        """Return the signed address of each file of the version, by its path."""
        from azureml.core import Model

        try:
            model = Model(self._workspace, id=version.id, expand=False)
        except Exception as error:
            if is_missing(error):
                raise UsageError(
                    f"{version.reference} was deleted from the workspace",
                    where=f"workspace {self._workspace.name}",
                    next_step="choose another version: --model NAME:VERSION",
                ) from None
            raise
        addresses: dict[str, str] = model.get_sas_urls()
        return addresses


def _fetch(address: str, path: Path) -> None:
    # Model.download repeats each try of the storage client five times, which together takes minutes to give up.
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    with requests.get(address, stream=True, timeout=_TIMEOUTS) as response:
        response.raise_for_status()
        with path.open("wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)


def _is_pending(model: Any) -> bool:
    return CONFIRMED not in model.properties


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags, with the build also under the names that MLOpsPython's users know. Empty values are left out."""
    known = {"BuildId": tags["build_id"], "BuildUri": tags["build_uri"]}
    return {name: value for name, value in {**tags, **known}.items() if value}


def _properties(registration: Mapping[str, Any]) -> dict[str, str]:
    """Return a property for each file and each metric: the service limits the length of a value."""
    files = {f"{_FILE}{path}": str(digest) for path, digest in registration["files"].items()}
    metrics = {f"{_METRIC}{name}": repr(float(value)) for name, value in registration["metrics"].items()}
    return {**files, **metrics}


def _stripped(values: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in sorted(values.items()) if name.startswith(prefix)}


def _version(model: Any) -> ModelVersion:
    created: datetime = model.created_time
    return ModelVersion(
        id=f"{model.name}:{model.version}",
        name=model.name,
        version=str(model.version),
        created=created.astimezone(UTC).isoformat(timespec="milliseconds"),
        tags={name: sanitize_log_line(model.tags.get(name, "")) for name in TAGS},
        metrics={name: float(value) for name, value in _stripped(model.properties, _METRIC).items()},
        files=_stripped(model.properties, _FILE),
        withdrawn=sanitize_log_line(model.tags.get(WITHDRAWN, "")),
    )


def newest_of_build(versions: Sequence[ModelVersion], build_id: str) -> ModelVersion | None:
    """Return the newest version that a build registered and that is not withdrawn, or None."""
    of_build = [version for version in versions if version.tags["build_id"] == build_id and not version.withdrawn]
    return of_build[-1] if of_build else None
