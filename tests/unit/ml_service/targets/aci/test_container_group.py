"""A container group: what is built of the settings is what a plan compares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_service.azure.version import Version
from ml_service.config import AciSettings, Settings
from ml_service.config.fields import declared
from ml_service.images.pull_access import PullAccess
from tests.support.sources import ROOT

pytest.importorskip("azure.mgmt.containerinstance")

from ml_service.targets.aci import container_group  # noqa: E402

OTHER = {"restart_policy": "Never", "log_workspace_id": "other", "tls_image": "caddy:3"}
NOT_COMPARED = {
    "name": "groups of another name belong to another deployment",
    "log_workspace_key": "Azure never gives it back",
    "dns_label": "the address differs in each group",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with TLS and a log workspace, so that each part of a group is built."""
    for name in ("tls.crt", "tls.key", "other"):
        (tmp_path / name).write_text(name)
    env = {
        "ACI_TLS_IMAGE": "caddy:2",
        "ACI_TLS_CERTIFICATE": f"{tmp_path}/tls.crt",
        "ACI_TLS_KEY": f"{tmp_path}/tls.key",
    }
    return Settings.from_env({**env, "ACI_LOG_WORKSPACE_ID": "id", "ACI_LOG_WORKSPACE_KEY": "key"}, ROOT)


def built(settings: Settings) -> Any:
    """The group of a version under these settings."""
    version = Version("registry.example/toy@sha256:1", "2", "toy", "1", "build-1")
    return container_group.build(settings, version, PullAccess(""), settings.aci.dns_label, None, "keys")


def changed(settings: Settings, field: str, directory: Path) -> Settings:
    """The same settings with another value of one field."""
    value = getattr(settings.aci, field)
    if isinstance(value, Path):
        other: Any = directory / "other"
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, int | float):
        other = value + 1
    else:
        other = OTHER.get(field, f"{value}-other")
    return replace(settings, aci=replace(settings.aci, **{field: other}))


@pytest.mark.parametrize("field", sorted(declared(AciSettings)))
def test_a_setting_that_changes_the_group_changes_the_plan(settings: Settings, tmp_path: Path, field: str) -> None:
    """A value in ``build`` that ``described`` leaves out would plan no step when it changes."""
    before, after = built(settings), built(changed(settings, field, tmp_path))
    is_built = before.as_dict() != after.as_dict()
    is_compared = container_group.describe(before) != container_group.describe(after)
    assert is_compared == (is_built and field not in NOT_COMPARED)
