"""The use cases behind the tasks. Each takes the settings, the ports it needs and a console; none knows an SDK."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_service import builds, package, project
from ml_service.config import Settings, is_plain
from ml_service.console import Console
from ml_service.errors import (
    ConfigurationError,
    DataError,
    IntegrityError,
    MlopsError,
    NotRegisteredError,
    UnavailableError,
    UnhealthyError,
    UsageError,
)
from ml_service.ports import (
    Endpoint,
    Keys,
    ModelVersion,
    Plan,
    Platform,
    PublishedPipeline,
    Release,
    Run,
    RunStatus,
    Status,
    Target,
    Verify,
)
from ml_service.smoke import smoke as ask
from ml_service.summary import training_summary

NOT_REGISTERED = "Model was not registered for this run."

_MOST_FINDINGS = 50
"""Azure Pipelines' page shows a few issues; more in the log help nobody."""

_KINDS: dict[int, type[MlopsError]] = {
    kind.exit_code: kind
    for kind in (UsageError, DataError, ConfigurationError, UnavailableError, UnhealthyError, IntegrityError)
}


# Training


def validate_data(settings: Settings, console: Console, data: str = "") -> None:
    """Let the project check the data that it would train on, or the file ``data``."""
    described = project.read_project(settings.root, settings.project)
    file = Path(data).absolute() if data else data_file(settings, described)
    reference = ["--reference", described.reference] if described.reference else []
    with tempfile.TemporaryDirectory(prefix="mlops-validate-") as directory:
        report = Path(directory) / "report.json"
        arguments = ["validate", "--data", str(file), *reference, "--report", str(report)]
        try:
            project.run_step(described.name, arguments, settings.root, settings.env, console.line)
        except DataError:
            _show_problems(settings, console, report)
            raise


def _show_problems(settings: Settings, console: Console, report: Path) -> None:
    """Each problem beside its line, where the pipeline shows files; the error itself names only the first."""
    if not report.is_file():
        return
    for problem in project.read_step_json(report).get("problems", [])[:_MOST_FINDINGS]:
        place = Path(str(problem.get("file", "")))
        shown = place.relative_to(settings.root) if place.is_relative_to(settings.root) else place
        column = f"column {problem['column']}: " if problem.get("column") else ""
        console.finding(f"{column}{problem.get('message', '')}", f"{shown}:{problem.get('row') or 1}")


def data_file(settings: Settings, described: project.Project) -> Path:
    """The file that training reads: DATA_FILE, or the project's own."""
    return settings.data_file or settings.root / described.data


def model_name(settings: Settings) -> str:
    """The name under which models are registered: MODEL_NAME, or the project's own."""
    return settings.model_name or project.read_project(settings.root, settings.project).model_name


def publish(settings: Settings, platform: Platform, console: Console) -> PublishedPipeline:
    """Freeze the training pipeline under the build's id."""
    resolved = builds.mint(settings)
    console.line(str(resolved))
    described = project.read_project(settings.root, settings.project)
    parameters = {"run_evaluation": settings.run_evaluation, "allow_run_cancel": settings.allow_run_cancel}
    definition = project.define(settings.root, described, model_name(settings), parameters)
    published = platform.publish(definition, resolved.build)
    console.line(f"published {published.id}: {len(definition.files)} files, content {published.content_sha256[:12]}")
    console.output("pipeline_id", published.id)
    console.output("look_at", published.id)
    return published


def train(
    settings: Settings,
    platform: Platform,
    console: Console,
    *,
    pipeline_id: str = "",
    wait: bool = True,
    confirm_cancel: Callable[[], bool] = lambda: True,
) -> Run:
    """Run what the build published. ``confirm_cancel`` is asked when a person interrupts the wait.

    Raises:
        MlopsError: of the kind of what went wrong in the run.
    """
    resolved = builds.current(settings)
    console.line(str(resolved))
    pipeline = (
        platform.pipeline(pipeline_id) if pipeline_id else _pipeline_of_build(settings, platform, resolved.build.id)
    )
    described = project.read_project(settings.root, settings.project)
    run = platform.submit(pipeline, resolved.build, data_file(settings, described))
    console.line(f"run {run.id} of {pipeline.id}" + (f": {run.url}" if run.url else ""))
    if not wait:
        console.line("not waiting: inv check-model takes it up")
        return run
    return _report(_waited(platform, console, run, confirm_cancel), console)


def _pipeline_of_build(settings: Settings, platform: Platform, build_id: str) -> PublishedPipeline:
    found = platform.pipelines(settings.project, build_id)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"build {build_id} has published no pipeline", where="train", next_step="run: inv publish")
    listed = ", ".join(pipeline.id for pipeline in found)
    raise UsageError(
        f"build {build_id} has published several pipelines: {listed}",
        where="train",
        next_step="choose one: --pipeline-id ID",
    )


