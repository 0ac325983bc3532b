"""Resolve the name of an image registry, and sign in to an Azure Container Registry.

For every other registry use ``docker login``; the SDK reads the file that it writes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ml_service.config import Settings
from ml_service.errors import ConfigurationError, UnavailableError

if TYPE_CHECKING:
    from docker import DockerClient

AZURE_SUFFIX = ".azurecr.io"

_TOKEN_USER = "00000000-0000-0000-0000-000000000000"
"""The user name that Azure Container Registry expects beside a refresh token."""

_SCOPE = "https://management.azure.com/.default"


def host_of(registry: str) -> str:
    """Return the host (and path) of a registry.

    Args:
        registry: a URL, a host, or the bare name of an Azure Container Registry.

    Raises:
        ConfigurationError: it is none of these.
    """
    host = re.sub(r"^https?://", "", registry).rstrip("/")
    if re.fullmatch(r"[A-Za-z0-9]{5,50}", host) and host != "localhost":
        return f"{host.lower()}{AZURE_SUFFIX}"
    if re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._/-]+)?", host):
        return host
    raise ConfigurationError(
        "invalid registry: expected the name of an Azure Container Registry, or the host of another one",
        where="IMAGE_REGISTRY",
        next_step="set it to such as myregistry, or registry.example.com/team",
    )


def repository(settings: Settings) -> str:
    """Return the image's full name without tag: the registry, where one is set, and the image's name.

    Raises:
        ConfigurationError: IMAGE_REGISTRY is not valid.
    """
    registry = settings.image.registry
    return f"{host_of(registry)}/{settings.image_name}" if registry else settings.image_name


def sign_in(client: DockerClient, settings: Settings, repository: str) -> None:
    """Sign the client in to the Azure Container Registry that holds ``repository``. Do nothing for another registry.

    An existing login of ``docker login`` or ``az acr login`` is used as it is.

    Raises:
        ConfigurationError: the Azure libraries are not installed.
        UnavailableError: Azure, or the registry, does not accept the sign-in.
    """
    host = repository.partition("/")[0]
    if not host.endswith(AZURE_SUFFIX) or _is_signed_in(host):
        return
    refresh = exchange(f"https://{host}", host, _entra_token(settings), settings.azure.tenant_id)
    client.login(username=_TOKEN_USER, password=refresh, registry=host)


def exchange(url: str, service: str, access_token: str, tenant: str) -> str:
    """Exchange an Entra access token for a refresh token of the registry at ``url``.

    Source: https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md

    Raises:
        UnavailableError: the registry does not answer, or does not accept the token.
    """
    import requests

    form = {"grant_type": "access_token", "service": service, "access_token": access_token}
    if tenant:
        form["tenant"] = tenant
    try:
        response = requests.post(f"{url}/oauth2/exchange", data=form, timeout=30)
    except requests.RequestException as error:
        raise UnavailableError(
            f"cannot be reached ({type(error).__name__})",
            where=service,
            next_step="check IMAGE_REGISTRY and the network",
        ) from None
    if response.status_code != 200:
        raise UnavailableError(
            f"does not accept the sign-in (status {response.status_code})",
            where=service,
            next_step="give the identity the role AcrPush on the registry (AcrPull where it only pulls)",
        )
    return str(response.json()["refresh_token"])


def _is_signed_in(host: str) -> bool:
    from docker.auth import load_config

    return bool(load_config().resolve_authconfig(host))


def _entra_token(settings: Settings) -> str:
    from ml_service.azure.identity import credential, token

    return token(credential(settings), _SCOPE)
