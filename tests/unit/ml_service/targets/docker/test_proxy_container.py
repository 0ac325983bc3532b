"""The docker target's proxy as a process: its route, its file, its control socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from ml_service.targets.docker import proxy_container
from ml_service.targets.docker.proxy_container import Router, ask

FIRST = {"container": "first", "since": "2026-01-01T00:00:00+00:00"}
SECOND = {"container": "second", "since": "2026-01-02T00:00:00+00:00"}


def answers(router: Router, *commands: dict[str, Any]) -> list[dict[str, Any]]:
    """Start the router, send it commands, stop it."""

    async def run() -> list[dict[str, Any]]:
        await router.start(0, "127.0.0.1")
        try:
            return [await router.answer(command) for command in commands]
        finally:
            await router.proxy.close()

    return asyncio.run(run())


def switch(expect: str | None, current: dict[str, str], previous: dict[str, str] | None = None) -> dict[str, Any]:
    return {"command": "switch", "expect": expect, "current": current, "previous": previous}


def test_a_switch_is_written_down(tmp_path: Path) -> None:
    """What the file says is what a proxy after a crash routes to."""
    file = tmp_path / "route.json"
    assert answers(Router(file), switch(None, FIRST), switch("first", SECOND, FIRST)) == [{}, {}]
    assert json.loads(file.read_text()) == {"current": SECOND, "previous": FIRST}
    again = Router(file)
    assert answers(again, switch("second", FIRST)) == [{}]


def test_a_switch_that_expects_another_version_is_refused(tmp_path: Path) -> None:
    """Of two deployments at once one is told that the other was faster."""
    file = tmp_path / "route.json"
    assert answers(Router(file), switch(None, FIRST), switch(None, SECOND)) == [{}, {"error": "first serves by now"}]
    assert json.loads(file.read_text())["current"] == FIRST


def test_nothing_in_flight_is_drained_at_once(tmp_path: Path) -> None:
    """Also for a version that the proxy never heard of."""
    drain = [{"command": "drain", "container": name, "timeout": 1} for name in ("first", "unknown")]
    assert answers(Router(tmp_path / "route.json"), switch(None, FIRST), *drain) == [
        {},
        {"drained": True},
        {"drained": True},
    ]


@pytest.fixture
def control() -> Path:
    """A short path: a socket's is limited."""
    return Path("/tmp") / f"proxy-{uuid.uuid4().hex[:8]}.sock"


def test_a_command_reaches_it_through_the_socket(tmp_path: Path, control: Path) -> None:
    """As the engine's exec does; SIGTERM ends it."""

    async def run() -> str:
        asking = asyncio.create_task(asyncio.to_thread(ask, control, json.dumps(switch(None, FIRST))))
        # It asks before anybody listens, as a deployment does that has only just started the proxy.
        await asyncio.sleep(0.1)
        serving = asyncio.create_task(proxy_container.serve(Router(tmp_path / "route.json"), control, 0))
        said = await asking
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
        return said

    try:
        assert json.loads(asyncio.run(run())) == {}
    finally:
        control.unlink(missing_ok=True)


def test_a_proxy_that_never_listens_is_an_error(control: Path) -> None:
    """After the timeout, and not before."""
    with pytest.raises(FileNotFoundError):
        ask(control, "{}", timeout=0)
