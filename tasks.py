"""Every stage from a commit to a serving endpoint. ``inv --list`` is the table of contents, ``inv --help TASK``
explains one.

A task reads arguments, calls a workflow and translates errors; nothing here knows how a stage is done. Imports are
inside the tasks, so that listing them costs nothing.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task

from ml_service import telemetry
from ml_service.targets import TARGETS

if TYPE_CHECKING:
    from ml_service.config import Settings
    from ml_service.console import Console
    from ml_service.ports import Platform, Target

ROOT = Path(__file__).resolve().parent

telemetry.turn_off()

_OPTIONS = {
    "platform": "local or azureml; default: MLOPS_PLATFORM, else local",
    "project": "a folder with a project.json; default: MLOPS_PROJECT, else diabetes_regression",
    "build_id": "default: BUILD_BUILDID, else the one that publish or ci generated",
}
_DRY_RUN = "show what would be done, change nothing"
_TARGET = f"{', '.join(TARGETS[:-1])} or {TARGETS[-1]}"
_JUNIT = "write the results as JUnit XML"
_SUITES = "architecture,unit,contract,integration,scoring"
_SUITE = "comma-separated folders of tests/"
_QUICK = "leave out what takes its time: processes, servers, load; make test runs it"
_FAILED = "only what failed the last time"
_ARTIFACT = "what package-artifact wrote (default: artifact)"

_tasks: list[Task[Any]] = []


class Number(int):
    """A number among a task's options. Invoke converts what was typed, and would show a traceback for a word."""

    def __new__(cls, text: object) -> Number:
        try:
            return super().__new__(cls, str(text))
        except ValueError:
            raise Exit(
                f"error: invalid number {text!r}: expected a whole number; see inv --help TASK", code=2
            ) from None


class Work:
    """The settings, console, platform and targets of one task, each made when it is first used."""

    def __init__(self, options: Mapping[str, str | None], variables: Mapping[str, str], dry_run: bool) -> None:
        self._options = options
        self._variables = variables
        self.dry_run = dry_run

    @functools.cached_property
    def env(self) -> dict[str, str]:
        """Return the options that stand for a setting, over the environment, over what ``.env`` says."""
        from dotenv import dotenv_values

        try:
            written = {name: value or "" for name, value in dotenv_values(ROOT / ".env").items()}
        except UnicodeDecodeError:
            from ml_service.errors import ConfigurationError

            raise ConfigurationError(
                "is not UTF-8", where=str(ROOT / ".env"), next_step="write it in UTF-8: see .env.example"
            ) from None
        return {**written, **os.environ, **self._variables}

    @functools.cached_property
    def settings(self) -> Settings:
        """Return the settings of this run."""
        from ml_service.config import Settings

        return Settings.from_env(self.env, ROOT, **self._options)

    @functools.cached_property
    def console(self) -> Console:
        """Return the console that the task prints to."""
        from ml_service.console import Console

        # Not ``env``: an error of .env has to be told, too.
        return Console.from_env(os.environ)

    @functools.cached_property
    def platform(self) -> Platform:
        """Return the platform adapter."""
        from ml_service.platforms import open_platform

        return open_platform(self.settings)

    def target(self, name: str) -> Target:
        """Return the target adapter."""
        from ml_service.targets import open_target

        return open_target(name, self.settings)


def stage(
    *, help: Mapping[str, str] | None = None, changes: str = "", sets: Mapping[str, tuple[str, object]] | None = None
) -> Callable[[Callable[..., None]], Task[Any]]:
    """Make a task of a function ``(work, its own options)``: add the common options and translate errors.

    ``changes`` says what the task does to the world; it gets ``--dry-run``, and with it, as with Invoke's own
    ``--dry``, prints that instead of acting. A function that takes ``dry_run`` itself shows more. ``sets`` adds
    options that stand for a setting, each with its variable and what it is when nobody passes it: for this run they
    count as if the variable were set.
    """

    def decorate(body: Callable[..., None]) -> Task[Any]:
        own = [*list(inspect.signature(body).parameters.values())[1:], *_as_parameters(sets or {})]
        plans = any(parameter.name == "dry_run" for parameter in own)

        @functools.wraps(body)
        def call(c: Context, **options: Any) -> None:
            asked = bool(options.pop("dry_run", False))
            dry = asked or bool(c.config.run.dry)
            common = {name: options.pop(name, None) for name in _OPTIONS}
            stand_for = {variable: options.pop(option, default) for option, (variable, default) in (sets or {}).items()}
            set_here = {variable: str(value) for variable, value in stand_for.items() if value}
            work = Work(common, set_here, dry)
            _translating(work, body, plans, changes, options)

        call.__signature__ = _signature(own, bool(changes) and not plans)  # type: ignore[attr-defined]
        explained = {**(help or {}), **_OPTIONS, **({"dry_run": _DRY_RUN} if changes else {})}
        made: Task[Any] = Task(call, name=body.__name__, help=explained, auto_shortflags=False)
        _tasks.append(made)
        return made

    return decorate


