"""The target on Azure App Service: a container by digest, swapped in from a deployment slot. See ADR 0071."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from ml_service.azure import errors
from ml_service.azure import lease as azure_lease
from ml_service.azure.key_vault import VaultKeys
from ml_service.common import keys as key_file
from ml_service.common.package_store import PackageStore
from ml_service.common.version import Version
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.errors import MlopsError, UnhealthyError, UsageError
from ml_service.http_session import session_for
from ml_service.images import pull_access, signing
from ml_service.images.pull_access import PullAccess
from ml_service.ports import Action, Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify
from ml_service.targets.webapp.site import KEYS, Site, WebApp, settings_of

_HERE = "target webapp"
_POLL = 0.5
_SAY_AGAIN = 5.0
_LAST_LINES = 15
_PATIENCE = 3


class WebAppTarget:
    """The Target port on App Service. All state is in the site's settings; MLOPS_HOME keeps packages for smoke.

    With a slot Target 2 holds. Without one the image is replaced in place: the candidate serves while it is questioned.
    """

    name = "webapp"
    needs_image = True
    needs_registry = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slot = settings.webapp.slot
        self._packages = PackageStore(settings.home / "targets" / "webapp" / settings.webapp.name / "packages")
        self._vault = VaultKeys(settings, settings.webapp.name) if settings.azure.keys_vault else None
        self._app = WebApp(settings)

    # The port.

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See Target 1. Versions are swapped whole, so there is no share of the traffic to give away."""
        if canary_percent is not None:
            raise _no_canary("--canary")
        signing.check(self._settings, release)
        wanted, site = Version.of(release), self._look()
        return Plan(self.name, release, self._steps(wanted, site))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See Target 2, 3 and 4."""
        if plan.steps:
            signing.check(self._settings, plan.release)
            wanted = Version.of(plan.release)
            self._packages.add(plan.release)
            with self._changing(progress) as confirm:
                before = self._look()
                current = before.current if before else None
                previous = before.previous if before and wanted.same_as(current) else current
                self._bring_in(wanted, previous, verify, confirm, progress)
            self._forget_packages()
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See Target 7. Without a key when the service was deployed with ``SCORING_AUTH=off``."""
        return _endpoint(self._deployed())

    def status(self) -> Status | None:
        """See Target 5."""
        site = self._look()
        version = site.current if site else None
        if site is None or version is None:
            return None
        return Status(
            target=self.name,
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

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See Target 5. The same way as a deployment, of the version before; the slot mostly holds it still."""
        with self._changing(progress) as confirm:
            site = self._look()
            if site is None or site.previous is None:
                raise UsageError(
                    "there is no version before to go back to", where=_HERE, next_step="see: inv status --target webapp"
                )
            self._bring_in(site.previous, None, verify, confirm, progress)
        self._forget_packages()
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See Target 5: there is never a canary here."""
        raise _no_canary("inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See Target 6. The plan stays, and so do keys in a vault."""
        with self._changing(progress):
            if self._look() is not None:
                progress(f"removing web app {self._settings.webapp.name}")
                self._app.delete()
            self._packages.keep_only(())

    def logs(self, lines: int) -> Sequence[str]:
        """See Target 7: of the slot, which mostly holds the version before, then of production."""
        site = self._look()
        if site is None or lines <= 0:
            return []
        slot = self._app.look(self._slot) if self._slot else None
        mask = _mask(site, slot)
        said = [*(self._app.log(self._slot, lines) if slot else ()), *self._app.log("", lines)]
        return [mask(line) for line in said][-lines:]

    def keys(self) -> Keys:
        """See Target 7."""
        found = self._deployed().keys
        if found is None:
            raise UsageError("the site has no keys", where=_HERE, next_step=_again())
        return found

    def diagnose(self) -> Sequence[Finding]:
        """Whether Azure answers, and whether a site can be made."""
        try:
            site = self._look()
            if site is None:
                self._app.plan_id()
        except MlopsError as error:
            return [Finding("app service", False, f"{error.where}: {error.what}", error.next_step)]
        trouble = _state(site) if site and site.current else "serving"
        return [
            Finding("app service", True, f"resource group {self._settings.azure.resource_group} answers"),
            Finding("web app", trouble == "serving", trouble, _again()),
        ]

    # The steps of a deployment.

    def _steps(self, wanted: Version, site: Site | None) -> list[Step]:
        name, slot = self._settings.webapp.name, self._slot
        current = site.current if site else None
        if site and wanted.same_as(current) and not self._differs(site, wanted):
            return []
        steps = []
        if site is None:
            self._app.plan_id()
            steps.append(
                Step(Action.CREATE, f"web app {name} on plan {self._settings.webapp.plan}: HTTPS only, two keys")
            )
        if slot and self._app_slot(site) is None:
            steps.append(Step(Action.CREATE, f"its deployment slot {slot}, with keys of its own"))
        where = f"slot {slot}" if slot else f"web app {name}, in place"
        steps.append(Step(Action.CHANGE, f"{where}: {wanted}", self._diff(site, wanted)))
        steps.append(Step(Action.VERIFY, f"{wanted} in {where}"))
        if slot:
            steps.append(Step(Action.SWAP, f"slot {slot} with production: {wanted} gets the traffic"))
        return steps

    def _app_slot(self, site: Site | None) -> Site | None:
        return self._app.look(self._slot) if site and self._slot else None

    def _differs(self, site: Site, wanted: Version) -> bool:
        return bool(self._changed(site, wanted))

    def _changed(self, site: Site | None, wanted: Version) -> dict[str, tuple[str, str]]:
        """Each setting that would change, but for what belongs to one deployment, and secrets."""
        access = self._access(wanted)
        now, then = dict(site.settings) if site else {}, settings_of(self._settings, wanted, None, access)
        ours = {name for name in {*now, *then} if name.startswith(("SCORING_", "WEBSITE"))} - set(KEYS)
        found = {name: (now.get(name, ""), then.get(name, "")) for name in sorted(ours)}
        found["image"] = (site.image if site else "", wanted.image)
        if self._vault and site and site.keys != self._keys_of_vault():
            found["keys"] = ("as they are", "as in the key vault")
        return {name: pair for name, pair in found.items() if pair[0] != pair[1]}

    def _diff(self, site: Site | None, wanted: Version) -> str:
        lines = []
        for name, (now, then) in self._changed(site, wanted).items():
            lines += [f"-{name}={now}"] if now else []
            lines += [f"+{name}={then}"] if then else []
        return "\n".join(lines)

    def _bring_in(
        self,
        wanted: Version,
        previous: Version | None,
        verify: Verify,
        confirm: Callable[[], None],
        progress: Progress,
    ) -> None:
        access, is_first = self._access(wanted), self._look() is None
        try:
            production = self._with_keys_of_vault(self._provided("", access, progress))
            settings = settings_of(self._settings, wanted.serving_now(), previous, access)
            if self._slot:
                self._through_slot(wanted, settings, access, verify, confirm, progress)
            else:
                self._in_place(production, wanted, settings, access, verify, progress)
        except BaseException:
            if is_first:
                progress("removing the web app: nothing served before")
                self._app.delete()
            raise
        progress(f"{wanted} has the traffic")

    def _through_slot(
        self,
        wanted: Version,
        settings: Mapping[str, str],
        access: PullAccess,
        verify: Verify,
        confirm: Callable[[], None],
        progress: Progress,
    ) -> None:
        slot = self._provided(self._slot, access, progress)
        try:
            progress(f"starting {wanted} in slot {self._slot}")
            self._app.change(self._slot, slot, wanted, settings, access)
            self._question(self._slot, wanted, verify, progress)
            confirm()
            self._app.swap(self._slot, progress)
        except BaseException:
            progress(f"putting slot {self._slot} back")
            self._app.put_back(self._slot, slot)
            raise
        try:
            self._wait_until_ready("", wanted, progress)
        except BaseException:
            progress("swapping back")
            self._app.swap(self._slot, progress)
            self._app.put_back(self._slot, slot)
            raise

    def _in_place(
        self,
        before: Site,
        wanted: Version,
        settings: Mapping[str, str],
        access: PullAccess,
        verify: Verify,
        progress: Progress,
    ) -> None:
        try:
            progress(f"starting {wanted} in place of what serves")
            self._app.change("", before, wanted, settings, access)
            self._question("", wanted, verify, progress)
        except BaseException:
            if before.current:
                self._put_back(before, before.current, progress)
            raise

    def _put_back(self, before: Site, version: Version, progress: Progress) -> None:
        """What served, in place again. That it takes long does not hide why it had to."""
        progress(f"putting {version} back")
        self._app.put_back("", before)
        try:
            self._wait_until_ready("", version, progress)
        except UnhealthyError as error:
            progress(f"{error.what.splitlines()[0]}; see inv status --target webapp")

    def _question(self, slot: str, version: Version, verify: Verify, progress: Progress) -> None:
        """Wait until ready, ask. Whatever fails is told with the container's last lines."""
        site = self._wait_until_ready(slot, version, progress)
        progress(f"{version} is ready; questioning it at {site.url}")
        try:
            verify(_endpoint(site), self._packages.find(version.package))
        except Exception as error:
            if isinstance(error, MlopsError) and not isinstance(error, UnhealthyError):
                raise
            why = error.what if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
            raise self._unhealthy(slot, site, f"{version} was up, but did not pass: {why}") from error

    def _wait_until_ready(self, slot: str, version: Version, progress: Progress) -> Site:
        """Until it is ``version`` that answers: what ran before may answer for a while."""
        site = self._app.look(slot)
        assert site is not None
        deadline = time.monotonic() + self._settings.webapp.startup_timeout
        said = time.monotonic()
        while time.monotonic() < deadline:
            if _answers(site, version):
                return site
            if time.monotonic() - said > _SAY_AGAIN:
                said = time.monotonic()
                progress(f"{version} does not answer yet")
            time.sleep(_POLL)
        why = f"it did not answer within {self._settings.webapp.startup_timeout:g} s"
        raise self._unhealthy(slot, site, f"{version} did not come up: {why}")

    # What there is, and what has to be.

    def _look(self) -> Site | None:
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        return self._app.look()

    def _deployed(self) -> Site:
        site = self._look()
        if site is None or site.current is None:
            raise _nothing_deployed()
        return site

    def _provided(self, slot: str, access: PullAccess, progress: Progress) -> Site:
        """The site or slot, made when it is missing. A slot has keys of its own: they do not open production."""
        found = self._app.look(slot)
        if found is None:
            errors.required(self._settings, "LOCATION")
            keys = self._keys_of_vault() if self._vault and not slot else Keys(**key_file.new_keys())
            self._app.create(slot, access, keys, progress)
            found = self._app.look(slot)
        assert found is not None
        return found

    def _access(self, version: Version) -> PullAccess:
        return pull_access.access(self._settings, version.image)

    def _keys_of_vault(self) -> Keys:
        assert self._vault is not None
        self._vault.provide()
        return self._vault.read()

    def _with_keys_of_vault(self, production: Site) -> Site:
        """Production with the keys that the vault holds now; they stick there, so no swap brings them."""
        keys = self._keys_of_vault() if self._vault else production.keys
        if keys is None or keys == production.keys:
            return production
        named = dict(zip(KEYS, (keys.primary, keys.secondary), strict=True))
        changed = replace(production, settings={**production.settings, **named})
        self._app.put_back("", changed)
        return changed

    def _serving(self) -> Status:
        status = self.status()
        if status is None:
            raise _nothing_deployed()
        return status

    def _forget_packages(self) -> None:
        site = self._look()
        used = [site.current, site.previous] if site else []
        self._packages.keep_only({version.package for version in used if version})

    def _unhealthy(self, slot: str, site: Site, why: str) -> UnhealthyError:
        mask, lines = _mask(site), []
        with suppress(MlopsError):
            lines = [mask(line) for line in self._app.log(slot, _LAST_LINES)]
        said = "".join(f"\n  | {line}" for line in lines) or " nothing"
        return UnhealthyError(
            f"{why}\nlast that it said:{said}", where=_HERE, next_step="what served before serves; see inv logs"
        )

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[Callable[[], None]]:
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        patience = _PATIENCE * self._settings.webapp.startup_timeout
        what = f"webapp-{self._settings.webapp.name}"
        with azure_lease.held(self._settings, what, progress, patience) as lease:
            yield lease.confirm


def _answers(site: Site, version: Version) -> bool:
    """Whether ``version`` is what answers at the site: its package's hash tells, or its number where keys are off."""
    import requests

    endpoint = _endpoint(site)
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    with session_for(site.url) as session, suppress(requests.RequestException, ValueError):
        ready = session.get(f"{site.url}/health/ready", timeout=5)
        about = session.get(f"{site.url}/model", headers=headers, timeout=5)
        if ready.status_code == about.status_code == 200:
            return bool(about.json().get("package_sha256") == version.package)
    return False


def _endpoint(site: Site) -> Endpoint:
    keys = site.keys
    return Endpoint(site.url, keys.primary if keys and requires_key(site.settings) else "")


def _state(site: Site) -> str:
    if site.current and not _answers(site, site.current):
        return f"down: it does not answer as {site.current}; see inv logs --target webapp"
    return "serving"


def _mask(*sites: Site | None) -> Callable[[str], str]:
    hidden = [site.settings[name] for site in sites if site for name in KEYS if site.settings.get(name)]

    def mask(line: str) -> str:
        for key in hidden:
            line = line.replace(key, "***")
        return line

    return mask


def _again() -> str:
    return "run: inv deploy --target webapp"


def _nothing_deployed() -> UsageError:
    return UsageError("nothing is deployed", where=_HERE, next_step=_again())


def _no_canary(where: str) -> UsageError:
    why = "the target webapp swaps versions whole and has no canary"
    return UsageError(why, where=where, next_step="use it with --target aks")
