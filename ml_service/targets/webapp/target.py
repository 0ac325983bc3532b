"""The target on Azure App Service: a container by digest, swapped in from a deployment slot. See ADR 0071."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ml_service.azure import errors
from ml_service.azure import lease as azure_lease
from ml_service.azure.key_vault import VaultKeys
from ml_service.common.one_version import OneVersionTarget
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.images import signing
from ml_service.ports import Progress, Release
from ml_service.targets.webapp.executor import Executor
from ml_service.targets.webapp.planner import Planner
from ml_service.targets.webapp.reader import Reader
from ml_service.targets.webapp.site import Site, WebApp

_STARTS = 3
"""How often a deployment may wait for a start: in the slot, in production, and once more after swapping back."""


class WebAppTarget(OneVersionTarget[Site | None]):
    """The Target port on App Service. All state is in the site's settings; MLOPS_HOME keeps packages for smoke.

    With a slot promise 2 holds. Without one the image is replaced in place: the candidate serves while it is verified.
    Versions are swapped whole, so there is no canary. A rollback deploys the version before again, which the slot
    mostly still holds. ``undeploy`` leaves the App Service plan, and keys in a vault.
    """

    name = "webapp"
    needs_image = True
    needs_registry = True
    _reader: Reader

    def __init__(self, settings: Settings) -> None:
        self._packages = PackageStore(settings.home / "targets" / "webapp" / settings.webapp.name / "packages")
        self._vault = VaultKeys(settings, settings.webapp.name) if settings.azure.keys_vault else None
        self._app = WebApp(settings)
        planner = Planner(settings, self._app, self._vault)
        super().__init__(settings, planner, Reader(settings, self._app, self._packages))

    def _check(self, release: Release) -> None:
        signing.check(self._settings, release)

    @contextmanager
    def _reading(self) -> Iterator[Site | None]:
        yield self._reader.read()

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[tuple[Site | None, Executor]]:
        """Make one change at a time, across machines."""
        webapp = self._settings.webapp
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        timeout = _STARTS * webapp.startup_timeout
        with azure_lease.held(self._settings, f"webapp-{webapp.name}", progress, timeout) as lease:
            site = self._reader.read()
            parts = (self._app, self._vault, self._packages, self._reader)
            yield site, Executor(self._settings, *parts, site, lease.confirm, progress)
