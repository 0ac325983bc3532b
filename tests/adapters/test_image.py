"""The scoring image, on a real engine and a real registry."""

from __future__ import annotations

import functools
import json
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import requests

from ml_service import package
from ml_service.config import Settings
from ml_service.errors import ConfigurationError, IntegrityError, UnavailableError, UsageError
from ml_service.images import registry
from ml_service.images.build import build, context_of, follow_build
from ml_service.ports import Release
from ml_service.targets.docker.containers import Deployment
from tests.support.images import remove_image, removing_images
from tests.support.ports import free_port
from tests.support.releases import make_artifact
from tests.support.services import engine_or_skip, registry_or_skip
from tests.support.settings import recording_console, settings_for
from tests.support.sources import ROOT
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from docker import DockerClient


@pytest.fixture
def client() -> Iterator[DockerClient]:
    client = engine_or_skip()
    yield client
    client.close()


@pytest.fixture
def salt() -> str:
    """Makes a package that no image on this engine carries yet."""
    return uuid.uuid4().hex


def built(settings: Settings, artifact: Path, *, push: bool = False) -> dict[str, Any]:
    """Build, and read image.json."""
    build(settings, recording_console()[0], artifact=artifact, push=push)
    record: dict[str, Any] = json.loads((artifact / "image.json").read_bytes())
    return record


def files_of(client: DockerClient, image_id: str | None) -> dict[str, tuple[int, int, str]]:
    """Owner, mode and SHA-256 of each file that the image adds below /app and /opt/packages."""
    code = (
        "import hashlib, json, os; print(json.dumps({p: (s.st_uid, s.st_mode,"
        " '' if os.path.isdir(p) else hashlib.sha256(open(p, 'rb').read()).hexdigest())"
        " for root in ('/app', '/opt/packages') for d, ds, fs in os.walk(root) for n in ds + fs"
        " for p in [os.path.join(d, n)] for s in [os.stat(p)]}))"
    )
    assert image_id is not None
    found: dict[str, Any] = json.loads(client.containers.run(image_id, ["python", "-c", code], remove=True))
    return {name: tuple(values) for name, values in found.items()}


@pytest.mark.docker
def test_an_image_is_built_from_the_package(client: DockerClient, tmp_path: Path, salt: str) -> None:
    """It runs as a user without rights, says what it is and from which commits, and holds the package byte for byte."""
    artifact = make_artifact(tmp_path, salt=salt)
    settings = settings_for(tmp_path / "home")
    with removing_images(client, settings.image_name):
        record = built(settings, artifact)
        image = client.images.get(record["image_id"])
        config = image.attrs["Config"]
        found = package.read_artifact(artifact)
        assert record["package_sha256"] == found.package_sha256
        assert (record["repository"], record["digest"]) == (settings.image_name, None)
        assert image.labels == {
            "org.opencontainers.image.title": "toy",
            "org.opencontainers.image.version": "1",
            "org.opencontainers.image.revision": "decade",
            "mlops.training-commit": "c0ffee",
            "mlops.build-id": "build-1",
            "mlops.package-sha256": found.package_sha256,
        }
        assert config["User"] == "10001:10001"
        assert "Healthcheck" in config
        code = "import hashlib; print(hashlib.sha256(open('/app/package/manifest.json', 'rb').read()).hexdigest())"
        said = client.containers.run(record["image_id"], ["python", "-c", code], remove=True, read_only=True)
        assert said.decode().strip() == found.package_sha256