def _option(name: str, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)


def _as_parameters(sets: Mapping[str, tuple[str, object]]) -> list[inspect.Parameter]:
    return [_option(name, default) for name, (_, default) in sets.items()]


def _signature(own: list[inspect.Parameter], dry_run: bool) -> inspect.Signature:
    context = inspect.Parameter("c", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    dry = [_option("dry_run", False)] if dry_run else []
    return inspect.Signature([context, *own, *dry, *(_option(name, None) for name in _OPTIONS)])


def _translating(work: Work, body: Callable[..., None], plans: bool, changes: str, options: dict[str, Any]) -> None:
    from ml_service.errors import MlopsError, UnavailableError

    try:
        try:
            _acting(work, body, plans, changes, options)
        except BrokenPipeError:
            # The reader of the output has closed it, as `| head` does: an error message would reach nobody.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Exit(code=141) from None
        except OSError as error:
            # A full disk, a missing right: the system's own words, and the file.
            raise UnavailableError(
                error.strerror or str(error),
                where=str(error.filename or "the system"),
                next_step="make room or give the right, then run the task again",
            ) from None
    except MlopsError as error:
        work.console.error(error)
        raise Exit(code=error.exit_code) from None
    except KeyboardInterrupt:
        work.console.line("interrupted: nothing is left half done")
        raise Exit(code=130) from None
    except Exit:
        raise
    except Exception as error:
        # A traceback may carry anything from outside: to the agent as a command, to a terminal as an escape sequence.
        work.console.unexpected(error)
        raise Exit(code=1) from None


def _acting(work: Work, body: Callable[..., None], plans: bool, changes: str, options: dict[str, Any]) -> None:
    if plans:
        body(work, **options, dry_run=work.dry_run)
    elif changes and work.dry_run:
        work.console.line(f"a dry run: {body.__name__.replace('_', '-')} would {changes}; nothing was changed")
    else:
        body(work, **options)


# Quality


@stage(help={"junit": _JUNIT, "fix": "format the code and sort its imports first"})
def lint(work: Work, junit: str = "", fix: bool = False) -> None:
    """Check format, flake8, types, import rules and generated documents.

    Examples: inv lint · inv lint --fix · inv lint --junit reports/lint.xml
    """
    from ml_service.quality import lint as run

    run(ROOT, work.console, fix=fix, junit=junit)


@stage(
    help={
        "junit": _JUNIT,
        "suite": _SUITE,
        "quick": _QUICK,
        "failed": _FAILED,
        "coverage": "measure what the tests cover, or not, which takes two thirds of the time",
    }
)
def test(
    work: Work,
    junit: str = "",
    suite: str = _SUITES,
    quick: bool = False,
    failed: bool = False,
    coverage: bool = True,
) -> None:
    """Run the unit, contract and integration tests.

    Examples: inv test · inv test --quick · inv test --suite unit · inv test --suite e2e · inv test --failed
    """
    from ml_service.quality import test as run

    suites = suite.split(",")
    run(ROOT, work.console, suites=suites, quick=quick, failed=failed, measured=coverage, junit=junit)


@stage(
    help={
        "quick": "the quick tests ran: their floor is lower",
        "xml": "write the coverage as Cobertura XML",
        "html": "write the coverage as HTML pages",
    }
)
def coverage(work: Work, quick: bool = False, xml: str = "", html: str = "") -> None:
    """Report what the last `inv test` covered, and hold it to a floor.

    Examples: inv test && inv coverage · inv coverage --xml reports/coverage.xml --html htmlcov
    """
    from ml_service.quality import coverage as run

    run(ROOT, work.console, quick=quick, xml=xml, html=html)


# Training


@stage(help={"data": "another file than the project's own"})
def validate_data(work: Work, data: str = "") -> None:
    """Check schema, missing values, ranges, and drift against the training reference.

    Examples: inv validate-data · inv validate-data --data new.csv
    """
    from ml_service.workflows import validation

    validation.validate_data(work.settings, work.console, data)


@stage(changes="freeze the training pipeline under the build id")
def publish(work: Work) -> None:
    """Build the training pipeline, publish it under the build id, print its id.

    Examples: inv publish · inv publish --build-id 20260101.1
    """
    from ml_service.workflows import training

    training.publish(work.settings, work.platform, work.console)


@stage(
    help={
        "pipeline_id": "another pipeline than the one this build published",
        "wait": "return at once; check-model takes it up",
    },
    changes="run the published pipeline: train, evaluate, register",
)
def train(work: Work, pipeline_id: str = "", wait: bool = True) -> None:
    """Run the published pipeline: train, evaluate, register.

    Examples: inv train · inv train --no-wait · inv train --pipeline-id ID --platform azureml
    """
    from ml_service.workflows import training

    run = training.train(
        work.settings,
        work.platform,
        work.console,
        pipeline_id=pipeline_id,
        wait=wait,
        confirm_cancel=_confirm_cancel(work),
    )
    work.console.output("look_at", run.registered or (run.verdict.get("reason", "") if run.verdict else run.url))


def _confirm_cancel(work: Work) -> Callable[[], bool]:
    def confirm() -> bool:
        if work.settings.platform == "local":
            return True
        if not sys.stdin.isatty():
            return False
        try:
            return input("\ncancel the remote run too? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    return confirm


@stage(
    help={
        "fail_if_none": "exit with 7 when no model was registered",
        "artifact": "say instead which model this artifact holds, and whether it may be deployed",
    }
)
def check_model(work: Work, fail_if_none: bool = False, artifact: str = "") -> None:
    """Say whether this build registered a model.

    Examples: inv check-model · inv check-model --fail-if-none · inv check-model --artifact artifact
    """
    from ml_service.workflows import training
    from ml_service.workflows.artifact import check_artifact

    if artifact:
        check_artifact(work.settings, work.console, _path(artifact))
        return
    version = training.check_model(work.settings, work.platform, work.console, fail_if_none=fail_if_none)
    work.console.output("look_at", version.reference if version else training.NOT_REGISTERED)


@stage(
    help={
        "output": "the directory to write (default: artifact)",
        "model": "NAME:VERSION or champion; default: this build's model",
    },
    changes="write the model and the scoring code as an artifact",
)
def package_artifact(work: Work, output: str = "artifact", model: str = "") -> None:
    """Write DIR/model.json and DIR/package/, the only input of a deployment.

    Examples: inv package-artifact · inv package-artifact --model champion --output artifact
    """
    from ml_service.workflows.artifact import package_artifact as run

    run(work.settings, work.platform, work.console, output=_path(output), model=model)
    work.console.output("look_at", f"{output}/model.json")


@stage(
    help={"model": "NAME:VERSION", "reason": "kept with the version"},
    changes="take the version out of use for good",
)
def withdraw(work: Work, model: str, reason: str) -> None:
    """Take a version out of use: never again champion, baseline or deployable; the alias falls back.

    Examples: inv withdraw --model diabetes_regression:3 --reason "trained on a broken export"
    """
    from ml_service.workflows import registry

    registry.withdraw(work.settings, work.platform, work.console, reference=model, reason=reason)


# Deployment


@stage(help={"artifact": _ARTIFACT, "push": "push it to the registry, too"}, changes="build the scoring image")
def build_image(work: Work, artifact: str = "artifact", push: bool = False) -> None:
    """Build the scoring image, and write image.json.

    Examples: inv build-image · inv build-image --push
    """
    from ml_service.images.build import build

    build(work.settings, work.console, artifact=_path(artifact), push=push)


@stage(
    help={
        "target": _TARGET,
        "artifact": _ARTIFACT,
        "dry_run": _DRY_RUN,
        "canary": "send the candidate this share of traffic, from 1 to 99 percent",
        "allow_http": "aci: a public address without TLS is meant (a QA endpoint)",
    },
    changes="deploy",
    sets={"allow_http": ("ACI_ALLOW_HTTP", False)},
)
def deploy(
    work: Work,
    target: str,
    artifact: str = "artifact",
    dry_run: bool = False,
    canary: str = "",
) -> None:
    """Plan a deployment, show the plan, apply it, wait until it is healthy.

    Examples: inv deploy --target local · inv deploy --target aks --dry-run · inv deploy --target aks --canary 10
    """
    from ml_service.workflows import deployment

    deployment.deploy(
        work.settings,
        work.platform,
        work.target(target),
        work.console,
        artifact=_path(artifact),
        dry_run=dry_run,
        canary_percent=_percent(canary) if canary else None,
    )
    if not dry_run:
        _say_how_to_use(work, target)


@stage(help={"target": _TARGET, "artifact": _ARTIFACT}, changes="ask the live endpoint, and roll back when it fails")
def smoke(work: Work, target: str, artifact: str = "artifact") -> None:
    """Send the live endpoint the package's own examples, and compare the responses.

    When they differ, the version before is put back and the task fails.

    Examples: inv smoke --target local
    """
    from ml_service.workflows import deployment

    adapter = work.target(target)
    deployment.smoke(work.settings, adapter, work.console, artifact=_path(artifact))
    status = adapter.status()
    work.console.output("look_at", f"{status.url}/score" if status else "")


@stage(
    help={"target": _TARGET, "min_requests": "requests to each version before it decides (default: 500)"},
    changes="end the canary in favour of the candidate",
    sets={"min_requests": ("CANARY_MIN_REQUESTS", "")},
)
def promote(work: Work, target: str) -> None:
    """End a canary: the candidate takes all traffic, unless its metrics are worse.

    Examples: inv promote --target aks · inv promote --target aks --min-requests 2000
    """
    from ml_service.workflows import deployment

    deployment.promote(work.target(target), work.console)


@stage(help={"target": _TARGET}, changes="bring back the version before")
def rollback(work: Work, target: str) -> None:
    """Move the traffic back to the version before.

    Examples: inv rollback --target local
    """
    from ml_service.workflows import deployment

    deployment.rollback(work.settings, work.target(target), work.console)


@stage(help={"target": _TARGET}, changes="remove the deployment")
def undeploy(work: Work, target: str) -> None:
    """Remove the deployment.

    Examples: inv undeploy --target local
    """
    from ml_service.workflows import deployment

    deployment.undeploy(work.target(target), work.console)


@stage(help={"target": _TARGET, "artifact": _ARTIFACT}, changes="ship the champion with today's scoring code")
def redeploy(work: Work, target: str, artifact: str = "artifact") -> None:
    """Ship the champion with today's scoring code: package, image, deploy, smoke.

    Examples: inv redeploy --target local
    """
    from ml_service.workflows import deployment

    adapter = work.target(target)

    def image() -> None:
        if adapter.needs_image:
            from ml_service.images.build import build

            build(work.settings, work.console, artifact=_path(artifact), push=adapter.needs_registry)

    deployment.redeploy(
        work.settings, work.platform, adapter, work.console, artifact=_path(artifact), build_image=image
    )


@stage(help={"target": f"{_TARGET}; default: all that are configured, a line each", "json": "as JSON"})
def status(work: Work, target: str = "", json: bool = False) -> None:
    """Show what is deployed on a target, or on all of them.

    Examples: inv status · inv status --target local · inv status --target local --json
    """
    from ml_service import report
    from ml_service.workflows import deployment

    if target:
        current = work.target(target).status()
        work.console.line(report.status_json(current) if json else report.status_text(target, current))
        return
    outcomes = deployment.overview([work.target(name) for name in TARGETS])
    work.console.line(report.overview_json(outcomes) if json else report.overview_text(outcomes))


@stage(help={"target": _TARGET, "lines": "how many of the last lines"})
def logs(work: Work, target: str, lines: int = Number(50)) -> None:
    """Show the service's last log lines.

    Examples: inv logs --target local --lines 200
    """
    for line in work.target(target).logs(lines):
        work.console.line(line)


@stage(help={"target": _TARGET, "show": "the values, too; refused under Azure Pipelines", "json": "as one JSON object"})
def keys(work: Work, target: str, show: bool = False, json: bool = False) -> None:
    """Show the names of the endpoint's keys; their values with --show.

    Examples: inv keys --target local · inv keys --target local --show --json
    """
    from ml_service.report import keys_text
    from ml_service.workflows import deployment

    both = deployment.keys(work.settings, work.target(target), show=show)
    work.console.line(keys_text(both, show=show, as_json=json))


# The whole


@stage(changes="run every stage on this machine")
def ci(work: Work) -> None:
    """Run every stage on this machine, then print a table: what `make ci` runs.

    Examples: inv ci · CI=true inv ci
    """
    from ml_service import builds
    from ml_service.stage_table import print_table
    from ml_service.stages import exit_code, run_stages
    from ml_service.workflows import deployment
    from ml_service.workflows.doctor import check_before_stages

    check_before_stages(work.settings, work.platform, work.target("local"), work.console, artifact=_path("artifact"))
    resolved = builds.given_or_new(work.settings)
    work.console.line(str(resolved))
    outcomes = run_stages(ROOT, {**work.env, **_as_env(work), "BUILD_BUILDID": resolved.build.id}, work.console)
    print_table(outcomes)
    if work.settings.is_ci:
        deployment.undeploy(work.target("local"), work.console)
    else:
        _say_what_serves(work)
    if code := exit_code(outcomes):
        raise Exit(code=code)


def _as_env(work: Work) -> dict[str, str]:
    return {"MLOPS_PLATFORM": work.settings.platform, "MLOPS_PROJECT": work.settings.project}


def _say_what_serves(work: Work) -> None:
    current = work.target("local").status()
    if current:
        work.console.line(f"{current.model['name']}:{current.model['version']} {current.state} at {current.url}/score")
        work.console.line("ask it: inv smoke --target local · its keys: inv keys --target local --show")
        work.console.line("stop it: inv undeploy --target local")


def _say_how_to_use(work: Work, target: str) -> None:
    current = work.target(target).status()
    work.console.output("look_at", f"{current.url}/score" if current else "")
    work.console.line(f"keys: inv keys --target {target} --show · stop it: inv undeploy --target {target}")


@stage(help={"port": "where it listens (default: 5000)"})
def ui(work: Work, port: int = Number(5000)) -> None:
    """Serve the tracking user interface on the local store; Ctrl-C ends it.

    Examples: inv ui · inv ui --port 5050
    """
    from ml_service.platforms.local.mlflow_ui import serve

    serve(work.settings, work.console, port)


@stage(help={"port": "where it listens (default: a free port)"})
def azureml_emulator(work: Work, port: int = Number(0)) -> None:
    """Emulate Azure ML, and what aci and webapp need of Azure; print the settings. Ctrl-C ends it.

    Examples: inv azureml-emulator > a.env & · until grep -q PLATFORM a.env; do sleep 1; done · . ./a.env && inv publish
    """
    from emulators.__main__ import serve

    serve(port)


@stage(
    help={
        "target": f"{_TARGET}; several with commas between",
        "pipelines": "look at the YAML of .azure-pipelines instead; needs no account",
    }
)
def doctor(work: Work, target: str = "local", pipelines: bool = False) -> None:
    """Check settings, sign-in, compute and quota of the platform, and the targets, before you run anything.

    Examples: inv doctor · inv doctor --platform azureml --target aks,webapp · inv doctor --pipelines
    """
    if pipelines:
        from tools.azure_pipelines import diagnose

        diagnose(ROOT, work.console, parse_task)
        return
    from ml_service.workflows.doctor import doctor as run

    run(work.platform, [work.target(name) for name in target.split(",")], work.console)


def _path(text: str) -> Path:
    return Path(text).absolute()


def _percent(text: str) -> int:
    """Return a percentage as a number. The option is text, which tells a missing one from 0, which targets refuse."""
    from ml_service.errors import UsageError

    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"invalid percentage {text!r}: expected a whole number",
            where="--canary",
            next_step="for example: --canary 10",
        ) from None


def parse_task(words: Sequence[str]) -> str:
    """Return the name of the one task that ``inv WORDS`` would run.

    Raises:
        ValueError: it would run none or several, or has an option that is wrong.
    """
    from invoke.exceptions import ParseError
    from invoke.parser import Parser

    named = [context for context in ns.to_contexts() if context.name in words]  # the parser copies all it is text
    try:
        called = Parser(contexts=named).parse_argv(list(words))
    except ParseError as error:
        raise ValueError(f"cannot be parsed: {error}") from None
    if len(called) != 1:
        raise ValueError(f"calls {len(called)} tasks: one line is one task")
    return str(called[0].name)


ns = Collection(*_tasks)
