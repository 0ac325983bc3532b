"""The target on Azure App Service: a container by digest, swapped in from a deployment slot. See ADR 0071."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ml_service.azure import errors
from ml_service.azure import lease as azure_lease
from ml_service.azure.key_vault import VaultKeys
from ml_service.common.configured import is_configured
from ml_service.common.errors import no_canary, nothing_deployed
from ml_service.common.package_store import PackageStore
from ml_service.common.plan import is_due
from ml_service.config import Settings
from ml_service.images import signing
from ml_service.ports import Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify
from ml_service.targets.webapp.executor import Executor
from ml_service.targets.webapp.planner import Planner
from ml_service.targets.webapp.reader import Reader
from ml_service.targets.webapp.site import Site, WebApp

_STARTS = 3
"""How often a deployment may wait for a start: in the slot, in production, and once more after swapping back."""


class WebAppTarget:
    """The Target port on App Service. All state is in the site's settings; MLOPS_HOME keeps packages for smoke.

    With a slot promise 2 holds. Without one the image is replaced in place: the candidate serves while it is verified.
    Versions are swapped whole, so there is no canary.
    """

    name = "webapp"
    needs_image = True
    needs_registry = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._packages = PackageStore(settings.home / "targets" / "webapp" / settings.webapp.name / "packages")
        self._vault = VaultKeys(settings, settings.webapp.name) if settings.azure.keys_vault else None
        self._app = WebApp(settings)
        self._planner = Planner(settings, self._app, self._vault)
        self._reader = Reader(settings, self._app, self._packages)

    def is_configured(self) -> bool:
        """See ``ports.Target``."""
        return is_configured(self._settings, self.name)

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See ``ports.Target``."""
        if canary_percent is not None:
            raise no_canary(self.name, "--canary")
        return Plan(self.name, release, self._steps(release))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``."""
        if plan.steps:
            with self._changing(progress) as confirm_lease:
                if is_due(plan, self._steps(plan.release), progress):
                    executor = self._executor(self._reader.read(), progress)
                    executor.perform(plan.steps, plan.release, verify, confirm_lease)
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See ``ports.Target``. There is no key when the service was deployed with ``SCORING_AUTH=off``."""
        return self._reader.endpoint()

    def status(self) -> Status | None:
        """See ``ports.Target``."""
        return self._reader.status()

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``. The version before is deployed again; the slot mostly still holds it."""
        with self._changing(progress) as confirm_lease:
            site = self._reader.read()
            steps = self._planner.rollback_steps(site)
            self._executor(site, progress).perform(steps, None, verify, confirm_lease)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See ``ports.Target``. There is never a canary here."""
        raise no_canary(self.name, "inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See ``ports.Target``. The App Service plan stays, and so do keys in a vault."""
        with self._changing(progress):
            if self._reader.read() is not None:
                progress(f"removing web app {self._settings.webapp.name}")
                self._app.delete()
            self._packages.keep_only(())

    def logs(self, lines: int) -> Sequence[str]:
        """See ``ports.Target``."""
        return self._reader.logs(lines)

    def keys(self) -> Keys:
        """See ``ports.Target``."""
        return self._reader.keys()

    def diagnose(self) -> Sequence[Finding]:
        """See ``ports.Target``."""
        return self._reader.diagnose()

    def _steps(self, release: Release) -> list[Step]:
        signing.check(self._settings, release)
        return self._planner.steps(release, self._reader.read())

    def _executor(self, site: Site | None, progress: Progress) -> Executor:
        return Executor(self._settings, self._app, self._vault, self._packages, self._reader, site, progress)

    def _serving(self) -> Status:
        if (status := self.status()) is None:
            raise nothing_deployed(self.name)
        return status

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[Callable[[], None]]:
        """Make one change at a time, across machines; the block gets a function that confirms the lease."""
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        timeout = _STARTS * self._settings.webapp.startup_timeout
        with azure_lease.held(self._settings, f"webapp-{self._settings.webapp.name}", progress, timeout) as lease:
            yield lease.confirm
