"""Describe the image's contents: an SBOM of its packages (CycloneDX), and their known vulnerabilities."""

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
"""Run in the image itself, so that the SBOM lists what is installed and not what a lock asks for."""


def write_sbom(client: DockerClient, image: Mapping[str, Any], artifact: Path) -> str:
    """Write ``artifact/sbom.cdx.json``, and return a line about it.

    Args:
        image: the contents of image.json.
    """
    if find_spec("cyclonedx") is None:
        return f"no SBOM: cyclonedx-bom is not installed; {INSTALL}"
    output = client.containers.run(
        image["image_id"], ["python", "-c", _LIST], remove=True, network_mode="none", read_only=True
    )
    packages = json.loads(output)
    (artifact / SBOM).write_text(_sbom(image, packages), encoding="utf-8")
    return f"{SBOM}: {len(packages['python'])} Python packages, {len(packages['deb'])} of the base"


def _sbom(image: Mapping[str, Any], packages: Mapping[str, Iterable[list[str]]]) -> str:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    def library(purl: PackageURL) -> Component:
        return Component(name=purl.name, version=purl.version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl))

    digest = image["digest"] or image["image_id"]
    main = Component(name=image["repository"], version=digest, type=ComponentType.CONTAINER, bom_ref=digest)
    parts = [library(PackageURL("pypi", None, name.lower(), version)) for name, version in packages["python"]]
    parts += [
        library(PackageURL("deb", "debian", name, version, {"arch": architecture}))
        for name, version, architecture in packages["deb"]
    ]
    bom = Bom(components=parts)
    bom.metadata.component = main
    bom.register_dependency(main, parts)
    return str(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2))


def locks_of(package: Path) -> list[Path]:
    """Return the locks that the Dockerfile installs: the scoring code's and, for the runtime script, the model's."""
    locks = (package / "scoring" / "requirements.txt", package / "model" / "requirements.txt")
    return [lock for lock in locks if lock.is_file()]


def write_vulnerabilities(locks: Sequence[Path], artifact: Path, environment: Mapping[str, str]) -> str:
    """Check ``locks`` with pip-audit, write ``artifact/vulnerabilities.json``, and return a line about it.

    A package that the database does not know is listed as not checked, never as free of vulnerabilities.
    """
    report = _audit(locks, environment)
    write_json(artifact / VULNERABILITIES, report)
    if not report["checked"]:
        return f"vulnerabilities: not checked: {report['reason']}"
    missing = f", {len(report['not_checked'])} packages not checked" if report["not_checked"] else ""
    return f"vulnerabilities: {len(report['found'])} found{missing}"


def _audit(locks: Sequence[Path], environment: Mapping[str, str]) -> dict[str, Any]:
    if find_spec("pip_audit") is None:
        return _not_checked(f"pip-audit is not installed; {INSTALL}")
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "audit.json"
        command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip"]
        command += [part for lock in locks for part in ("--requirement", str(lock))]
        command += ["--format", "json", "--output", str(output), "--progress-spinner", "off", "--timeout", "15"]
        try:
            process = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180, check=False
            )
            dependencies = json.loads(output.read_bytes())["dependencies"]
        except subprocess.TimeoutExpired:
            return _not_checked("its database did not answer in time")
        except (OSError, ValueError, KeyError):
            last = process.stderr.strip().splitlines()
            return _not_checked(last[-1][:300] if last else "pip-audit gave no report")
    return summarize(dependencies)


def summarize(dependencies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the report of pip-audit's results: vulnerabilities, and the packages that the database does not know."""
    packages = list(dependencies)
    skipped = sorted(one["name"] for one in packages if "skip_reason" in one)
    if packages and len(skipped) == len(packages):
        reason = "the database could not be reached, or knows none of the packages"
        return {**_not_checked(reason), "not_checked": skipped}
    vulnerabilities = [
        {"name": one["name"], "version": one["version"], "id": vuln["id"], "fixed_in": vuln.get("fix_versions", [])}
        for one in packages
        for vuln in one.get("vulns", [])
    ]
    return {"checked": True, "reason": "", "found": vulnerabilities, "not_checked": skipped}


def _not_checked(reason: str) -> dict[str, Any]:
    return {"checked": False, "reason": reason, "found": [], "not_checked": []}
