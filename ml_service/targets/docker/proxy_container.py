"""The container that owns the docker target's port: the HTTP front, and a control socket inside of it. See ADR 0041.

``python -m ml_service.targets.docker.proxy_container serve`` is what the container runs.
``… ask JSON``, run in it by the engine's exec, sends one command. What it routes to lies in ``/state``, a volume, so
that it survives the container.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

ROUTE = Path("/state/route.json")
CONTROL = Path("/tmp/control.sock")
PORT = 8080

START_PATIENCE = 30.0
"""Seconds that a front may take from its start until it takes commands, on a busy machine."""

Message = dict[str, Any]


class Router:
    """Which container answers.

    ``route.json`` is ``{"current", "previous"}``, each ``{"container", "since"}`` or null.
    """

    def __init__(self, route_file: Path, upstream_port: int = PORT) -> None:
        from ml_service.common.proxy import Front

        self._file = route_file
        self._upstream_port = upstream_port
        self.front = Front()
        self._upstreams: dict[str, Any] = {}
        self.route: Message = {"current": None, "previous": None}

    async def start(self, port: int, host: str = "0.0.0.0") -> int:
        """Listen, and route to what the file says; returns the port."""
        if self._file.exists():
            self.route = json.loads(self._file.read_bytes())
        await self.front.start()
        self._point()
        return await self.front.listen(host, port)

    async def answer(self, command: Message) -> Message:
        """Carry out one command.

        ``switch``: ``{"expect": container or null, "current", "previous"}`` moves the traffic when ``expect`` serves
        now. ``drain``: ``{"container", "timeout"}`` waits until nothing is on its way through it.
        """
        if command["command"] == "switch":
            return self._switch(command)
        upstream = self._upstreams.get(command["container"])
        drained = upstream is None or await upstream.drained(float(command["timeout"]))
        return {"drained": drained}

    def _switch(self, command: Message) -> Message:
        serving = self.route["current"] and self.route["current"]["container"]
        if serving != command["expect"]:
            return {"error": f"{serving} serves by now"}
        # What is written first is what this container would route to after a crash.
        self._save({"current": command["current"], "previous": command["previous"]})
        self._point()
        return {}

    def _save(self, route: Message) -> None:
        temporary = self._file.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(route, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
        self.route = route

    def _point(self) -> None:
        from ml_service.common.proxy import Upstream

        current = self.route["current"]
        if current is None:
            return self.front.route_to(None)
        name = current["container"]
        upstream = self._upstreams.setdefault(name, Upstream(f"http://{name}:{self._upstream_port}"))
        self.front.route_to(upstream)


async def serve(router: Router, control: Path, port: int) -> None:
    """Answer on ``port`` and on the control socket until SIGTERM, then let what is in flight end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = await router.answer(json.loads(await reader.readline()))
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    control.unlink(missing_ok=True)
    await router.start(port)
    server = await asyncio.start_unix_server(converse, control)
    print(json.dumps({"event": "front", "route": router.route}), flush=True)
    await stop.wait()
    server.close()
    await router.front.close()


def ask(control: Path, message: str, patience: float = START_PATIENCE) -> str:
    """Send one command; the answer as JSON text. A front that was started a moment ago is given time to listen."""
    with _connected(control, time.monotonic() + patience) as connection:
        connection.sendall(message.encode() + b"\n")
        with connection.makefile("rb") as answer:
            return answer.readline().decode()


def _connected(control: Path, deadline: float) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(control))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main(arguments: list[str]) -> None:
    """Entry point."""
    if arguments[0] == "ask":
        print(ask(CONTROL, arguments[1]), end="")
    else:
        asyncio.run(serve(Router(ROUTE), CONTROL, PORT))


if __name__ == "__main__":
    main(sys.argv[1:])
