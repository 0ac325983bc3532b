"""Read what is deployed on Container Instances: status, endpoint, keys and logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ml_service.azure import errors
from ml_service.common import keys as key_file
from ml_service.common.errors import LOG_LINES, nothing_deployed
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.errors import MlopsError
from ml_service.ports import Endpoint, Finding, Keys, Status
from ml_service.targets.aci import container_group
from ml_service.targets.aci.client import Groups, Snapshot, version_of
from ml_service.targets.aci.keys import AciKeys
from ml_service.targets.aci.planner import refuse_unsafe

_TARGET_NAME = "aci"
_DEPLOY_AGAIN = "run: inv deploy --target aci"


class Reader:
    """Answers questions about the target and changes nothing."""

    def __init__(self, settings: Settings, groups: Groups, keys: AciKeys, packages: PackageStore) -> None:
        self._settings = settings
        self._groups = groups
        self._keys = keys
        self._packages = packages

    def read(self) -> Snapshot:
        """Return the groups of the deployment.

        Raises:
            ConfigurationError: a setting that names them is missing.
        """
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        return self._groups.read()

    def status(self) -> Status | None:
        """Return the status that the port promises, or None when nothing is deployed."""
        snapshot = self.read()
        version, previous = version_of(snapshot.current), version_of(snapshot.previous)
        if snapshot.current is None or version is None:
            return None
        return Status(
            target=_TARGET_NAME,
            url=container_group.url_of(snapshot.current),
            model=version.model,
            build_id=version.build,
            package=str(self._packages.path(version.package)),
            package_sha256=version.package,
            image_digest=version.digest,
            since=version.since,
            previous=previous.model if previous else None,
            state=_state(self._groups.get(snapshot.current.name)),
        )

    def endpoint(self) -> Endpoint:
        """Return the address of what serves, with a key where it asks for one.

        Raises:
            UsageError: nothing is deployed.
        """
        current = self.read().current
        if current is None:
            raise nothing_deployed(_TARGET_NAME)
        return self.endpoint_of(current)

    def endpoint_of(self, group: Any) -> Endpoint:
        """Return the address of a group, with a key where its version asks for one."""
        main = next(container for container in group.containers if container.name == container_group.MAIN)
        options = {variable.name: variable.value or "" for variable in main.environment_variables}
        return Endpoint(container_group.url_of(group), self._keys.read().primary if requires_key(options) else "")

    def keys(self) -> Keys:
        """Return the two keys.

        Raises:
            UsageError: nothing is deployed.
            UnavailableError: they are on another machine.
        """
        if self.read().current is None:
            raise nothing_deployed(_TARGET_NAME)
        return self._keys.read()

    def logs(self, lines: int) -> Sequence[str]:
        """Return the last ``lines`` lines: of the version before, then of what serves."""
        snapshot, mask = self.read(), self._mask()
        names = [group.name for group in (snapshot.previous, snapshot.current) if group]
        return [mask(line) for name in names for line in self._groups.log(name, lines)][-lines:] if lines > 0 else []

    def candidate_log(self, name: str) -> Sequence[str]:
        """Return the last log lines of a group, for an error; none where Azure does not give them."""
        mask = self._mask()
        with suppress(MlopsError):
            return [mask(line) for line in self._groups.log(name, LOG_LINES)]
        return []

    def diagnose(self) -> Sequence[Finding]:
        """Check whether Azure answers, whether a deployment would be refused, and whether there are orphans."""
        try:
            snapshot = self.read()
            refuse_unsafe(self._settings)
        except MlopsError as error:
            return [Finding("container instances", False, f"{error.where}: {error.what}", error.next_step)]
        orphans = ", ".join(snapshot.orphans)
        detail = f"left behind: {orphans}" if orphans else "none left behind"
        return [
            Finding("container instances", True, f"resource group {self._settings.azure.resource_group} answers"),
            Finding("container groups", not orphans, detail, _DEPLOY_AGAIN),
        ]

    def _mask(self) -> Callable[[str], str]:
        return key_file.masking(self._keys.read)


def trouble_of(group: Any) -> str:
    """Return why a candidate will not come up; empty while it may."""
    for event in group.instance_view.events or [] if group.instance_view else []:
        if event.type == "Warning":
            return f"{event.name}: {event.message}"
    view = _main_view(group)
    state = view.current_state if view else None
    if view is None or state is None:
        return ""
    if view.restart_count or state.state == "Terminated":
        codes = [one.exit_code for one in (state, view.previous_state) if one and one.exit_code is not None]
        how = f"ended with code {codes[0]}" if codes else "ended, and was started again,"
        return f"its process {how} before it was ready ({state.detail_status or state.state})"
    return ""


def _main_view(group: Any) -> Any | None:
    main = next((container for container in group.containers if container.name == container_group.MAIN), None)
    return main.instance_view if main else None


def _state(group: Any) -> str:
    state = group.instance_view.state if group.instance_view else "unknown"
    if state != "Running":
        return f"down: the container group is {state}; {_DEPLOY_AGAIN}"
    view = _main_view(group)
    now = view.current_state.state if view and view.current_state else "unknown"
    return "serving" if now == "Running" else f"down: its container is {now}; see inv logs --target aci"
