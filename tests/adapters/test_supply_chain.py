"""SBOM, vulnerability report and signature."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ml_service import package
from ml_service.errors import ConfigurationError, IntegrityError, UnavailableError
from ml_service.images import registry, signing, supply_chain
from ml_service.images.build import build, tag_of
from ml_service.ports import Release
from ml_service.targets.docker.target import DockerTarget
from tests.support.images import removing_images
from tests.support.releases import make_artifact
from tests.support.rigs.azure import shared_emulator
from tests.support.services import engine_or_skip, registry_or_skip
from tests.support.settings import recording_console, settings_for
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from docker import DockerClient

_AUDIT = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--requirement", action="append", type=pathlib.Path)
parser.add_argument("--output", type=pathlib.Path)
given = parser.parse_known_args()[0]
pins = [line.split("==") for lock in given.requirement for line in lock.read_text().splitlines()]
vulns = [{"id": "PYSEC-1", "fix_versions": []}]
report = {"dependencies": [{"name": name, "version": version, "vulns": vulns} for name, version in pins]}
given.output.write_text(json.dumps(report))
"""
"""A pip-audit whose database finds every package vulnerable."""

IMAGE = {"repository": "registry.example.com/toy", "digest": "sha256:" + "1" * 64}


@pytest.fixture
def client() -> Iterator[DockerClient]:
    client = engine_or_skip()
    yield client
    client.close()


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """The settings that name a new pair of keys."""
    return make_keys(tmp_path / "keys")


def make_keys(directory: Path) -> dict[str, str]:
    directory.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / "signing.pem", directory / "signing.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return {"IMAGE_SIGNING_KEY": str(private), "IMAGE_PUBLIC_KEY": str(public)}


def release_of(artifact: Path) -> Release:
    found = package.read_artifact(artifact)
    return Release(found.package, found.package_sha256, "toy", "1", "b", IMAGE["repository"], IMAGE["digest"])


def signed(tmp_path: Path, keys: dict[str, str]) -> tuple[Any, Path, Release]:
    """Settings, a signed artifact and its release."""
    settings, artifact = settings_for(tmp_path / "home", **keys), make_artifact(tmp_path / "made")
    release = release_of(artifact)
    assert signing.sign(settings, artifact, {**IMAGE, "package_sha256": release.package_sha256})
    return settings, artifact, release


def test_what_was_signed_is_accepted(tmp_path: Path, keys: dict[str, str]) -> None:
    """The same artifact, package and digest."""
    settings, _, release = signed(tmp_path, keys)
    signing.check(settings, release)


def test_the_payload_is_the_one_that_cosign_signs(tmp_path: Path, keys: dict[str, str]) -> None:
    """Its three critical parts, in the names of the specification."""
    _, artifact, release = signed(tmp_path, keys)
    raw = json.loads((artifact / "signature.json").read_bytes())
    payload = json.loads(base64.b64decode(raw["payload"]))
    assert payload["critical"] == {
        "identity": {"docker-reference": IMAGE["repository"]},
        "image": {"docker-manifest-digest": IMAGE["digest"]},
        "type": "cosign container image signature",
    }
    assert payload["optional"]["package_sha256"] == release.package_sha256


