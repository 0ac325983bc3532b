"""The target on Azure Container Instances: each version is a group with an address of its own. See ADR 0070."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ml_service.azure import errors
from ml_service.azure import lease as azure_lease
from ml_service.common.one_version import OneVersionTarget
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.images import signing
from ml_service.ports import Progress, Release
from ml_service.targets.aci.client import Groups, Snapshot
from ml_service.targets.aci.executor import Executor
from ml_service.targets.aci.keys import AciKeys
from ml_service.targets.aci.planner import Planner, refuse_unsafe
from ml_service.targets.aci.reader import Reader


class AciTarget(OneVersionTarget[Snapshot]):
    """The Target port on Container Instances. State is in tags there; MLOPS_HOME has packages, and keys without vault.

    The address moves with the version: promise 2 holds for clients that follow ``status`` within ACI_DRAIN_SECONDS. One
    version has the address, so there is no canary. A rollback starts the group of the version before, which was kept
    stopped. ``undeploy`` leaves keys in a vault there: the name of a deleted secret stays taken.
    """

    name = "aci"
    needs_image = True
    needs_registry = True
    _reader: Reader

    def __init__(self, settings: Settings) -> None:
        home = settings.home / "targets" / "aci" / settings.aci.name
        self._packages = PackageStore(home / "packages")
        self._groups = Groups(settings)
        self._keys = AciKeys(settings, home / "secrets" / "keys.json")
        planner = Planner(settings, self._keys)
        super().__init__(settings, planner, Reader(settings, self._groups, self._keys, self._packages))

    def _check(self, release: Release) -> None:
        signing.check(self._settings, release)
        refuse_unsafe(self._settings)

    @contextmanager
    def _reading(self) -> Iterator[Snapshot]:
        yield self._reader.read()

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[tuple[Snapshot, Executor]]:
        """Make one change at a time, across machines."""
        aci = self._settings.aci
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        timeout = 2 * aci.startup_timeout + aci.drain_seconds
        with azure_lease.held(self._settings, f"aci-{aci.name}", progress, timeout) as lease:
            snapshot = self._reader.read()
            parts = (self._groups, self._keys, self._packages, self._reader)
            yield snapshot, Executor(self._settings, *parts, snapshot, lease.confirm, progress)
