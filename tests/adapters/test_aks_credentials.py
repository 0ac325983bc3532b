"""Which cluster the target aks means. Azure's answers are played by a server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from emulators import Emulator
from ml_service.errors import ConfigurationError, UnavailableError
from ml_service.images import registry
from ml_service.targets.aks import credentials
from tests.support.settings import settings_for

CLUSTER = "/subscriptions/sub/resourcegroups/group/providers/Microsoft.ContainerService/managedClusters/the-cluster"
AZURE = {"SUBSCRIPTION_ID": "sub", "RESOURCE_GROUP": "rg", "WORKSPACE_NAME": "ws"}
WORKSPACE = "/subscriptions/sub/resourceGroups/rg/providers/Microsoft.MachineLearningServices/workspaces/ws"


class _Management(BaseHTTPRequestHandler):
    """Two computes of a workspace: one is a cluster, one is not."""

    computes = {"aks": {"resourceId": CLUSTER}, "train-cluster": {"resourceId": None}}

    def do_GET(self) -> None:
        path, _, name = urlsplit(self.path).path.partition("/computes/")
        known = path == WORKSPACE and name in self.computes and self.headers["Authorization"] == "Bearer token"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"properties": self.computes.get(name)}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def management() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Management)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_attached_compute_is_resolved_to_its_cluster(tmp_path: Path, management: str) -> None:
    """AKS_COMPUTE_NAME names an attachment of the Azure ML workspace, not the cluster itself."""
    settings = settings_for(tmp_path, AKS_COMPUTE_NAME="aks", **AZURE)
    found = credentials.resolve(settings, lambda scope: "token", management)
    assert found == credentials.ClusterId("sub", "group", "the-cluster")


def test_a_compute_that_is_no_cluster_is_refused(tmp_path: Path, management: str) -> None:
    """Exit code 4."""
    settings = settings_for(tmp_path, AKS_COMPUTE_NAME="train-cluster", **AZURE)
    with pytest.raises(ConfigurationError, match="is not attached to an AKS cluster"):
        credentials.resolve(settings, lambda scope: "token", management)


def test_an_unknown_compute_is_refused(tmp_path: Path, management: str) -> None:
    """Exit code 5, naming it; the token is not repeated."""
    settings = settings_for(tmp_path, AKS_COMPUTE_NAME="nothing", **AZURE)
    with pytest.raises(UnavailableError, match="AKS_COMPUTE_NAME=nothing") as caught:
        credentials.resolve(settings, lambda scope: "token-that-is-secret", management)
    assert "token-that-is-secret" not in str(caught.value)


def test_where_local_accounts_are_off_an_entra_token_is_used() -> None:
    """In place of kubelogin, for the application that every AKS cluster trusts."""
    kubeconfig = {"users": [{"name": "u", "user": {"exec": {"command": "kubelogin"}}}]}
    found = credentials.with_entra_token(kubeconfig, lambda scope: f"token for {scope}")
    scope = "6dae42f8-4368-4678-94ff-3960e28e3630/.default"
    assert found["users"] == [{"name": "u", "user": {"token": f"token for {scope}"}}]


def test_a_certificate_is_kept() -> None:
    """Where local accounts are on, Azure's own kubeconfig works as it is."""
    user = {"client-certificate-data": "c", "client-key-data": "k"}
    kubeconfig = {"users": [{"name": "u", "user": dict(user)}]}
    assert credentials.with_entra_token(kubeconfig, lambda scope: "token")["users"][0]["user"] == user


def test_without_any_name_it_says_what_to_set(tmp_path: Path) -> None:
    """Exit code 4, naming both settings."""
    pytest.importorskip("kubernetes")
    with pytest.raises(ConfigurationError, match=r"(?s)KUBECONFIG.*AKS_COMPUTE_NAME"):
        credentials.connect(settings_for(tmp_path, KUBECONFIG=""))


def test_a_refused_sign_in_names_the_settings_and_not_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 4, for the cluster's credentials and for the registry's."""
    pytest.importorskip("kubernetes")
    with Emulator() as azure:
        for name, value in azure.redirection().items():
            monkeypatch.setenv(name, value)
        wrong = {**azure.settings(), "SP_APP_SECRET": "hunter2", "AKS_COMPUTE_NAME": "aks", "KUBECONFIG": ""}
        settings = settings_for(tmp_path, **wrong)
        for sign_in in (
            lambda: credentials.connect(settings),
            lambda: registry.sign_in(None, settings, "r.azurecr.io/image"),  # type: ignore[arg-type]
        ):
            with pytest.raises(ConfigurationError, match=r"sign-in to Azure: the sign-in was refused") as caught:
                sign_in()
            assert "SP_APP_SECRET" in caught.value.next_step
            assert "hunter2" not in str(caught.value)


def test_a_kubeconfig_that_is_none_is_refused(tmp_path: Path) -> None:
    """Exit code 4, naming the file."""
    pytest.importorskip("kubernetes")
    path = tmp_path / "kubeconfig"
    path.write_text("just: text")
    with pytest.raises(
        ConfigurationError, match="kubeconfig: invalid kubeconfig: expected a context with a cluster and a user"
    ):
        credentials.connect(settings_for(tmp_path, KUBECONFIG=str(path)))
