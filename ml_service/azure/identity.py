"""Sign in to Azure: with the service principal of the settings, or as this machine or agent is signed in."""

from __future__ import annotations

from typing import Any

from ml_service.azure.errors import translated
from ml_service.config import Settings
from ml_service.errors import INSTALL, ConfigurationError


def credential(settings: Settings) -> Any:
    """Return an azure-identity credential. It asks Azure for nothing before its first use.

    Raises:
        ConfigurationError: azure-identity is not installed.
    """
    try:
        from azure.identity import ClientSecretCredential, DefaultAzureCredential
    except ImportError:
        raise ConfigurationError(
            "the package azure-identity is not installed",
            where="azure",
            next_step=INSTALL,
        ) from None
    azure = settings.azure
    if azure.sp_app_id and azure.sp_app_secret and azure.tenant_id:
        return ClientSecretCredential(azure.tenant_id, azure.sp_app_id, azure.sp_app_secret)
    return DefaultAzureCredential(exclude_interactive_browser_credential=True)


def token(signed_in: Any, scope: str) -> str:
    """Return an access token; ``signed_in`` is what ``credential`` returned.

    Raises:
        ConfigurationError: Entra refuses the sign-in, or nobody is signed in.
        UnavailableError: it cannot be reached.
    """
    with translated("sign-in to Azure"):
        return str(signed_in.get_token(scope).token)
