"""Deploy an artifact, verify the live endpoint, and move between versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ml_service import package
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.errors import (
    MlopsError,
    UnhealthyError,
    UsageError,
)
from ml_service.ports import (
    Endpoint,
    Keys,
    Plan,
    Platform,
    Release,
    Status,
    Target,
    Verify,
)
from ml_service.smoke import smoke as verify_examples
from ml_service.workflows.artifact import package_artifact, refuse_foreign, release


def deploy(
    settings: Settings,
    platform: Platform,
    target: Target,
    console: Console,
    *,
    artifact: Path,
    dry_run: bool = False,
    canary_percent: int | None = None,
) -> Plan:
    """Plan, show the plan and, unless ``dry_run``, apply it. Return the plan.

    The candidate has to answer its package's examples before it serves.

    Raises:
        UsageError: the artifact is of another branch or build, or its model is withdrawn.
        IntegrityError: the artifact's content is not what was packaged.
        MlopsError: as ``Target.plan`` and ``Target.apply`` raise it.
    """
    content = package.read_artifact(artifact)
    refuse_foreign(settings, content)
    ready = release(content)
    console.line(
        f"{ready.model_name}:{ready.model_version} of build {ready.build_id}, package {ready.package_sha256[:12]}"
    )
    plan = target.plan(ready, canary_percent=canary_percent)
    _show(plan, console)
    if dry_run:
        _refuse_withdrawn(platform, ready, console)
        console.line("a dry run: nothing was changed")
        return plan
    # A query of the registry takes seconds. The candidate comes up meanwhile, and must not serve before the response.
    with ThreadPoolExecutor(max_workers=1) as executor:
        registry_check = executor.submit(_refuse_withdrawn, platform, ready, console)
        try:
            status = target.apply(plan, _verification(settings, console, registry_check), console.progress)
        except UnhealthyError:
            # When the registry's response is what kept the candidate from serving, that is the error to report.
            registry_check.result()
            raise
        registry_check.result()
    console.output("scoring_url", status.url)
    _say_status(status, console)
    return plan


def _verification(settings: Settings, console: Console, registry_check: Future[None] | None = None) -> Verify:
    """Return the verification of a candidate: its package's examples, then ``registry_check``, which may raise."""

    def verify(endpoint: Endpoint, directory: Path | None) -> None:
        if directory:
            verify_examples(endpoint, directory, timeout=settings.smoke_timeout, progress=console.progress)
        if registry_check:
            registry_check.result()

    return verify


def _refuse_withdrawn(platform: Platform, ready: Release, console: Console) -> None:
    try:
        version = platform.version(ready.model_name, ready.model_version)
    except UsageError:
        console.warning(
            f"{ready.model_name}:{ready.model_version} is unknown to this registry, so it may have been withdrawn"
        )
        return
    if version.withdrawn:
        raise UsageError(
            f"{version.reference} is withdrawn: {version.withdrawn}",
            where="--artifact",
            next_step="deploy another model",
        )


def _show(plan: Plan, console: Console) -> None:
    if not plan.steps:
        console.line(f"plan for {plan.target}: nothing to change, this package serves already")
    else:
        console.line(f"plan for {plan.target}:")
    for step in plan.steps:
        console.line(f"  {step.action} {step.subject}")
        for line in step.diff.splitlines():
            console.line(f"      {line}")


def _say_status(status: Status, console: Console) -> None:
    console.line(f"{status.model['name']}:{status.model['version']} {status.state} at {status.url}/score")


def smoke(settings: Settings, target: Target, console: Console, *, artifact: Path) -> None:
    """Verify that the live endpoint answers its package's examples. When it fails, roll back.

    Raises:
        UnhealthyError: a response differs from the package's; the version before serves again, where there was one.
        UsageError: nothing is deployed, or the artifact is not what serves.
    """
    status = target.status()
    if not status:
        raise UsageError("nothing is deployed", where=target.name, next_step=f"run: inv deploy --target {target.name}")
    try:
        verify_examples(
            target.endpoint(),
            _served_package(status, artifact),
            timeout=settings.smoke_timeout,
            progress=console.progress,
        )
    except UnhealthyError as error:
        raise _put_back(settings, target, console, status, error) from None
    console.line(
        f"{status.model['name']}:{status.model['version']} answers its package's examples at {status.url}/score"
    )


