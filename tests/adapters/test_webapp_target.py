"""The target webapp under bad luck, against the emulated Resource Manager and real containers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from emulators import Fault
from ml_service.errors import ConfigurationError, UnavailableError, UnhealthyError, UsageError
from tests.support.releases import MakeRelease, deploy, no_verification, release_maker, version_at
from tests.support.rigs.azure import ACR, ADMIN
from tests.support.rigs.webapp import WebAppRig

pytestmark = pytest.mark.docker

IN_PLACE = {"WEBAPP_SLOT": ""}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[WebAppRig]:
    made = WebAppRig(tmp_path)
    yield made
    made.emulator.arm.plans = {"emulated": "Standard"}
    made.close()


@pytest.fixture
def release(tmp_path: Path, rig: WebAppRig) -> MakeRelease:
    return release_maker(rig, tmp_path)


def test_a_site_is_https_only_with_a_health_check_and_keys_that_stick(rig: WebAppRig, release: MakeRelease) -> None:
    """The image by digest; the slot has keys of its own, which do not open production."""
    first = release("1")
    deploy(rig.target, first)
    site = rig.emulator.arm.sites[rig.name]
    assert site.body["properties"]["httpsOnly"] is True
    assert (site.config["healthCheckPath"], site.config["minTlsVersion"]) == ("/health/ready", "1.2")
    assert site.config["linuxFxVersion"] == f"DOCKER|{first.image}@{first.image_digest}"
    assert site.sticky == ["SCORING_PRIMARY_KEY", "SCORING_SECONDARY_KEY"]
    slot = site.slots["staging"]
    assert slot.app_settings["SCORING_PRIMARY_KEY"] != site.app_settings["SCORING_PRIMARY_KEY"]
    plain = requests.get(rig.target.endpoint().url.replace("https:", "http:"), allow_redirects=False, timeout=30)
    assert (plain.status_code, plain.headers["Location"][:8]) == (301, "https://")


def test_a_swap_that_azure_does_not_make(rig: WebAppRig, release: MakeRelease) -> None:
    """Exit code 5; the slot holds again what it held, and the version before serves."""
    deploy(rig.target, release("1"))
    deploy(rig.target, release("2"))
    before = rig.target.status()
    rig.emulator.plant(Fault("POST .*/slotsswap$", 409, code="Conflict", message="another operation is in progress"))
    with pytest.raises(UnavailableError, match="(?s)another operation is in progress"):
        deploy(rig.target, release("3"))
    assert rig.target.status() == before
    assert rig.target.rollback(no_verification, print).model["version"] == "1"


def test_a_version_that_fails_after_the_swap_is_swapped_back(rig: WebAppRig, release: MakeRelease) -> None:
    """What answers at the public address is looked at once more."""
    deploy(rig.target, release("1"))
    address = rig.target.endpoint().url.removeprefix("https://")
    rig.emulator.plant(Fault(f"GET {address}/health/ready", 500, times=1000))
    with pytest.raises(UnhealthyError, match="did not come up"):
        deploy(rig.open(WEBAPP_STARTUP_TIMEOUT="20"), release("2"))
    rig.emulator.services.faults.clear()
    assert version_at(rig.target.endpoint()) == "1"
    assert [line.rpartition("/")[2] for line in rig.log() if f"{rig.name}/slotsswap" in line] == ["slotsswap"] * 3


def test_a_plan_without_slots(rig: WebAppRig, release: MakeRelease) -> None:
    """Exit code 5 in Azure's words, and no site is left."""
    rig.emulator.arm.plans = {"emulated": "Basic"}
    with pytest.raises(UnavailableError, match="number of slots"):
        deploy(rig.target, release("1"))
    assert rig.target.status() is None


def test_a_plan_that_is_not_there(rig: WebAppRig, release: MakeRelease) -> None:
    """Exit code 4, with the line that makes one."""
    with pytest.raises(ConfigurationError, match="(?s)WEBAPP_PLAN=missing.*az appservice plan create"):
        rig.open(WEBAPP_PLAN="missing").plan(release("1"))


def test_a_site_of_somebody_else(rig: WebAppRig, release: MakeRelease) -> None:
    """It is neither replaced nor deleted."""
    deploy(rig.target, release("1"))
    site = rig.emulator.arm.sites[rig.name]
    site.body["tags"] = {}
    for refused in (lambda: rig.target.plan(release("2")), lambda: rig.target.undeploy(print)):
        with pytest.raises(UsageError, match="was not made by these tasks"):
            refused()
    site.body["tags"] = {"mlops-deployment": rig.name}