@pytest.mark.docker
def test_the_same_artifact_gives_the_same_files(
    client: DockerClient, tmp_path: Path, salt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built a second time without the engine's cache, each file has the same owner, mode and content."""
    from docker import APIClient

    artifact = make_artifact(tmp_path, salt=salt, lock=_SMALL_LOCK)
    settings = settings_for(tmp_path / "home")
    with removing_images(client, settings.image_name):
        first = built(settings, artifact)
        files = files_of(client, first["image_id"])
        remove_image(client, client.images.get(first["image_id"]))
        monkeypatch.setattr(APIClient, "build", functools.partialmethod(APIClient.build, nocache=True))
        second = built(settings, artifact)
        assert second["image_id"] != first["image_id"]
        assert files_of(client, second["image_id"]) == files
        assert "/opt/packages/packaging/__init__.py" in files


@pytest.mark.docker
def test_an_image_of_the_same_package_is_used_again(client: DockerClient, tmp_path: Path, salt: str) -> None:
    """A second build finds the first one's image, also when it is asked for under another name."""
    artifact = make_artifact(tmp_path, salt=salt)
    settings, other = settings_for(tmp_path / "home"), settings_for(tmp_path / "home")
    with removing_images(client, settings.image_name), removing_images(client, other.image_name):
        first, second = built(settings, artifact), built(other, artifact)
        assert second["image_id"] == first["image_id"]
        assert second["repository"] == other.image_name


@pytest.mark.docker
def test_a_pushed_image_is_known_by_digest_and_found_in_the_registry(
    client: DockerClient, tmp_path: Path, salt: str
) -> None:
    """After a push image.json has the digest; an engine without the image pulls it instead of building."""
    settings = settings_for(tmp_path / "home", IMAGE_REGISTRY=registry_or_skip())
    repository = registry.repository(settings)
    artifact = make_artifact(tmp_path, salt=salt)
    with removing_images(client, repository):
        first = built(settings, artifact, push=True)
        assert first["repository"] == repository
        assert client.images.get_registry_data(f"{repository}@{first['digest']}").id == first["digest"]
        remove_image(client, client.images.get(first["image_id"]))
        for push in (True, False):
            console, printed = recording_console()
            build(settings, console, artifact=artifact, push=push)
            assert "the registry has an image of package" in printed.getvalue()
            assert json.loads((artifact / "image.json").read_bytes())["digest"] == first["digest"]
            remove_image(client, client.images.get(first["image_id"]))


@pytest.mark.docker
def test_building_again_keeps_the_digest_of_a_push(client: DockerClient, tmp_path: Path, salt: str) -> None:
    """Without --push the image is the same one, and what is known of it stays known."""
    settings = settings_for(tmp_path / "home", IMAGE_REGISTRY=registry_or_skip())
    artifact = make_artifact(tmp_path, salt=salt)
    with removing_images(client, registry.repository(settings)):
        assert built(settings, artifact, push=True) == built(settings, artifact)


@pytest.mark.docker
def test_the_scoring_image_is_small(client: DockerClient, tmp_path: Path, salt: str) -> None:
    """With the real lock it adds at most 170 MB to its base, and no pip."""
    lock = (ROOT / "requirements" / "scoring.txt").read_text(encoding="utf-8")
    settings = settings_for(tmp_path / "home")
    artifact = make_artifact(tmp_path, salt=salt, lock=lock)
    with removing_images(client, settings.image_name):
        image = client.images.get(built(settings, artifact)["image_id"])
        base = client.images.get(settings.image.base)
        added = (image.attrs["Size"] - base.attrs["Size"]) / 1e6
        assert added <= 170, f"{added:.0f} MB"
        assert not [name for name in files_of(client, image.id) if "/pip/" in name]


@pytest.mark.docker
def test_a_build_that_fails_says_why(client: DockerClient, tmp_path: Path, salt: str) -> None:
    """A lock whose hash is wrong: exit code 5, with the last lines of the build, and no image.json."""
    artifact = make_artifact(tmp_path, salt=salt, lock=f"packaging==25.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(UnavailableError, match="DO NOT MATCH THE HASHES"):
        built(settings_for(tmp_path / "home"), artifact)
    assert not (artifact / "image.json").exists()


@pytest.mark.docker
def test_a_base_that_cannot_be_had_says_so(client: DockerClient, tmp_path: Path, salt: str) -> None:
    """IMAGE_BASE names what neither the engine nor a registry has."""
    settings = settings_for(tmp_path / "home", IMAGE_BASE="127.0.0.1:1/no/such:base")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1.*connection refused"):
        built(settings, make_artifact(tmp_path, salt=salt))


@pytest.mark.docker
def test_a_registry_that_refuses_says_so(client: DockerClient, tmp_path: Path, salt: str) -> None:
    """Nothing listens at IMAGE_REGISTRY: exit code 5, and image.json is not written."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = settings_for(tmp_path / "home", IMAGE_REGISTRY=f"127.0.0.1:{port}")
    artifact = make_artifact(tmp_path, salt=salt)
    with removing_images(client, registry.repository(settings)), pytest.raises(UnavailableError, match="registry"):
        built(settings, artifact, push=True)
    assert not (artifact / "image.json").exists()


@pytest.fixture
def closed_registry(tmp_path: Path) -> Iterator[str]:
    """A registry of its own that wants everybody to sign in."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("the program docker-registry is not installed")
    address, config = f"127.0.0.1:{free_port()}", tmp_path / "registry.yml"
    realm = {"silly": {"realm": "https://registry.example.com/token", "service": "registry"}}
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}, "auth": realm}))
    with subprocess.Popen([program, "serve", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _asks_to_sign_in(address), "the registry answers")
            yield address
        finally:
            process.kill()


def _asks_to_sign_in(address: str) -> bool:
    try:
        return requests.get(f"http://{address}/v2/", timeout=5).status_code == 401
    except requests.ConnectionError:
        return False


@pytest.mark.docker
def test_a_registry_that_wants_a_login_says_so(
    client: DockerClient, tmp_path: Path, salt: str, closed_registry: str
) -> None:
    """Exit code 5 with what to do, and image.json is not written; without --push the image is built all the same."""
    settings = settings_for(tmp_path / "home", IMAGE_REGISTRY=closed_registry)
    artifact = make_artifact(tmp_path, salt=salt)
    with removing_images(client, registry.repository(settings)):
        with pytest.raises(UnavailableError, match="(?s)registry refused.*docker login"):
            built(settings, artifact, push=True)
        assert not (artifact / "image.json").exists()
        console, printed = recording_console()
        build(settings, console, artifact=artifact, push=False)
        assert "the registry was not asked for it" in printed.getvalue()
        assert (artifact / "image.json").exists()


def test_without_an_engine_it_is_skipped(tmp_path: Path) -> None:
    """It says why and ends well; nothing is written."""
    pytest.importorskip("docker")
    artifact = make_artifact(tmp_path)
    console, printed = recording_console()
    settings = settings_for(tmp_path / "home", DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    build(settings, console, artifact=artifact, push=False)
    assert printed.getvalue().startswith(f"skipped: unix://{tmp_path}/nothing.sock: no container engine answers")
    assert not (artifact / "image.json").exists()


def test_without_an_engine_it_fails_where_an_image_is_required(tmp_path: Path) -> None:
    """REQUIRE_IMAGE=true: exit code 5."""
    pytest.importorskip("docker")
    settings = settings_for(tmp_path / "home", DOCKER_HOST=f"unix://{tmp_path}/nothing.sock", REQUIRE_IMAGE="true")
    with pytest.raises(UnavailableError, match="no container engine answers"):
        build(settings, recording_console()[0], artifact=make_artifact(tmp_path), push=False)


def test_without_an_engine_a_push_fails(tmp_path: Path) -> None:
    """Who asks for a push must not go on as if there were one: exit code 5."""
    pytest.importorskip("docker")
    environment = {"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock", "IMAGE_REGISTRY": "registry.example.com"}
    settings = settings_for(tmp_path / "home", **environment)
    with pytest.raises(UnavailableError, match="no container engine answers"):
        build(settings, recording_console()[0], artifact=make_artifact(tmp_path), push=True)


def test_pushing_needs_a_registry(tmp_path: Path) -> None:
    """--push without IMAGE_REGISTRY is refused before anything is built."""
    with pytest.raises(ConfigurationError, match="no registry to push to"):
        build(settings_for(tmp_path / "home"), recording_console()[0], artifact=make_artifact(tmp_path), push=True)


def test_a_password_for_the_index_is_refused(tmp_path: Path) -> None:
    """The engine would keep it in the history of an image; the message does not repeat it."""
    settings = settings_for(tmp_path / "home", PIP_INDEX_URL="https://me:hunter2@example.com/simple")
    with pytest.raises(ConfigurationError) as caught:
        build(settings, recording_console()[0], artifact=make_artifact(tmp_path), push=False)
    assert "hunter2" not in str(caught.value)


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    """A file that is not what was packaged never reaches an image."""
    artifact = make_artifact(tmp_path)
    (artifact / "package" / "scoring" / "server.py").write_text("print('changed')")
    with pytest.raises(IntegrityError, match=r"scoring/server.py was changed"):
        build(settings_for(tmp_path / "home"), recording_console()[0], artifact=artifact, push=False)


def test_the_context_does_not_depend_on_who_made_the_files_and_when(tmp_path: Path) -> None:
    """Two packages of the same content are the same context, byte for byte."""
    one = make_artifact(tmp_path / "one") / "package"
    two = make_artifact(tmp_path / "two") / "package"
    (two / "model" / "model.onnx").chmod(0o600)
    assert context_of(one).getvalue() == context_of(two).getvalue()


def test_a_build_whose_stream_breaks_off_has_failed() -> None:
    """An engine that stops while building ends the stream without a word."""
    steps: list[str] = []
    with pytest.raises(UnavailableError, match="went away in the middle"):
        follow_build([{"stream": "Step 1/3 : FROM base\n"}], steps.append)
    assert steps == ["Step 1/3 : FROM base"]


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("myregistry", "myregistry.azurecr.io"),
        ("MyRegistry", "myregistry.azurecr.io"),
        ("https://registry.example.com/", "registry.example.com"),
        ("registry.example.com:8443/team", "registry.example.com:8443/team"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_a_registry_is_named_or_addressed(name: str, host: str) -> None:
    """A bare name is an Azure Container Registry, anything else its own host."""
    assert registry.host_of(name) == host


@pytest.mark.parametrize("name", ["a b", "registry.example.com/Team", "x;y", "host:port"])
def test_what_is_no_registry_is_refused(name: str) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigurationError, match="IMAGE_REGISTRY"):
        registry.host_of(name)


class _Exchange(BaseHTTPRequestHandler):
    """Azure Container Registry's token exchange."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        good = self.path == "/oauth2/exchange" and "access_token=entra" in body and "service=r.azurecr.io" in body
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(b'{"refresh_token": "refresh"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def exchange_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Exchange)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_entra_token_is_exchanged_for_one_of_the_registry(exchange_url: str) -> None:
    """As Azure's documentation says: access token in, refresh token out."""
    assert registry.exchange(exchange_url, "r.azurecr.io", "entra", "") == "refresh"


def test_an_identity_that_the_registry_does_not_know_is_told_which_role(exchange_url: str) -> None:
    """Exit code 5; the token is not repeated."""
    with pytest.raises(UnavailableError, match="AcrPush") as caught:
        registry.exchange(exchange_url, "r.azurecr.io", "secret-token", "")
    assert "secret-token" not in str(caught.value)


class _AzureRegistry:
    """An engine without images, and a registry behind it that lets in who has signed in."""

    def __init__(self) -> None:
        self.images = self
        self.logins: dict[str, tuple[str, str]] = {}

    def login(self, *, username: str, password: str, registry: str) -> None:
        self.logins[registry] = (username, password)

    def get(self, name: str) -> object:
        from docker.errors import ImageNotFound

        raise ImageNotFound(name)

    def pull(self, repository: str, tag: str) -> object:
        assert repository.partition("/")[0] in self.logins, "unauthorized"
        return SimpleNamespace(labels={"mlops.package-sha256": "0" * 64})


def test_the_docker_target_signs_in_before_it_pulls_from_azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the registry that the image is in, whatever IMAGE_REGISTRY says here; a plan only looks."""
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(registry, "_entra_token", lambda settings: "entra")
    monkeypatch.setattr(registry, "exchange", lambda url, service, token, tenant: f"{token} for {service} at {url}")
    fake: Any = _AzureRegistry()
    deployment = Deployment(fake, settings_for(tmp_path / "home"))
    release = Release(tmp_path, "0" * 64, "toy", "1", "b", "r.azurecr.io/toy", "sha256:" + "1" * 64)
    assert deployment.image_of(release, print, pull=False) is None
    assert fake.logins == {}
    assert deployment.image_of(release, print, pull=True)
    [(host, (_, password))] = fake.logins.items()
    assert (host, password) == ("r.azurecr.io", "entra for r.azurecr.io at https://r.azurecr.io")


def test_a_package_without_a_dockerfile_is_refused(tmp_path: Path) -> None:
    """One that was packaged before images existed."""
    artifact = make_artifact(tmp_path)
    directory = artifact / "package"
    (directory / "scoring" / "Dockerfile").unlink()
    manifest = json.loads((directory / "manifest.json").read_bytes())
    del manifest["files"]["scoring/Dockerfile"]
    package.write_json(directory / "manifest.json", manifest)
    model = json.loads((artifact / "model.json").read_bytes())
    model["files"] = {f"package/{name}": digest for name, digest in package.hash_files(directory).items()}
    package.write_json(artifact / "model.json", model)
    with pytest.raises(UsageError, match="holds no scoring/Dockerfile"):
        build(settings_for(tmp_path / "home"), recording_console()[0], artifact=artifact, push=False)


_SMALL_LOCK = "packaging==25.0 \\\n    --hash=sha256:29572ef2b1f17581046b3a2227d5c611fb25ec70ca1ba8554b24b0e69331a484\n"
