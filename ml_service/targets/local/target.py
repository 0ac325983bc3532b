"""The target on this machine: a supervised process on loopback. See docs/local-target.md and ADR 0030."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_service import package
from ml_service.config import LocalTargetSettings, Settings
from ml_service.errors import IntegrityError, MlopsError, UnavailableError, UnhealthyError, UsageError
from ml_service.ports import Action, Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify
from ml_service.targets.local.state import LOOPBACK, Control, Deployed, Gone, Paths, Refused, State, socket_address

if TYPE_CHECKING:
    import filelock

_HERE = "target local"
_ROOT = Path(__file__).resolve().parents[3]

_STOPPED = "stopped: its supervisor does not run; inv deploy --target local starts it again"

_INHERITED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_", "LD_LIBRARY_PATH", "OMP_", "OPENBLAS_", "COVERAGE_")
"""What the processes get of the task's environment, by how the names begin: what Python needs, and no credentials."""

_OWN_OPTIONS = ("SCORING_HOST", "SCORING_PORT", "SCORING_SOCKET")

_LOG_LINES_IN_ERRORS = 15
_LOCK_PATIENCE = 60.0
"""Seconds to wait for another deployment, on top of the longest that it may take to start and to drain."""

_LEAST_FREE = 500
"""MB: a package, its logs and some air."""