def _served_package(status: Status, artifact: Path) -> Path:
    """Return the package that serves: the target's copy of it, or else the artifact when that is the one."""
    if status.package and Path(status.package).is_dir():
        return Path(status.package)
    candidate = package.read_artifact(artifact)
    if candidate.package_sha256 != status.package_sha256:
        raise UsageError(
            f"what serves is package {status.package_sha256[:12]}, the artifact is {candidate.package_sha256[:12]}",
            where=str(artifact),
            next_step="pass the artifact that was deployed: --artifact DIR",
        )
    return candidate.package


def _put_back(
    settings: Settings, target: Target, console: Console, failed: Status, error: UnhealthyError
) -> UnhealthyError:
    if not failed.previous:
        return UnhealthyError(
            error.what, where=error.where, next_step="there is no version before to go back to: fix it, or inv undeploy"
        )
    try:
        restored = rollback(settings, target, console)
    except MlopsError as failure:
        serving = f"{failed.model['name']}:{failed.model['version']} still serves"
        raise UnhealthyError(
            f"{error.what}; and the version before could not be put back ({failure.what}): {serving}",
            where=error.where,
            next_step=failure.next_step or error.next_step,
        ) from None
    served = f"{restored.model['name']}:{restored.model['version']}"
    return UnhealthyError(f"{error.what}; rolled back, {served} serves", where=error.where, next_step=error.next_step)


def rollback(settings: Settings, target: Target, console: Console) -> Status:
    """Move back to the version before, which has to answer its package's examples; during a canary, end that.

    Return what serves then.

    Raises:
        UsageError: there is no version before.
        UnhealthyError: it did not come up or did not pass; the other still serves.
    """
    status = target.rollback(_verification(settings, console), console.progress)
    _say_status(status, console)
    return status


def promote(target: Target, console: Console) -> Status:
    """Give the canary all traffic, and return what serves then.

    Raises:
        UsageError: there is no canary.
        UnhealthyError: its metrics are worse.
    """
    status = target.promote(console.progress)
    _say_status(status, console)
    return status


def undeploy(target: Target, console: Console) -> None:
    """Remove everything that the target holds except its logs."""
    target.undeploy(console.progress)
    console.line(f"nothing is deployed on {target.name}")


def overview(targets: Sequence[Target]) -> dict[str, Status | MlopsError | None]:
    """Return the status of each target that is configured, or the error that kept it from being read.

    The targets are asked side by side: one that does not answer delays nobody but itself.
    """
    configured = [target for target in targets if target.is_configured()]
    with ThreadPoolExecutor(max_workers=max(1, len(configured))) as pool:
        outcomes = pool.map(_status_or_error, configured)
    return {target.name: outcome for target, outcome in zip(configured, outcomes, strict=True)}


def _status_or_error(target: Target) -> Status | MlopsError | None:
    try:
        return target.status()
    except MlopsError as error:
        return error


def keys(settings: Settings, target: Target, *, show: bool) -> Keys:
    """Return the endpoint's keys. Their values are refused where a log would hold them.

    Raises:
        UsageError: ``show`` under Azure Pipelines, or nothing is deployed.
    """
    if show and settings.azure_pipelines:
        raise UsageError(
            "a pipeline's log would keep the keys",
            where="--show",
            next_step="run it by hand, where TF_BUILD is not set",
        )
    return target.keys()


def redeploy(
    settings: Settings,
    platform: Platform,
    target: Target,
    console: Console,
    *,
    artifact: Path,
    build_image: Callable[[], None] = lambda: None,
) -> None:
    """Deploy the champion with the current scoring code: package, build the image, deploy, smoke test.

    Raises:
        MlopsError: a stage failed; of the kind of its error.
    """
    package_artifact(settings, platform, console, output=artifact, model="champion")
    build_image()
    deploy(settings, platform, target, console, artifact=artifact)
    smoke(settings, target, console, artifact=artifact)
