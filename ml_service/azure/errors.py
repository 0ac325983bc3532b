"""Translate Azure errors and timeouts into MlopsErrors. Used by every module that calls Azure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ml_service.config import Settings
from ml_service.errors import INSTALL, ConfigurationError, MlopsError, UnavailableError

RETRIES: Mapping[str, Any] = {"retry_total": 4, "retry_status": 4, "retry_backoff_max": 8, "timeout": 90}
"""Options of an SDK client: 429, 5xx and dropped connections are tried again, for 90 seconds at most."""

_NEXT_STEPS: Mapping[str, str] = {
    "401": "sign in again: az login, or check SP_APP_ID, SP_APP_SECRET and TENANT_ID",
    "403": "give the identity the role Contributor on the resource group (Key Vault Secrets Officer on a vault)",
    "404": "check SUBSCRIPTION_ID and RESOURCE_GROUP, and that what the message names exists",
    "429": "Azure asks to slow down: wait some minutes, then run the command again",
    "ServiceUnavailable": "the region has no room now: ask for less (ACI_CPU, ACI_MEMORY_GB), wait, or change LOCATION",
    "ContainerGroupQuotaReached": "remove groups that are not needed, or ask Azure for more quota in this region",
    "DnsNameLabelUnavailable": "somebody else has that address: set another ACI_DNS_LABEL",
    "InaccessibleImage": "check that the image was pushed, and that IMAGE_PULL_IDENTITY has the role AcrPull",
}


class AbsentError(MlopsError):
    """Azure answered 404: there is no such resource."""

    exit_code = UnavailableError.exit_code


def required(settings: Settings, *names: str) -> None:
    """Require settings of Azure by their names.

    Raises:
        ConfigurationError: one is not set.
    """
    missing = [name for name in names if not getattr(settings.azure, name.lower())]
    if missing:
        raise ConfigurationError(
            "is not set", where=", ".join(missing), next_step="set it as .env.example says, or in the variable group"
        )


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn Azure's errors in the block into MlopsErrors that name the resource ``where``.

    Raises:
        ConfigurationError: the SDK is missing, or nobody is signed in.
        AbsentError: 404.
        UnavailableError: Azure refuses for another reason, or does not answer.
    """
    try:
        from azure.core import exceptions
    except ImportError:
        raise ConfigurationError("the package azure-core is not installed", where="azure", next_step=INSTALL) from None
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(f"{error.name} is not installed", where="azure", next_step=INSTALL) from None
    except exceptions.ClientAuthenticationError as error:
        raise ConfigurationError(
            f"the sign-in was refused: {_first_line(error)}", where=where, next_step=_NEXT_STEPS["401"]
        ) from None
    except exceptions.HttpResponseError as error:
        raise _refusal(error, where) from None
    except exceptions.AzureError as error:
        raise UnavailableError(
            f"Azure cannot be reached ({_first_line(error)})",
            where=where,
            next_step="check the network and HTTPS_PROXY; what served still serves. Then run the command again",
        ) from None


def _refusal(error: Any, where: str) -> MlopsError:
    status, code = str(error.status_code or ""), str(getattr(error.error, "code", "") or "")
    kind = AbsentError if status == "404" else UnavailableError
    next_step = _NEXT_STEPS.get(code) or _NEXT_STEPS.get(status) or "see Azure's own message above"
    why = str(getattr(error.error, "message", "") or "").strip() or _first_line(error)
    detail = ", ".join(part for part in (f"status {status}" if status >= "400" else "", code) if part)
    return kind(f"Azure refused ({detail}): {why}", where=where, next_step=next_step)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
