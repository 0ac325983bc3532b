"""The two ports through which a workflow changes anything outside the working copy, and the values that cross them.

A *platform* keeps pipelines, runs and model versions; a *target* keeps what serves. Nothing of an SDK appears here.
The docstring of a port is its contract in numbered promises; ``tests/contract`` holds every adapter and every fake to
them. The docstring of each method says what it does, returns and raises, with the promise's number in brackets.

A method of an adapter says "See" and the port, and more only where it keeps a promise in a way that a caller should
know of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

Progress = Callable[[str], None]
"""Receives one line at a time: what is being done now, for a person who waits."""


@dataclass(frozen=True)
class Build:
    """The CI build (or the run by hand) that work is done for."""

    id: str
    uri: str = ""
    git_commit: str = ""


@dataclass(frozen=True)
class PipelineDefinition:
    """The content that ``publish`` freezes: a project's sources and the lock that they run under.

    ``files`` maps a path relative to the repository to its SHA-256 (hex); ``root`` is where they are read from.
    ``parameters`` are fixed at publication: ``run_evaluation`` and ``allow_run_cancel``.
    """

    project: str
    model_name: str
    root: Path
    files: Mapping[str, str]
    parameters: Mapping[str, bool]
    lock_sha256: str


@dataclass(frozen=True)
class PublishedPipeline:
    """A frozen training pipeline. ``content_sha256`` covers every file, the lock and the parameters."""

    id: str
    project: str
    model_name: str
    build: Build
    content_sha256: str


class RunStatus(StrEnum):
    """The state of a training run. The gate sets CANCELED when the candidate is not better than the champion."""

    RUNNING = "running"
    COMPLETED = "completed"
    CANCELED = "canceled"
    FAILED = "failed"


@dataclass(frozen=True)
class Run:
    """One execution of a published pipeline.

    ``url`` is its page or directory. When it failed, ``error`` says why and ``exit_code`` is that of the error's
    kind. ``registered`` is ``NAME:VERSION``, or empty. ``verdict`` is the gate's ``verdict.json``, empty before it.
    """

    id: str
    pipeline_id: str
    build: Build
    status: RunStatus
    url: str = ""
    error: str = ""
    exit_code: int = 0
    registered: str = ""
    verdict: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelVersion:
    """A registered, numbered model. ``files`` maps each file's path in the model directory to its SHA-256 (hex).

    ``tags`` holds what the version carried from the call that created it: ``run_id``, ``build_id``, ``build_uri``,
    ``git_commit``, ``pipeline_id``, ``data_sha256``, ``lock_sha256``, ``training_rows_sha256`` and the model's
    ``runtime``. ``created`` is UTC, ISO 8601. ``withdrawn`` is the reason given, or empty.
    """

    id: str
    name: str
    version: str
    created: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Mapping[str, str]
    withdrawn: str = ""

    @property
    def reference(self) -> str:
        """``NAME:VERSION``, as the commands take it."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class Finding:
    """One line of ``inv doctor``: what was checked, whether it is fine, and what to do when it is not."""

    subject: str
    ok: bool
    detail: str
    next_step: str = ""


