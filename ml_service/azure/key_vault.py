"""The endpoint's two keys in an Azure Key Vault."""

from __future__ import annotations

import functools
from typing import Any

from ml_service.azure.errors import RETRIES, AbsentError, translated
from ml_service.common import keys
from ml_service.config import Settings
from ml_service.errors import IntegrityError
from ml_service.ports import Keys

_NAMES = ("primary", "secondary")


class VaultKeys:
    """The secrets ``NAME-primary-key`` and ``NAME-secondary-key`` of the vault that the settings name."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._vault = settings.azure.keys_vault

    @functools.cached_property
    def _client(self) -> Any:
        from ml_service.azure.identity import credential

        with translated(f"key vault {self._vault}"):
            from azure.keyvault.secrets import SecretClient

            return SecretClient(f"https://{self._vault}.vault.azure.net", credential(self._settings), **RETRIES)

    @property
    def description(self) -> str:
        """The secrets and their vault, for people."""
        return f"the secrets {self._name}-primary-key and {self._name}-secondary-key of key vault {self._vault}"

    def is_complete(self) -> bool:
        """Return whether the vault holds both keys."""
        return all(self._get(name) for name in _NAMES)

    def provide(self) -> None:
        """Generate the keys that are missing. Keys outlive deployments, so the others stay."""
        for name, key in keys.new_keys().items():
            if self._get(name) is None:
                with translated(f"key vault {self._vault}"):
                    self._client.set_secret(f"{self._name}-{name}-key", key)

    def read(self) -> Keys:
        """Return the keys.

        Raises:
            IntegrityError: the vault does not hold both.
        """
        secrets = {name: self._get(name) for name in _NAMES}
        if not all(secrets.values()):
            raise IntegrityError(
                f"does not hold the secrets {self._name}-primary-key and -secondary-key",
                where=f"key vault {self._vault}",
                next_step="deploy again, which makes them, or set them",
            )
        return Keys(**{name: str(secret.value) for name, secret in secrets.items() if secret})

    def version(self) -> str:
        """Return the secrets' current versions: the text changes with a key, and reveals nothing of it."""
        secrets = [self._get(name) for name in _NAMES]
        return " ".join(secret.properties.version for secret in secrets if secret) or "to be made"

    def _get(self, name: str) -> Any | None:
        try:
            with translated(f"key vault {self._vault}"):
                return self._client.get_secret(f"{self._name}-{name}-key")
        except AbsentError:
            return None
