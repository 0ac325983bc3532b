"""Publish the training pipeline, run it, and report whether the build registered a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_service import builds, project
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.errors import BY_EXIT_CODE, MlopsError, NotRegisteredError, UsageError
from ml_service.ports import (
    ModelVersion,
    Platform,
    PublishedPipeline,
    Run,
    RunStatus,
)
from ml_service.summary import training_summary

NOT_REGISTERED = "Model was not registered for this run."
"""The line that MLOpsPython's pipelines look for in the log."""


def publish(settings: Settings, platform: Platform, console: Console) -> PublishedPipeline:
    """Freeze the training pipeline under the build's id, and return it.

    Raises:
        MlopsError: as ``Platform.publish`` raises it, or the project cannot be read.
    """
    resolved = builds.given_or_new(settings)
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
    """Run what the build published, wait for the end, and return the run as it ended.

    ``pipeline_id`` chooses one of several publications. Without ``wait``, return when the run has started. When a
    person interrupts the wait, ``confirm_cancel`` decides whether the run is canceled, too.

    Raises:
        UsageError: the build has published no pipeline, or several.
        MlopsError: the run failed; of the kind of its error.
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
    return _report(_wait(platform, console, run, confirm_cancel), console)


def _pipeline_of_build(settings: Settings, platform: Platform, build_id: str) -> PublishedPipeline:
    pipelines = platform.pipelines(settings.project, build_id)
    if len(pipelines) == 1:
        return pipelines[0]
    if not pipelines:
        raise UsageError(f"build {build_id} has published no pipeline", where="train", next_step="run: inv publish")
    listed = ", ".join(pipeline.id for pipeline in pipelines)
    raise UsageError(
        f"build {build_id} has published several pipelines: {listed}",
        where="train",
        next_step="choose one: --pipeline-id ID",
    )


def _wait(platform: Platform, console: Console, run: Run, confirm_cancel: Callable[[], bool]) -> Run:
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


def _refuse_failed(run: Run) -> None:
    if run.status is RunStatus.FAILED:
        raise _failure(run)


def _failure(run: Run) -> MlopsError:
    kind = BY_EXIT_CODE.get(run.exit_code, MlopsError)
    what, _, next_step = run.error.partition("\nnext: ")
    return kind(what, where=f"run {run.id}", next_step=next_step or (f"look at {run.url}" if run.url else ""))


def check_model(
    settings: Settings, platform: Platform, console: Console, *, fail_if_none: bool = False
) -> ModelVersion | None:
    """Report whether the build registered a model, and return its version, or None. Wait for a run that goes on.

    Raises:
        UsageError: the build ran no training.
        NotRegisteredError: no model was registered and ``fail_if_none`` is set.
        MlopsError: the run failed; of the kind of its error.
    """
    resolved = builds.current(settings)
    console.line(str(resolved))
    runs = platform.runs(settings.project, resolved.build.id)
    version = platform.model_of_build(model_name(settings), resolved.build.id)
    if not version and runs:
        runs = [*runs[:-1], _wait_unless_ended(platform, console, runs[-1])]
        _refuse_failed(runs[-1])
        version = platform.model_of_build(model_name(settings), resolved.build.id)
    elif not version:
        raise untrained(resolved.build.id, "check-model")
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


def _wait_unless_ended(platform: Platform, console: Console, run: Run) -> Run:
    return _wait(platform, console, run, lambda: False) if run.status is RunStatus.RUNNING else run


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
    """Show the run on the CI run's page. Plots that cannot be read must not turn a registered model into a failure."""
    try:
        plots = platform.plots(run)
    except MlopsError as error:
        console.warning(f"the summary has no plots: {error.what}")
        plots = {}
    path = settings.home / "summaries" / f"{run.build.id}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(training_summary(run, version, plots, NOT_REGISTERED), encoding="utf-8")
    console.summary(path)


def data_file(settings: Settings, described: project.Project) -> Path:
    """Return the file that training reads: DATA_FILE, or the project's own."""
    return settings.data_file or settings.root / described.data


def model_name(settings: Settings) -> str:
    """Return the name under which models are registered: MODEL_NAME, or the project's own."""
    return settings.model_name or project.read_project(settings.root, settings.project).model_name


def untrained(build_id: str, where: str) -> UsageError:
    """Return the error that a build ran no training."""
    return UsageError(f"build {build_id} ran no training", where=where, next_step="run: inv train")
