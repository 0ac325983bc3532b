"""What tests of images and containers share: artifacts of the stand-in server, the engine or a reason to skip."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import requests

from ml_service import package
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.images.build import context_of
from ml_service.ports import ModelVersion, Release, Target
from ml_service.targets.aks import credentials
from ml_service.targets.aks.target import AksTarget
from ml_service.targets.docker.target import DockerTarget
from tests.support.fake_target import EXAMPLES, STANDIN
from tests.support.ports import free_port

if TYPE_CHECKING:
    from docker import DockerClient

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = "127.0.0.1:5000"


def make_artifact(directory: Path, version: str = "1", *, fault: str = "", salt: str = "", lock: str = "") -> Path:
    """An artifact whose package holds the stand-in server and this repository's Dockerfile; returns its directory.

    ``salt`` makes the package another one; with ``lock`` empty the image installs nothing.
    """
    source = directory / "source"
    scoring = source / "scoring"
    shutil.copytree(STANDIN, scoring)
    shutil.copy(ROOT / "scoring" / "Dockerfile", scoring)
    model = source / "candidate" / "model"
    model.mkdir(parents=True)
    (model / "model.onnx").write_bytes(f"no model {salt}".encode())
    (model / "signature.json").write_text('{"inputs": [], "outputs": []}')
    package.write_json(model / "examples.json", EXAMPLES)
    (model / "fault.txt").write_text(fault)
    (source / "lock.txt").write_text(lock)
    tags = {"runtime": "onnx", "build_id": f"build-{version}", "git_commit": "c0ffee"}
    registered = ModelVersion(f"toy:{version}", "toy", version, "2026-01-01T00:00:00+00:00", tags, {}, {})
    artifact = directory / "artifact"
    artifact.mkdir()
    package.build(registered, source / "candidate", scoring, source / "lock.txt", artifact / "package")
    described = {**package.describe(registered, artifact / "package"), "packaging_commit": "decade"}
    package.write_json(artifact / package.MODEL_JSON, described)
    return artifact


def settings_for(home: Path, **variables: str) -> Settings:
    """Settings with a home and an image name of the test's own."""
    env = {"PATH": os.environ["PATH"], "MLOPS_HOME": str(home), "IMAGE_NAME": f"test-{uuid.uuid4().hex[:12]}"}
    for name in ("DOCKER_HOST", "KUBECONFIG"):
        if name in os.environ:
            env[name] = os.environ[name]
    return Settings.from_env({**env, **variables}, ROOT)


def printing() -> tuple[Console, io.StringIO]:
    """A console, and what it prints."""
    stream = io.StringIO()
    return Console(stream), stream


def _without(part: str, why: str) -> NoReturn:
    """Skip the test, saying why; fail it where TESTS_NEED names the part, since there it was brought up."""
    if part in os.environ.get("TESTS_NEED", "").split(","):
        pytest.fail(f"TESTS_NEED names {part}, but {why}")
    pytest.skip(why)


def engine_or_skip() -> DockerClient:
    """The engine on its usual socket; without one the test is skipped."""
    docker = pytest.importorskip("docker")
    try:
        client: DockerClient = docker.from_env(timeout=300)
        client.ping()
    except docker.errors.DockerException as error:
        _without("docker", f"no container engine answers: {error}")
    return client


def registry_or_skip() -> str:
    """The registry beside the engine; without one the test is skipped."""
    try:
        requests.get(f"http://{REGISTRY}/v2/", timeout=5).raise_for_status()
    except requests.RequestException as error:
        _without("docker", f"no image registry answers at {REGISTRY}: {error}")
    return REGISTRY


def wait_until(true: Callable[[], bool], what: str = "it") -> None:
    """Until it is true, within a minute; ``what`` says what was waited for."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, f"{what} never came true"
        time.sleep(0.1)


@contextmanager
def removing_images(client: DockerClient, repository: str) -> Iterator[None]:
    """Remove what the block tagged in ``repository``."""
    try:
        yield
    finally:
        for image in client.images.list(name=repository):
            remove_image(client, image)


def remove_image(client: DockerClient, image: Any) -> None:
    """Remove an image by every name it has; one in use stays."""
    import docker

    try:
        client.images.remove(image.id, force=True)
    except docker.errors.APIError:
        pass


class DockerRig:
    """The docker target under a name and on a port of its own, and images of the stand-in server."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.client = engine_or_skip()
        self.home = directory / "home"
        self.name = f"test-{uuid.uuid4().hex[:10]}"
        self.variables = {"DOCKER_NAME": self.name, "DOCKER_PORT": str(free_port()), **variables}
        self.target: Target = self.again()

    def again(self, **variables: str) -> DockerTarget:
        """Another view of the same deployment, perhaps with other settings."""
        return DockerTarget(settings_for(self.home, **{**self.variables, **variables}))

    def prepare(self, release: Release) -> Release:
        """Have an image of the release on the engine."""
        provide_image(self.client, release.package, release.package_sha256)
        return release

    def containers(self) -> list[Any]:
        """The containers of the deployment on the engine, the proxy included."""
        return list(self.client.containers.list(all=True, filters={"label": f"mlops.target={self.name}"}))

    def close(self) -> None:
        """Remove everything."""
        self.again().undeploy(print)
        self.client.close()


