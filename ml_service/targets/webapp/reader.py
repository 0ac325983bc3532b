"""Read what is deployed on App Service: status, endpoint, keys and logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from ml_service.azure import errors
from ml_service.azure.version import Version
from ml_service.common import keys as key_file
from ml_service.common.errors import LOG_LINES, nothing_deployed
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.errors import MlopsError, UsageError
from ml_service.http_session import session_for
from ml_service.ports import Endpoint, Finding, Keys, Status
from ml_service.targets.webapp.site import KEYS, Site, WebApp

_TARGET_NAME = "webapp"
_DEPLOY_AGAIN = "run: inv deploy --target webapp"


class Reader:
    """Answers questions about the target and changes nothing."""

    def __init__(self, settings: Settings, app: WebApp, packages: PackageStore) -> None:
        self._settings = settings
        self._slot = settings.webapp.slot
        self._app = app
        self._packages = packages

    def read(self) -> Site | None:
        """Return what production holds, or None when there is no site.

        Raises:
            ConfigurationError: a setting that names it is missing.
        """
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        return self._app.read()

    def status(self) -> Status | None:
        """Return the status that the port promises, or None when nothing is deployed."""
        site = self.read()
        version = site.current if site else None
        if site is None or version is None:
            return None
        return Status(
            target=_TARGET_NAME,
            url=site.url,
            model=version.model,
            build_id=version.build,
            package=str(self._packages.path(version.package)),
            package_sha256=version.package,
            image_digest=version.digest,
            since=version.since,
            previous=site.previous.model if site.previous else None,
            state=_state(site),
        )

    def endpoint(self) -> Endpoint:
        """Return the public address, with a key where the version that serves asks for one.

        Raises:
            UsageError: nothing is deployed.
        """
        return endpoint_of(self._deployed())

    def keys(self) -> Keys:
        """Return the two keys of production.

        Raises:
            UsageError: nothing is deployed, or the site has no keys.
        """
        keys = self._deployed().keys
        if keys is None:
            raise UsageError("the site has no keys", where="target webapp", next_step=_DEPLOY_AGAIN)
        return keys

    def _deployed(self) -> Site:
        site = self.read()
        if site is None or site.current is None:
            raise nothing_deployed(_TARGET_NAME)
        return site

    def logs(self, lines: int) -> Sequence[str]:
        """Return the last ``lines`` lines: of the slot, which mostly holds the version before, then of production."""
        site = self.read()
        if site is None or lines <= 0:
            return []
        slot = self._app.read(self._slot) if self._slot else None
        mask = _masking(site, slot)
        log = [*(self._app.log(self._slot, lines) if slot else ()), *self._app.log("", lines)]
        return [mask(line) for line in log][-lines:]

    def candidate_log(self, slot: str, site: Site) -> Sequence[str]:
        """Return the last log lines of a slot, for an error; none where Azure does not give them."""
        mask = _masking(site)
        with suppress(MlopsError):
            return [mask(line) for line in self._app.log(slot, LOG_LINES)]
        return []

    def diagnose(self) -> Sequence[Finding]:
        """Check whether Azure answers, whether a site can be made, and whether the one that is there serves."""
        try:
            site = self.read()
            if site is None:
                self._app.plan_id()
        except MlopsError as error:
            return [Finding("app service", False, f"{error.where}: {error.what}", error.next_step)]
        state = _state(site) if site and site.current else "serving"
        return [
            Finding("app service", True, f"resource group {self._settings.azure.resource_group} answers"),
            Finding("web app", state == "serving", state, _DEPLOY_AGAIN),
        ]


def answers(site: Site, version: Version) -> bool:
    """Return whether ``version`` answers at the site now: its package's hash tells."""
    import requests

    endpoint = endpoint_of(site)
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    with session_for(site.url) as session, suppress(requests.RequestException, ValueError):
        ready = session.get(f"{site.url}/health/ready", timeout=5)
        about = session.get(f"{site.url}/model", headers=headers, timeout=5)
        if ready.status_code == about.status_code == 200:
            return bool(about.json().get("package_sha256") == version.package)
    return False


def endpoint_of(site: Site) -> Endpoint:
    """Return the address of a site or slot, with a key where its version asks for one."""
    keys = site.keys
    return Endpoint(site.url, keys.primary if keys and requires_key(site.settings) else "")


def _state(site: Site) -> str:
    if site.current and not answers(site, site.current):
        return f"down: it does not answer as {site.current}; see inv logs --target webapp"
    return "serving"


def _masking(*sites: Site | None) -> Callable[[str], str]:
    """Return a function that hides the keys of these sites and slots in a log line."""
    keys = [site.settings[name] for site in sites if site for name in KEYS if site.settings.get(name)]
    return key_file.hiding(keys)
