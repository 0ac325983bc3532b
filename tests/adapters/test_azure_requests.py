"""Every request of the targets aci and webapp, against the models that Azure's own packages carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from emulators.wire.http import Request
from ml_service.ports import Endpoint
from tests.support.releases import make_release
from tests.support.rigs.aci import AciRig
from tests.support.rigs.azure import AzureRig
from tests.support.rigs.webapp import WebAppRig

pytestmark = pytest.mark.docker

IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/puller"
OURS = ("management.azure.com", "emulated.vault.azure.net")


@pytest.mark.parametrize("kind", [AciRig, WebAppRig])
def test_nothing_in_a_request_is_unknown_to_azures_own_models(kind: type[AzureRig], tmp_path: Path) -> None:
    """Deploy, deploy, roll back, undeploy: each body is what a model reads and writes, no more and no less."""
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text(name)
    rig = kind(
        tmp_path,
        IMAGE_PULL_IDENTITY=IDENTITY,
        SCORING_KEYS_VAULT="emulated",
        ACI_LOG_WORKSPACE_ID="w",
        ACI_LOG_WORKSPACE_KEY="k",
    )
    asked: list[Request] = []
    rig.emulator.services.watch = lambda request: asked.append(request) if request.host in OURS else None
    try:
        _use(rig, tmp_path)
    finally:
        rig.close()
        rig.emulator.services.watch = lambda request: None
    bodies = [(request.method, request.path, json.loads(request.body)) for request in asked if request.body]
    assert [found for method, path, body in bodies if (found := _problems(method, path, body))] == []
    assert {_model_of(method, path) for method, path, _ in bodies} >= {"tags", "secret"}


def _use(rig: AzureRig, directory: Path) -> None:
    def no_verification(endpoint: Endpoint, package: Path | None) -> None:
        """Verifies nothing."""

    for version in ("1", "2"):
        release = rig.prepare(make_release(directory / version, version))
        rig.target.apply(rig.target.plan(release), no_verification, print)
    rig.target.rollback(no_verification, print)
    rig.target.status()
    rig.target.logs(5)


def test_a_group_with_a_sidecar_is_known_to_azures_own_models(tmp_path: Path) -> None:
    """The second container and its secret volume, too; they are asked of nobody here."""
    from ml_service.azure.version import Version
    from ml_service.config import Settings
    from ml_service.images.pull_access import PullAccess
    from ml_service.ports import Keys
    from ml_service.targets.aci.container_group import build
    from tests.support.sources import ROOT

    (tmp_path / "tls.pem").write_text("pem")
    env = {"ACI_TLS_IMAGE": "caddy:2", "ACI_TLS_CERTIFICATE": str(tmp_path / "tls.pem"), "LOCATION": "westeurope"}
    settings = Settings.from_env({**env, "ACI_TLS_KEY": str(tmp_path / "tls.pem")}, ROOT)
    version = Version("registry/image@sha256:0", "0", "toy", "1", "b")
    keys = Keys("primary", "secondary")
    group = build(settings, version, PullAccess("registry", username="u", password="p"), "label", keys, "v")
    assert _problems("PUT", "/containerGroups/x", group.serialize()) == []


def _model_of(method: str, path: str) -> str:
    for part, name in {
        "/tags/default": "tags",
        "/secrets/": "secret",
        "/slotConfigNames": "sticky",
        "/slotsswap": "swap",
        "/containerGroups/": "group",
        "/sites/": "site",
    }.items():
        if part in path:
            return f"{name} patch" if method == "PATCH" and name in ("group", "site") else name
    return "unknown"


def _problems(method: str, path: str, body: Mapping[str, Any]) -> list[str]:
    """Where the body is not what the model makes of it."""
    from azure.keyvault.secrets._generated import models as secrets
    from azure.mgmt.containerinstance import models as instances
    from azure.mgmt.resource.resources.v2022_09_01 import models as resources
    from azure.mgmt.web import models as web

    name = _model_of(method, path)
    serialized = {"group": instances.ContainerGroup, "group patch": instances.Resource}
    serialized["tags"] = resources.TagsPatchResource
    if name in serialized:
        again = serialized[name].deserialize(body).serialize()
        return [] if again == body else [f"{name}: {body} is read as {again}"]
    kept = {
        "site": web.Site,
        "site patch": web.SitePatchResource,
        "sticky": web.SlotConfigNamesResource,
        "swap": web.CsmSlotEntity,
        "secret": secrets.SecretSetParameters,
    }
    return _unknown(kept[name], body, name) if name in kept else [f"no model for {method} {path}"]


def _unknown(model: Any, body: Any, where: str) -> list[str]:
    """The keys, at any depth, that the model has no field for."""
    instance = model(body)
    fields = {field._rest_name: name for name, field in instance._attr_to_rest_field.items()}
    found = [f"{where}.{key}" for key in body if key not in fields]
    for key in set(body) & set(fields):
        value = getattr(instance, fields[key])
        for number, one in enumerate(value if isinstance(value, list) else [value]):
            if hasattr(one, "_attr_to_rest_field"):
                part = body[key][number] if isinstance(value, list) else body[key]
                found += _unknown(type(one), part, f"{where}.{key}")
    return found