def _waited(platform: Platform, console: Console, run: Run, confirm_cancel: Callable[[], bool]) -> Run:
    try:
        with console.group(f"run {run.id}"):
            return platform.wait(run, console.progress)
    except KeyboardInterrupt:
        if confirm_cancel():
            console.line(f"canceling run {run.id}")
            platform.cancel(run)
        else:
            console.line(f"run {run.id} goes on: inv check-model takes it up")
        raise


def _report(run: Run, console: Console) -> Run:
    _refuse_failed(run)
    if run.verdict:
        console.line(f"verdict: {run.verdict['reason']}")
    if run.registered:
        console.line(f"registered {run.registered}")
    else:
        console.line(f"run {run.id} ended as {run.status.value}. {NOT_REGISTERED}")
    return run


def _failure(run: Run) -> MlopsError:
    kind = _KINDS.get(run.exit_code, MlopsError)
    what, _, next_step = run.error.partition("\nnext: ")
    return kind(what, where=f"run {run.id}", next_step=next_step or (f"look at {run.url}" if run.url else ""))


def check_model(
    settings: Settings, platform: Platform, console: Console, *, fail_if_none: bool = False
) -> ModelVersion | None:
    """Say whether the build registered a model; waits for a run that still goes on.

    Raises:
        UsageError: the build ran no training.
        NotRegisteredError: none was registered and ``fail_if_none`` is set.
    """
    resolved = builds.current(settings)
    console.line(str(resolved))
    runs = platform.runs(settings.project, resolved.build.id)
    version = platform.model_of_build(model_name(settings), resolved.build.id)
    if not version and runs:
        runs = [*runs[:-1], _ended(platform, console, runs[-1])]
        _refuse_failed(runs[-1])
        version = platform.model_of_build(model_name(settings), resolved.build.id)
    elif not version:
        raise _untrained(resolved.build.id, "check-model")
    _say_registered(console, version)
    if settings.azure_pipelines and runs:
        _summarise(settings, platform, console, runs[-1], version)
    if not version:
        if fail_if_none:
            raise NotRegisteredError(
                NOT_REGISTERED, where=f"build {resolved.build.id}", next_step="see the verdict of inv train"
            )
        return None
    return version


def _say_registered(console: Console, version: ModelVersion | None) -> None:
    console.output("model_registered", "true" if version else "false")
    if not version:
        console.line(NOT_REGISTERED)
        return
    console.output("model_name", version.name)
    console.output("model_version", version.version)
    console.tag("model-registered")
    console.line(f"Model {version.reference} was registered for this run.")


def _summarise(
    settings: Settings, platform: Platform, console: Console, run: Run, version: ModelVersion | None
) -> None:
    """Show the run on the pipeline's page; plots that cannot be had must not turn a registered model into a failure."""
    try:
        plots = platform.plots(run)
    except MlopsError as error:
        console.warning(f"the summary has no plots: {error.what}")
        plots = {}
    path = settings.home / "summaries" / f"{run.build.id}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(training_summary(run, version, plots, NOT_REGISTERED), encoding="utf-8")
    console.summary(path)


def check_artifact(settings: Settings, console: Console, artifact: Path) -> package.Artifact:
    """Say which model an artifact holds, and refuse one that must not be deployed here.

    Raises:
        UsageError: it is of another branch than DEPLOY_BRANCH, or of another build than MODEL_BUILD_ID.
        IntegrityError: its content is not what was packaged.
    """
    found = package.read_artifact(artifact)
    _refuse_foreign(settings, found)
    name, version = str(found.model["name"]), str(found.model["version"])
    console.output("model_name", name)
    console.output("model_version", version)
    console.line(f"Model {name}:{version} of build {_build_of(found)}, package {found.package_sha256[:12]}")
    return found


def _build_of(artifact: package.Artifact) -> str:
    return str(artifact.model["tags"].get("build_id", ""))


def _refuse_foreign(settings: Settings, artifact: package.Artifact) -> None:
    wanted, branch = settings.deploy_branch, str(artifact.model.get("branch", ""))
    if wanted and wanted.removeprefix("refs/heads/") != branch.removeprefix("refs/heads/"):
        raise UsageError(
            f"was made on {branch or 'no branch'}, and only {wanted} is deployed",
            where=str(artifact.directory),
            next_step="deploy an artifact of that branch, or change DEPLOY_BRANCH",
        )
    build = settings.model_build_id
    if not build:
        return
    if not (build.isascii() and build.isdigit()):
        raise UsageError(
            f"{build!r} is no build id: digits only",
            where="MODEL_BUILD_ID",
            next_step="take the number after buildId= in the address of the training pipeline's run",
        )
    if build != _build_of(artifact):
        raise UsageError(
            f"is of build {_build_of(artifact)}, and build {build} was asked for",
            where=str(artifact.directory),
            next_step="download that build's artifact",
        )