class Platform(Protocol):
    """Tracking, registry and compute.

    1. ``publish`` is idempotent for a build: the same content gives the same id again; other content under the same
       build id raises UsageError, and what was published stays.
    2. ``pipelines`` lists what a build published, oldest first; an unknown build is an empty list. ``pipeline``
       raises UsageError for an unknown id.
    3. ``submit`` starts exactly what was published, whatever the working tree holds now, on a snapshot of ``data``,
       and returns at once: the run goes on without its caller. ``wait`` returns a run that has ended; a run that
       failed is returned with ``error``, not raised. ``cancel`` ends a run that has not ended; it registers nothing
       from then on.
    4. A run registers at most one version, and only as a whole: a reader sees the version with all its files, tags
       and metrics, or no version. A crash at any moment leaves whole versions only.
    5. ``runs`` lists a build's runs, oldest first. ``model_of_build`` is the newest version registered by a build
       that is not withdrawn, or None.
    6. The gate, the version and the champion's alias move under one lock a model, or a lost race is noticed: the run
       compares again, and nothing is half registered. Two runs at once both end.
    7. ``champion`` is the registered version that the alias names, never a withdrawn one; None when there is none.
    8. ``download`` fills an empty directory with the version's files and raises IntegrityError when one differs from
       its hash.
    9. ``withdraw`` is idempotent; a withdrawn version is never again champion, and the alias falls back to the newest
       version that was champion before and is not withdrawn, else to none. It returns the champion afterwards. An
       unknown version raises UsageError.
    10. Whatever cannot be reached raises UnavailableError naming it; a missing SDK raises ConfigurationError with the
        install line. No other exception leaves an adapter on purpose.
    11. ``plots`` gives the plots that a run's steps drew, as SVG by file name, whether or not the run registered
        anything; it is empty when there is none.
    """

    name: str

    def publish(self, definition: PipelineDefinition, build: Build) -> PublishedPipeline:
        """Freeze ``definition`` under the build's id and return it; what is the same already is returned again (1).

        Raises:
            UsageError: the build has published other content.
            IntegrityError: a file changed while it was copied.
            ConfigurationError: a setting or the lock is missing.
            UnavailableError: what the pipeline needs cannot be made or reached (10).
        """

    def pipelines(self, project: str, build_id: str) -> Sequence[PublishedPipeline]:
        """Return what a build published, oldest first; nothing for an unknown build (2)."""

    def pipeline(self, pipeline_id: str) -> PublishedPipeline:
        """Return one published pipeline (2).

        Raises:
            UsageError: nothing is published under this id.
        """

    def submit(self, pipeline: PublishedPipeline, build: Build, data: Path) -> Run:
        """Start a run of ``pipeline`` on a snapshot of ``data`` and return without waiting for it (3).

        Args:
            pipeline: what to run, as it was published.
            build: the build that the run, and the version that it may register, belong to.
            data: the file to train on; later changes of it do not reach the run.

        Raises:
            UsageError: the pipeline is unknown, or its lock is no longer the one that is installed here.
            DataError: there is no such file.
            IntegrityError: the frozen sources are no longer what was published.
        """

    def wait(self, run: Run, progress: Progress) -> Run:
        """Pass the run's log lines to ``progress`` until it has ended; return how it ended, also when it failed (3).

        Raises:
            UsageError: there is no such run.
        """

    def cancel(self, run: Run) -> None:
        """End ``run`` unless it has ended, and wait until it has (3)."""

    def runs(self, project: str, build_id: str) -> Sequence[Run]:
        """Return the runs of a build, oldest first (5)."""

    def model_of_build(self, model_name: str, build_id: str) -> ModelVersion | None:
        """Return the newest version that a build registered and that is not withdrawn, or None (5)."""

    def version(self, model_name: str, version: str) -> ModelVersion:
        """Return one registered version, withdrawn or not (4).

        Raises:
            UsageError: the gate registered no version of this number.
        """

    def champion(self, model_name: str) -> ModelVersion | None:
        """Return the version that the alias names, or None (7)."""

    def download(self, version: ModelVersion, directory: Path) -> None:
        """Fill the empty ``directory`` with the files of ``version`` (8).

        Raises:
            IntegrityError: a file differs from the hash that was registered.
            UsageError: the version has been deleted from the registry.
        """

    def withdraw(self, version: ModelVersion, reason: str) -> ModelVersion | None:
        """Take ``version`` out of use for good, and return the champion afterwards (9).

        Raises:
            UsageError: there is no such version.
        """

    def plots(self, run: Run) -> Mapping[str, str]:
        """Return the run's plots as SVG by file name (11)."""

    def diagnose(self) -> Sequence[Finding]:
        """Check what a run would need; return one finding for each thing, and raise nothing."""


@dataclass(frozen=True)
class Endpoint:
    """Where a deployment answers, and a key that opens it (never printed)."""

    url: str
    key: str = field(repr=False, default="")


@dataclass(frozen=True)
class Keys:
    """The endpoint's two keys: either opens it, so that one can be changed while the other is in use."""

    primary: str = field(repr=False)
    secondary: str = field(repr=False)


@dataclass(frozen=True)
class Release:
    """A version to deploy: a verified package directory, its identity, and for remote targets its image by digest."""

    package: Path
    package_sha256: str
    model_name: str
    model_version: str
    build_id: str
    image: str = ""
    image_digest: str = ""


class Action(StrEnum):
    """How a step changes its subject; the word is what the printed plan begins the step with."""

    COPY = "copy"
    PULL = "pull"
    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"
    REMOVE = "remove"
    SCALE = "scale"
    START = "start"
    VERIFY = "verify"
    SWITCH = "switch"
    SWAP = "swap"
    MOVE = "move"
    STOP = "stop"
    RESTORE = "restore"


@dataclass(frozen=True)
class Step:
    """One change that ``apply`` makes, in words that a person can check; ``diff`` may show it line by line.

    ``detail`` is what the target needs to perform the step, such as a manifest or the name of an object. Nobody else
    reads it, and two steps with the same words are the same step.
    """

    action: Action
    subject: str
    diff: str = ""
    detail: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Plan:
    """The steps that ``apply`` performs, in order. A dry run prints this very value."""

    target: str
    release: Release
    steps: Sequence[Step]
    canary_percent: int | None = None


