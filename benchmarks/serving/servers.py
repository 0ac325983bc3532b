"""The servers under comparison: how each is started, asked, weighed and stopped."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environments import peer_python

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEY = "benchmark-0123456789abcdef"
START_TIMEOUT = 120.0


@dataclass(frozen=True)
class Contender:
    """A server: ``command`` and ``env`` may hold PORT; ``wrap`` is the key of the rows in the body."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    path: str = "/score"
    wrap: str = "data"

    def request_body(self, rows: Sequence[object]) -> str:
        """Return the body that asks for ``rows``."""
        return json.dumps({self.wrap: rows})


def ours(model: Path, workers: int = 1) -> Contender:
    """Return the service, with keys, metrics and log on, as a deployment starts it."""
    name = "ours" if workers == 1 else f"ours, {workers} workers"
    server = model / "package" / "scoring" / "server.py"
    return Contender(name, (sys.executable, str(server)), _settings(model, workers))


def constant(model: Path) -> Contender:
    """The same server without a model."""
    return Contender("constant answer", (sys.executable, str(HERE / "constant.py")), _settings(model, 1))


def azureml_same(model: Path) -> Contender:
    """Azure ML's own server with our score.py."""
    return _azureml("azureml, our score.py", model / "package" / "scoring" / "score.py", model / "package")


def azureml_usual(model: Path) -> Contender:
    """Azure ML's own server with the usual script."""
    return _azureml("azureml, usual script", HERE / "usual_score.py", model / "usual")


def mlflow(model: Path) -> Contender:
    """``mlflow models serve`` on the scikit-learn model."""
    python = peer_python("mlflow")
    saved = model / "mlflow"
    if not saved.exists():
        script = HERE / "mlflow_model.py"
        subprocess.run([python, script, model / "usual" / "model.joblib", saved], check=True, capture_output=True)
    command = (str(python), "-m", "mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local", "-p", "PORT")
    env = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "MLFLOW_MODELS_WORKERS": "1"}
    wrap = "dataframe_split" if model.name == "forest" else "inputs"
    return _MlflowFrame("mlflow models serve", (*command, "-h", "127.0.0.1"), env, "/invocations", wrap)


class _MlflowFrame(Contender):
    """Named columns are sent as a split frame."""

    def request_body(self, rows: Sequence[object]) -> str:
        if self.wrap == "inputs":
            return super().request_body(rows)
        names = [f"n{i}" for i in range(25)] + [f"w{i}" for i in range(5)]
        return json.dumps({"dataframe_split": {"columns": names, "data": rows}})


def _settings(model: Path, workers: int) -> dict[str, str]:
    return {
        "AZUREML_MODEL_DIR": str(model / "package"),
        "SCORING_PORT": "PORT",
        "SCORING_PRIMARY_KEY": KEY,
        "SCORING_WORKERS": str(workers),
    }


def _azureml(name: str, script: Path, directory: Path) -> Contender:
    python = peer_python("serving")
    command = (str(python.parent / "azmlinfsrv"), "--entry_script", str(script), "--port", "PORT")
    return Contender(name, (*command, "--worker_count", "1"), {"AZUREML_MODEL_DIR": str(directory)})


class Running:
    """A contender that runs, its log in a file. ``seconds`` is the time from its start to its first answer."""

    def __init__(self, contender: Contender, rows: Sequence[object], log: Path) -> None:
        self.contender = contender
        self.port = _free_port()
        command = [part.replace("PORT", str(self.port)) for part in contender.command]
        env = {name: value.replace("PORT", str(self.port)) for name, value in contender.env.items()}
        started = time.perf_counter()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=log.parent,
            )
        self.answer = self._first_answer(contender.request_body(rows), log)
        self.seconds = time.perf_counter() - started

    def _first_answer(self, body: str, log: Path) -> bytes:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                return self.ask(body)
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
        self.stop()
        raise RuntimeError(f"{self.contender.name} does not answer:\n{log.read_text()[-3000:]}")

    def ask(self, body: str) -> bytes:
        """One request; OSError unless it is answered with 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_TIMEOUT)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            connection.request("POST", self.contender.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ConnectionError(f"{response.status}: {content[:500]!r}")
        return content

    def raw_request(self, rows: Sequence[object]) -> bytes:
        """Return the bytes of a request for ``rows``."""
        body = self.contender.request_body(rows).encode()
        head = (
            f"POST {self.contender.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def worker_megabytes(self) -> float:
        """Resident memory of the largest process, which is a worker."""
        group = os.getpgid(self._process.pid)
        sizes = [0.0]
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                if os.getpgid(int(status.parent.name)) == group:
                    pages = int((status.parent / "statm").read_text().split()[1])
                    sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            except (OSError, ValueError):
                continue
        return max(sizes)

    def stop(self) -> None:
        """End it and everything that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
