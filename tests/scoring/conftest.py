"""What the tests of the scoring service share. Its modules know each other by plain name, as Azure ML loads them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

SCORING = str(Path(__file__).resolve().parents[2] / "scoring")
if SCORING not in sys.path:
    sys.path.insert(0, SCORING)

from tests.support.packages import LINEAR, MIXED, linear_graph, make_package, mixed_graph  # noqa: E402
from tests.support.scoring_server import SERVER, Server  # noqa: E402


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the linear model."""
    return make_package(tmp_path_factory.mktemp("linear") / "package", linear_graph(), LINEAR)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the model with a column of each type."""
    examples = [{"request": {"data": [[1.0, None, 2, None, True, None]]}, "response": {"result": [111.5]}}]
    return make_package(tmp_path_factory.mktemp("mixed") / "package", mixed_graph(), MIXED, examples)


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers, and ends them with the test."""
    servers: list[Server] = []

    def start(package: Path, *, wait: bool = True, program: Sequence[str] = (str(SERVER),), **settings: str) -> Server:
        server = Server(package, tmp_path / f"server{len(servers)}.log", settings, program)
        servers.append(server)
        if wait:
            server.wait_until_ready()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def shared_server(linear: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server of two workers for the requests that leave no trace."""
    settings = {"SCORING_WORKERS": "2", "SCORING_MAX_BODY": "200000", "SCORING_MAX_ROWS": "1000"}
    server = Server(linear, tmp_path_factory.mktemp("shared") / "server.log", settings)
    server.wait_until_ready()
    yield server
    server.kill()