def _ended(platform: Platform, console: Console, run: Run) -> Run:
    return _waited(platform, console, run, lambda: False) if run.status is RunStatus.RUNNING else run


def _untrained(build_id: str, where: str) -> UsageError:
    return UsageError(f"build {build_id} ran no training", where=where, next_step="run: inv train")


def _refuse_failed(run: Run) -> None:
    if run.status is RunStatus.FAILED:
        raise _failure(run)


def withdraw(settings: Settings, platform: Platform, console: Console, *, reference: str, reason: str) -> None:
    """Take a version out of use for good."""
    if not reason.strip():
        raise UsageError(
            "a reason is needed: it is kept with the version", where="--reason", next_step='add --reason "TEXT"'
        )
    version = find_version(settings, platform, reference)
    champion = platform.withdraw(version, reason)
    console.line(f"{version.reference} is withdrawn: {reason}")
    console.line(f"champion: {champion.reference if champion else 'none'}")
    console.line("what serves is unchanged: see inv status, and inv rollback or inv redeploy")


def find_version(settings: Settings, platform: Platform, reference: str) -> ModelVersion:
    """The version that ``champion`` or ``NAME:VERSION`` means.

    Raises:
        UsageError: there is none.
    """
    if reference == "champion":
        champion = platform.champion(model_name(settings))
        if not champion:
            raise UsageError("there is no champion yet", where="--model", next_step="train one: inv publish train")
        return champion
    name, separator, number = reference.rpartition(":")
    if not separator or not is_plain(name) or not number.isdecimal():
        raise UsageError(f"{reference!r} is no model", where="--model", next_step="use NAME:VERSION or champion")
    return platform.version(name, number)


# The artifact


def package_artifact(
    settings: Settings, platform: Platform, console: Console, *, output: Path, model: str = ""
) -> package.Artifact:
    """Write ``output/model.json`` and ``output/package/``: this build's model, or the one that ``model`` names.

    Raises:
        NotRegisteredError: the build registered none.
        UsageError: the version is withdrawn, or the build ran no training.
    """
    if model:
        version = find_version(settings, platform, model)
    else:
        resolved = builds.current(settings)
        console.line(str(resolved))
        found = platform.model_of_build(model_name(settings), resolved.build.id)
        if not found:
            if not platform.runs(settings.project, resolved.build.id):
                raise _untrained(resolved.build.id, "package-artifact")
            raise NotRegisteredError(
                NOT_REGISTERED, where=f"build {resolved.build.id}", next_step="package another: --model champion"
            )
        version = found
    if version.withdrawn:
        raise UsageError(
            f"{version.reference} is withdrawn: {version.withdrawn}", where="--model", next_step="package another"
        )
    with _replacing(output) as fresh:
        with tempfile.TemporaryDirectory(dir=fresh.parent, prefix=".model-") as downloaded:
            platform.download(version, Path(downloaded))
            lock = settings.root / "requirements" / "scoring.txt"
            package.build(version, Path(downloaded), settings.root / "scoring", lock, fresh / "package")
        package.write_json(fresh / package.MODEL_JSON, _described(settings, version, fresh / "package"))
    artifact = package.read_artifact(output)
    console.line(f"packaged {version.reference} as {output}: package {artifact.package_sha256[:12]}")
    return artifact