@dataclass(frozen=True)
class Status:
    """The deployed version, as ``inv status --json`` prints it. ``previous`` is what a rollback would bring back.

    ``model`` and ``previous`` are ``{"name", "version"}``; ``since`` is UTC, ISO 8601. ``state`` is ``serving`` or
    says why not.
    """

    target: str
    url: str
    model: Mapping[str, str]
    build_id: str
    package: str
    package_sha256: str
    image_digest: str | None
    since: str
    previous: Mapping[str, str] | None
    state: str = "serving"


Verify = Callable[[Endpoint, Path | None], None]
"""Send a candidate its package's examples; raise an MlopsError when it must not serve.

The package is the target's own copy, or None where it keeps none.
"""


class Target(Protocol):
    """Where a package is deployed.

    1. ``plan`` changes nothing; ``apply`` performs exactly the plan's steps. Deploying what already serves is planned
       as no step.
    2. ``apply`` brings the candidate up beside what serves, waits until it is healthy, calls ``verify`` on it, and
       only then moves traffic. No request is lost: none fully sent stays without a complete answer, with keep-alive
       or without.
    3. When the candidate does not come up, or ``verify`` raises, it is removed, the version before still serves, and
       UnhealthyError says why with the candidate's last log lines; an MlopsError of another kind that ``verify`` raises
       is passed on as it is. The same holds for an interrupt.
    4. Two deployments at once: one waits or is refused with UnavailableError; the result is always one of them,
       whole. After ``kill -9`` at any moment the next ``apply`` works.
    5. ``status`` is None when nothing is deployed. ``rollback`` moves back to ``previous`` with the guarantees of 2
       and raises UsageError when there is none; the version left is not ``previous`` afterwards. ``promote`` ends a
       canary in favour of the candidate and raises UsageError without one.
    6. ``undeploy`` removes everything the target holds except its logs and is idempotent.
    7. ``logs`` yields the last lines, oldest first; nothing in them is a key. ``keys`` and ``endpoint`` raise
       UsageError when nothing is deployed.
    8. Whatever cannot be reached raises UnavailableError naming it.

    ``needs_image`` says that a deployment takes the release's image, ``needs_registry`` that it takes it from a
    registry, so that the image has to be pushed.
    """

    name: str
    needs_image: bool
    needs_registry: bool

    def is_configured(self) -> bool:
        """Return whether somebody uses this target from here, without opening a connection."""

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """Return the steps that would make ``release`` serve, and change nothing (1).

        Args:
            release: the package, and for targets that need one its image.
            canary_percent: the candidate's share of the traffic, from 1 to 99; None for all of it.

        Raises:
            UsageError: the target has no canary, one is running already, or nothing serves beside which it could run.
            IntegrityError: the image is not signed as the settings ask.
            ConfigurationError: a setting that the deployment needs is missing.
            UnavailableError: what it looks at cannot be reached (8).
        """

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """Perform the steps of ``plan``, calling ``verify`` on the candidate before it gets traffic (1 to 4).

        Returns:
            What serves afterwards.

        Raises:
            UnhealthyError: the candidate did not come up or did not pass; the version before serves (3).
            UnavailableError: what the plan was made for has changed since, or cannot be reached (4, 8).
        """

    def endpoint(self) -> Endpoint:
        """Return the address of what serves, with a key that opens it (7).

        Raises:
            UsageError: nothing is deployed.
        """

    def status(self) -> Status | None:
        """Return what serves, or None when nothing is deployed (5)."""

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """Move back to the version before, which has to pass ``verify``, too; during a canary, remove it (5).

        Raises:
            UsageError: there is no version before.
            UnhealthyError: the version before did not come up or did not pass; the other still serves.
        """

    def promote(self, progress: Progress) -> Status:
        """Give the canary all traffic, unless its metrics are worse (5).

        Raises:
            UsageError: there is no canary.
            UnhealthyError: its metrics are worse.
            UnavailableError: too few requests were counted to tell.
        """

    def undeploy(self, progress: Progress) -> None:
        """Remove everything that the target holds except its logs; a second time is no error (6)."""

    def logs(self, lines: int) -> Sequence[str]:
        """Return the last ``lines`` lines that the service wrote, oldest first, with keys masked (7)."""

    def keys(self) -> Keys:
        """Return the endpoint's two keys (7).

        Raises:
            UsageError: nothing is deployed.
        """

    def diagnose(self) -> Sequence[Finding]:
        """Check what a deployment would need; return one finding for each thing, and raise nothing."""
