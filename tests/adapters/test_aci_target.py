"""The target aci under bad luck, against the emulated Resource Manager and real containers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emulators import Fault
from emulators.wire.account import TENANT
from ml_service.errors import ConfigurationError, MlopsError, UnavailableError, UnhealthyError
from ml_service.ports import Release
from tests.support.releases import MakeRelease, deploy, release_maker, version_at
from tests.support.rigs.aci import AciRig
from tests.support.rigs.azure import ACR, ADMIN
from tests.support.sources import ROOT

pytestmark = pytest.mark.docker

PUT = "PUT .*containerGroups/"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AciRig]:
    made = AciRig(tmp_path)
    yield made
    world = made.emulator.arm
    world.capacity, world.group_quota = True, 100
    world.taken_labels.clear()
    made.close()


@pytest.fixture
def release(tmp_path: Path, rig: AciRig) -> MakeRelease:
    return release_maker(rig, tmp_path)


def properties(rig: AciRig) -> Any:
    """What was asked for, of the only group."""
    (group,) = rig.groups().values()
    return group.body["properties"]


@pytest.mark.parametrize(
    "fault, kind, message",
    [
        (Fault(PUT, 429, times=100, headers={"Retry-After": "0"}), UnavailableError, "status 429"),
        (Fault(PUT, 503, times=100, headers={"Retry-After": "0"}), UnavailableError, "status 503"),
        (Fault(PUT, 409, code="ContainerGroupTransitioning"), UnavailableError, "ContainerGroupTransitioning"),
        (Fault(PUT, 403, code="AuthorizationFailed"), UnavailableError, "(?s)AuthorizationFailed.*Contributor"),
        (Fault(PUT, 0, times=100), UnavailableError, "(?s)container group .*cannot be reached"),
    ],
    ids=["throttled", "unavailable", "conflict", "no rights", "dropped"],
)
def test_what_azure_refuses_is_told_and_the_version_before_serves(
    rig: AciRig, release: MakeRelease, fault: Fault, kind: type[MlopsError], message: str
) -> None:
    """Exit code 5 with Azure's own words, the resource and what to do; nothing is left behind."""
    deploy(rig.target, release("1"))
    rig.emulator.plant(fault)
    with pytest.raises(kind, match=message):
        deploy(rig.target, release("2"))
    rig.emulator.services.faults.clear()
    assert version_at(rig.target.endpoint()) == "1"
    assert len(rig.groups()) == 1


def test_a_call_that_is_throttled_once_goes_through(rig: AciRig, release: MakeRelease) -> None:
    """Azure says when to come again, and the task does."""
    rig.emulator.plant(Fault(PUT, 429, times=2, headers={"Retry-After": "0"}))
    assert deploy(rig.target, release("1")).state == "serving"


def test_a_region_without_capacity(rig: AciRig, release: MakeRelease) -> None:
    """Exit code 5, and what helps: less, later, elsewhere."""
    deploy(rig.target, release("1"))
    rig.emulator.arm.capacity = False
    with pytest.raises(UnavailableError, match="(?s)not available in the location 'westeurope'.*ACI_CPU"):
        deploy(rig.target, release("2"))
    assert version_at(rig.target.endpoint()) == "1"


def test_a_quota_that_is_used_up(rig: AciRig, release: MakeRelease) -> None:
    """Exit code 5."""
    deploy(rig.target, release("1"))
    rig.emulator.arm.group_quota = 1
    with pytest.raises(UnavailableError, match="(?s)quota '1' exceeded.*more quota"):
        deploy(rig.target, release("2"))
    assert version_at(rig.target.endpoint()) == "1"


def test_an_address_that_is_taken(rig: AciRig, release: MakeRelease) -> None:
    """Exit code 5, naming the setting."""
    rig.emulator.arm.taken_labels.add(f"{rig.name}-a")
    with pytest.raises(UnavailableError, match="(?s)is not available.*ACI_DNS_LABEL"):
        deploy(rig.target, release("1"))
    assert rig.groups() == {}


def test_an_image_that_cannot_be_pulled(rig: AciRig, release: MakeRelease) -> None:
    """The registry has no such digest: exit code 5, and the version before serves."""
    deploy(rig.target, release("1"))
    gone = replace(release("2"), image_digest="sha256:" + "0" * 64)
    with pytest.raises(UnavailableError, match="(?s)InaccessibleImage.*was pushed"):
        deploy(rig.target, gone)
    assert version_at(rig.target.endpoint()) == "1"
    assert len(rig.groups()) == 1


@pytest.mark.parametrize(
    "fault, message",
    [("crash", r"(?s)its process ended.* before it was ready .*the planted fault"), ("wrong", "did not pass")],
)
def test_a_version_that_does_not_come_up(rig: AciRig, release: MakeRelease, fault: str, message: str) -> None:
    """A container that ends again and again, or answers wrongly: exit code 6 with its last lines."""
    deploy(rig.target, release("1"))
    with pytest.raises(UnhealthyError, match=message):
        deploy(rig.target, release("2", fault))
    assert version_at(rig.target.endpoint()) == "1"
    assert len(rig.groups()) == 1


