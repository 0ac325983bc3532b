"""Find how Azure's container services may pull an image: by managed identity, user, or the registry's admin user."""

from __future__ import annotations

from dataclasses import dataclass, field

from ml_service.azure.errors import RETRIES, translated
from ml_service.config import Settings
from ml_service.errors import ConfigurationError
from ml_service.images.registry import AZURE_SUFFIX


@dataclass(frozen=True)
class PullAccess:
    """Access to the registry ``server``: by ``identity``, or by user and password; with neither, everybody may pull."""

    server: str
    identity: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


def access(settings: Settings, image: str) -> PullAccess:
    """Return the access to the registry of ``image``.

    Raises:
        ConfigurationError: the settings name no identity, and the registry's admin user is off.
        UnavailableError: Azure does not answer or refuses.
    """
    server, image_settings = image.partition("/")[0], settings.image
    if image_settings.pull_identity:
        return PullAccess(server, identity=image_settings.pull_identity)
    if image_settings.pull_username:
        return PullAccess(server, username=image_settings.pull_username, password=image_settings.pull_password)
    return _admin(settings, server) if server.endswith(AZURE_SUFFIX) else PullAccess(server)


def _admin(settings: Settings, server: str) -> PullAccess:
    from ml_service.azure.identity import credential

    with translated(f"registry {server}"):
        from azure.mgmt.containerregistry import ContainerRegistryManagementClient

        signed_in = credential(settings)
        with ContainerRegistryManagementClient(signed_in, settings.azure.subscription_id, **RETRIES) as client:
            acr = next((one for one in client.registries.list() if one.login_server == server), None)
            if acr is None or not acr.admin_user_enabled:
                raise ConfigurationError(
                    "does not allow a pull: no managed identity is set, and its admin user is off (or it is not ours)",
                    where=f"registry {server}",
                    next_step="set IMAGE_PULL_IDENTITY to an identity with the role AcrPull",
                )
            group, name = str(acr.id).split("/")[4], str(acr.name)
            admin = client.registries.list_credentials(group, name)
    return PullAccess(server, username=str(admin.username), password=str(admin.passwords[0].value))