class LocalTarget:
    """The Target port on this machine. Every method may be called from any process; the supervisor holds what lasts."""

    name = "local"
    needs_image = False
    needs_registry = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = settings.local_target
        self._paths = Paths(settings.home)

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See Target 1. One process serves here, so there is no share of the traffic to give away."""
        if canary_percent is not None:
            raise _no_canary("--canary")
        state, trouble = self._look()
        deployed = self._deployed(release)
        at_home = self._port(state) in (0, state.port)
        steps = [] if deployed.same_as(state.current) and at_home and not trouble else self._steps(deployed, state)
        return Plan(self.name, release, steps)

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See Target 2, 3 and 4."""
        if plan.steps:
            with self._changing(progress):
                self._apply(plan.release, verify, progress)
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See Target 7. Without a key when the service was deployed with ``SCORING_AUTH=off``."""
        state, _ = self._look()
        if state.current is None:
            raise _nothing_deployed()
        return Endpoint(_url(state.port), self._key(state.current))

    def status(self) -> Status | None:
        """See Target 5."""
        state, trouble = self._look()
        current = state.current
        if current is None:
            return None
        return Status(
            target=self.name,
            url=_url(state.port),
            model=dict(current.model),
            build_id=current.build_id,
            package=str(self._paths.package(current.package_sha256)),
            package_sha256=current.package_sha256,
            image_digest=None,
            since=current.since,
            previous=dict(state.previous.model) if state.previous else None,
            state=trouble or "serving",
        )

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See Target 5."""
        with self._changing(progress):
            state, _ = self._look()
            if state.previous is None:
                raise UsageError(
                    "there is no version before to go back to", where=_HERE, next_step="see: inv status --target local"
                )
            self._swap(state.previous, verify, progress, forget=True)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See Target 5: there is never a canary here."""
        raise _no_canary("inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See Target 6."""
        if not self._paths.directory.exists():
            return
        with self._changing(progress):
            with suppress(Gone), Control(self._paths.control) as control:
                progress("stopping the service")
                control.ask("undeploy", drain_timeout=self._local.drain_timeout, progress=progress)
            with self._without_supervisor():
                self._remove_all()

    def logs(self, lines: int) -> Sequence[str]:
        """See Target 7. They outlive ``undeploy``."""
        found: list[str] = []
        rotated = sorted(self._paths.logs.glob(f"{self._paths.log.name}.*"), key=lambda path: int(path.suffix[1:]))
        for path in [self._paths.log, *rotated]:
            if len(found) < lines and path.exists():
                found = path.read_text(encoding="utf-8", errors="replace").splitlines() + found
        return found[-lines:] if lines > 0 else []

    def keys(self) -> Keys:
        """See Target 7."""
        state, _ = self._look()
        if state.current is None:
            raise _nothing_deployed()
        return self._read_keys()

    def diagnose(self) -> Sequence[Finding]:
        """Check the libraries, the disk, the control socket and the port that a deployment needs."""
        return [self._find_libraries(), self._find_space(), self._find_socket(), self._find_port()]

    # The steps of a deployment.

    def _steps(self, deployed: Deployed, state: State) -> list[Step]:
        port = self._port(state)
        where = f"port {port} of {LOOPBACK}" if port else f"a free port of {LOOPBACK}"
        if port != state.port and not self._port_is_chosen:
            where += " (or a free one, if that is in use)"
        steps = [
            Step(Action.COPY, f"the package {deployed.package_sha256[:12]} to {self._paths.packages}"),
            Step(Action.START, f"{deployed} beside what serves, until it is healthy"),
            Step(Action.VERIFY, f"{deployed} on a private address"),
            Step(Action.SWITCH, f"the traffic of {where} to {deployed}"),
        ]
        if state.current is not None:
            steps.append(Step(Action.STOP, f"{state.current}, once its requests are answered"))
        return steps

    def _apply(self, release: Release, verify: Verify, progress: Progress) -> None:
        state, trouble = self._look()
        deployed = self._deployed(release)
        if deployed.same_as(state.current) and self._port(state) in (0, state.port) and not trouble:
            progress("another deployment has brought up the same package meanwhile")
            return
        self._remove_unused(state)
        progress(f"copying the package of {deployed}")
        self._copy(release)
        self._make_keys()
        self._swap(deployed, verify, progress, forget=False)
        self._remove_unused(self._look()[0])

    def _swap(self, deployed: Deployed, verify: Verify, progress: Progress, *, forget: bool) -> None:
        """Bring ``deployed`` up, question it, move the traffic. Whatever stops this before, removes it."""
        control = self._supervisor()
        try:
            with control:
                progress(f"starting {deployed} beside what serves")
                answer = self._start(control, deployed, progress)
                progress(f"{deployed} is healthy; questioning it on {answer['url']}")
                self._question(control, Endpoint(answer["url"], self._key(deployed)), deployed, verify)
                control.ask("switch", forget=forget)
                progress(f"{deployed} has the traffic; the version before ends what it works on")
                control.ask("settle", progress=progress)
        except BaseException as error:
            self._remove_candidate()
            if isinstance(error, Refused):
                raise self._error(error, deployed) from None
            if isinstance(error, Gone):
                raise UnavailableError(
                    f"its supervisor went away ({error})", where=_HERE, next_step="run the command again"
                ) from None
            raise

    def _start(self, control: Control, deployed: Deployed, progress: Progress) -> Mapping[str, Any]:
        """Start ``deployed`` beside what serves. A default port that is in use is replaced by a free one."""
        local = self._local
        port = local.port and self._port(self._look()[0])
        options = {"startup_timeout": local.startup_timeout, "drain_timeout": local.drain_timeout}
        try:
            return control.ask("start", progress=progress, deployed=asdict(deployed), port=port, **options)
        except Refused as refused:
            if refused.kind != "port" or self._port_is_chosen:
                raise
            progress(f"port {port} is in use by another program: the service takes a free one")
            return control.ask("start", progress=progress, deployed=asdict(deployed), port=0, **options)

    def _question(self, control: Control, endpoint: Endpoint, deployed: Deployed, verify: Verify) -> None:
        try:
            verify(endpoint, self._paths.package(deployed.package_sha256))
        except Exception as error:
            if isinstance(error, MlopsError) and not isinstance(error, UnhealthyError):
                raise
            why = error.what if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
            raise self._unhealthy(f"{deployed} was up, but did not pass: {why}", control.ask("said")["log"]) from error

    def _remove_candidate(self) -> None:
        with suppress(Gone, Refused), Control(self._paths.control) as control:
            control.ask("discard")

    def _error(self, refused: Refused, deployed: Deployed) -> MlopsError:
        if refused.kind == "port":
            port = self._local.port
            return UnavailableError(
                f"the port is not available: {refused.message}",
                where=f"{LOOPBACK}:{port}",
                next_step=f"stop what listens there, or set LOCAL_PORT={port % 65535 + 1} (0: any free port)",
            )
        if refused.kind == "unhealthy":
            return self._unhealthy(f"{deployed} did not come up: {refused.message}", refused.log)
        if refused.kind == "integrity":
            return IntegrityError(refused.message, where=_HERE, next_step="run: inv deploy --target local")
        return UnavailableError(refused.message, where=_HERE, next_step="free what it names, and run it again")

    def _unhealthy(self, why: str, log: Sequence[str]) -> UnhealthyError:
        said = "".join(f"\n  | {line}" for line in log[-_LOG_LINES_IN_ERRORS:]) or " nothing"
        serving = self._look()[0].current
        still = f"{serving} still serves" if serving else "nothing serves"
        return UnhealthyError(
            f"{why}\nlast that it said:{said}", where=_HERE, next_step=f"{still}; see: inv logs --target local"
        )

    # Files.

    def _copy(self, release: Release) -> None:
        """Have the target's own copy of the package, and be sure of every byte of it."""
        where = release.package
        if package.verify(where) != release.package_sha256:
            raise IntegrityError("is not the package that was planned", where=str(where), next_step="deploy it again")
        copy = self._paths.package(release.package_sha256)
        if copy.exists():
            with suppress(MlopsError):
                package.verify(copy)
                return
            shutil.rmtree(copy)
        temporary = copy.with_name(f".{copy.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            shutil.copytree(where, temporary, ignore=shutil.ignore_patterns("__pycache__"))
            package.verify(temporary)
            temporary.replace(copy)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _remove_unused(self, state: State) -> None:
        used = {deployed.package_sha256 for deployed in (state.current, state.previous) if deployed}
        for path in self._paths.packages.glob("*"):
            if path.name not in used:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_all(self) -> None:
        for path in self._paths.directory.iterdir():
            if path.is_dir() and path != self._paths.logs:
                shutil.rmtree(path)
            elif path.is_file() or path.is_socket():
                path.unlink()

    def _make_keys(self) -> None:
        """Two keys that outlive deployments; only this user can read them."""
        path = self._paths.keys
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                json.dump({"primary": secrets.token_urlsafe(32), "secondary": secrets.token_urlsafe(32)}, file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _read_keys(self) -> Keys:
        try:
            return Keys(**json.loads(self._paths.keys.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            raise IntegrityError(
                "holds no two keys", where=str(self._paths.keys), next_step="run: inv undeploy --target local"
            ) from None

    def _key(self, deployed: Deployed) -> str:
        without = deployed.options.get("SCORING_AUTH", "").lower() in ("off", "false", "no", "0")
        return "" if without else self._read_keys().primary

    # The supervisor.

    def _look(self) -> tuple[State, str]:
        """What is deployed, and why it does not serve, if so. A dead supervisor's last word is its state file."""
        with suppress(Gone), Control(self._paths.control) as control:
            answer = control.ask("status")
            return State.of(answer["state"], self._paths.state), answer["trouble"]
        return State.load(self._paths.state), _STOPPED

    def _serving(self) -> Status:
        status = self.status()
        if status is None:
            raise _nothing_deployed()
        return status

    def _supervisor(self) -> Control:
        """A conversation with the supervisor, which is started when there is none."""
        with suppress(Gone):
            control = Control(self._paths.control)
            control.ask("status")
            return control
        self._start_supervisor()
        return Control(self._paths.control)

    def _start_supervisor(self) -> None:
        self._paths.logs.mkdir(exist_ok=True)
        with (self._paths.logs / "supervisor.err").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "ml_service.targets.local.supervisor", str(self._paths.home)],
                cwd=_ROOT,
                env=_inherited(self._settings.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout:
            said = process.stdout.readline()
        answer = json.loads(said) if said else {"message": f"see {self._paths.logs / 'supervisor.err'}"}
        if "message" in answer:
            process.wait()
            raise UnavailableError(
                f"its supervisor did not start: {answer['message']}", where=_HERE, next_step="run the command again"
            )

    @contextmanager
    def _without_supervisor(self) -> Iterator[None]:
        import filelock

        try:
            with filelock.FileLock(self._paths.supervisor_lock, timeout=60):
                yield
        except filelock.Timeout:
            raise UnavailableError(
                "its supervisor runs, but cannot be reached",
                where=str(self._paths.control),
                next_step=f"end it: fuser -k {self._paths.supervisor_lock}",
            ) from None

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[None]:
        """One change at a time, across processes; what the disk refuses becomes an error with a next step."""
        import filelock

        try:
            self._paths.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._paths.packages.mkdir(exist_ok=True)
            lock = filelock.FileLock(self._paths.deploy_lock)
            self._acquire(lock, progress)
            try:
                yield
            finally:
                lock.release()
        except filelock.Timeout:
            raise UnavailableError(
                "another deployment is still running",
                where=str(self._paths.deploy_lock),
                next_step="wait for its end, and run the command again",
            ) from None
        except OSError as error:
            raise UnavailableError(
                f"{error.strerror or error}",
                where=str(error.filename or self._paths.directory),
                next_step="free space there or make it writable, and run the command again; what served still serves",
            ) from error

    def _acquire(self, lock: filelock.BaseFileLock, progress: Progress) -> None:
        with suppress(TimeoutError):
            lock.acquire(timeout=0)
            return
        progress("another deployment is running; waiting for its end")
        lock.acquire(timeout=self._local.startup_timeout + self._local.drain_timeout + _LOCK_PATIENCE)

    def _deployed(self, release: Release) -> Deployed:
        return Deployed(
            model={"name": release.model_name, "version": release.model_version},
            build_id=release.build_id,
            package_sha256=release.package_sha256,
            options=_options(self._settings.env, self._local.workers),
        )

    @property
    def _port_is_chosen(self) -> bool:
        """Whether LOCAL_PORT is set. Otherwise its default is only the first choice."""
        return self._local.port != LocalTargetSettings.port or bool(self._settings.env.get("LOCAL_PORT"))

    def _port(self, state: State) -> int:
        """Return the port of the endpoint, 0 for any free one. A port that nobody chose stays what it was."""
        stays = self._local.port == 0 or not self._port_is_chosen
        return state.port or self._local.port if stays else self._local.port

    # inv doctor.

    def _find_libraries(self) -> Finding:
        missing = [name for name in ("aiohttp", "filelock", "requests") if find_spec(name) is None]
        detail = f"missing: {', '.join(missing)}" if missing else "installed"
        return Finding("libraries of the local target", not missing, detail, "run: make" if missing else "")

    @property
    def _existing_directory(self) -> Path:
        return next(path for path in (self._paths.directory, *self._paths.directory.parents) if path.exists())

    def _find_socket(self) -> Finding:
        """Some file systems have no unix sockets, such as Windows' drives under WSL."""
        subject, directory = "control socket of the local target", self._existing_directory
        path = directory / f".{os.getpid()}.sock"
        try:
            with socket.socket(socket.AF_UNIX) as listener, socket_address(path) as address:
                listener.bind(address)
        except OSError as error:
            next_step = "set MLOPS_HOME to a directory of a local file system (under WSL below ~, not below /mnt/c)"
            return Finding(subject, False, f"{directory}: {error.strerror}", next_step)
        finally:
            path.unlink(missing_ok=True)
        return Finding(subject, True, f"{directory} can hold it")

    def _find_space(self) -> Finding:
        directory = self._existing_directory
        free = shutil.disk_usage(directory).free // 2**20
        ok = free >= _LEAST_FREE and os.access(directory, os.W_OK)
        next_step = "" if ok else f"make it writable, with {_LEAST_FREE} MB free, or set MLOPS_HOME"
        return Finding("disk of the local target", ok, f"{free} MB free at {directory}", next_step)

    def _find_port(self) -> Finding:
        subject = "port of the local target"
        state, trouble = self._look()
        port = self._port(state)
        if self._local.port == 0:
            return Finding(subject, True, "any free one")
        if port == state.port and not trouble:
            return Finding(subject, True, f"{port}, in use by this target")
        try:
            with socket.create_server((LOOPBACK, port)):
                return Finding(subject, True, f"{port} is free")
        except OSError as error:
            if not self._port_is_chosen:
                return Finding(subject, True, f"{port} is in use by another program: a deployment takes a free one")
            return Finding(subject, False, f"{port}: {error.strerror}", "set LOCAL_PORT to a free one, or 0")


def _options(env: Mapping[str, str], workers: int) -> dict[str, str]:
    """How the scoring server is to run. Never a key: those are in a file of their own."""
    chosen = (name for name in env if name.startswith("SCORING_") and name not in _OWN_OPTIONS and "KEY" not in name)
    return {**{name: env[name] for name in chosen if env[name]}, "SCORING_WORKERS": str(workers)}


def _inherited(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_INHERITED)}


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def _nothing_deployed() -> UsageError:
    return UsageError("nothing is deployed", where=_HERE, next_step="run: inv deploy --target local")


def _no_canary(where: str) -> UsageError:
    why = "the target local serves one version at a time and has no canary"
    return UsageError(why, where=where, next_step="use it with --target aks")
