"""What is in the image: an SBOM of its packages (CycloneDX), and what is known about their vulnerabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_service.errors import INSTALL
from ml_service.package import write_json

if TYPE_CHECKING:
    from docker import DockerClient

SBOM = "sbom.cdx.json"
VULNERABILITIES = "vulnerabilities.json"

_LIST = """
import importlib.metadata as m, json, re
python = sorted({(d.metadata['Name'], d.version) for d in m.distributions(path=['/opt/packages'])})
try:
    status = open('/var/lib/dpkg/status', encoding='utf-8').read()
except OSError:
    status = ''
wanted = re.compile(r'^(Package|Version|Architecture|Status): (.*)$', re.M)
fields = [dict(wanted.findall(part)) for part in status.split('\\n\\n')]
deb = sorted((f['Package'], f['Version'], f['Architecture']) for f in fields if 'installed' in f.get('Status', ''))
print(json.dumps({'python': python, 'deb': deb}))
"""
"""Runs in the image itself: what is really there, not what a lock says."""


def write_sbom(client: DockerClient, image: Mapping[str, Any], artifact: Path) -> str:
    """Write ``artifact/sbom.cdx.json``; returns a line about it."""
    if find_spec("cyclonedx") is None:
        return f"no SBOM: cyclonedx-bom is not installed; {INSTALL}"
    said = client.containers.run(
        image["image_id"], ["python", "-c", _LIST], remove=True, network_mode="none", read_only=True
    )
    found = json.loads(said)
    (artifact / SBOM).write_text(_sbom(image, found), encoding="utf-8")
    return f"{SBOM}: {len(found['python'])} Python packages, {len(found['deb'])} of the base"


def _sbom(image: Mapping[str, Any], found: Mapping[str, Iterable[list[str]]]) -> str:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    def library(purl: PackageURL) -> Component:
        return Component(name=purl.name, version=purl.version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl))

    digest = image["digest"] or image["image_id"]
    main = Component(name=image["repository"], version=digest, type=ComponentType.CONTAINER, bom_ref=digest)
    parts = [library(PackageURL("pypi", None, name.lower(), version)) for name, version in found["python"]]
    parts += [
        library(PackageURL("deb", "debian", name, version, {"arch": architecture}))
        for name, version, architecture in found["deb"]
    ]
    bom = Bom(components=parts)
    bom.metadata.component = main
    bom.register_dependency(main, parts)
    return str(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2))


def locks_of(package: Path) -> list[Path]:
    """What the Dockerfile installs: the scoring code's lock and, with the runtime ``script``, the model's own."""
    locks = (package / "scoring" / "requirements.txt", package / "model" / "requirements.txt")
    return [lock for lock in locks if lock.is_file()]


def write_vulnerabilities(locks: Sequence[Path], artifact: Path, environment: Mapping[str, str]) -> str:
    """Ask pip-audit about the packages of ``locks``; write ``artifact/vulnerabilities.json``; returns a line about it.

    A package that the database does not answer for is listed as not checked: silence is no all-clear.
    """
    report = _audited(locks, environment)
    write_json(artifact / VULNERABILITIES, report)
    if not report["checked"]:
        return f"vulnerabilities: not checked: {report['reason']}"
    missing = f", {len(report['not_checked'])} packages not checked" if report["not_checked"] else ""
    return f"vulnerabilities: {len(report['found'])} found{missing}"


def _audited(locks: Sequence[Path], environment: Mapping[str, str]) -> dict[str, Any]:
    if find_spec("pip_audit") is None:
        return _not_checked(f"pip-audit is not installed; {INSTALL}")
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "audit.json"
        command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip"]
        command += [part for lock in locks for part in ("--requirement", str(lock))]
        command += ["--format", "json", "--output", str(output), "--progress-spinner", "off", "--timeout", "15"]
        try:
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180, check=False
            )
            dependencies = json.loads(output.read_bytes())["dependencies"]
        except subprocess.TimeoutExpired:
            return _not_checked("its database did not answer in time")
        except (OSError, ValueError, KeyError):
            last = done.stderr.strip().splitlines()
            return _not_checked(last[-1][:300] if last else "pip-audit gave no report")
    return summarised(dependencies)


def summarised(dependencies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The report: what was found, what was checked, and what the database did not know."""
    all_ = list(dependencies)
    skipped = sorted(one["name"] for one in all_ if "skip_reason" in one)
    if all_ and len(skipped) == len(all_):
        why = "the database could not be reached, or knows none of the packages"
        return {**_not_checked(why), "not_checked": skipped}
    found = [
        {"name": one["name"], "version": one["version"], "id": vuln["id"], "fixed_in": vuln.get("fix_versions", [])}
        for one in all_
        for vuln in one.get("vulns", [])
    ]
    return {"checked": True, "reason": "", "found": found, "not_checked": skipped}


def _not_checked(reason: str) -> dict[str, Any]:
    return {"checked": False, "reason": reason, "found": [], "not_checked": []}
