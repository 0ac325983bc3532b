"""A scoring server as a process of its own, and a plain client for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCORING = Path(__file__).resolve().parents[2] / "scoring"
SERVER = SCORING / "server.py"
SCORE = SCORING / "score.py"
KEY = "primary-0123456789abcdef"
OTHER_KEY = "secondary-0123456789abcdef"
TIMEOUT = 60.0
"""Seconds to wait for what should come at once: the machine may be busy."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as a value."""
        return json.loads(self.body)


class Client:
    """One connection."""

    def __init__(self, address: tuple[str, int] | str, timeout: float = TIMEOUT) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(timeout)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and read its answer."""
        self.send(request(method, path, body, headers))
        return self.answer(method)

    def answer(self, method: str = "POST") -> Answer:
        """Read the next answer; ConnectionError when the connection ends first."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("the connection was closed")
        status = int(line.split()[1])
        headers = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if status == 100:
            return Answer(status, headers, b"")
        body = b"" if method == "HEAD" else self._file.read(int(headers["content-length"]))
        return Answer(status, headers, body)

    def is_closed(self) -> bool:
        """Whether the server ends the connection (waits for it)."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request; with a key, unless ``headers`` say otherwise."""
    fields = {"Host": "test", "Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **(headers or {})}
    if body or method == "POST":
        fields.setdefault("Content-Length", str(len(body)))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def refused_start(env: Mapping[str, str]) -> tuple[int, str]:
    """Start a server that cannot start. Return its exit code and its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SCORING_")}
    done = subprocess.run(
        [sys.executable, str(SERVER)], env={**clean, "SCORING_PORT": "0", **env}, capture_output=True, timeout=TIMEOUT
    )
    return done.returncode, (done.stdout + done.stderr).decode()


class Server:
    """``python scoring/server.py`` on a free port, with ``settings`` in its environment."""

    def __init__(
        self, package: Path, log: Path, settings: Mapping[str, str], program: Sequence[str] = (str(SERVER),)
    ) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("SCORING_")}
        env.update({"AZUREML_MODEL_DIR": str(package), "SCORING_PORT": "0"})
        if "SCORING_KEYS_FILE" not in settings:
            env.update({"SCORING_PRIMARY_KEY": KEY, "SCORING_SECONDARY_KEY": OTHER_KEY})
        self._workers = int(settings.get("SCORING_WORKERS", "1"))
        self._socket = settings.get("SCORING_SOCKET", "")
        self._log = log
        self._address: tuple[str, int] | None = None
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *program], env={**env, **settings}, stdout=out, stderr=subprocess.STDOUT
            )

    def log(self) -> list[dict[str, Any]]:
        """The lines of the log so far."""
        lines = self._log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def raw_log(self) -> str:
        """Everything that it has written."""
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of one kind."""
        return [line for line in self.log() if line["event"] == name]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until ``event`` is in the log ``count`` times."""
        deadline = time.monotonic() + TIMEOUT
        while len(found := self.events(event)) < count:
            assert time.monotonic() < deadline, f"no {event} in\n{self.raw_log()}"
            assert self.process.poll() is None or len(self.events(event)) >= count, self.raw_log()
            time.sleep(0.02)
        return found

    def wait_until_ready(self) -> None:
        """Wait for every worker."""
        self.wait_for("ready", self._workers)

    @property
    def address(self) -> tuple[str, int] | str:
        """Where it listens."""
        if self._socket:
            return self._socket
        if self._address is None:
            host, _, port = self.events("starting")[0]["address"].rpartition(":")
            self._address = host, int(port)
        return self._address

    @property
    def url(self) -> str:
        """Its address as a URL."""
        return f"http://{self.events('starting')[0]['address']}"

    def connect(self, timeout: float = TIMEOUT) -> Client:
        """A new connection."""
        return Client(self.address, timeout)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """One request on a connection of its own."""
        with self.connect() as client:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.request(method, path, body, fields)

    def score(self, data: Any, **headers: str) -> Answer:
        """Score rows."""
        return self.ask("POST", "/score", json.dumps({"data": data}).encode(), **headers)

    def metric(self, name: str) -> float:
        """The value of a metric, summed over the labels that ``name`` does not give."""
        text = self.ask("GET", "/metrics").body.decode()
        plain, _, labels = name.partition("{")
        wanted = labels.rstrip("}")
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.split("{")[0].split(" ")[0] == plain and wanted in line
        )

    def worker_pids(self) -> list[int]:
        """The processes of the workers that live."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def terminate(self) -> int:
        """SIGTERM, then the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """End it and its workers now."""
        pids = self.worker_pids() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