def test_a_version_that_never_gets_ready(rig: AciRig, release: MakeRelease) -> None:
    """After the time it was given."""
    deploy(rig.target, release("1"))
    with pytest.raises(UnhealthyError, match="was not ready after 2 s"):
        deploy(rig.open(ACI_STARTUP_TIMEOUT="2"), release("2", "never-ready"))
    assert version_at(rig.target.endpoint()) == "1"


@pytest.mark.parametrize("moment", ["questioned", "moved"])
def test_a_deployment_that_is_killed(rig: AciRig, release: MakeRelease, moment: str) -> None:
    """``kill -9``: one of the two serves, whole; the next deployment waits for the lease to end, and tidies up."""
    first, second, third = release("1"), release("2"), release("3")
    deploy(rig.target, first)
    process = _deploying(rig, second, moment)
    assert process.stdout is not None
    while moment not in (line := process.stdout.readline()):
        assert line, "it ended too soon"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    expected = {"questioned": "1", "moved": "2"}[moment]
    assert version_at(rig.open().endpoint()) == expected
    status = deploy(rig.open(), third)
    assert (status.model["version"], status.previous) == ("3", {"name": "toy", "version": expected})
    assert len(rig.groups()) == 2


def _deploying(rig: AciRig, release: Release, moment: str) -> subprocess.Popen[str]:
    """Another process that deploys ``release``, says when it is at ``moment``, and stays there."""
    code = f"""
import json, os, time
from pathlib import Path
from ml_service.ports import Release
from ml_service.targets import open_target
from tests.support.settings import settings_for
def stay(where):
    if where == {moment!r}:
        print(where, flush=True)
        time.sleep(600)
release = Release(Path({str(release.package)!r}), {release.package_sha256!r}, "toy", {release.model_version!r}, "b",
                  {release.image!r}, {release.image_digest!r})
target = open_target("aci", settings_for(Path({str(rig.home)!r}), **json.loads({json.dumps(rig.variables)!r})))
target.apply(target.plan(release), lambda endpoint, package: stay("questioned"),
             lambda line: stay("moved") if "has the address" in line else None)
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_public_address_without_tls_is_refused(rig: AciRig, release: MakeRelease) -> None:
    """Unless somebody says that it is meant."""
    with pytest.raises(ConfigurationError, match="--allow-http"):
        rig.open(ACI_ALLOW_HTTP="false").plan(release("1"))


def test_a_second_container_ends_tls(rig: AciRig, release: MakeRelease, tmp_path: Path) -> None:
    """Then nobody has to allow HTTP; certificate and key reach it in a secret volume, and it speaks for the first."""
    of_tenant = hashlib.sha256(f"{rig.name}-a{TENANT}".encode()).hexdigest()[:16]
    fqdn = f"{rig.name}-a.{of_tenant}.westeurope.azurecontainer.io"
    for name, content in zip(("key", "crt"), rig.emulator.authority.issue(fqdn), strict=True):
        (tmp_path / f"tls.{name}").write_bytes(content)
    tls = {
        "ACI_TLS_IMAGE": _sidecar(rig),
        "ACI_TLS_CERTIFICATE": str(tmp_path / "tls.crt"),
        "ACI_TLS_KEY": str(tmp_path / "tls.key"),
    }
    target = rig.open(ACI_ALLOW_HTTP="false", **tls)
    status = deploy(target, release("1"))
    assert status.url == f"https://{fqdn}"
    assert version_at(target.endpoint()) == "1"


def _sidecar(rig: AciRig) -> str:
    """An image that does what Caddy would do with the same folder: end TLS, and pass on to the first container."""
    script = """
import re, socket, ssl, threading
folder = "/etc/caddy"
host, port = re.search(r"reverse_proxy (.+):([0-9]+)", open(folder + "/Caddyfile").read()).groups()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/tls.crt", folder + "/tls.key")
def carry(source, to):
    try:
        while data := source.recv(65536):
            to.sendall(data)
    except OSError:
        pass
    to.close()
def serve(client):
    client, behind = context.wrap_socket(client, server_side=True), socket.create_connection((host, int(port)))
    threading.Thread(target=carry, args=(behind, client), daemon=True).start()
    carry(client, behind)