def _described(settings: Settings, version: ModelVersion, directory: Path) -> dict[str, Any]:
    """``model.json``: the model, and from where it was packaged; the scoring code may be newer than the training."""
    origin = {"branch": settings.source_branch, "packaging_commit": builds.git_commit(settings.root)}
    return {**package.describe(version, directory), **origin}


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """A directory to fill that takes the place of ``directory`` when all went well."""
    if directory.exists() and any(directory.iterdir()) and not (directory / package.MODEL_JSON).exists():
        raise UsageError(
            "the directory holds something that is no artifact",
            where=str(directory),
            next_step="choose another --output",
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        fresh.chmod(0o755)
        yield fresh
        old = fresh.with_name(fresh.name + ".old")
        if directory.exists():
            directory.rename(old)
        fresh.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


# Deployment


def release(artifact: package.Artifact) -> Release:
    """What a target needs to know of an artifact and, where one was built, its image."""
    image = _read_image(artifact)
    return Release(
        package=artifact.package,
        package_sha256=artifact.package_sha256,
        model_name=str(artifact.model["name"]),
        model_version=str(artifact.model["version"]),
        build_id=str(artifact.model["tags"].get("build_id", "")),
        image=str(image.get("repository") or ""),
        image_digest=str(image.get("digest") or ""),
    )


def _read_image(artifact: package.Artifact) -> Mapping[str, Any]:
    path = artifact.directory / "image.json"
    if not path.exists():
        return {}
    image = _image_in(path)
    if image.get("package_sha256") != artifact.package_sha256:
        raise IntegrityError("is the image of another package", where=str(path), next_step="run: inv build-image")
    return image


def _image_in(path: Path) -> Mapping[str, Any]:
    try:
        image: Mapping[str, Any] = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise IntegrityError(
            "is not what build-image writes", where=str(path), next_step="run: inv build-image"
        ) from None
    return image


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
    """Plan, show the plan and, unless ``dry_run``, apply it.

    The candidate is asked its package's examples before it serves.
    """
    found = package.read_artifact(artifact)
    _refuse_foreign(settings, found)
    ready = release(found)
    console.line(
        f"{ready.model_name}:{ready.model_version} of build {ready.build_id}, package {ready.package_sha256[:12]}"
    )
    plan = target.plan(ready, canary_percent=canary_percent)
    _show(plan, console)
    if dry_run:
        _refuse_withdrawn(platform, ready, console)
        console.line("a dry run: nothing was changed")
        return plan
    # Asking the registry takes seconds; the candidate comes up meanwhile, and must not serve before the answer.
    with ThreadPoolExecutor(max_workers=1) as asking:
        standing = asking.submit(_refuse_withdrawn, platform, ready, console)
        try:
            status = target.apply(plan, _verification(settings, console, standing), console.progress)
        except UnhealthyError:
            # When it is the registry's answer that kept the candidate from serving, that is the error to report.
            standing.result()
            raise
        standing.result()
    console.output("scoring_url", status.url)
    _say_status(status, console)
    return plan


def _verification(settings: Settings, console: Console, standing: Future[None] | None = None) -> Verify:
    """Ask a candidate its package's examples; ``standing`` ends when the registry allows the model, or raises."""

    def verify(endpoint: Endpoint, directory: Path | None) -> None:
        if directory:
            ask(endpoint, directory, timeout=settings.smoke_timeout, progress=console.progress)
        if standing:
            standing.result()

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
    """Ask the live endpoint for the package's own examples; when it fails, the version before is put back.

    Raises:
        UnhealthyError: an answer is not what the package says; the version before serves again, where there was one.
    """
    status = target.status()
    if not status:
        raise UsageError("nothing is deployed", where=target.name, next_step=f"run: inv deploy --target {target.name}")
    try:
        ask(
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
    """The package that serves: the target's copy of it, or else the artifact when that is the one."""
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
        kept = f"{failed.model['name']}:{failed.model['version']} still serves"
        raise UnhealthyError(
            f"{error.what}; and the version before could not be put back ({failure.what}): {kept}",
            where=error.where,
            next_step=failure.next_step or error.next_step,
        ) from None
    served = f"{restored.model['name']}:{restored.model['version']}"
    return UnhealthyError(f"{error.what}; rolled back, {served} serves", where=error.where, next_step=error.next_step)


def rollback(settings: Settings, target: Target, console: Console) -> Status:
    """Back to the version before; it must answer before it serves."""
    status = target.rollback(_verification(settings, console), console.progress)
    _say_status(status, console)
    return status


def promote(target: Target, console: Console) -> Status:
    """End a canary in favour of the candidate."""
    status = target.promote(console.progress)
    _say_status(status, console)
    return status


def undeploy(target: Target, console: Console) -> None:
    """Remove what the target holds."""
    target.undeploy(console.progress)
    console.line(f"nothing is deployed on {target.name}")


def status(target: Target) -> Status | None:
    """What serves on the target."""
    return target.status()


def keys(settings: Settings, target: Target, *, show: bool) -> Keys:
    """The endpoint's keys. Asking for their values is refused where a log would keep them.

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
    """The champion with today's scoring code: package, image, deploy, smoke. ``build_image`` gets what is packaged."""
    package_artifact(settings, platform, console, output=artifact, model="champion")
    build_image()
    deploy(settings, platform, target, console, artifact=artifact)
    smoke(settings, target, console, artifact=artifact)


def doctor(platform: Platform, targets: Sequence[Target], console: Console) -> None:
    """Look at what the tasks will need.

    Raises:
        ConfigurationError: something is not as it should be; each line before says what to do.
    """
    findings = [(platform.name, finding) for finding in platform.diagnose()]
    findings += [(target.name, finding) for target in targets for finding in target.diagnose()]
    for name, finding in findings:
        console.line(f"{'ok  ' if finding.ok else 'FAIL'} {name}: {finding.subject}: {finding.detail}")
        if not finding.ok and finding.next_step:
            console.line(f"     next: {finding.next_step}")
    if failed := sum(not finding.ok for _, finding in findings):
        raise ConfigurationError(
            f"{failed} of {len(findings)} findings need attention", where="doctor", next_step="see above"
        )
