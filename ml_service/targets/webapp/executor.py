"""Perform the steps of a plan on App Service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ml_service.azure import errors
from ml_service.azure.key_vault import VaultKeys
from ml_service.azure.version import Version
from ml_service.common import keys as key_file
from ml_service.common.errors import unhealthy
from ml_service.common.package_store import PackageStore
from ml_service.common.plan import perform
from ml_service.common.verify import verify_candidate
from ml_service.common.waiting import wait_until
from ml_service.config import Settings
from ml_service.errors import UnhealthyError
from ml_service.images import pull_access
from ml_service.ports import Action, Keys, Progress, Release, Step, Verify
from ml_service.targets.webapp.planner import PRODUCTION, Candidate, NewSite, VaultKeyPair
from ml_service.targets.webapp.reader import Reader, answers, endpoint_of
from ml_service.targets.webapp.site import KEYS, Site, WebApp, settings_of

_POLL = 0.5


class Executor:
    """One change of the target. The caller holds the lease; ``production`` was read since.

    When a step fails, the slot is put back to what it held; after a swap that did not bring the version up, production
    and slot are swapped back first. Without a slot production is put back. A site that this change made is deleted.
    ``confirm_lease`` is called right before the swap.

    Beyond the printed steps it does bookkeeping in the target's own folder below MLOPS_HOME: it copies the package, and
    removes packages that no version needs.
    """

    def __init__(
        self,
        settings: Settings,
        app: WebApp,
        vault: VaultKeys | None,
        packages: PackageStore,
        reader: Reader,
        production: Site | None,
        confirm_lease: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._slot = settings.webapp.slot
        self._app = app
        self._vault = vault
        self._packages = packages
        self._reader = reader
        self._is_first = production is None
        self._production = production
        self._confirm_lease = confirm_lease
        self._progress = progress
        self._before: Site | None = None
        self._is_swapped = False

    def perform(self, steps: Sequence[Step], release: Release | None, verify: Verify) -> None:
        """Perform the steps. ``release`` is None when they bring back a version that was deployed before.

        Raises:
            UnhealthyError: the candidate did not come up or did not pass.
            UnavailableError: Azure refuses or does not answer, or another deployment has taken the lease.
        """
        if release is not None:
            self._packages.add(release)
        try:
            perform(
                steps,
                {
                    Action.CREATE: self._create,
                    Action.CHANGE: self._change,
                    Action.VERIFY: lambda step: self._verify(step.detail.version, verify),
                    Action.SWAP: lambda step: self._swap(step.detail.version),
                },
            )
        except BaseException:
            self._put_everything_back()
            raise
        self._progress(f"{steps[-1].detail.version} has the traffic")
        self._forget_packages()

    def undeploy(self) -> None:
        """Delete the site and the packages."""
        if self._production is not None:
            self._progress(f"removing web app {self._settings.webapp.name}")
            self._app.delete()
        self._packages.keep_only(())

    # The steps, in their order.

    def _create(self, step: Step) -> None:
        if isinstance(step.detail, VaultKeyPair):
            assert self._vault is not None
            self._progress("generating keys in the key vault")
            return self._vault.provide()
        errors.required(self._settings, "LOCATION")
        new: NewSite = step.detail
        # A slot has keys of its own, which do not open production.
        keys = self._vault.read() if self._vault and new.slot == PRODUCTION else Keys(**key_file.new_keys())
        access = pull_access.access(self._settings, new.version.image)
        self._app.create(new.slot, access, keys, self._progress)
        if new.slot == PRODUCTION:
            self._production = self._app.read()

    def _change(self, step: Step) -> None:
        if isinstance(step.detail, VaultKeyPair):
            return self._change_keys()
        candidate: Candidate = step.detail
        before = self._app.read(self._slot) if self._slot else self._production
        assert before is not None
        access = pull_access.access(self._settings, candidate.version.image)
        settings = settings_of(self._settings, candidate.version.serving_now(), candidate.previous, access)
        place = f"in slot {self._slot}" if self._slot else "in place of what serves"
        self._progress(f"starting {candidate.version} {place}")
        self._before = before
        self._app.change(self._slot, before, candidate.version, settings, access)

    def _change_keys(self) -> None:
        """Bring the vault's keys to production. They stick there, so no swap brings or takes them."""
        assert self._vault is not None and self._production is not None
        keys = self._vault.read()
        named = dict(zip(KEYS, (keys.primary, keys.secondary), strict=True))
        self._production = replace(self._production, settings={**self._production.settings, **named})
        self._app.put_back(PRODUCTION, self._production)

    def _verify(self, version: Version, verify: Verify) -> None:
        site = self._wait_until_ready(self._slot, version)
        self._progress(f"{version} is ready; verifying it at {site.url}")
        verify_candidate(
            verify,
            endpoint_of(site),
            self._packages.find(version.package),
            lambda reason: self._unhealthy(self._slot, site, f"{version} was up, but did not pass: {reason}"),
        )

    def _swap(self, version: Version) -> None:
        """Swap, then make sure that production answers as ``version``."""
        self._confirm_lease()
        self._app.swap(self._slot, self._progress)
        self._is_swapped = True
        self._wait_until_ready(PRODUCTION, version)

    def _wait_until_ready(self, slot: str, version: Version) -> Site:
        """Wait until ``version`` answers: what ran before may answer for a while."""
        site = self._app.read(slot)
        assert site is not None
        timeout = self._settings.webapp.startup_timeout

        def report(_seconds: float) -> None:
            self._progress(f"{version} does not answer yet")

        if not wait_until(lambda: answers(site, version), timeout=timeout, poll=_POLL, report=report):
            reason = f"{version} did not come up: it did not answer within {timeout:g} s"
            raise self._unhealthy(slot, site, reason)
        return site

    # After a failure.

    def _put_everything_back(self) -> None:
        if self._is_first:
            self._progress("removing the web app: nothing served before")
            self._app.delete()
        elif self._before is not None and self._slot:
            if self._is_swapped:
                self._progress("swapping back")
                self._app.swap(self._slot, self._progress)
            self._progress(f"putting slot {self._slot} back")
            self._app.put_back(self._slot, self._before)
        elif self._before is not None and self._before.current:
            self._put_production_back(self._before, self._before.current)

    def _put_production_back(self, before: Site, version: Version) -> None:
        """Bring back what served in place. When that takes too long, report it, and let the first error be raised."""
        self._progress(f"putting {version} back")
        self._app.put_back(PRODUCTION, before)
        try:
            self._wait_until_ready(PRODUCTION, version)
        except UnhealthyError as error:
            self._progress(f"{error.what.splitlines()[0]}; see inv status --target webapp")

    def _forget_packages(self) -> None:
        site = self._app.read()
        versions = [site.current, site.previous] if site else []
        self._packages.keep_only({version.package for version in versions if version})

    def _unhealthy(self, slot: str, site: Site, reason: str) -> UnhealthyError:
        log_lines = self._reader.candidate_log(slot, site)
        return unhealthy("webapp", reason, log_lines, "what served before serves; see inv logs")
