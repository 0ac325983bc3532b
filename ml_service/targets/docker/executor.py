"""Perform the steps of a plan on a container engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ml_service.common import keys as key_file
from ml_service.common.errors import LOG_LINES, unhealthy
from ml_service.common.plan import perform
from ml_service.common.verify import is_ready, verify_candidate
from ml_service.common.waiting import wait_until
from ml_service.config import Settings
from ml_service.errors import UnhealthyError
from ml_service.http_session import session_for
from ml_service.images.engine import PACKAGE_LABEL, engine
from ml_service.ports import Action, Endpoint, Progress, Release, Step, Verify
from ml_service.targets.docker import proxy_image
from ml_service.targets.docker.containers import PORT, RESTARTING, Snapshot, describe
from ml_service.targets.docker.reader import Reader

_POLL = 0.1


class Executor:
    """One change of the target. The caller holds the deployment lock; ``snapshot`` was read since.

    When a step fails before the traffic has moved, the candidate's container is removed (after a rollback's: stopped),
    and where nothing served before, the proxy with its network and volume, too. From the switch on the new version
    stays, also when the task is interrupted in the middle of the command.

    Beyond the printed steps it does bookkeeping in the target's own folder below MLOPS_HOME: it generates the keys,
    copies the package, removes packages that no version needs, and appends to the log file.
    """

    def __init__(
        self, settings: Settings, snapshot: Snapshot, options: Mapping[str, str], reader: Reader, progress: Progress
    ) -> None:
        self._settings = settings
        self._docker = settings.docker
        self._deployment = snapshot.deployment
        self._snapshot = snapshot
        self._options = options
        self._reader = reader
        self._progress = progress
        self._proxy = snapshot.proxy
        self._candidate: Any = None
        self._is_new = False

    def perform(self, steps: Sequence[Step], release: Release | None, verify: Verify) -> None:
        """Perform the steps. ``release`` is None when they start a container that is there.

        Raises:
            UnhealthyError: the candidate did not come up or did not pass.
            UnavailableError: the port is in use, or the engine or the registry does not answer.
        """
        performers: Mapping[Action, Callable[[Step], None]] = {
            Action.PULL: lambda step: self._pull(release),
            Action.CREATE: self._run_proxy,
            Action.RESTORE: self._run_proxy,
            Action.START: lambda step: self._start(step, release),
            Action.VERIFY: lambda step: self._verify(verify),
            Action.SWITCH: self._switch,
            Action.STOP: self._stop,
            Action.REMOVE: self._remove,
        }
        try:
            perform(steps, performers)
        except BaseException:
            self._remove_candidate()
            raise
        self._forget_packages()

    def undeploy(self) -> None:
        """Remove everything but the logs."""
        for container in self._snapshot.containers.values():
            if container.status == "running":
                self._reader.log_file.add(container)
        self._progress("removing containers, network and volume")
        self._deployment.remove_all()
        self._reader.packages.keep_only(())
        shutil.rmtree(self._reader.keys_path.parent, ignore_errors=True)

    # The steps, in their order.

    def _pull(self, release: Release | None) -> None:
        assert release is not None
        self._deployment.image_of(release, self._progress, pull=True)

    def _run_proxy(self, _step: Step) -> None:
        image = ""
        if self._proxy is None:
            with engine(self._settings.env) as client:
                image = proxy_image.provide(client, self._settings.image, self._progress)
        self._proxy = self._deployment.run_proxy(self._proxy, image)

    def _start(self, step: Step, release: Release | None) -> None:
        # A proxy that runs may own another port than the settings name by now, which is refused.
        self._proxy = self._deployment.run_proxy(self._proxy, "")
        self._is_new = release is not None
        if release is not None:
            self._candidate = self._create(release)
        else:
            self._candidate = self._snapshot.containers[step.detail]
        self._progress(f"starting {describe(self._candidate)} beside what serves")
        self._candidate.start()
        self._wait_until_ready()

    def _create(self, release: Release) -> Any:
        self._reader.packages.add(release)
        # The container reads the file as another user.
        key_file.make(self._reader.keys_path, 0o444)
        image = self._deployment.image_of(release, self._progress, pull=False)
        return self._deployment.create(release, image, self._options, self._reader.keys_path)

    def _wait_until_ready(self) -> None:
        name, timeout = describe(self._candidate), self._docker.startup_timeout

        with session_for("http://127.0.0.1") as session:

            def is_up() -> bool:
                self._candidate.reload()
                self._refuse_ended()
                return is_ready(session, self._url)

            def report(_seconds: float) -> None:
                self._progress(f"{name} is not ready yet")

            if not wait_until(is_up, timeout=timeout, poll=_POLL, report=report):
                raise self._unhealthy(f"{name} did not come up: it was not ready after {timeout:g} s")

    def _refuse_ended(self) -> None:
        if self._candidate.status != "running":
            state = self._candidate.attrs["State"]
            killed = " (out of memory)" if state.get("OOMKilled") else ""
            ended = f"its process ended with code {state['ExitCode']}{killed} before it was ready"
            raise self._unhealthy(f"{describe(self._candidate)} did not come up: {ended}")

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._candidate.ports[PORT][0]['HostPort']}"

    def _verify(self, verify: Verify) -> None:
        name = describe(self._candidate)
        self._progress(f"{name} is healthy; verifying it on {self._url}")
        endpoint = Endpoint(self._url, self._reader.key(self._candidate))
        package = self._reader.packages.find(self._candidate.labels[PACKAGE_LABEL])
        verify_candidate(
            verify, endpoint, package, lambda reason: self._unhealthy(f"{name} was up, but did not pass: {reason}")
        )

    def _switch(self, step: Step) -> None:
        self._candidate.update(restart_policy=RESTARTING)
        current = {"container": self._candidate.name, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        route = {"current": current, "previous": step.detail}
        self._deployment.switch(self._proxy, self._snapshot.current, route)
        self._progress(f"{describe(self._candidate)} has the traffic")

    def _stop(self, step: Step) -> None:
        container = self._snapshot.containers[step.detail]
        self._progress(f"{describe(container)} ends what it works on")
        if not self._deployment.drain(self._proxy, container.name):
            self._progress(f"cut off after {self._docker.drain_timeout:g} s")
        self._reader.log_file.add(container)
        container.stop(timeout=self._grace)

    def _remove(self, step: Step) -> None:
        self._snapshot.containers[step.detail].remove(force=True)

    # After a failure.

    def _remove_candidate(self) -> None:
        """Remove the candidate, unless it has the traffic: an interrupt may come after the switch."""
        candidate = self._candidate
        if candidate is not None and not self._deployment.has_the_traffic(candidate):
            if self._is_new:
                self._reader.log_file.add(candidate)
                candidate.remove(force=True)
            else:
                candidate.stop(timeout=self._grace)
        if self._snapshot.current is None and self._deployment.read().current is None:
            self._deployment.remove_all()

    def _forget_packages(self) -> None:
        snapshot = self._deployment.read()
        containers = [snapshot.container(entry) for entry in (snapshot.current, snapshot.previous)]
        self._reader.packages.keep_only({one.labels[PACKAGE_LABEL] for one in containers if one})

    @property
    def _grace(self) -> int:
        return max(1, int(self._docker.drain_timeout))

    def _unhealthy(self, reason: str) -> UnhealthyError:
        next_step = "what served before, if anything, still serves; see: inv logs --target docker"
        return unhealthy("docker", reason, self._reader.log_lines(self._candidate, LOG_LINES), next_step)
