"""A web app and its deployment slot in Azure: what they hold, and every change of them.

How a swap moves a version. A slot is a site of its own: image and app settings are what it holds. A swap restarts the
slot with production's sticky settings, warms it up there (WEBSITE_SWAP_WARMUP_PING_PATH must answer 200), and only then
exchanges what the two host names lead to. All settings travel with the version but the sticky ones, which stay with the
host name. Sticky are the two keys alone: production's keys open production whatever version is in it, and the slot's
keys open the slot. MLOPS_VERSION and MLOPS_PREVIOUS travel, so after a swap production itself names what it serves, and
the slot holds the version before, ready to be swapped back.

Source: https://learn.microsoft.com/rest/api/appservice/web-apps
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_service.azure.errors import RETRIES, AbsentError, translated
from ml_service.azure.polling import wait_for
from ml_service.azure.version import Version, scoring_options
from ml_service.config import Settings
from ml_service.errors import ConfigurationError, UsageError
from ml_service.images.pull_access import PullAccess
from ml_service.ports import Keys, Progress

OWNER = "mlops-deployment"
KEYS = ("SCORING_PRIMARY_KEY", "SCORING_SECONDARY_KEY")
CURRENT, PREVIOUS = "MLOPS_VERSION", "MLOPS_PREVIOUS"

_PORT = "8080"
_DOCKER = "DOCKER|"


@dataclass(frozen=True)
class Site:
    """A site or slot at one moment. ``settings`` are its app settings, which hold the keys: never show them."""

    host: str
    image: str
    settings: Mapping[str, str] = field(repr=False)
    client_ids: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address at which it answers."""
        return f"https://{self.host}"

    @property
    def current(self) -> Version | None:
        """The version that its settings name."""
        return Version.from_text(self.settings.get(CURRENT, ""))

    @property
    def previous(self) -> Version | None:
        """The version before that one."""
        return Version.from_text(self.settings.get(PREVIOUS, ""))

    @property
    def keys(self) -> Keys | None:
        """Its keys, if it has both."""
        values = [self.settings.get(name, "") for name in KEYS]
        return Keys(*values) if all(values) else None

    def with_settings(self, changed: Mapping[str, str]) -> dict[str, str]:
        """Return all settings, ours as in ``changed`` and those of others as they are."""
        ours = ("SCORING_", "MLOPS_", "DOCKER_REGISTRY_SERVER_")
        others = {name: value for name, value in self.settings.items() if not name.startswith(ours) or name in KEYS}
        return {**others, **changed}


def settings_of(settings: Settings, version: Version, previous: Version | None, access: PullAccess) -> dict[str, str]:
    """Return the app settings that travel with ``version`` from slot to slot: everything but its keys."""
    options = {
        **scoring_options(settings),
        "SCORING_PORT": _PORT,
        "WEBSITES_PORT": _PORT,
        # A swap waits for a good answer here, and fails without one.
        "WEBSITE_SWAP_WARMUP_PING_PATH": "/health/ready",
        "WEBSITE_SWAP_WARMUP_PING_STATUSES": "200",
        CURRENT: version.text(),
        PREVIOUS: previous.text() if previous else "",
    }
    if access.username:
        options |= {
            "DOCKER_REGISTRY_SERVER_URL": f"https://{access.server}",
            "DOCKER_REGISTRY_SERVER_USERNAME": access.username,
            "DOCKER_REGISTRY_SERVER_PASSWORD": access.password,
        }
    return options


