"""The target on a container engine: a front owns the port, one container holds a version. See docs/containers.md."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from ml_service.common import keys as key_file
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.config.scoring import requires_key, server_options
from ml_service.errors import MlopsError, UnavailableError, UnhealthyError, UsageError
from ml_service.images import signing
from ml_service.images.engine import BUILD_LABEL, MODEL_LABEL, PACKAGE_LABEL, VERSION_LABEL, engine
from ml_service.ports import Action, Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify
from ml_service.targets.docker import proxy_image
from ml_service.targets.docker.containers import (
    DIGEST_LABEL,
    OPTIONS_LABEL,
    PORT,
    Deployment,
    View,
    log_lines,
    options_label,
)

_HERE = "target docker"
_LOG_LINES_IN_ERRORS = 15
_LOG_LINES_KEPT = 5000
_POLL = 0.1
_LOCK_PATIENCE = 60.0
"""Seconds to wait for another deployment, on top of the longest that it may take to start and to drain."""


class DockerTarget:
    """The Target port on a container engine. What lasts is on the engine; keys, packages and logs are in MLOPS_HOME."""

    name = "docker"
    needs_image = True
    needs_registry = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._docker = settings.docker
        self._home = settings.home / "targets" / "docker" / self._docker.name
        self._keys_path = self._home / "secrets" / "keys.json"
        self._log_path = self._home / "logs" / "docker.log"
        self._packages = PackageStore(self._home / "packages")

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See Target 1. One version serves here, so there is no share of the traffic to give away."""
        if canary_percent is not None:
            raise _no_canary("--canary")
        signing.check(self._settings, release)
        with self._deployment() as deployment:
            view = deployment.look()
            if self._serves(view, release):
                return Plan(self.name, release, [])
            image = deployment.image_of(release, _quiet, pull=False)
        return Plan(self.name, release, self._steps(view, release, image))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See Target 2, 3 and 4."""
        if plan.steps:
            signing.check(self._settings, plan.release)
            with self._changing(progress) as deployment:
                self._apply(deployment, plan.release, verify, progress)
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See Target 7. Without a key when the service was deployed with ``SCORING_AUTH=off``."""
        with self._deployment() as deployment:
            view = deployment.look()
            container = view.container(view.current)
        if view.current is None:
            raise _nothing_deployed()
        return Endpoint(self._url(), self._key(container))

    def status(self) -> Status | None:
        """See Target 5."""
        with self._deployment() as deployment:
            view = deployment.look()
        if view.current is None:
            return None
        container, previous = view.container(view.current), view.container(view.previous)
        labels = container.labels if container else {}
        sha256 = labels.get(PACKAGE_LABEL, "")
        return Status(
            target=self.name,
            url=self._url(),
            model=_model(container) or {"name": "", "version": ""},
            build_id=labels.get(BUILD_LABEL, ""),
            package=str(self._packages.path(sha256)),
            package_sha256=sha256,
            image_digest=labels.get(DIGEST_LABEL) or None,
            since=view.current["since"],
            previous=_model(previous),
            state=_trouble(view) or "serving",
        )

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See Target 5."""
        with self._changing(progress) as deployment:
            view = deployment.look()
            if view.previous is None:
                raise UsageError(
                    "there is no version before to go back to", where=_HERE, next_step="see: inv status --target docker"
                )
            container = view.container(view.previous)
            if container is None:
                raise UnavailableError(
                    "the container of the version before was removed from the engine",
                    where=view.previous["container"],
                    next_step="deploy that version's artifact: inv deploy --target docker --artifact DIR",
                )
            front = deployment.ensure_front(view, "")
            try:
                self._bring_up(container, verify, progress)
                self._switch(deployment, front, view, container, None, progress)
            except BaseException:
                if not deployment.has_the_traffic(container):
                    container.stop(timeout=self._grace)
                raise
            self._retire(deployment, front, view, remove=True, progress=progress)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See Target 5: there is never a canary here."""
        raise _no_canary("inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See Target 6."""
        with self._changing(progress) as deployment:
            for container in deployment.look().containers.values():
                if container.status == "running":
                    self._keep_log(container)
            progress("removing containers, network and volume")
            deployment.remove_all()
            self._packages.keep_only(())
            shutil.rmtree(self._keys_path.parent, ignore_errors=True)

    def logs(self, lines: int) -> Sequence[str]:
        """See Target 7. They outlive ``undeploy``."""
        if lines <= 0:
            return []
        with self._deployment() as deployment:
            view = deployment.look()
            container = view.container(view.current)
            said = [self._masked(line) for line in log_lines(container, lines)] if container else []
        return (self._kept_lines() + said)[-lines:]

    def keys(self) -> Keys:
        """See Target 7."""
        if self.status() is None:
            raise _nothing_deployed()
        return self._read_keys()

    def diagnose(self) -> Sequence[Finding]:
        """The engine and what a deployment needs of it."""
        try:
            with engine(self._settings.env) as client:
                version = client.version()["Version"]
                view = Deployment(client, self._settings).look()
        except MlopsError as error:
            return [Finding("container engine", False, error.what, error.next_step)]
        trouble = _trouble(view) if view.current else ""
        return [
            Finding("container engine", True, f"version {version}"),
            Finding("docker deployment", not trouble, trouble or "as it should be", "run: inv deploy --target docker"),
        ]

    # The steps of a deployment.

    def _steps(self, view: View, release: Release, image: Any | None) -> list[Step]:
        who = f"{release.model_name} version {release.model_version}"
        where = f"{self._docker.bind}:{self._docker.port}"
        steps = [] if image is not None else [Step(Action.PULL, f"{release.image}@{release.image_digest}")]
        if view.front is None or view.front.status != "running":
            steps.append(Step(Action.START, f"the front, which owns {where}"))
        steps += [
            Step(Action.START, f"{who} beside what serves, until it is healthy"),
            Step(Action.VERIFY, f"{who} on a private address"),
            Step(Action.SWITCH, f"the traffic of {where} to {who}"),
        ]
        before = view.container(view.current)
        return (
            steps if before is None else [*steps, Step(Action.STOP, f"{_who(before)}, once its requests are answered")]
        )

    def _apply(self, deployment: Deployment, release: Release, verify: Verify, progress: Progress) -> None:
        view = deployment.look()
        if self._serves(view, release):
            return progress("another deployment has brought up the same package meanwhile")
        self._remove_strays(view)
        image = deployment.image_of(release, progress, pull=True)
        self._packages.add(release)
        key_file.make(self._keys_path, 0o444)
        front = self._front(deployment, view, progress)
        try:
            self._bring_up_new(deployment, front, view, release, image, verify, progress)
        except BaseException:
            if deployment.look().current is None:
                deployment.remove_all()
            raise
        self._retire(deployment, front, view, remove=False, progress=progress)
        self._forget_unused(deployment)

    def _front(self, deployment: Deployment, view: View, progress: Progress) -> Any:
        image = ""
        if view.front is None:
            with engine(self._settings.env) as client:
                image = proxy_image.provide(client, self._settings.image, progress)
        return deployment.ensure_front(view, image)

    def _bring_up_new(
        self,
        deployment: Deployment,
        front: Any,
        view: View,
        release: Release,
        image: Any,
        verify: Verify,
        progress: Progress,
    ) -> None:
        container = deployment.create(release, image, self._options(), self._keys_path)
        try:
            self._bring_up(container, verify, progress)
            before = view.previous if self._same_package(view, release) else view.current
            self._switch(deployment, front, view, container, before, progress)
        except BaseException:
            # An interrupt, or a word that the engine lost, may come after the switch: then this is what serves.
            if not deployment.has_the_traffic(container):
                self._keep_log(container)
                container.remove(force=True)
            raise

    def _bring_up(self, container: Any, verify: Verify, progress: Progress) -> None:
        """Start, wait until ready, ask. Whatever fails is told with the container's last lines."""
        who = _who(container)
        progress(f"starting {who} beside what serves")
        container.start()
        url = self._wait_until_ready(container, progress)
        progress(f"{who} is healthy; questioning it on {url}")
        try:
            verify(Endpoint(url, self._key(container)), self._packages.find(container.labels[PACKAGE_LABEL]))
        except Exception as error:
            if isinstance(error, MlopsError) and not isinstance(error, UnhealthyError):
                raise
            why = error.what if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
            raise self._unhealthy(container, f"{who} was up, but did not pass: {why}") from error

    def _wait_until_ready(self, container: Any, progress: Progress) -> str:
        import requests

        deadline = time.monotonic() + self._docker.startup_timeout
        said = time.monotonic()
        with requests.Session() as session:
            session.trust_env = False
            while time.monotonic() < deadline:
                container.reload()
                if container.status != "running":
                    code = container.attrs["State"]["ExitCode"]
                    killed = " (out of memory)" if container.attrs["State"].get("OOMKilled") else ""
                    why = f"did not come up: its process ended with code {code}{killed} before it was ready"
                    raise self._unhealthy(container, f"{_who(container)} {why}")
                url = f"http://127.0.0.1:{container.ports[PORT][0]['HostPort']}"
                with suppress(requests.RequestException):
                    if session.get(f"{url}/health/ready", timeout=5).status_code == 200:
                        return url
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    progress(f"{_who(container)} is not ready yet")
                time.sleep(_POLL)
        why = f"was not ready after {self._docker.startup_timeout:g} s"
        raise self._unhealthy(container, f"{_who(container)} did not come up: it {why}")

    def _switch(
        self,
        deployment: Deployment,
        front: Any,
        view: View,
        container: Any,
        previous: Mapping[str, str] | None,
        progress: Progress,
    ) -> None:
        container.update(restart_policy={"Name": "unless-stopped"})
        since = datetime.now(UTC).isoformat(timespec="seconds")
        current = {"container": container.name, "since": since}
        deployment.switch(front, view.current, {"current": current, "previous": previous})
        progress(f"{_who(container)} has the traffic")

    def _retire(self, deployment: Deployment, front: Any, view: View, *, remove: bool, progress: Progress) -> None:
        """Let the version before end what it works on, then stop it; ``remove`` it when nothing leads back to it."""
        before = view.container(view.current)
        if before is None:
            return
        progress(f"{_who(before)} ends what it works on")
        if not deployment.drain(front, before.name):
            progress(f"cut off after {self._docker.drain_timeout:g} s")
        self._keep_log(before)
        before.stop(timeout=self._grace)
        if remove:
            before.remove(force=True)

    def _remove_strays(self, view: View) -> None:
        """What a killed deployment left: candidates that never served, a version that should have been stopped."""
        for name, container in view.containers.items():
            if view.current and name == view.current["container"]:
                continue
            if view.previous and name == view.previous["container"]:
                container.stop(timeout=self._grace)
            else:
                container.remove(force=True)

    def _forget_unused(self, deployment: Deployment) -> None:
        view = deployment.look()
        self._remove_strays(view)
        used = [view.container(entry) for entry in (view.current, view.previous)]
        self._packages.keep_only({container.labels[PACKAGE_LABEL] for container in used if container})

    # What there is.

    def _serves(self, view: View, release: Release) -> bool:
        container = view.container(view.current)
        same = container is not None and container.labels.get(OPTIONS_LABEL) == options_label(
            self._docker, self._options()
        )
        return same and self._same_package(view, release) and not _trouble(view)

    @staticmethod
    def _same_package(view: View, release: Release) -> bool:
        container = view.container(view.current)
        return container is not None and container.labels.get(PACKAGE_LABEL) == release.package_sha256

    def _serving(self) -> Status:
        status = self.status()
        if status is None:
            raise _nothing_deployed()
        return status

    def _options(self) -> dict[str, str]:
        """How the scoring server is to run. Never a key: those are in a file of their own."""
        return server_options(self._settings.env, self._settings.scoring)

    def _url(self) -> str:
        host = "127.0.0.1" if self._docker.bind == "0.0.0.0" else self._docker.bind
        return f"http://{host}:{self._docker.port}"

    @property
    def _grace(self) -> int:
        return max(1, int(self._docker.drain_timeout))

    # Keys and logs.

    def _read_keys(self) -> Keys:
        return key_file.read(self._keys_path, "run: inv undeploy --target docker, then deploy again")

    def _key(self, container: Any | None) -> str:
        options = json.loads(container.labels.get(OPTIONS_LABEL) or "{}") if container else {}
        return self._read_keys().primary if requires_key(options) else ""

    def _masked(self, line: str) -> str:
        if self._keys_path.exists():
            keys = self._read_keys()
            line = line.replace(keys.primary, "***").replace(keys.secondary, "***")
        return line

    def _keep_log(self, container: Any) -> None:
        """Keep what a container said after it is gone, in bounds."""
        container.reload()
        said = [self._masked(line) for line in log_lines(container, _LOG_LINES_KEPT)]
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        kept = (self._kept_lines() + said)[-_LOG_LINES_KEPT:]
        self._log_path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _kept_lines(self) -> list[str]:
        if not self._log_path.exists():
            return []
        return self._log_path.read_text(encoding="utf-8").splitlines()

    def _unhealthy(self, container: Any, why: str) -> UnhealthyError:
        lines = [self._masked(line) for line in log_lines(container, _LOG_LINES_IN_ERRORS)]
        said = "".join(f"\n  | {line}" for line in lines) or " nothing"
        return UnhealthyError(
            f"{why}\nlast that it said:{said}",
            where=_HERE,
            next_step="what served before still serves; see: inv logs --target docker",
        )

    # The engine, one change at a time.

    @contextmanager
    def _deployment(self) -> Iterator[Deployment]:
        with engine(self._settings.env) as client:
            yield Deployment(client, self._settings)

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[Deployment]:
        import filelock

        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(self._home.with_name(f"{self._home.name}.lock"))
        try:
            self._acquire(lock, progress)
        except filelock.Timeout:
            raise UnavailableError(
                "another deployment is still running",
                where=str(lock.lock_file),
                next_step="wait for its end, and run the command again",
            ) from None
        try:
            with self._deployment() as deployment:
                yield deployment
        finally:
            lock.release()

    def _acquire(self, lock: Any, progress: Progress) -> None:
        with suppress(TimeoutError):
            lock.acquire(timeout=0)
            return
        progress("another deployment is running; waiting for its end")
        lock.acquire(timeout=self._docker.startup_timeout + self._docker.drain_timeout + _LOCK_PATIENCE)


def _who(container: Any) -> str:
    return f"{container.labels[MODEL_LABEL]} version {container.labels[VERSION_LABEL]}"


def _model(container: Any | None) -> dict[str, str] | None:
    if container is None:
        return None
    return {"name": container.labels[MODEL_LABEL], "version": container.labels[VERSION_LABEL]}


def _trouble(view: View) -> str:
    """Why what is deployed does not serve; empty when it does."""
    again = "inv deploy --target docker starts it again"
    if view.front is None or view.front.status != "running":
        return f"stopped: its front does not run; {again}"
    container = view.container(view.current)
    if container is None:
        return f"stopped: its container was removed from the engine; {again}"
    if container.status != "running":
        return f"{container.status}: its container does not run; {again}"
    health = container.attrs["State"].get("Health", {}).get("Status", "")
    return "unhealthy: it does not answer its health check" if health == "unhealthy" else ""


def _quiet(_: str) -> None:
    """A plan looks and says nothing while it does."""


def _nothing_deployed() -> UsageError:
    return UsageError("nothing is deployed", where=_HERE, next_step="run: inv deploy --target docker")


def _no_canary(where: str) -> UsageError:
    why = "the target docker serves one version at a time and has no canary"
    return UsageError(why, where=where, next_step="use it with --target aks")
