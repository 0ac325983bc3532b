"""The container that owns the docker target's port: the reverse proxy and its control socket. See ADR 0041.

``python -m ml_service.targets.docker.proxy_container serve`` is what the container runs.
``… ask JSON``, run in it by the engine's exec, sends one command. ``/state`` is a volume: the route in it outlives the
container, and a proxy that starts again routes to what served before.
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

START_TIMEOUT = 30.0
"""Seconds from the proxy's start until it takes commands, at most, on a busy machine."""

Message = dict[str, Any]


class Router:
    """Routes the traffic to one container, and remembers which in ``route.json``.

    The file is ``{"current", "previous"}``, each ``{"container", "since"}`` or null.
    """

    def __init__(self, route_file: Path, upstream_port: int = PORT) -> None:
        from ml_service.common.proxy import Proxy

        self._file = route_file
        self._upstream_port = upstream_port
        self.proxy = Proxy()
        self._upstreams: dict[str, Any] = {}
        self.route: Message = {"current": None, "previous": None}

    async def start(self, port: int, host: str = "0.0.0.0") -> int:
        """Listen, route to what the file says, and return the port."""
        if self._file.exists():
            self.route = json.loads(self._file.read_bytes())
        await self.proxy.start()
        self._point()
        return await self.proxy.listen(host, port)

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
        # The file is written before the traffic moves. After a crash in between, this container routes to the new
        # version, which is up and verified; the other order could bring back a version that is being stopped.
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
            return self.proxy.route_to(None)
        name = current["container"]
        upstream = self._upstreams.setdefault(name, Upstream(f"http://{name}:{self._upstream_port}"))
        self.proxy.route_to(upstream)


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
    print(json.dumps({"event": "proxy", "route": router.route}), flush=True)
    await stop.wait()
    server.close()
    await router.proxy.close()


def ask(control: Path, message: str, timeout: float = START_TIMEOUT) -> str:
    """Send one command and return the answer as JSON text; wait for a proxy that was started a moment ago.

    Raises:
        OSError: it does not listen after ``timeout`` seconds.
    """
    with _connected(control, time.monotonic() + timeout) as connection:
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
