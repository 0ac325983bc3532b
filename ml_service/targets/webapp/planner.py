"""Plan a change on App Service: the steps from what site and slot hold to what shall serve."""

from __future__ import annotations

from dataclasses import dataclass

from ml_service.azure.key_vault import VaultKeys
from ml_service.azure.version import Version
from ml_service.common.errors import no_previous_version
from ml_service.config import Settings
from ml_service.images import pull_access
from ml_service.ports import Action, Release, Step
from ml_service.targets.webapp.site import KEYS, Site, WebApp, settings_of

PRODUCTION = ""
"""The name of production, where a slot's name is asked for."""


@dataclass(frozen=True)
class Candidate:
    """The detail of the steps that bring a version in. ``previous`` is what a rollback would bring back afterwards."""

    version: Version
    previous: Version | None


@dataclass(frozen=True)
class NewSite:
    """The detail of a step that creates a slot, or PRODUCTION, to hold ``version``."""

    slot: str
    version: Version


@dataclass(frozen=True)
class VaultKeyPair:
    """The detail of the steps that generate the key vault's keys and bring them to production."""


class Planner:
    """Compares what site and slot hold with a release, and changes nothing.

    What the steps carry: ``create`` a NewSite or a VaultKeyPair; ``change`` a VaultKeyPair or a Candidate; ``verify``
    and ``swap`` a Candidate.
    """

    def __init__(self, settings: Settings, app: WebApp, vault: VaultKeys | None) -> None:
        self._settings = settings
        self._name = settings.webapp.name
        self._slot = settings.webapp.slot
        self._app = app
        self._vault = vault

    def steps(self, release: Release, site: Site | None) -> list[Step]:
        """Return the steps that make ``release`` serve; none when it does.

        Raises:
            ConfigurationError: a new site needs a plan, and there is none.
            UsageError: the image was never pushed.
        """
        wanted, current = Version.of(release), site.current if site else None
        if site and wanted.same_as(current) and not self._changed(site, wanted) and not self._keys_differ(site):
            return []
        # The same version with other settings takes the place of what serves; the version before stays.
        previous = site.previous if site and wanted.same_as(current) else current
        return self._replacing(site, Candidate(wanted, previous))

    def rollback_steps(self, site: Site | None) -> list[Step]:
        """Return the steps that make the version before serve again.

        Raises:
            UsageError: there is none.
        """
        if site is None or site.previous is None:
            raise no_previous_version("webapp")
        return self._replacing(site, Candidate(site.previous, None))

    def _replacing(self, site: Site | None, candidate: Candidate) -> list[Step]:
        version, slot = candidate.version, self._slot
        place = f"slot {slot}" if slot else f"web app {self._name}, in place"
        steps = [
            *self._preparing(site, version),
            Step(Action.CHANGE, f"{place}: {version}", self._difference(site, version), detail=candidate),
            Step(Action.VERIFY, f"{version} in {place}", detail=candidate),
        ]
        if slot:
            swap = f"slot {slot} with production: {version} gets the traffic"
            steps.append(Step(Action.SWAP, swap, detail=candidate))
        return steps

    def _preparing(self, site: Site | None, version: Version) -> list[Step]:
        """Return the steps that make the site, its slot and its keys what they shall be."""
        steps = []
        if self._vault and not self._vault.is_complete():
            steps.append(Step(Action.CREATE, f"what is missing of {self._vault.description}", detail=VaultKeyPair()))
        if site is None:
            self._app.plan_id()
            create = f"web app {self._name} on plan {self._settings.webapp.plan}: HTTPS only, two keys"
            steps.append(Step(Action.CREATE, create, detail=NewSite(PRODUCTION, version)))
        elif self._keys_differ(site):
            difference = "-keys=as they are\n+keys=as in the key vault"
            steps.append(Step(Action.CHANGE, f"web app {self._name}: its keys", difference, detail=VaultKeyPair()))
        if self._slot and (site is None or self._app.read(self._slot) is None):
            create = f"its deployment slot {self._slot}, with keys of its own"
            steps.append(Step(Action.CREATE, create, detail=NewSite(self._slot, version)))
        return steps

    def _keys_differ(self, site: Site) -> bool:
        if self._vault is None:
            return False
        return not self._vault.is_complete() or site.keys != self._vault.read()

    def _changed(self, site: Site | None, wanted: Version) -> dict[str, tuple[str, str]]:
        """Return the settings that would change, as (now, then); without secrets and what belongs to one deployment."""
        access = pull_access.access(self._settings, wanted.image)
        now, then = dict(site.settings) if site else {}, settings_of(self._settings, wanted, None, access)
        names = sorted({name for name in {*now, *then} if name.startswith(("SCORING_", "WEBSITE"))} - set(KEYS))
        pairs = {name: (now.get(name, ""), then.get(name, "")) for name in names}
        pairs["image"] = (site.image if site else "", wanted.image)
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def _difference(self, site: Site | None, wanted: Version) -> str:
        lines = []
        for name, (now, then) in self._changed(site, wanted).items():
            lines += [f"-{name}={now}"] if now else []
            lines += [f"+{name}={then}"] if then else []
        return "\n".join(lines)
