"""The steps ``evaluate`` and ``register``: compare the candidate with the champion, and register it when it is better.

They are two steps, perhaps minutes apart, and the registry has no lock. ``evaluate`` notes the highest version number
before it compares (``seen.json``); ``register`` hands the number to ``Registry.register``, which raises LostRace when
another run has registered a version since. The run then compares with the new champion and tries again, a few times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_service.errors import UnavailableError
from ml_service.package import copy_registered, write_json
from ml_service.platforms.azureml_v1.registry import CONTENT, LostRace
from ml_service.platforms.azureml_v1.sdk import attempt
from ml_service.platforms.azureml_v1.step_context import REGISTERED, VERDICT, Step, empty_directory, or_empty, say
from ml_service.project import read_step_json

_RACES = 5
"""Registrations that a run attempts before it gives up."""

_CANCEL_TIMEOUT = 120
"""Seconds that a rejected run waits for the platform to end it."""

_ENDED = ("Completed", "Finished", "Failed", "Canceled")


def evaluate(step: Step) -> None:
    """Compare with the champion of this moment, and cancel the pipeline's run when the candidate is not better.

    Raises:
        MlopsError: the project's step failed, or the registry cannot be reached.
    """
    output = Path(step.options.output)
    verdict, newest = _compare(step, output)
    write_json(output / "seen.json", {"newest": newest})
    _record(step, verdict)
    step.upload_plots(Path(step.options.trained) / "candidate" / "plots")
    step.upload_plots(output / "plots")
    if not verdict["accept"]:
        _reject(step)


def _compare(step: Step, output: Path) -> tuple[dict[str, Any], int]:
    """Return the project's verdict, and the highest version number before the comparison."""
    trained = Path(step.options.trained)
    # Before the champion is read: a version that comes in between then counts as one that was not compared with.
    newest = step.registry.newest(step.options.model_name)
    champion = step.registry.champion(step.options.model_name)
    arguments = ["--data", str(trained / "data.csv"), "--parameters", step.snapshot.parameters]
    arguments += ["--candidate", str(trained / "candidate"), "--output", str(output)]
    if champion:
        say(f"evaluate: against the champion {champion.reference}")
        restored = empty_directory(Path("champion"))
        step.registry.download(champion, restored)
        arguments += ["--champion", str(restored)]
    step.project("evaluate", *arguments)
    return read_step_json(output / "verdict.json"), newest


def _record(step: Step, verdict: Mapping[str, Any]) -> None:
    """Put verdict, metrics and data on the pipeline's run, where people look for them."""
    trained = Path(step.options.trained)
    say(f"verdict: {'accepted' if verdict['accept'] else 'rejected'}: {verdict['reason']}")
    source = read_step_json(trained / "source.json")
    tags = {f"{VERDICT}{name}": json.dumps(value) for name, value in verdict.items()}
    step.tag_parent(
        {
            **tags,
            "dataset": source["dataset"],
            "data_sha256": source["data_sha256"],
            "caller_run_id": or_empty(step.options.caller_run_id),
        }
    )
    step.log_metrics(step.parent, read_step_json(trained / "candidate" / "metrics.json"))


def _reject(step: Step) -> None:
    """Cancel the pipeline's run, and wait for the platform to end this process with it."""
    if step.options.allow_run_cancel != "true":
        return
    say("not better: canceling the run")
    step.run.flush(timeout_seconds=60)
    attempt(step.parent.cancel, f"cancellation of run {step.parent.id}")
    deadline = time.monotonic() + _CANCEL_TIMEOUT
    while time.monotonic() < deadline:
        time.sleep(1)
    # The register step reads the verdict itself, so nothing is registered even now.
    say("the cancellation has not come through yet")


def register(step: Step) -> None:
    """Register what the verdict accepts, as one whole version. After a lost race, compare with the new champion.

    Raises:
        LostRace: other runs were faster each time.
        MlopsError: the project's step failed, or the registry cannot be reached.
    """
    evaluation = Path(step.options.evaluation or empty_directory(Path("evaluation")))
    verdict, newest = _first_verdict(step, evaluation)
    for attempts_left in reversed(range(_RACES)):
        if not verdict["accept"]:
            say("rejected by the gate: nothing to register")
            return
        try:
            return _register(step, evaluation / "verdict.json", newest)
        except LostRace as error:
            if not attempts_left:
                raise
            say(f"{error.what}: comparing again")
        if step.options.evaluation:
            evaluation = empty_directory(Path("evaluation"))
            verdict, newest = _compare(step, evaluation)
            _record(step, verdict)
            if not verdict["accept"]:
                _reject(step)
        else:
            newest = step.registry.newest(step.options.model_name)


def _first_verdict(step: Step, evaluation: Path) -> tuple[dict[str, Any], int]:
    """Return the verdict of ``evaluate``, or without that step one that accepts, and the newest version before it."""
    if step.options.evaluation:
        return read_step_json(evaluation / "verdict.json"), int(read_step_json(evaluation / "seen.json")["newest"])
    verdict: dict[str, Any] = {"accept": True, "reason": "RUN_EVALUATION=false: registered without comparing"}
    newest = step.registry.newest(step.options.model_name)
    write_json(evaluation / "verdict.json", verdict)
    _record(step, verdict)
    step.upload_plots(Path(step.options.trained) / "candidate" / "plots")
    return verdict, newest


def _register(step: Step, verdict: Path, newest: int) -> None:
    candidate = Path(step.options.trained) / "candidate"
    output = empty_directory(Path("registration"))
    step.project("register", "--candidate", str(candidate), "--verdict", str(verdict), "--output", str(output))
    registration = read_step_json(output / "registration.json")
    # The SDK registers a folder below the working directory only. It gets a copy of just the registered files.
    content = copy_registered(candidate, registration["files"], empty_directory(Path(CONTENT)))
    version = step.registry.register(
        step.options.model_name,
        content,
        _version_tags(step, registration),
        registration,
        newest_seen=newest,
        is_alive=lambda run_id: _is_alive(step, run_id),
    )
    say(f"registered: {version.reference}, the new champion")
    step.tag_parent({REGISTERED: version.reference})


def _version_tags(step: Step, registration: Mapping[str, Any]) -> dict[str, str]:
    trained = Path(step.options.trained)
    run_tags = attempt(step.parent.get_tags, f"tags of run {step.parent.id}")
    options = step.options
    # The run's tags name the build that started it. The commit is that of the publication, whose sources were used.
    return {
        "run_id": str(step.parent.id),
        "build_id": run_tags.get("BuildId") or options.build_id,
        "build_uri": run_tags.get("BuildUri") or or_empty(options.build_uri),
        "git_commit": or_empty(options.git_commit),
        "pipeline_id": str(step.parent.properties.get("azureml.pipelineid", "")),
        "data_sha256": str(read_step_json(trained / "source.json")["data_sha256"]),
        "lock_sha256": step.snapshot.lock_sha256,
        "training_rows_sha256": str(registration["training_rows_sha256"]),
        "runtime": str(registration["runtime"]),
    }


def _is_alive(step: Step, run_id: str) -> bool:
    """Return whether a run may still confirm the version that it registered; True when that cannot be learned."""
    from azureml.core import Run

    try:
        return attempt(lambda: Run.get(step.workspace, run_id).get_status(), f"run {run_id}") not in _ENDED
    except UnavailableError:
        return True