class WebApp:
    """The site of the settings' name; ``slot`` empty means production."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = settings.webapp.name
        self._group = settings.azure.resource_group
        self._where = f"web app {self._name}"

    @functools.cached_property
    def _client(self) -> Any:
        from ml_service.azure.identity import credential

        with translated("App Service"):
            from azure.mgmt.web import WebSiteManagementClient

            azure = self._settings.azure
            return WebSiteManagementClient(credential(self._settings), azure.subscription_id, **RETRIES)

    def read(self, slot: str = "") -> Site | None:
        """Return the site or slot, or None when it is not there.

        Raises:
            UsageError: the site was not made by these tasks.
        """
        apps = self._client.web_apps
        where = (self._group, self._name, slot) if slot else (self._group, self._name)
        try:
            with translated(self._where):
                site = (apps.get_slot if slot else apps.get)(*where)
                config = (apps.get_configuration_slot if slot else apps.get_configuration)(*where)
                app_settings = (apps.list_application_settings_slot if slot else apps.list_application_settings)(*where)
        except AbsentError:
            return None
        if not slot and (site.tags or {}).get(OWNER) != self._name:
            raise self._foreign()
        assigned = site.identity.user_assigned_identities if site.identity else None
        ids = {name: str(one.client_id) for name, one in (assigned or {}).items()}
        image = str(config.linux_fx_version or "").removeprefix(_DOCKER)
        return Site(str(site.default_host_name), image, dict(app_settings.properties or {}), ids)

    def plan_id(self) -> str:
        """Return the id of the App Service plan.

        Raises:
            ConfigurationError: WEBAPP_PLAN is not set, or there is no plan of that name.
        """
        plan = self._settings.webapp.plan
        next_step = "az appservice plan create --is-linux --sku S1 --name PLAN --resource-group GROUP; set WEBAPP_PLAN"
        if not plan:
            raise ConfigurationError("a new web app needs a plan", where="WEBAPP_PLAN", next_step=next_step)
        try:
            with translated(f"App Service plan {plan}"):
                return str(self._client.app_service_plans.get(self._group, plan).id)
        except AbsentError as error:
            raise ConfigurationError(error.what, where=f"WEBAPP_PLAN={plan}", next_step=next_step) from None

    def create(self, slot: str, access: PullAccess, keys: Keys, progress: Progress) -> None:
        """Create the site or slot, empty but for its keys: HTTPS only, with a health check."""
        from azure.mgmt.web import models

        named = dict(zip(KEYS, (keys.primary, keys.secondary), strict=True))
        body = models.Site(
            location=self._settings.azure.location,
            kind="app,linux,container",
            tags={OWNER: self._name},
            identity=_identity(access),
            server_farm_id=self.plan_id(),
            reserved=True,
            https_only=True,
            client_affinity_enabled=False,
            site_config=models.SiteConfig(
                health_check_path="/health/ready",
                always_on=True,
                ftps_state="Disabled",
                http20_enabled=True,
                min_tls_version="1.2",
                app_settings=_pairs(named),
            ),
        )
        apps = self._client.web_apps
        with translated(self._where):
            if slot:
                poller = apps.begin_create_or_update_slot(self._group, self._name, slot, body)
            else:
                poller = apps.begin_create_or_update(self._group, self._name, body)
            wait_for(poller, f"Azure is making {self._where} {slot}".rstrip(), progress)
            if not slot:
                names = models.SlotConfigNamesResource(app_setting_names=list(KEYS))
                apps.update_slot_configuration_names(self._group, self._name, names)

    def change(self, slot: str, site: Site, version: Version, settings: Mapping[str, str], access: PullAccess) -> None:
        """Change image and settings in one write, so that one restart brings both."""
        from azure.mgmt.web import models

        wanted = site.with_settings(settings)
        body = models.SitePatchResource(
            site_config=models.SiteConfig(
                linux_fx_version=f"{_DOCKER}{version.image}",
                acr_use_managed_identity_creds=bool(access.identity),
                acr_user_managed_identity_id=site.client_ids.get(access.identity),
                app_settings=_pairs(wanted),
            )
        )
        self._patch(slot, body)

    def put_back(self, slot: str, before: Site) -> None:
        """Set image and settings to what they were."""
        from azure.mgmt.web import models

        image = f"{_DOCKER}{before.image}" if before.image else ""
        config = models.SiteConfig(linux_fx_version=image, app_settings=_pairs(before.settings))
        self._patch(slot, models.SitePatchResource(site_config=config))

    def _patch(self, slot: str, body: Any) -> None:
        apps = self._client.web_apps
        with translated(self._where):
            if slot:
                apps.update_slot(self._group, self._name, slot, body)
            else:
                apps.update(self._group, self._name, body)

    def swap(self, slot: str, progress: Progress) -> None:
        """Swap slot and production; see the top of this file."""
        from azure.mgmt.web import models

        entity = models.CsmSlotEntity(target_slot=slot, preserve_vnet=True)
        with translated(self._where):
            poller = self._client.web_apps.begin_swap_slot_with_production(self._group, self._name, entity)
            wait_for(poller, "Azure is warming up and swapping", progress)

    def delete(self) -> None:
        """Delete the site with its slot, if it is there."""
        try:
            with translated(self._where):
                if self._settings.webapp.slot:
                    self._delete_slot(self._settings.webapp.slot)
                # The plan may carry other sites, and was not made by these tasks.
                self._client.web_apps.delete(self._group, self._name, delete_empty_server_farm=False)
        except AbsentError:
            pass

    def _delete_slot(self, slot: str) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            self._client.web_apps.delete_slot(self._group, self._name, slot, delete_empty_server_farm=False)
        except ResourceNotFoundError:
            pass

    def log(self, slot: str, lines: int) -> Sequence[str]:
        """Return the container's last log lines, oldest first."""
        apps = self._client.web_apps
        with translated(self._where):
            if slot:
                chunks = apps.get_web_site_container_logs_slot(self._group, self._name, slot)
            else:
                chunks = apps.get_web_site_container_logs(self._group, self._name)
            text = b"".join(chunks or ()).decode("utf-8", "replace")
        return text.splitlines()[-lines:] if lines > 0 else []

    def _foreign(self) -> UsageError:
        return UsageError(
            "exists, and was not made by these tasks: they would replace its image, and undeploy would delete it",
            where=self._where,
            next_step=f"choose another WEBAPP_DEPLOYMENT_NAME, or hand it over with the tag {OWNER}={self._name}",
        )


def _identity(access: PullAccess) -> Any | None:
    from azure.mgmt.web import models

    if not access.identity:
        return None
    assigned = {access.identity: models.UserAssignedIdentity()}
    return models.ManagedServiceIdentity(type="UserAssigned", user_assigned_identities=assigned)


def _pairs(settings: Mapping[str, str]) -> list[Any]:
    from azure.mgmt.web import models

    return [models.NameValuePair(name=name, value=value) for name, value in sorted(settings.items())]