listener = socket.create_server(("0.0.0.0", 443))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
    tag = "test-sidecar:1"
    dockerfile = 'FROM python:3.11-slim-bookworm\nCOPY serve.py /\nCMD ["python", "/serve.py"]\n'
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, text in (("Dockerfile", dockerfile), ("serve.py", script)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    rig.client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
    return tag


def test_a_group_is_what_the_settings_say(rig: AciRig, release: MakeRelease) -> None:
    """Image by digest, resources, port, probes, policy, log, an address that no stranger can take, hidden keys."""
    first = release("1")
    deploy(rig.open(ACI_PORT="9000", ACI_LOG_WORKSPACE_ID="w", ACI_LOG_WORKSPACE_KEY="k"), first)
    found = properties(rig)
    container = found["containers"][0]["properties"]
    assert container["image"] == f"{first.image}@{first.image_digest}"
    assert container["resources"]["requests"] == {"cpu": 0.5, "memoryInGB": 1.0}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": 9000, "scheme": "http"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert found["diagnostics"]["logAnalytics"] == {"workspaceId": "w", "workspaceKey": "k"}
    assert (found["restartPolicy"], found["osType"]) == ("Always", "Linux")
    assert found["ipAddress"]["autoGeneratedDomainNameLabelScope"] == "TenantReuse"
    secret = [one["name"] for one in container["environmentVariables"] if "secureValue" in one]
    assert secret == ["SCORING_PRIMARY_KEY", "SCORING_SECONDARY_KEY"]
    assert rig.target.keys().primary not in json.dumps(rig.groups()[next(iter(rig.groups()))].body["tags"])


def test_the_dry_run_shows_what_would_change_and_no_key(rig: AciRig, release: MakeRelease) -> None:
    """Another size is one line that goes and one that comes."""
    first = release("1")
    deploy(rig.target, first)
    plan = rig.open(ACI_CPU="2").plan(first)
    shown = "\n".join(step.diff for step in plan.steps)
    assert '- "cpu": 0.5' in shown and '+ "cpu": 2.0' in shown
    keys = rig.target.keys()
    assert keys.primary not in str(plan) and keys.secondary not in str(plan)


def test_keys_of_a_vault_open_from_any_machine(rig: AciRig, release: MakeRelease, tmp_path: Path) -> None:
    """Another agent, with an empty MLOPS_HOME, reads them and deploys on; a changed key is a reason to deploy."""
    vault = {"SCORING_KEYS_VAULT": "emulated"}
    first = release("1")
    deploy(rig.open(**vault), first)
    elsewhere = rig.elsewhere(tmp_path / "elsewhere", **vault)
    assert version_at(elsewhere.endpoint()) == "1"
    assert not elsewhere.plan(first).steps
    keys = elsewhere.keys()
    second = release("2")
    deploy(elsewhere, second)
    assert elsewhere.keys() == keys
    secrets = rig.emulator.arm.secrets[("emulated.vault.azure.net", f"{rig.name}-primary-key")]
    secrets.append(("another", "a-key-that-somebody-set"))
    assert '"emulated another' in "\n".join(step.diff for step in elsewhere.plan(second).steps)


def test_keys_of_another_machine_are_missed_with_a_word(rig: AciRig, release: MakeRelease, tmp_path: Path) -> None:
    """Azure gives no secure variable back, so the message says where they are."""
    deploy(rig.target, release("1"))
    with pytest.raises(UnavailableError, match="(?s)another machine.*SCORING_KEYS_VAULT"):
        rig.elsewhere(tmp_path / "elsewhere").keys()


def test_an_agent_without_a_vault_is_refused(rig: AciRig, release: MakeRelease) -> None:
    """The keys would be gone with it."""
    with pytest.raises(ConfigurationError, match="(?s)SCORING_KEYS_VAULT.*lost with this agent"):
        rig.open(TF_BUILD="true").plan(release("1"))


def test_the_admin_user_pulls_where_no_identity_is_named(rig: AciRig, release: MakeRelease) -> None:
    """Its password is asked of Azure; where the user is off, the message names the setting for an identity."""
    first = rig.in_acr(release("1"))
    deploy(rig.target, first)
    given = properties(rig)["imageRegistryCredentials"]
    assert given == [{"server": ACR, "username": "emulated", "password": ADMIN}]
    rig.emulator.arm.registries[ACR]["admin"] = False
    with pytest.raises(ConfigurationError, match="(?s)admin user is off.*IMAGE_PULL_IDENTITY"):
        rig.target.plan(first)


def test_a_managed_identity_pulls(rig: AciRig, release: MakeRelease) -> None:
    """No password anywhere."""
    first = rig.in_acr(release("1"))
    deploy(rig.open(IMAGE_PULL_IDENTITY="/subscriptions/s/identities/puller"), first)
    assert properties(rig)["imageRegistryCredentials"] == [
        {"server": ACR, "identity": "/subscriptions/s/identities/puller"}
    ]


def test_a_sign_in_that_is_refused(rig: AciRig) -> None:
    """Exit code 4, and no secret in the message."""
    with pytest.raises(ConfigurationError, match="sign-in was refused") as refused:
        rig.open(SP_APP_SECRET="wrong-secret").status()
    assert "wrong-secret" not in str(refused.value)


def test_settings_that_are_missing_are_named(rig: AciRig) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError, match="RESOURCE_GROUP: is not set"):
        rig.open(RESOURCE_GROUP="").status()


@pytest.mark.parametrize("word", ["off", "OFF"])
def test_a_server_without_keys_is_asked_without_one(rig: AciRig, release: MakeRelease, word: str) -> None:
    """The word is read from the version that serves, as its server reads it."""
    deploy(rig.open(SCORING_AUTH=word), release("1"))
    endpoint = rig.open().endpoint()
    assert (endpoint.key, version_at(endpoint)) == ("", "1")
