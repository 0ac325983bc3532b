"""Settings of the scoring image: how it is built, signed, stored and pulled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_service.config.fields import path, secret, text


@dataclass(frozen=True)
class ImageSettings:
    """The scoring image."""

    base: str = text(
        "IMAGE_BASE", "python:3.11-slim-bookworm", help="The base image that the scoring image is built on."
    )
    registry: str = text(
        "IMAGE_REGISTRY",
        help="The registry that the image is pushed to: the name of an Azure Container Registry, or the host (and "
        "path) of any other, such as registry.example.com/team.",
    )
    index_url: str = text(
        "PIP_INDEX_URL",
        is_shown=False,
        help="The package index in place of PyPI. It must not hold a password, because the build would keep it. "
        "The hashes in the lock decide what is installed, wherever it comes from.",
    )
    network: str = text(
        "IMAGE_BUILD_NETWORK",
        help="The engine's network that the installation of packages uses, such as host. Empty: the engine's choice.",
    )
    pull_identity: str = text(
        "IMAGE_PULL_IDENTITY",
        help="How aci and webapp may pull from the registry: the resource id of a user-assigned managed identity with "
        "the role AcrPull. Without it and without a user, the admin user of the Azure Container Registry is used, "
        "which must be enabled.",
    )
    pull_username: str = text(
        "IMAGE_PULL_USERNAME", help="The user who pulls from a registry that is not an Azure Container Registry."
    )
    pull_password: str = secret("IMAGE_PULL_PASSWORD", help="The password of that user.")
    signing_key: str = text(
        "IMAGE_SIGNING_KEY",
        help="The private key that build-image --push signs with: a PEM file relative to the repository, or "
        "azurekeyvault://VAULT/SECRET.",
    )
    public_key: Path | None = path(
        "IMAGE_PUBLIC_KEY",
        help="The public key, a PEM file. With it, deploy refuses an image that is unsigned or was changed.",
    )
