"""Sign an artifact and its image's digest at the push, and check the signature at the deployment. See ADR 0043.

The payload is cosign's "simple signing" document, so that ``cosign verify-blob`` (or openssl) can check it, too.
Source: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_service.config import Settings
from ml_service.errors import INSTALL, ConfigurationError, IntegrityError, UnavailableError
from ml_service.package import sha256_of, write_json
from ml_service.ports import Release

SIGNATURE = "signature.json"

_VAULT = "azurekeyvault://"
_TYPE = "cosign container image signature"


def sign(settings: Settings, artifact: Path, image: Mapping[str, Any]) -> bool:
    """Write ``artifact/signature.json`` over model.json, the package and the pushed image.

    Returns:
        False when no key is set, so that nothing was signed.

    Raises:
        ConfigurationError: the key cannot be read, or is not a private key on the curve P-256.
        UnavailableError: the key vault does not answer or refuses.
    """
    if not settings.image.signing_key:
        return False
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    payload = json.dumps(_payload(artifact, image), sort_keys=True, separators=(",", ":")).encode()
    signature = _private_key(settings).sign(payload, ec.ECDSA(hashes.SHA256()))
    encoded = {"payload": base64.b64encode(payload).decode(), "signature": base64.b64encode(signature).decode()}
    write_json(artifact / SIGNATURE, encoded)
    return True


def check(settings: Settings, release: Release) -> None:
    """Check that the configured key signed exactly this release. Without a key every release passes.

    Raises:
        IntegrityError: unsigned, signed by another key, or changed after signing.
        ConfigurationError: the public key cannot be read.
    """
    if settings.image.public_key is None:
        return
    artifact = release.package.parent
    signed = _verified(settings.image.public_key, artifact / SIGNATURE)
    expected = {"digest": release.image_digest, "package_sha256": release.package_sha256, "image": release.image}
    expected["model_json_sha256"] = sha256_of(artifact / "model.json")
    wrong = sorted(name for name, value in expected.items() if signed.get(name) != value)
    if wrong:
        raise IntegrityError(
            f"was signed with other content: {', '.join(wrong)} changed after signing",
            where=str(artifact / SIGNATURE),
            next_step="build, push and sign again: inv build-image --push",
        )


def _payload(artifact: Path, image: Mapping[str, Any]) -> dict[str, Any]:
    model_json = sha256_of(artifact / "model.json")
    return {
        "critical": {
            "identity": {"docker-reference": image["repository"]},
            "image": {"docker-manifest-digest": image["digest"]},
            "type": _TYPE,
        },
        "optional": {"package_sha256": image["package_sha256"], "model_json_sha256": model_json},
    }


def _verified(key_file: Path, path: Path) -> dict[str, str]:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _public_key(key_file)
    try:
        raw = json.loads(path.read_bytes())
        payload = base64.b64decode(raw["payload"], validate=True)
        key.verify(base64.b64decode(raw["signature"], validate=True), payload, ec.ECDSA(hashes.SHA256()))
        signed = json.loads(payload)
        return {
            "image": signed["critical"]["identity"]["docker-reference"],
            "digest": signed["critical"]["image"]["docker-manifest-digest"],
            **signed["optional"],
        }
    except FileNotFoundError:
        reason = "is missing: the artifact is not signed"
    except InvalidSignature:
        reason = f"was not made with the key of {key_file.name}"
    except (ValueError, KeyError, TypeError):
        reason = "invalid signature: expected the JSON that inv build-image --push writes"
    raise IntegrityError(
        reason,
        where=str(path),
        next_step="deploy a signed artifact, or sign this one: IMAGE_SIGNING_KEY and inv build-image --push",
    )


def _private_key(settings: Settings) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    where = settings.image.signing_key
    text = _from_vault(settings, where) if where.startswith(_VAULT) else _read(settings.root / where)
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _no_key("IMAGE_SIGNING_KEY", "ecparam -name prime256v1 -genkey -noout -out signing.pem")
    return key


def _public_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _no_key("IMAGE_PUBLIC_KEY", "ec -in signing.pem -pubout -out signing.pub")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the key cannot be read ({error.strerror})", where=str(path), next_step="check IMAGE_*_KEY"
        ) from None


def _no_key(where: str, command: str) -> ConfigurationError:
    return ConfigurationError(
        "invalid key: expected an unencrypted PEM key on the curve P-256",
        where=where,
        next_step=f"make one: openssl {command}",
    )


def _from_vault(settings: Settings, where: str) -> bytes:
    vault, _, name = where.removeprefix(_VAULT).partition("/")
    try:
        from azure.core.exceptions import AzureError
        from azure.keyvault.secrets import SecretClient
    except ImportError:
        raise ConfigurationError(
            "the package azure-keyvault-secrets is not installed",
            where="IMAGE_SIGNING_KEY",
            next_step=INSTALL,
        ) from None
    from ml_service.azure.identity import credential

    try:
        secret = SecretClient(f"https://{vault}.vault.azure.net", credential(settings)).get_secret(name)
    except AzureError as error:
        raise UnavailableError(
            f"the key vault refuses the secret: {str(error).splitlines()[0]}",
            where=where,
            next_step="give the identity the role Key Vault Secrets User",
        ) from None
    return str(secret.value).encode()
