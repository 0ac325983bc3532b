"""A Target without processes: a fake that keeps the promises of the port."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ml_service.errors import MlopsError, UnhealthyError, UsageError
from ml_service.ports import (
    Action,
    Endpoint,
    Finding,
    Keys,
    Plan,
    Progress,
    Release,
    Status,
    Step,
    Verify,
)


class FakeTarget:
    """The Target port without processes: an HTTP server in this one answers the package's examples on loopback.

    A package whose ``model/fault.txt`` says ``crash`` or ``never-ready`` does not come up; ``wrong`` answers wrongly.
    Use it as a context manager, or call ``close``.
    """

    name = "fake"
    needs_image = False
    needs_registry = False

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._keys = Keys("fake-primary", "fake-secondary")
        self._current: Status | None = None
        self._previous: Release | None = None
        self._serving: Release | None = None
        self._public: _FakeServer | None = None
        self._log: list[str] = []

    def __enter__(self) -> FakeTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering."""
        if self._public is not None:
            self._public.stop()
            self._public = None

    def is_configured(self) -> bool:
        return True

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        if canary_percent is not None:
            raise UsageError("the fake target has no canary")
        same = self._current is not None and self._current.package_sha256 == release.package_sha256
        steps = [Step(Action.START, release.model_version), Step(Action.SWITCH, "the traffic")]
        return Plan(self.name, release, [] if same else steps)

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        if plan.steps:
            with self._changing:
                self._swap(plan.release, self._serving, verify, progress)
        return self._deployed()

    def endpoint(self) -> Endpoint:
        return Endpoint(self._deployed().url, self._keys.primary)

    def status(self) -> Status | None:
        return self._current

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        with self._changing:
            if self._previous is None:
                raise UsageError("there is no version before")
            self._swap(self._previous, None, verify, progress)
        return self._deployed()

    def promote(self, progress: Progress) -> Status:
        raise UsageError("the fake target has no canary")

    def undeploy(self, progress: Progress) -> None:
        with self._changing:
            self.close()
            self._current = self._previous = self._serving = None

    def logs(self, lines: int) -> Sequence[str]:
        return self._log[-lines:] if lines > 0 else []

    def keys(self) -> Keys:
        self._deployed()
        return self._keys

    def diagnose(self) -> Sequence[Finding]:
        return [Finding("fake target", True, "always there")]

    def _deployed(self) -> Status:
        if self._current is None:
            raise UsageError("nothing is deployed")
        return self._current

    def _swap(self, release: Release, previous: Release | None, verify: Verify, progress: Progress) -> None:
        progress(f"starting version {release.model_version}")
        self._log.append(f"starting version {release.model_version}")
        candidate = _FakeServer(release, self._keys)
        try:
            if candidate.fault in ("crash", "never-ready"):
                raise UnhealthyError(f"it did not come up: {candidate.fault}\n{self._log[-1]}")
            try:
                verify(Endpoint(candidate.url, self._keys.primary), release.package)
            except Exception as error:
                if isinstance(error, MlopsError) and not isinstance(error, UnhealthyError):
                    raise
                raise UnhealthyError(f"it did not pass: {error}\n{self._log[-1]}") from error
        finally:
            candidate.stop()
        self._public = self._public or _FakeServer(release, self._keys)
        self._public.serve(release)
        self._serving, self._previous = release, previous
        self._current = _status(self.name, self._public.url, release, previous)


def _status(target: str, url: str, release: Release, previous: Release | None) -> Status:
    def model(of: Release) -> dict[str, str]:
        return {"name": of.model_name, "version": of.model_version}

    return Status(
        target=target,
        url=url,
        model=model(release),
        build_id=release.build_id,
        package=str(release.package),
        package_sha256=release.package_sha256,
        image_digest=None,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        previous=model(previous) if previous else None,
    )


class _FakeServer(ThreadingHTTPServer):
    """Answers a package's examples on a free port of loopback; which package may change under it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, release: Release, keys: Keys) -> None:
        super().__init__(("127.0.0.1", 0), _FakeHandler)
        self.keys = keys
        self.serve(release)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, release: Release) -> None:
        model = release.package / "model"
        examples = json.loads((model / "examples.json").read_bytes())["examples"]
        self.fault = (model / "fault.txt").read_text() if (model / "fault.txt").exists() else ""
        self.answers = {json.dumps(example["request"]): example["response"] for example in examples}
        self.version = release.model_version

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _FakeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _FakeServer

    def do_GET(self) -> None:
        self._answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        keys = (self.server.keys.primary, self.server.keys.secondary)
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in keys:
            return self._answer(401, {"error": "no key"})
        try:
            response = self.server.answers[json.dumps(json.loads(body))]
        except (ValueError, KeyError):
            return self._answer(400, {"error": "not an example"})
        wrong = self.server.fault == "wrong"
        self._answer(200, {"result": [value + 1 for value in response["result"]]} if wrong else response)

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Model-Version", self.server.version)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""
