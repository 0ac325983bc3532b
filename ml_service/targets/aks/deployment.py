"""The version that an object holds, as its annotations record it, and the Deployment that a version becomes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ml_service.common.errors import not_pushed
from ml_service.config import Settings
from ml_service.config.scoring import option, server_options
from ml_service.ports import Release
from ml_service.targets.aks.client import Object
from ml_service.targets.aks.manifests import load

VERSION = "mlops/version"
PREVIOUS = "mlops/previous"
KEYS_PATH = "/var/run/scoring-keys/keys.json"

STABLE, CANDIDATE, CANARY = "stable", "candidate", "canary"

_LONGEST_DRAIN = 3600.0
"""Seconds: the most that the scoring server takes as SCORING_DRAIN_TIMEOUT."""


@dataclass(frozen=True)
class Version:
    """A version as it runs. ``image`` is named by digest; ``since`` is UTC, ISO 8601, empty until it serves."""

    image: str
    package_sha256: str
    model_name: str
    model_version: str
    build_id: str
    environment: Mapping[str, str]
    cpu: float
    memory_mb: int
    since: str = ""

    @classmethod
    def of(cls, release: Release, settings: Settings) -> Version:
        """Return the version that ``release`` would be under ``settings``.

        Raises:
            UsageError: the release's image was never pushed, so that a cluster cannot have it.
        """
        if not release.image or not release.image_digest:
            raise not_pushed("a cluster")
        return cls(
            image=f"{release.image}@{release.image_digest}",
            package_sha256=release.package_sha256,
            model_name=release.model_name,
            model_version=release.model_version,
            build_id=release.build_id,
            environment=_environment(settings),
            cpu=settings.aks.cpu,
            memory_mb=round(settings.aks.memory_gb * 1024),
        )

    @property
    def digest(self) -> str:
        """The image's digest."""
        return self.image.partition("@")[2]

    @property
    def model(self) -> dict[str, str]:
        """Name and version, as a status has them."""
        return {"name": self.model_name, "version": self.model_version}

    def same_as(self, other: Version | None) -> bool:
        """Return whether both have the same image and package, and run with the same options and resources."""
        return other is not None and replace(self, since="", build_id="") == replace(other, since="", build_id="")

    def serving_now(self) -> Version:
        """Return the same version with the present time in ``since``."""
        return replace(self, since=datetime.now(UTC).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return f"{self.model_name} version {self.model_version}"


def read_version(deployment: Object | None, annotation: str = VERSION) -> Version | None:
    """Return the version that a Deployment's annotation records, or None."""
    if deployment is None:
        return None
    raw = deployment["metadata"].get("annotations", {}).get(annotation, "")
    return Version(**json.loads(raw)) if raw else None


def deployment(settings: Settings, version: Version, track: str, previous: Version | None = None) -> Object:
    """Return the Deployment of ``version`` on a track: stable, candidate (no Service selects it) or canary."""
    body = load(settings.root / "scoring" / "k8s" / "deployment.yaml", _values(settings, version, track))
    body["metadata"]["annotations"] = {
        VERSION: json.dumps(asdict(version), sort_keys=True),
        **({PREVIOUS: json.dumps(asdict(previous), sort_keys=True)} if previous else {}),
    }
    return body


def track_name(settings: Settings, track: str) -> str:
    """Return the name of a track's Deployment; the stable one has the plain name."""
    return settings.aks.name if track == STABLE else f"{settings.aks.name}-{track}"


def supporting(settings: Settings, folder: Path, names: Sequence[str], values: Mapping[str, Any]) -> list[Object]:
    """Return the manifests of ``folder`` that ``names`` lists, filled in with the settings and ``values``."""
    aks = settings.aks
    filled = {
        "name": aks.name,
        "service_type": aks.service_type or ("ClusterIP" if aks.host else "LoadBalancer"),
        "target_utilization": aks.target_utilization,
        "host": aks.host,
        "ingress_class": aks.ingress_class,
        "tls_secret": aks.tls_secret or f"{aks.name}-tls",
        **values,
    }
    return [load(folder / f"{name}.yaml", filled) for name in names]


def _values(settings: Settings, version: Version, track: str) -> dict[str, Any]:
    aks = settings.aks
    return {
        "deployment": track_name(settings, track),
        "name": aks.name,
        "track": track,
        "serves": "no" if track == CANDIDATE else "yes",
        "package_sha256": version.package_sha256,
        "model": f"{version.model_name}:{version.model_version}",
        "build_id": version.build_id,
        "image": version.image,
        "environment": [{"name": name, "value": value} for name, value in sorted(version.environment.items())],
        "cpu": f"{round(version.cpu * 1000)}m",
        "memory": f"{version.memory_mb}Mi",
        "startup_seconds": round(aks.startup_timeout),
        "drain_seconds": str(aks.drain_seconds),
        "termination_seconds": aks.drain_seconds + math.ceil(_drain(version.environment)) + 7,
    }


def _environment(settings: Settings) -> dict[str, str]:
    """Return how the scoring server is to run. Never a key: those are in a file of their own."""
    options, aks = server_options(settings.env, settings.scoring), settings.aks
    if aks.scoring_timeout_ms:
        options["SCORING_TIMEOUT"] = f"{aks.scoring_timeout_ms / 1000:g}"
    if aks.max_concurrent:
        options["SCORING_MAX_QUEUE"] = str(aks.max_concurrent)
    return {**options, "SCORING_DRAIN_TIMEOUT": f"{_drain(options):g}", "SCORING_KEYS_FILE": KEYS_PATH}


def _drain(options: Mapping[str, str]) -> float:
    """Return the seconds that a pod has for its last requests: a second more than the slowest may take, unless set."""
    drain, timeout = float(option(options, "drain_timeout")), float(option(options, "timeout"))
    return drain if "SCORING_DRAIN_TIMEOUT" in options else min(max(drain, timeout) + 1, _LONGEST_DRAIN)
