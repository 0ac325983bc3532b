"""The target on Azure Container Instances: each version is a group with an address of its own. See ADR 0070."""

from __future__ import annotations

import difflib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ml_service.azure import errors
from ml_service.azure import lease as azure_lease
from ml_service.azure.key_vault import VaultKeys
from ml_service.common import keys as key_file
from ml_service.common.package_store import PackageStore
from ml_service.common.version import Version
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.errors import ConfigurationError, MlopsError, UnavailableError, UnhealthyError, UsageError
from ml_service.http_session import session_for
from ml_service.images import pull_access, signing
from ml_service.ports import Action, Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify
from ml_service.targets.aci import container_group
from ml_service.targets.aci.client import Groups, View, version_of

_HERE = "target aci"
_LABELS = ("a", "b", "c")
"""What serves, what served before, and the candidate: three addresses that versions take turns at."""

_POLL = 0.5
_SAY_AGAIN = 5.0
_LAST_LINES = 15


class AciTarget:
    """The Target port on Container Instances. State is in tags there; MLOPS_HOME has packages, and keys without vault.

    The address moves with the version: Target 2 holds for clients that follow ``status`` within ACI_DRAIN_SECONDS.
    """

    name = "aci"
    needs_image = True
    needs_registry = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._aci = settings.aci
        home = settings.home / "targets" / "aci" / settings.aci.name
        self._packages = PackageStore(home / "packages")
        self._keys_path = home / "secrets" / "keys.json"
        self._vault = VaultKeys(settings, settings.aci.name) if settings.azure.keys_vault else None
        self._groups = Groups(settings)

    # The port.

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See Target 1. One version has the address, so there is no share of the traffic to give away."""
        if canary_percent is not None:
            raise _no_canary("--canary")
        signing.check(self._settings, release)
        self._refuse_unusable()
        wanted, view = Version.of(release), self._look()
        return Plan(self.name, release, self._steps(wanted, view))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See Target 2, 3 and 4."""
        if plan.steps:
            signing.check(self._settings, plan.release)
            self._refuse_unusable()
            wanted = Version.of(plan.release)
            self._packages.add(plan.release)
            with self._changing(progress) as confirm:
                view = self._look()
                self._remove(view.strays, progress)
                self._provide_keys(view)
                self._deploy(wanted, self._look(), verify, confirm, progress)
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See Target 7. Without a key when the service was deployed with ``SCORING_AUTH=off``."""
        current = self._look().current
        if current is None:
            raise _nothing_deployed()
        return self._endpoint(current)

    def status(self) -> Status | None:
        """See Target 5."""
        view = self._look()
        version, previous = version_of(view.current), version_of(view.previous)
        if view.current is None or version is None:
            return None
        return Status(
            target=self.name,
            url=container_group.url_of(view.current),
            model=version.model,
            build_id=version.build,
            package=str(self._packages.path(version.package)),
            package_sha256=version.package,
            image_digest=version.digest,
            since=version.since,
            previous=previous.model if previous else None,
            state=_state(self._groups.get(view.current.name)),
        )

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See Target 5. The group of the version before was kept stopped, and starts again."""
        with self._changing(progress) as confirm:
            view = self._look()
            version = version_of(view.previous)
            if view.previous is None or version is None:
                raise UsageError(
                    "there is no version before to go back to", where=_HERE, next_step="see: inv status --target aci"
                )
            name = view.previous.name
            try:
                self._groups.start(name, progress)
                self._question(name, version, verify, progress)
                confirm()
                self._move(self._groups.get(name), version, view, "")
            except BaseException:
                self._groups.stop(name)
                raise
            self._retire(view, keep="", progress=progress)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See Target 5: there is never a canary here."""
        raise _no_canary("inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See Target 6. Keys in a vault stay there: a secret that was deleted keeps its name taken."""
        with self._changing(progress):
            self._remove(list(self._look().groups), progress)
            self._packages.keep_only(())
            self._keys_path.unlink(missing_ok=True)

    def logs(self, lines: int) -> Sequence[str]:
        """See Target 7: of the version before, then of what serves. Log Analytics keeps what removed ones said."""
        view, mask = self._look(), self._mask()
        names = [group.name for group in (view.previous, view.current) if group]
        return [mask(line) for name in names for line in self._groups.log(name, lines)][-lines:] if lines > 0 else []

    def keys(self) -> Keys:
        """See Target 7."""
        if self._look().current is None:
            raise _nothing_deployed()
        return self._read_keys()

    def diagnose(self) -> Sequence[Finding]:
        """Whether Azure answers, what a deployment would refuse, and what was left behind."""
        try:
            view = self._look()
            self._refuse_unusable()
        except MlopsError as error:
            return [Finding("container instances", False, f"{error.where}: {error.what}", error.next_step)]
        left = ", ".join(view.strays)
        return [
            Finding("container instances", True, f"resource group {self._settings.azure.resource_group} answers"),
            Finding("container groups", not left, f"left behind: {left}" if left else "none left behind", _again()),
        ]

    # The steps of a deployment.

    def _steps(self, wanted: Version, view: View) -> list[Step]:
        body = self._body(wanted, "", None)
        before = container_group.described(view.current) if view.current else None
        after = container_group.described(body)
        if before == after:
            return []
        serves = version_of(view.current)
        steps = [Step(Action.REMOVE, f"container group {name}, which nothing leads to") for name in view.strays]
        steps += [
            Step(Action.CREATE, f"a container group for {wanted}, beside what serves", _diff(before, after)),
            Step(Action.VERIFY, f"{wanted} at its own address"),
            Step(Action.MOVE, f"what status and endpoint name to the address of {wanted}"),
        ]
        if serves:
            steps.append(Step(Action.STOP, f"{serves}, after {self._aci.drain_seconds:g} s for clients to follow"))
        if view.previous and not wanted.same_as(serves):
            steps.append(Step(Action.REMOVE, f"container group {view.previous.name}: {version_of(view.previous)}"))
        return steps

    def _deploy(
        self, wanted: Version, view: View, verify: Verify, confirm: Callable[[], None], progress: Progress
    ) -> None:
        body = self._body(wanted, self._free_label(view), self._read_keys())
        if view.current and container_group.described(view.current) == container_group.described(body):
            return progress("another deployment has brought up the same meanwhile")
        name = self._new_name(wanted)
        kept = view.previous if wanted.same_as(version_of(view.current)) else view.current
        try:
            progress(f"creating container group {name} for {wanted}, beside what serves")
            self._groups.create(name, body, progress)
            self._question(name, wanted, verify, progress)
            confirm()
            self._move(self._groups.get(name), wanted, view, kept.name if kept else "")
        except BaseException:
            progress(f"removing container group {name}")
            self._groups.delete(name)
            raise
        progress(f"{wanted} has the address")
        self._retire(view, keep=kept.name if kept else "", progress=progress)

    def _question(self, name: str, version: Version, verify: Verify, progress: Progress) -> None:
        """Wait until ready, ask. Whatever fails is told with the container's last lines."""
        endpoint = self._endpoint(self._groups.get(name))
        self._wait_until_ready(name, version, endpoint, progress)
        progress(f"{version} is ready; questioning it at {endpoint.url}")
        try:
            verify(endpoint, self._packages.find(version.package))
        except Exception as error:
            if isinstance(error, MlopsError) and not isinstance(error, UnhealthyError):
                raise
            why = error.what if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
            raise self._unhealthy(name, f"{version} was up, but did not pass: {why}") from error

    def _wait_until_ready(self, name: str, version: Version, endpoint: Endpoint, progress: Progress) -> None:
        deadline = time.monotonic() + self._aci.startup_timeout
        said = time.monotonic()
        with session_for(endpoint.url) as session:
            while time.monotonic() < deadline:
                if trouble := _trouble(self._groups.get(name)):
                    raise self._unhealthy(name, f"{version} did not come up: {trouble}")
                if _is_ready(session, endpoint.url):
                    return
                if time.monotonic() - said > _SAY_AGAIN:
                    said = time.monotonic()
                    progress(f"{version} is not ready yet")
                time.sleep(_POLL)
        why = f"it was not ready after {self._aci.startup_timeout:g} s"
        raise self._unhealthy(name, f"{version} did not come up: {why}")

    def _move(self, group: Any, version: Version, view: View, previous: str) -> None:
        turn = int(view.current.tags[container_group.TURN]) + 1 if view.current else 1
        self._groups.serve(group, version, turn, previous)

    def _retire(self, view: View, *, keep: str, progress: Progress) -> None:
        """Let clients follow, then stop the group to ``keep`` and remove the others."""
        if view.current:
            progress(f"{version_of(view.current)} answers {self._aci.drain_seconds:g} s longer at its address")
            time.sleep(self._aci.drain_seconds)
        if view.current and view.current.name == keep:
            self._groups.stop(keep)
        old = [group.name for group in (view.current, view.previous) if group]
        now = self._look().current
        self._remove([name for name in old if name not in (keep, now.name if now else "")], progress)
        self._forget_packages()

    def _remove(self, names: Sequence[str], progress: Progress) -> None:
        for name in names:
            progress(f"removing container group {name}")
            self._groups.delete(name)

    def _forget_packages(self) -> None:
        view = self._look()
        used = [version_of(view.current), version_of(view.previous)]
        self._packages.keep_only({version.package for version in used if version})

    # What is wanted.

    def _body(self, wanted: Version, label: str, keys: Keys | None) -> Any:
        with errors.translated("Container Instances"):
            access = pull_access.access(self._settings, wanted.image)
            return container_group.build(self._settings, wanted, access, label, keys, self._keys_version())

    def _new_name(self, version: Version) -> str:
        readable = re.sub(r"[^a-z0-9]+", "-", version.version.lower()).strip("-")[:16]
        return f"{self._aci.name[:32]}-v{readable}-{secrets.token_hex(3)}"

    def _free_label(self, view: View) -> str:
        every = [f"{self._aci.dns_label}-{letter}" for letter in _LABELS]
        return next(label for label in every if label not in view.labels)

    def _refuse_unusable(self) -> None:
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP", "LOCATION")
        if not self._aci.tls_image and not self._aci.allow_http:
            raise ConfigurationError(
                "the address would be public and without TLS: keys and data could be read on the way",
                where=_HERE,
                next_step="set ACI_TLS_IMAGE and a certificate; or say that it is meant: --allow-http",
            )
        if self._settings.azure_pipelines and self._vault is None:
            raise ConfigurationError(
                "the keys would be lost with this agent",
                where="SCORING_KEYS_VAULT",
                next_step="set it to the name of a key vault, such as the Azure ML workspace's own",
            )

    # What there is.

    def _look(self) -> View:
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        return self._groups.look()

    def _serving(self) -> Status:
        status = self.status()
        if status is None:
            raise _nothing_deployed()
        return status

    def _endpoint(self, group: Any) -> Endpoint:
        main = next(container for container in group.containers if container.name == container_group.MAIN)
        options = {variable.name: variable.value or "" for variable in main.environment_variables}
        return Endpoint(container_group.url_of(group), self._read_keys().primary if requires_key(options) else "")

    def _unhealthy(self, name: str, why: str) -> UnhealthyError:
        mask, lines = self._mask(), []
        with suppress(MlopsError):
            lines = [mask(line) for line in self._groups.log(name, _LAST_LINES)]
        said = "".join(f"\n  | {line}" for line in lines) or " nothing"
        return UnhealthyError(
            f"{why}\nlast that it said:{said}", where=_HERE, next_step="what served before still serves"
        )

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[Callable[[], None]]:
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        patience = 2 * self._aci.startup_timeout + self._aci.drain_seconds
        with azure_lease.held(self._settings, f"aci-{self._aci.name}", progress, patience) as lease:
            yield lease.confirm

    # Keys: Container Instances never gives a secure variable back, so they are elsewhere.

    def _provide_keys(self, view: View) -> None:
        if self._vault:
            return self._vault.provide()
        if view.current and not self._keys_path.exists():
            raise _keys_elsewhere()
        key_file.make(self._keys_path)

    def _read_keys(self) -> Keys:
        if self._vault:
            return self._vault.read()
        if not self._keys_path.exists():
            raise _keys_elsewhere()
        return key_file.read(self._keys_path, "run: inv undeploy --target aci, then deploy again")

    def _keys_version(self) -> str:
        return f"{self._settings.azure.keys_vault} {self._vault.version()}" if self._vault else "in MLOPS_HOME"

    def _mask(self) -> Callable[[str], str]:
        return key_file.masking(self._read_keys)