def provide_image(client: DockerClient, directory: Path, package_sha256: str) -> str:
    """An image of a package of the stand-in; the same package is built once. Returns its name."""
    name = f"test-standin:{package_sha256[:16]}"
    if not client.images.list(name=name):
        context = context_of(directory)
        if not (directory / "scoring" / "Dockerfile").exists():
            with tarfile.open(fileobj=context, mode="a") as archive:
                archive.add(ROOT / "scoring" / "Dockerfile", "scoring/Dockerfile")
            context.seek(0)
        labels = {"mlops.package-sha256": package_sha256}
        client.images.build(
            fileobj=context, custom_context=True, dockerfile="scoring/Dockerfile", tag=name, labels=labels, rm=True
        )
    return name


def push_image(client: DockerClient, release: Release, repository: str) -> Release:
    """Have an image of the release in the registry; returns the release with its name and digest."""
    image = client.images.get(provide_image(client, release.package, release.package_sha256))
    tag = release.package_sha256[:16]
    image.tag(repository, tag)
    digest = ""
    for event in client.api.push(repository, tag=tag, stream=True, decode=True):
        assert "error" not in event, event
        digest = event.get("aux", {}).get("Digest", digest)
    return replace(release, image=repository, image_digest=digest)


def cluster_or_skip() -> str:
    """The kubeconfig of the cluster that KUBECONFIG names; without one the test is skipped."""
    pytest.importorskip("kubernetes")
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        _without("kubernetes", "KUBECONFIG names no cluster")
    finding = AksTarget(settings_for(Path("/nonexistent"))).diagnose()[0]
    if not finding.ok:
        _without("kubernetes", f"the cluster does not answer: {finding.detail}")
    return kubeconfig


class AksRig:
    """The aks target under a name of its own, and pushed images of the stand-in server."""

    def __init__(self, directory: Path, **variables: str) -> None:
        cluster_or_skip()
        self.client = engine_or_skip()
        self._registry = registry_or_skip()
        self.namespace = variables.get("AKS_NAMESPACE", "default")
        self.home = directory / "home"
        self.name = f"test-{uuid.uuid4().hex[:10]}"
        defaults = {
            "AKS_DEPLOYMENT_NAME": self.name,
            "AKS_SERVICE_TYPE": "NodePort",
            "AKS_CPU": "0.15",
            "AKS_MEMORY_GB": "0.25",
            "AKS_DRAIN_SECONDS": "2",
            "AKS_STARTUP_TIMEOUT": "60",
        }
        self.variables = {**defaults, **variables}
        self.target: Target = self.again()

    def again(self, **variables: str) -> AksTarget:
        """Another view of the same deployment, perhaps with other settings."""
        return AksTarget(settings_for(self.home, **{**self.variables, **variables}))

    def prepare(self, release: Release) -> Release:
        """Have an image of the release in the registry."""
        return push_image(self.client, release, f"{self._registry}/test-standin")

    @property
    def api(self) -> Any:
        """A client of the cluster with all rights."""
        from kubernetes import config

        return config.new_client_from_config(os.environ["KUBECONFIG"])

    def object(self, api_version: str, kind: str) -> Any:
        """The object of that kind with the deployment's name."""
        return credentials.connect(settings_for(self.home, **self.variables)).get(api_version, kind, self.name)

    def pods(self) -> list[Any]:
        """The pods of the deployment that do not end."""
        from kubernetes import client

        found = client.CoreV1Api(self.api).list_namespaced_pod(
            self.namespace, label_selector=f"app.kubernetes.io/name={self.name}"
        )
        return [pod for pod in found.items if pod.metadata.deletion_timestamp is None]

    def close(self) -> None:
        """Remove everything, without waiting for pods to end by themselves."""
        from kubernetes import client

        apps, core = client.AppsV1Api(self.api), client.CoreV1Api(self.api)
        selector = f"app.kubernetes.io/name={self.name}"
        apps.delete_collection_namespaced_deployment(self.namespace, label_selector=selector)
        core.delete_collection_namespaced_pod(self.namespace, label_selector=selector, grace_period_seconds=0)
        self.again().undeploy(print)
        self.client.close()


def make_real_release(directory: Path, version: str, script: str = "") -> Release:
    """A release of the real scoring server: Y = AGE + 2 BMI + 3 BP, or what ``script`` makes of it."""
    from tests.support.packages import LINEAR, linear_graph

    model = directory / "candidate" / "model"
    model.mkdir(parents=True)
    if script:
        (model / "score.py").write_text(script)
        (model / "requirements.txt").write_text("")
    else:
        (model / "model.onnx").write_bytes(linear_graph())
    examples = [{"request": {"data": [[1.0, 1.0, 1.0]]}, "response": {"result": [6.0]}}]
    package.write_json(model / "signature.json", LINEAR)
    package.write_json(model / "examples.json", {"tolerance": 1e-6, "examples": examples})
    tags = {"runtime": "script" if script else "onnx"}
    registered = ModelVersion(f"toy:{version}", "toy", version, "2026-01-01T00:00:00+00:00", tags, {}, {})
    lock = ROOT / "requirements" / "scoring.txt"
    sha256 = package.build(registered, directory / "candidate", ROOT / "scoring", lock, directory / "package")
    return Release(directory / "package", sha256, "toy", version, f"build-{version}")
