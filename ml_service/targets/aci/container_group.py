"""The container group of a version, made of the settings, and the description by which two groups are compared.

Source: https://learn.microsoft.com/rest/api/container-instances/container-groups/create-or-update
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_service.azure.errors import translated
from ml_service.azure.version import Version, scoring_options
from ml_service.config import AciSettings, Settings
from ml_service.errors import ConfigurationError
from ml_service.images import pull_access
from ml_service.images.pull_access import PullAccess
from ml_service.ports import Keys

OWNER, REVISION, PREVIOUS = "mlops-deployment", "mlops-turn", "mlops-previous"
KEYS_VERSION, CERTIFICATE = "mlops-keys", "mlops-certificate"
MAIN, SIDECAR = "scoring", "tls"

_INSIDE = "127.0.0.1"
_TLS_PORT = 443
_TLS_FOLDER = "/etc/caddy"
_CADDYFILE = """{{
    admin off
    auto_https off
}}
:443 {{
    tls {folder}/tls.crt {folder}/tls.key
    reverse_proxy {host}:{port}
}}
"""


def for_version(settings: Settings, version: Version, label: str, keys: Keys | None, keys_version: str) -> Any:
    """Return the group of ``version``, asking Azure how its image may be pulled. See ``build``."""
    with translated("Container Instances"):
        access = pull_access.access(settings, version.image)
        return build(settings, version, access, label, keys, keys_version)


def build(
    settings: Settings, version: Version, access: PullAccess, label: str, keys: Keys | None, keys_version: str
) -> Any:
    """Return the group of ``version`` at the address ``label``. With ``keys`` None it is good for comparing only.

    Raises:
        ConfigurationError: certificate or key cannot be read.
    """
    from azure.mgmt.containerinstance import models

    aci = settings.aci
    tls = _tls_files(aci)
    ports = [_TLS_PORT if tls else aci.port]
    containers = [_scoring(settings, version, keys)] + ([_sidecar(aci)] if tls else [])
    return models.ContainerGroup(
        location=settings.azure.location,
        tags={
            OWNER: aci.name,
            KEYS_VERSION: keys_version,
            CERTIFICATE: hashlib.sha256(str(sorted(tls.items())).encode()).hexdigest()[:16] if tls else "none",
            **version.tags(),
        },
        identity=_identity(access),
        containers=containers,
        image_registry_credentials=_credentials(access),
        restart_policy=aci.restart_policy,
        os_type="Linux",
        ip_address=models.IpAddress(
            type="Public",
            ports=[models.Port(protocol="TCP", port=port) for port in ports],
            dns_name_label=label,
            # Otherwise a stranger could take over an address that is no longer used, and receive the clients' keys.
            auto_generated_domain_name_label_scope="TenantReuse",
        ),
        volumes=[models.Volume(name=SIDECAR, secret=tls)] if tls else None,
        diagnostics=_diagnostics(aci),
    )


def _scoring(settings: Settings, version: Version, keys: Keys | None) -> Any:
    from azure.mgmt.containerinstance import models

    aci = settings.aci
    options = {**scoring_options(settings), "SCORING_PORT": str(aci.port)}
    plain = [models.EnvironmentVariable(name=name, value=value) for name, value in sorted(options.items())]
    secret = {"SCORING_PRIMARY_KEY": keys.primary, "SCORING_SECONDARY_KEY": keys.secondary} if keys else {}
    return models.Container(
        name=MAIN,
        image=version.image,
        ports=[models.ContainerPort(protocol="TCP", port=aci.port)],
        environment_variables=plain
        + [models.EnvironmentVariable(name=name, secure_value=value) for name, value in secret.items()],
        resources=_resources(aci.cpu, aci.memory_gb),
        liveness_probe=_probe("/health/live", aci.port, period=10, start=round(aci.startup_timeout)),
        readiness_probe=_probe("/health/ready", aci.port, period=5, start=1),
    )


def _sidecar(aci: AciSettings) -> Any:
    from azure.mgmt.containerinstance import models

    return models.Container(
        name=SIDECAR,
        image=aci.tls_image,
        ports=[models.ContainerPort(protocol="TCP", port=_TLS_PORT)],
        resources=_resources(0.25, 0.25),
        volume_mounts=[models.VolumeMount(name=SIDECAR, mount_path=_TLS_FOLDER, read_only=True)],
    )


def _resources(cpu: float, memory_gb: float) -> Any:
    from azure.mgmt.containerinstance import models

    return models.ResourceRequirements(requests=models.ResourceRequests(cpu=cpu, memory_in_gb=memory_gb))


def _probe(path: str, port: int, *, period: int, start: int) -> Any:
    from azure.mgmt.containerinstance import models

    return models.ContainerProbe(
        http_get=models.ContainerHttpGet(path=path, port=port, scheme="http"),
        initial_delay_seconds=start,
        period_seconds=period,
        failure_threshold=3,
        timeout_seconds=5,
    )


def _identity(access: PullAccess) -> Any | None:
    from azure.mgmt.containerinstance import models

    if not access.identity:
        return None
    assigned = {access.identity: models.UserAssignedIdentities()}
    return models.ContainerGroupIdentity(type="UserAssigned", user_assigned_identities=assigned)


def _credentials(access: PullAccess) -> list[Any] | None:
    from azure.mgmt.containerinstance import models

    if access.identity:
        return [models.ImageRegistryCredential(server=access.server, identity=access.identity)]
    if access.username:
        login = {"username": access.username, "password": access.password}
        return [models.ImageRegistryCredential(server=access.server, **login)]
    return None


def _diagnostics(aci: AciSettings) -> Any | None:
    from azure.mgmt.containerinstance import models

    if not aci.log_workspace_id:
        return None
    log = models.LogAnalytics(workspace_id=aci.log_workspace_id, workspace_key=aci.log_workspace_key)
    return models.ContainerGroupDiagnostics(log_analytics=log)


def _tls_files(aci: AciSettings) -> dict[str, str]:
    """Return the files of the sidecar's secret volume, in base64 by name; empty without a sidecar."""
    if not (aci.tls_image and aci.tls_certificate and aci.tls_key):
        return {}
    files = {
        "Caddyfile": _CADDYFILE.format(folder=_TLS_FOLDER, host=_INSIDE, port=aci.port).encode(),
        "tls.crt": _read(aci.tls_certificate, "ACI_TLS_CERTIFICATE"),
        "tls.key": _read(aci.tls_key, "ACI_TLS_KEY"),
    }
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot be read ({error.strerror})", where=str(path), next_step=f"point {setting} to a PEM file"
        ) from None


