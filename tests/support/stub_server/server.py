"""A stand-in for the scoring server: the same environment, addresses and statuses, no model, and faults on demand.

It answers the package's own examples, and counts its answers under /metrics. ``model/fault.txt`` in the package plants
a fault: ``crash`` (at the start), ``never-ready``, ``wrong`` (answers), ``slow`` (a second before each answer),
``tells`` (writes its keys to the log), ``fragile`` (POST /die ends it).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = Path(os.environ["AZUREML_MODEL_DIR"]) / "model"
FAULT = (MODEL / "fault.txt").read_text() if (MODEL / "fault.txt").exists() else ""
VERSION = json.loads((MODEL.parent / "manifest.json").read_bytes())["model"]["version"]
PACKAGE = hashlib.sha256((MODEL.parent / "manifest.json").read_bytes()).hexdigest()
ANSWERS = {
    json.dumps(example["request"]): example["response"]
    for example in json.loads((MODEL / "examples.json").read_bytes())["examples"]
}
DRAINING = threading.Event()
OPEN: set[int] = set()
ANSWERED: Counter[int] = Counter()


def keys() -> list[str]:
    if os.environ.get("SCORING_AUTH", "").lower() == "off":
        return []
    if "SCORING_KEYS_FILE" in os.environ:
        return list(json.loads(Path(os.environ["SCORING_KEYS_FILE"]).read_bytes()).values())
    return [os.environ["SCORING_PRIMARY_KEY"], os.environ["SCORING_SECONDARY_KEY"]]


KEYS = keys()


def metrics() -> str:
    """How often it answered an example, each time within a millisecond."""
    lines = [f'scoring_requests_total{{route="score",status="{status}"}} {n}' for status, n in ANSWERED.items()]
    bounds = [f'scoring_request_duration_seconds_bucket{{le="{le}"}} {ANSWERED.total()}' for le in ("0.001", "+Inf")]
    return "\n".join([*lines, *bounds, ""])


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/metrics":
            return self.answer(200, metrics(), "text/plain")
        about = {"version": VERSION, "pid": os.getpid(), "package_sha256": PACKAGE}
        self.answer(503 if FAULT == "never-ready" else 200, about)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if KEYS and self.headers.get("Authorization", "").removeprefix("Bearer ") not in KEYS:
            return self.answer(401, {"error": "no key"})
        if self.path == "/die" and FAULT == "fragile":
            os._exit(3)
        if FAULT == "slow":
            time.sleep(1)
        try:
            response = ANSWERS[json.dumps(json.loads(body))]
        except (ValueError, KeyError):
            return self.answer(400, {"error": "not an example"})
        ANSWERED[200] += 1
        self.answer(200, {"result": [value + 1 for value in response["result"]]} if FAULT == "wrong" else response)

    def answer(self, status: int, value: object, media: str = "application/json") -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        # A server that ends says so on each connection, so that no request is sent on one that closes.
        self.close_connection = self.close_connection or DRAINING.is_set()
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Model-Version", VERSION)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def setup(self) -> None:
        super().setup()
        OPEN.add(id(self))

    def finish(self) -> None:
        super().finish()
        OPEN.discard(id(self))

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def drain(server: Server) -> None:
    """Let connections end by themselves, for a while, then stop."""
    DRAINING.set()
    deadline = time.monotonic() + 2
    while OPEN and time.monotonic() < deadline:
        time.sleep(0.02)
    server.shutdown()


def main() -> None:
    print(json.dumps({"event": "starting", "version": VERSION}), flush=True)
    if FAULT == "crash":
        sys.exit("cannot load the model: the planted fault")
    if FAULT == "tells":
        print("my keys are " + " and ".join(KEYS), flush=True)
    server = Server((os.environ["SCORING_HOST"], int(os.environ["SCORING_PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=drain, args=(server,)).start())
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
