"""How Azure's container services may pull an image: a managed identity, a user, or the registry's admin user."""

from __future__ import annotations

from dataclasses import dataclass, field

from ml_service.azure.errors import RETRIES, translated
from ml_service.config import Settings
from ml_service.errors import ConfigurationError
from ml_service.images.registry import AZURE_SUFFIX


@dataclass(frozen=True)
class PullAccess:
    """Access to the registry ``server``: by ``identity``, or by user and password; with neither anybody may pull."""

    server: str
    identity: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


def access(settings: Settings, image: str) -> PullAccess:
    """The access to the registry of ``image``.

    Raises:
        ConfigurationError: an Azure Container Registry lets nobody in.
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
            found = next((one for one in client.registries.list() if one.login_server == server), None)
            if found is None or not found.admin_user_enabled:
                raise ConfigurationError(
                    "lets nobody pull: there is no managed identity, and its admin user is off (or it is not ours)",
                    where=f"registry {server}",
                    next_step="set IMAGE_PULL_IDENTITY to an identity with the role AcrPull",
                )
            group, name = str(found.id).split("/")[4], str(found.name)
            given = client.registries.list_credentials(group, name)
    return PullAccess(server, username=str(given.username), password=str(given.passwords[0].value))