def _is_ready(session: Any, url: str) -> bool:
    import requests

    with suppress(requests.RequestException):
        return bool(session.get(f"{url}/health/ready", timeout=5).status_code == 200)
    return False


def _main_view(group: Any) -> Any | None:
    main = next((container for container in group.containers if container.name == container_group.MAIN), None)
    return main.instance_view if main else None


def _trouble(group: Any) -> str:
    """Why a candidate will not come up; empty while it may."""
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


def _state(group: Any) -> str:
    state = group.instance_view.state if group.instance_view else "unknown"
    if state != "Running":
        return f"down: the container group is {state}; {_again()}"
    view = _main_view(group)
    now = view.current_state.state if view and view.current_state else "unknown"
    return "serving" if now == "Running" else f"down: its container is {now}; see inv logs --target aci"


def _diff(before: object, after: object) -> str:
    old = json.dumps(before, indent=1, sort_keys=True).splitlines() if before else []
    new = json.dumps(after, indent=1, sort_keys=True).splitlines()
    return "\n".join(difflib.unified_diff(old, new, "now", "then", lineterm="", n=0))


def _again() -> str:
    return "run: inv deploy --target aci"


def _keys_elsewhere() -> UnavailableError:
    return UnavailableError(
        "the keys of this deployment are in the MLOPS_HOME of another machine, and Azure gives none back",
        where=_HERE,
        next_step="use that machine; or set SCORING_KEYS_VAULT, undeploy, and deploy afresh",
    )


def _nothing_deployed() -> UsageError:
    return UsageError("nothing is deployed", where=_HERE, next_step=_again())


def _no_canary(where: str) -> UsageError:
    why = "the target aci serves one version at a time and has no canary"
    return UsageError(why, where=where, next_step="use it with --target aks")