def test_openssl_accepts_the_signature(tmp_path: Path, keys: dict[str, str]) -> None:
    """And refuses it for another payload: who checks needs nothing of ours."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    _, artifact, _ = signed(tmp_path, keys)
    raw = json.loads((artifact / "signature.json").read_bytes())
    payload, signature = tmp_path / "payload.json", tmp_path / "payload.sig"
    payload.write_bytes(base64.b64decode(raw["payload"]))
    signature.write_bytes(base64.b64decode(raw["signature"]))
    command = ["openssl", "dgst", "-sha256", "-verify", keys["IMAGE_PUBLIC_KEY"], "-signature", str(signature)]
    checked = subprocess.run([*command, str(payload)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "Verified OK\n")
    payload.write_bytes(payload.read_bytes() + b" ")
    assert subprocess.run([*command, str(payload)], capture_output=True, check=False).returncode != 0


def test_nothing_is_asked_for_without_a_public_key(tmp_path: Path) -> None:
    """Signatures are a choice."""
    signing.check(settings_for(tmp_path / "home"), release_of(make_artifact(tmp_path)))


def test_an_unsigned_artifact_is_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    """Exit code 8, saying which file is missing."""
    with pytest.raises(IntegrityError, match="signature.json: is missing"):
        signing.check(settings_for(tmp_path / "home", **keys), release_of(make_artifact(tmp_path)))


def test_a_tag_that_moved_after_signing_is_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    """image.json names another digest than the one that was signed."""
    settings, _, release = signed(tmp_path, keys)
    with pytest.raises(IntegrityError, match="digest changed after signing"):
        signing.check(settings, replace(release, image_digest="sha256:" + "2" * 64))


def test_the_key_may_be_a_secret_of_a_key_vault(
    tmp_path: Path, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read through Azure's SDK from the emulated vault; a secret that is not there is told with the role to give."""
    pytest.importorskip("azure.keyvault.secrets")
    emulator = shared_emulator()
    for name, value in emulator.redirection().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    pem = Path(keys["IMAGE_SIGNING_KEY"]).read_text()
    emulator.arm.secrets["emulated.vault.azure.net", "signing"] = [("1", pem)]
    named = {**emulator.settings(), **keys, "IMAGE_SIGNING_KEY": "azurekeyvault://emulated/signing"}
    settings, _, release = signed(tmp_path, named)
    signing.check(settings, release)
    absent = settings_for(tmp_path / "home", **{**named, "IMAGE_SIGNING_KEY": "azurekeyvault://emulated/no-such"})
    with pytest.raises(UnavailableError, match="(?s)refuses the secret.*Key Vault Secrets User"):
        signing.sign(absent, tmp_path / "made" / "artifact", {**IMAGE, "package_sha256": release.package_sha256})


def test_another_key_is_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    """Signed, but not by the key that is trusted here."""
    _, _, release = signed(tmp_path, keys)
    other = settings_for(tmp_path / "home", **make_keys(tmp_path / "other"))
    with pytest.raises(IntegrityError, match="was not made with the key"):
        signing.check(other, release)


@pytest.mark.parametrize("part", ["payload", "signature"])
def test_a_changed_signature_file_is_refused(tmp_path: Path, keys: dict[str, str], part: str) -> None:
    """One changed byte in either half."""
    settings, artifact, release = signed(tmp_path, keys)
    raw = json.loads((artifact / "signature.json").read_bytes())
    content = bytearray(base64.b64decode(raw[part]))
    content[10] ^= 1
    raw[part] = base64.b64encode(content).decode()
    (artifact / "signature.json").write_text(json.dumps(raw))
    with pytest.raises(IntegrityError):
        signing.check(settings, release)


@pytest.mark.parametrize("text", ["", "not json", "{}", '{"payload": "!", "signature": "!"}', "[]"])
def test_what_is_no_signature_is_refused(tmp_path: Path, keys: dict[str, str], text: str) -> None:
    """Whatever the file holds, it ends in exit code 8."""
    settings, artifact, release = signed(tmp_path, keys)
    (artifact / "signature.json").write_text(text)
    with pytest.raises(IntegrityError):
        signing.check(settings, release)


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    """Exit code 4, with the command that makes one; the file's content is not repeated."""
    key = tmp_path / "key.pem"
    key.write_text(content)
    settings = settings_for(tmp_path / "home", IMAGE_SIGNING_KEY=str(key))
    with pytest.raises(ConfigurationError, match="openssl ecparam"):
        signing.sign(settings, make_artifact(tmp_path), {**IMAGE, "package_sha256": "0"})


