"""Perform the steps of a plan on Container Instances."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence

from ml_service.azure.version import Version
from ml_service.common.errors import unhealthy
from ml_service.common.package_store import PackageStore
from ml_service.common.plan import perform
from ml_service.common.verify import is_ready, verify_candidate
from ml_service.common.waiting import wait_until
from ml_service.config import Settings
from ml_service.errors import UnhealthyError
from ml_service.http_session import session_for
from ml_service.ports import Action, Endpoint, Progress, Release, Step, Verify
from ml_service.targets.aci import container_group
from ml_service.targets.aci.client import Groups, Snapshot, version_of
from ml_service.targets.aci.keys import AciKeys
from ml_service.targets.aci.reader import Reader, trouble_of

_LABELS = ("a", "b", "c")
"""The ends of the three addresses that versions take turns at: of what serves, of what served before, and of the
candidate. A DNS label belongs to one group, and moving it to another means a gap of about a minute. With three, the
candidate always has a free one: it is verified at the address that it keeps, and the version before can start again at
its own. So no label ever moves between groups that serve."""

_POLL = 0.5


class Executor:
    """One change of the target. The caller holds the lease; ``snapshot`` was read since.

    When a step fails before the move, the candidate's group is removed (after a rollback's: stopped). The move is one
    write of tags; ``confirm_lease`` is called right before it.

    Beyond the printed steps it does bookkeeping in the target's own folder below MLOPS_HOME: it copies the package,
    removes packages that no version needs and, without a key vault, generates the keys.
    """

    def __init__(
        self,
        settings: Settings,
        groups: Groups,
        keys: AciKeys,
        packages: PackageStore,
        reader: Reader,
        snapshot: Snapshot,
        confirm_lease: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._aci = settings.aci
        self._groups = groups
        self._keys = keys
        self._packages = packages
        self._reader = reader
        self._snapshot = snapshot
        self._confirm_lease = confirm_lease
        self._progress = progress
        self._candidate = ""
        self._is_new = self._is_moving = False

    def perform(self, steps: Sequence[Step], release: Release | None, verify: Verify) -> None:
        """Perform the steps. ``release`` is None when they start a group that is there.

        Raises:
            UnhealthyError: the candidate did not come up or did not pass.
            UnavailableError: Azure refuses or does not answer, or another deployment has taken the lease.
        """
        if release is not None:
            self._packages.add(release)
            self._keys.make_file(is_deployed=self._snapshot.current is not None)
        try:
            perform(
                steps,
                {
                    Action.CREATE: self._create,
                    Action.START: self._start,
                    Action.VERIFY: lambda step: self._verify(step.detail, verify),
                    Action.MOVE: self._move,
                    Action.STOP: self._stop,
                    Action.REMOVE: self._remove,
                },
            )
        except BaseException:
            self._give_up_candidate()
            raise
        snapshot = self._groups.read()
        versions = [version_of(snapshot.current), version_of(snapshot.previous)]
        self._packages.keep_only({version.package for version in versions if version})

    def undeploy(self) -> None:
        """Remove all groups, the packages and the file of the keys."""
        for name in self._snapshot.groups:
            self._delete(name)
        self._packages.keep_only(())
        self._keys.forget_file()

    # The steps, in their order.

    def _create(self, step: Step) -> None:
        if step.detail is None:
            assert self._keys.vault is not None
            self._progress("generating keys in the key vault")
            return self._keys.vault.provide()
        version: Version = step.detail
        group = container_group.for_version(
            self._settings, version, self._free_label(), self._keys.read(), self._keys.version()
        )
        self._candidate, self._is_new = self._new_name(version), True
        self._progress(f"creating container group {self._candidate} for {version}, beside what serves")
        self._groups.create(self._candidate, group, self._progress)

    def _start(self, step: Step) -> None:
        self._candidate = step.detail
        self._groups.start(self._candidate, self._progress)

    def _verify(self, version: Version, verify: Verify) -> None:
        endpoint = self._reader.endpoint_of(self._groups.get(self._candidate))
        self._wait_until_ready(version, endpoint)
        self._progress(f"{version} is ready; verifying it at {endpoint.url}")
        package = self._packages.find(version.package)
        verify_candidate(
            verify, endpoint, package, lambda reason: self._unhealthy(f"{version} was up, but did not pass: {reason}")
        )

    def _wait_until_ready(self, version: Version, endpoint: Endpoint) -> None:
        with session_for(endpoint.url) as session:

            def is_up() -> bool:
                if trouble := trouble_of(self._groups.get(self._candidate)):
                    raise self._unhealthy(f"{version} did not come up: {trouble}")
                return is_ready(session, endpoint.url)

            def report(_seconds: float) -> None:
                self._progress(f"{version} is not ready yet")

            if not wait_until(is_up, timeout=self._aci.startup_timeout, poll=_POLL, report=report):
                reason = f"it was not ready after {self._aci.startup_timeout:g} s"
                raise self._unhealthy(f"{version} did not come up: {reason}")

    def _move(self, step: Step) -> None:
        group, current = self._groups.get(self._candidate), self._snapshot.current
        version = version_of(group)
        assert version is not None
        revision = int(current.tags[container_group.REVISION]) + 1 if current else 1
        self._confirm_lease()
        self._is_moving = True
        self._groups.serve(group, version, revision, step.detail)
        self._progress(f"{version} has the address")

    def _stop(self, step: Step) -> None:
        """Let clients follow the address, then stop the group that served."""
        version = version_of(self._snapshot.groups[step.detail])
        self._progress(f"{version} answers {self._aci.drain_seconds:g} s longer at its address")
        time.sleep(self._aci.drain_seconds)
        self._groups.stop(step.detail)

    def _remove(self, step: Step) -> None:
        self._delete(step.detail)

    # The candidate.

    def _give_up_candidate(self) -> None:
        """Remove the candidate, or stop it after a rollback, unless the move has made it what serves."""
        if not self._candidate or self._has_moved():
            return
        if self._is_new:
            self._delete(self._candidate)
        else:
            self._groups.stop(self._candidate)

    def _has_moved(self) -> bool:
        """The response to the move may be lost, so read what serves."""
        current = self._groups.read().current if self._is_moving else None
        return current is not None and current.name == self._candidate

    def _delete(self, name: str) -> None:
        self._progress(f"removing container group {name}")
        self._groups.delete(name)

    def _new_name(self, version: Version) -> str:
        readable = re.sub(r"[^a-z0-9]+", "-", version.version.lower()).strip("-")[:16]
        return f"{self._aci.name[:32]}-v{readable}-{secrets.token_hex(3)}"

    def _free_label(self) -> str:
        in_use = self._groups.read().labels
        return next(label for end in _LABELS if (label := f"{self._aci.dns_label}-{end}") not in in_use)

    def _unhealthy(self, reason: str) -> UnhealthyError:
        log_lines = self._reader.candidate_log(self._candidate)
        return unhealthy("aci", reason, log_lines, "what served before, if anything, still serves")