def describe(group: Any) -> dict[str, Any]:
    """Return what matters of a group, without secrets and addresses. Two are equal when nothing would change."""
    tags: Mapping[str, str] = group.tags or {}
    main = next(container for container in group.containers if container.name == MAIN)
    log = group.diagnostics.log_analytics if group.diagnostics else None
    requests = main.resources.requests
    return {
        "images": {container.name: container.image for container in group.containers},
        "package": tags.get("mlops-package", ""),
        "cpu": float(requests.cpu),
        "memory_gb": float(requests.memory_in_gb),
        "ports": [port.port for port in group.ip_address.ports],
        "environment": {one.name: one.value for one in main.environment_variables if not one.name.endswith("_KEY")},
        "restart_policy": group.restart_policy,
        "startup_seconds": main.liveness_probe.initial_delay_seconds if main.liveness_probe else 0,
        "pulls_as": [one.identity or one.username for one in group.image_registry_credentials or []],
        "log_workspace": log.workspace_id if log else "",
        "keys": tags.get(KEYS_VERSION, ""),
        "certificate": tags.get(CERTIFICATE, ""),
    }


def url_of(group: Any) -> str:
    """Return the address that clients use."""
    port = group.ip_address.ports[0].port
    host = group.ip_address.fqdn or group.ip_address.ip or "pending"
    if port == _TLS_PORT:
        return f"https://{host}"
    return f"http://{host}" if port == 80 else f"http://{host}:{port}"