def test_a_deployment_of_what_is_unsigned_is_refused_before_anything_happens(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    """The target looks at the signature first: no engine is needed to refuse."""
    settings = settings_for(tmp_path / "home", DOCKER_HOST=f"unix://{tmp_path}/nothing.sock", **keys)
    with pytest.raises(IntegrityError):
        DockerTarget(settings).plan(release_of(make_artifact(tmp_path)))


@pytest.mark.docker
def test_a_push_leaves_sbom_report_and_signature(client: DockerClient, tmp_path: Path, keys: dict[str, str]) -> None:
    """Beside image.json; the SBOM lists what is in the image, and the signature is accepted at deployment."""
    pytest.importorskip("cyclonedx")
    lock = (ROOT / "requirements" / "scoring.txt").read_text(encoding="utf-8")
    settings = settings_for(tmp_path / "home", IMAGE_REGISTRY=registry_or_skip(), **keys)
    artifact = make_artifact(tmp_path, salt=uuid.uuid4().hex, lock=lock)
    with removing_images(client, registry.repository(settings)):
        build(settings, recording_console()[0], artifact=artifact, push=True)
    record = json.loads((artifact / "image.json").read_bytes())
    found = replace(release_of(artifact), image=record["repository"], image_digest=record["digest"])
    signing.check(settings, found)
    bom = json.loads((artifact / "sbom.cdx.json").read_bytes())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    purls = {component["purl"].split("?")[0].partition("@")[0] for component in bom["components"]}
    assert {"pkg:pypi/onnxruntime", "pkg:pypi/numpy", "pkg:deb/debian/libc6"} <= purls
    report = json.loads((artifact / "vulnerabilities.json").read_bytes())
    assert report["checked"] == (report["reason"] == "")


@pytest.mark.docker
def test_a_tag_that_moves_in_the_registry_moves_no_deployment(
    client: DockerClient, tmp_path: Path, keys: dict[str, str]
) -> None:
    """Somebody pushes another image under the tag: what was signed is still deployed, what the tag names now is not."""
    settings = settings_for(tmp_path / "home", IMAGE_REGISTRY=registry_or_skip(), **keys)
    repository = registry.repository(settings)
    first, second = (make_artifact(tmp_path / name, salt=uuid.uuid4().hex) for name in ("first", "second"))
    with removing_images(client, repository):
        for artifact in (first, second):
            build(settings, recording_console()[0], artifact=artifact, push=True)
        record, other = (json.loads((artifact / "image.json").read_bytes()) for artifact in (first, second))
        tag = tag_of(package.read_artifact(first))
        client.images.get(other["image_id"]).tag(repository, tag)
        client.images.push(repository, tag=tag)
        moved = client.images.get_registry_data(f"{repository}:{tag}").id
        assert (moved, record["digest"]) == (other["digest"], registry_digest(client, repository, record["digest"]))
        release = replace(release_of(first), image=repository, image_digest=record["digest"])
        signing.check(settings, release)
        with pytest.raises(IntegrityError, match="digest changed after signing"):
            DockerTarget(settings).plan(replace(release, image_digest=moved))


def registry_digest(client: DockerClient, repository: str, digest: str) -> str:
    """The digest of what the registry gives for ``digest``."""
    return str(client.images.get_registry_data(f"{repository}@{digest}").id)


def test_the_lock_of_a_script_model_is_asked_about_too(tmp_path: Path) -> None:
    """The image installs both locks, so the report is about both."""
    pytest.importorskip("pip_audit")
    directory = make_artifact(tmp_path, lock="ours==1.0\n") / "package"
    (directory / "model" / "requirements.txt").write_text("theirs==2.0\n")
    (tmp_path / "pip_audit.py").write_text(_AUDIT)
    locks = supply_chain.locks_of(directory)
    said = supply_chain.write_vulnerabilities(locks, tmp_path, {"PYTHONPATH": str(tmp_path)})
    found = json.loads((tmp_path / "vulnerabilities.json").read_bytes())["found"]
    assert [(one["name"], one["version"]) for one in found] == [("ours", "1.0"), ("theirs", "2.0")]
    assert said == "vulnerabilities: 2 found"


def test_a_database_that_knows_nothing_is_no_all_clear() -> None:
    """pip-audit alone would say that no vulnerability is known."""
    report = supply_chain.summarize([{"name": "numpy", "skip_reason": "not found"}])
    assert (report["checked"], report["not_checked"]) == (False, ["numpy"])


def test_a_vulnerability_is_reported_with_its_fix() -> None:
    """Package, version, id, and the versions that are free of it."""
    vulnerable = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    report = supply_chain.summarize([vulnerable, {"name": "b", "version": "1", "vulns": []}])
    assert report["found"] == [{"name": "a", "version": "1", "id": "PYSEC-1", "fixed_in": ["2"]}]
    assert report["checked"] is True