def test_a_name_that_is_taken(rig: WebAppRig, release: MakeRelease) -> None:
    """Somewhere in Azure there is such a site already."""
    rig.emulator.arm.taken_labels.add(rig.name)
    with pytest.raises(UnavailableError, match="already exists"):
        deploy(rig.target, release("1"))
    rig.emulator.arm.taken_labels.clear()


def test_an_image_that_cannot_be_pulled(rig: WebAppRig, release: MakeRelease) -> None:
    """It does not come up in its slot: exit code 6 with the platform's log; the version before serves."""
    deploy(rig.target, release("1"))
    gone = replace(release("2"), image_digest="sha256:" + "0" * 64)
    with pytest.raises(UnhealthyError, match="(?s)did not answer.*InaccessibleImage"):
        deploy(rig.open(WEBAPP_STARTUP_TIMEOUT="5"), gone)
    assert version_at(rig.target.endpoint()) == "1"


@pytest.mark.parametrize("fault", ["crash", "wrong"])
def test_in_place_the_image_before_is_put_back(rig: WebAppRig, release: MakeRelease, fault: str) -> None:
    """Without a slot a bad version is in place while it is found out; then the one before serves again."""
    target = rig.open(**IN_PLACE)
    deploy(target, release("1"))
    before = target.status()
    with pytest.raises(UnhealthyError):
        # Long enough for the version before to come back on a busy machine, too.
        deploy(rig.open(**IN_PLACE, WEBAPP_STARTUP_TIMEOUT="20"), release("2", fault))
    assert target.status() == before
    assert version_at(target.endpoint()) == "1"


def test_in_place_there_is_a_way_back(rig: WebAppRig, release: MakeRelease) -> None:
    """The digest of the version before is kept in the settings, and the registry has its image."""
    target = rig.open(**IN_PLACE)
    deploy(target, release("1"))
    keys = target.keys()
    deploy(target, release("2"))
    assert target.rollback(no_verification, print).previous is None
    assert (version_at(target.endpoint()), target.keys()) == ("1", keys)


def test_keys_of_a_vault_are_what_production_has(rig: WebAppRig, release: MakeRelease) -> None:
    """Made there when they are missing, and brought in when somebody changed them."""
    target = rig.open(SCORING_KEYS_VAULT="emulated")
    first = release("1")
    deploy(target, first)
    secrets = rig.emulator.arm.secrets[("emulated.vault.azure.net", f"{rig.name}-primary-key")]
    assert target.keys().primary == secrets[-1][1]
    secrets.append(("another", "a-key-that-somebody-set"))
    plan = target.plan(first)
    assert "keys=as in the key vault" in "".join(step.diff for step in plan.steps)
    assert "a-key-that-somebody-set" not in str(plan)
    deploy(target, first)
    assert target.endpoint().key == "a-key-that-somebody-set"
    assert version_at(target.endpoint()) == "1"


def test_the_admin_user_pulls_where_no_identity_is_named(rig: WebAppRig, release: MakeRelease) -> None:
    """Its password goes into the settings, and into no plan."""
    first = rig.in_acr(release("1"))
    deploy(rig.target, first)
    assert rig.emulator.arm.sites[rig.name].app_settings["DOCKER_REGISTRY_SERVER_PASSWORD"] == ADMIN
    assert ADMIN not in str(rig.target.plan(rig.in_acr(release("2"))))


def test_a_managed_identity_pulls(rig: WebAppRig, release: MakeRelease) -> None:
    """Site and slot have it; no password anywhere."""
    identity = "/subscriptions/s/identities/puller"
    deploy(rig.open(IMAGE_PULL_IDENTITY=identity), rig.in_acr(release("1")))
    site = rig.emulator.arm.sites[rig.name]
    assert site.config["acrUseManagedIdentityCreds"] is True and site.config["acrUserManagedIdentityID"]
    assert not [name for name in site.app_settings if name.startswith("DOCKER_")], ACR


def test_settings_of_others_stay(rig: WebAppRig, release: MakeRelease) -> None:
    """What somebody added to the slot by hand travels with the version, as App Service has it."""
    deploy(rig.target, release("1"))
    rig.emulator.arm.sites[rig.name].slots["staging"].app_settings["THEIRS"] = "kept"
    deploy(rig.target, release("2"))
    assert rig.emulator.arm.sites[rig.name].app_settings["THEIRS"] == "kept"


@pytest.mark.parametrize("word", ["off", "OFF"])
def test_a_server_without_keys_is_asked_without_one(rig: WebAppRig, release: MakeRelease, word: str) -> None:
    """The word is read from the version that serves, as its server reads it."""
    deploy(rig.open(SCORING_AUTH=word), release("1"))
    endpoint = rig.open().endpoint()
    assert (endpoint.key, version_at(endpoint)) == ("", "1")
