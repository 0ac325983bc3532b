"""Settings of the target aci."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_service.config.fields import choice, flag, number, path, secret, text, whole
from ml_service.errors import ConfigurationError


@dataclass(frozen=True)
class AciSettings:
    """Target aci: an endpoint on Azure Container Instances."""

    name: str = text(
        "ACI_DEPLOYMENT_NAME", from_project=True, lower=True, help="The beginning of the container groups' names."
    )
    dns_label: str = text(
        "ACI_DNS_LABEL",
        lower=True,
        fallback="the deployment's name",
        help="The beginning of the container groups' public addresses.",
    )
    port: int = whole("ACI_PORT", 8080, least=1, most=65535, help="The port of the endpoint.")
    cpu: float = number("ACI_CPU", 1, least=0.1, unit="cores", help="Cores of the scoring container.")
    memory_gb: float = number("ACI_MEMORY_GB", 1, least=0.1, unit="GB", help="Memory of the scoring container.")
    restart_policy: str = choice(
        "ACI_RESTART_POLICY",
        *("Always", "OnFailure", "Never"),
        default="Always",
        help="When a container that has ended is started again.",
    )
    allow_http: bool = flag(
        "ACI_ALLOW_HTTP",
        False,
        help="Container Instances has no TLS. true allows a public address without it, as --allow-http does for one "
        "deployment.",
    )
    tls_image: str = text(
        "ACI_TLS_IMAGE",
        help="An image of Caddy, which terminates TLS in a second container with the next two settings.",
    )
    tls_certificate: Path | None = path(
        "ACI_TLS_CERTIFICATE",
        help="The certificate, a PEM file. It must cover the three addresses that versions take turns at: see "
        "docs/azure-containers.md.",
    )
    tls_key: Path | None = path("ACI_TLS_KEY", help="The private key of that certificate, a PEM file.")
    log_workspace_id: str = text(
        "ACI_LOG_WORKSPACE_ID", help="The id of a Log Analytics workspace that collects the containers' logs."
    )
    log_workspace_key: str = secret("ACI_LOG_WORKSPACE_KEY", help="The key of that workspace.")
    startup_timeout: float = number(
        "ACI_STARTUP_TIMEOUT", 300, least=1, unit="seconds", help="How long a version may take to become ready."
    )
    drain_seconds: float = number(
        "ACI_DRAIN_SECONDS",
        60,
        least=0,
        unit="seconds",
        help="How long clients have to follow to the new address before the version before is stopped.",
    )

    def __post_init__(self) -> None:
        if not self.dns_label:
            object.__setattr__(self, "dns_label", self.name)
        if self.tls_image and not (self.tls_certificate and self.tls_key):
            raise ConfigurationError(
                "needs a certificate and its key",
                where="ACI_TLS_IMAGE",
                next_step="set ACI_TLS_CERTIFICATE and ACI_TLS_KEY to PEM files",
            )
