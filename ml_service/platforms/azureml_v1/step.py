"""What runs on Azure ML's compute around ``python -m PROJECT STEP``: ``step.py train|evaluate|register …``.

The project knows files only. Here the data comes from the workspace's dataset, the champion from its registry; metrics,
tags and the verdict go to the run; and a run whose candidate is not better is canceled. The working directory is the
published snapshot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service.errors import DataError, IntegrityError, MlopsError, UnavailableError
from ml_service.package import compare_files, copy_registered, hash_files, sha256_of, write_json
from ml_service.platforms.azureml_v1.registry import CONTENT, LostRace, Registry
from ml_service.platforms.azureml_v1.sdk import attempt, import_sdk, translated
from ml_service.project import read_step_json, run_step

PIPELINE_JSON = "pipeline.json"
"""In the snapshot: what was published, so that a step can check that it runs exactly that."""

NONE = "none"
"""The value of a pipeline parameter that is not given; the service knows no empty one."""

VERDICT, ERROR, EXIT_CODE, REGISTERED = "verdict.", "error", "exit_code", "registered"
"""Names of the tags on the pipeline's run that ``AzureMlPlatform`` reads back."""

PLOTS = "plots/"
"""Begins the names of the plots among the files of the pipeline's run."""

_LIMIT = 900
"""Characters of a tag's value; the service refuses more than 1000."""

_RACES = 5
"""Times that a run may be overtaken before it gives up."""

_UNEXPECTED = "run: inv train again; when it comes again, publish again under another build id"

_ENDED = ("Completed", "Finished", "Failed", "Canceled")


def say(line: str) -> None:
    """One line of the step's log."""
    print(line, flush=True)


@dataclass(frozen=True)
class Snapshot:
    """What ``pipeline.json`` says."""

    project: str
    files: Mapping[str, str]
    lock_sha256: str

    @classmethod
    def read(cls) -> Snapshot:
        """Read it, and compare every file with it.

        Raises:
            IntegrityError: the compute did not get what was published.
        """
        raw = json.loads(Path(PIPELINE_JSON).read_bytes())
        snapshot = cls(raw["project"], raw["files"], raw["lock_sha256"])
        present = {name: digest for name, digest in hash_files(Path()).items() if name in snapshot.files}
        compare_files(snapshot.files, present, where=Path(), next_step="publish again under another build id")
        return snapshot

    @property
    def parameters(self) -> str:
        """The path of the project's ``parameters.json``."""
        return f"{self.project}/parameters.json"


class Step:
    """One step's run and the pipeline's run above it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        core = import_sdk()
        with translated("the run of this step"):
            self.run = core.Run.get_context(allow_offline=False)
            self.workspace = self.run.experiment.workspace
            self.parent = self.run.parent
        self.snapshot = Snapshot.read()
        self.registry = Registry(self.workspace)

    def project(self, *arguments: str) -> None:
        """``python -m PROJECT …`` in the snapshot."""
        say(f"python -m {self.snapshot.project} {arguments[0]}")
        run_step(self.snapshot.project, arguments, Path(), os.environ, say)

    def tag_parent(self, tags: Mapping[str, str]) -> None:
        """Tags on the pipeline's run, which is where people look."""
        short = {name: value[:_LIMIT] for name, value in tags.items() if value}
        attempt(lambda: self.parent.set_tags(short), f"tags of run {self.parent.id}")

    def log_metrics(self, run: Any, metrics: Mapping[str, float]) -> None:
        """Metrics on a run, and off this machine: they leave in batches, and a process that ends loses the last."""
        with translated(f"metrics of run {run.id}"):
            for name, value in metrics.items():
                run.log(name, value)
            run.flush(timeout_seconds=120)


# train


def train(step: Step) -> None:
    """Fetch the data, train, log. ``OUTPUT/candidate`` is the project's output, ``OUTPUT/data.csv`` what it read."""
    output = Path(step.options.output)
    output.mkdir(parents=True, exist_ok=True)
    data = output / "data.csv"
    source = _fetch_data(step, data)
    candidate = output / "candidate"
    step.project("train", "--data", str(data), "--parameters", step.snapshot.parameters, "--output", str(candidate))
    write_json(output / "source.json", {"dataset": source, "data_sha256": sha256_of(data)})
    step.log_metrics(step.run, read_step_json(candidate / "metrics.json"))


def _fetch_data(step: Step, data: Path) -> str:
    from azureml.core import Dataset, Datastore

    options, name = step.options, step.options.dataset_name
    where = f"dataset {name}:{options.dataset_version}"
    if options.data_file_path != NONE:
        datastore = attempt(lambda: Datastore.get(step.workspace, options.datastore), f"datastore {options.datastore}")
        where = f"{options.data_file_path} in datastore {options.datastore}"
        with translated(where):
            dataset = Dataset.File.from_files((datastore, options.data_file_path), validate=False)
    else:
        dataset = attempt(lambda: Dataset.get_by_name(step.workspace, name, version=options.dataset_version), where)
    digest = _download(dataset, data, where)
    if options.data_file_path != NONE:
        with translated(f"dataset {name}"):
            dataset = dataset.register(step.workspace, name, tags={"sha256": digest}, create_new_version=True)
    elif dataset.tags.get("sha256", digest) != digest:
        raise IntegrityError(
            "its content is not what was registered", where=where, next_step="register the data again: inv publish"
        )
    say(f"data: {name}:{dataset.version}, SHA-256 {digest[:12]}")
    return f"{name}:{dataset.version}"


def _download(dataset: Any, data: Path, where: str) -> str:
    """Write the dataset's one file to ``data``; returns its SHA-256."""
    folder = Path("dataset")
    shutil.rmtree(folder, ignore_errors=True)
    files = attempt(lambda: dataset.download(str(folder), overwrite=True), where)
    if len(files) != 1:
        raise DataError(f"holds {len(files)} files instead of one", where=where, next_step="register one CSV file")
    shutil.copyfile(files[0], data)
    return sha256_of(data)


def _upload_plots(step: Step, plots: Path) -> None:
    """Files of the pipeline's run, where ``AzureMlPlatform.plots`` finds them; log_image takes no SVG.

    Those of training are put there by the step after it: the train step does not run when its output is reused. Once
    a run, since a name cannot be given twice.
    """
    for plot in sorted(plots.glob("*.svg")):
        with translated(f"plot {plot.name} of run {step.parent.id}"):
            step.parent.upload_file(f"{PLOTS}{plot.name}", str(plot))


# evaluate


def evaluate(step: Step) -> None:
    """Compare with the champion of this moment; cancel the pipeline's run when the candidate is not better."""
    output = Path(step.options.output)
    verdict, newest = _compare(step, output)
    write_json(output / "seen.json", {"newest": newest})
    _record(step, verdict)
    _upload_plots(step, Path(step.options.trained) / "candidate" / "plots")
    _upload_plots(step, output / "plots")
    if not verdict["accept"]:
        _reject(step)


def _compare(step: Step, output: Path) -> tuple[dict[str, Any], int]:
    """The project's verdict, and the highest version number before the comparison."""
    trained = Path(step.options.trained)
    newest = step.registry.newest(step.options.model_name)
    champion = step.registry.champion(step.options.model_name)
    arguments = ["--data", str(trained / "data.csv"), "--parameters", step.snapshot.parameters]
    arguments += ["--candidate", str(trained / "candidate"), "--output", str(output)]
    if champion:
        say(f"evaluate: against the champion {champion.reference}")
        restored = _empty(Path("champion"))
        step.registry.download(champion, restored)
        arguments += ["--champion", str(restored)]
    step.project("evaluate", *arguments)
    return read_step_json(output / "verdict.json"), newest


def _record(step: Step, verdict: Mapping[str, Any]) -> None:
    """What people look for on the pipeline's run: verdict, metrics, data."""
    trained = Path(step.options.trained)
    say(f"verdict: {'accepted' if verdict['accept'] else 'rejected'}: {verdict['reason']}")
    source = read_step_json(trained / "source.json")
    tags = {f"{VERDICT}{name}": json.dumps(value) for name, value in verdict.items()}
    step.tag_parent(
        {
            **tags,
            "dataset": source["dataset"],
            "data_sha256": source["data_sha256"],
            "caller_run_id": _given(step.options.caller_run_id),
        }
    )
    step.log_metrics(step.parent, read_step_json(trained / "candidate" / "metrics.json"))


def _reject(step: Step) -> None:
    """Cancel the pipeline's run. The platform then ends this process, which has only to wait for it."""
    if step.options.allow_run_cancel != "true":
        return
    say("not better: canceling the run")
    step.run.flush(timeout_seconds=60)
    attempt(step.parent.cancel, f"cancellation of run {step.parent.id}")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(1)
    # The register step looks at the verdict itself, so nothing is registered even now.
    say("the cancellation has not come through yet")


# register


def register(step: Step) -> None:
    """Register what the verdict accepts, as one whole version; after a lost race, compare with the new champion."""
    evaluation = Path(step.options.evaluation or _empty(Path("evaluation")))
    verdict, newest = _first_verdict(step, evaluation)
    for left in reversed(range(_RACES)):
        if not verdict["accept"]:
            say("rejected by the gate: nothing to register")
            return
        try:
            return _register(step, evaluation / "verdict.json", newest)
        except LostRace as error:
            if not left:
                raise
            say(f"{error.what}: comparing again")
        if step.options.evaluation:
            evaluation = _empty(Path("evaluation"))
            verdict, newest = _compare(step, evaluation)
            _record(step, verdict)
            if not verdict["accept"]:
                _reject(step)
        else:
            newest = step.registry.newest(step.options.model_name)


def _first_verdict(step: Step, evaluation: Path) -> tuple[dict[str, Any], int]:
    if step.options.evaluation:
        return read_step_json(evaluation / "verdict.json"), int(read_step_json(evaluation / "seen.json")["newest"])
    verdict: dict[str, Any] = {"accept": True, "reason": "RUN_EVALUATION=false: registered without comparing"}
    newest = step.registry.newest(step.options.model_name)
    write_json(evaluation / "verdict.json", verdict)
    _record(step, verdict)
    _upload_plots(step, Path(step.options.trained) / "candidate" / "plots")
    return verdict, newest


def _register(step: Step, verdict: Path, newest: int) -> None:
    candidate = Path(step.options.trained) / "candidate"
    output = _empty(Path("registration"))
    step.project("register", "--candidate", str(candidate), "--verdict", str(verdict), "--output", str(output))
    registration = read_step_json(output / "registration.json")
    # The SDK registers from below the working directory only; and just these bytes, no other.
    content = copy_registered(candidate, registration["files"], _empty(Path(CONTENT)))
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
    given = attempt(step.parent.get_tags, f"tags of run {step.parent.id}")
    options = step.options
    # Whoever starts a run passes the build by tags; the commit is that of the publication, whose sources were used.
    return {
        "run_id": str(step.parent.id),
        "build_id": given.get("BuildId") or options.build_id,
        "build_uri": given.get("BuildUri") or _given(options.build_uri),
        "git_commit": _given(options.git_commit),
        "pipeline_id": str(step.parent.properties.get("azureml.pipelineid", "")),
        "data_sha256": str(read_step_json(trained / "source.json")["data_sha256"]),
        "lock_sha256": step.snapshot.lock_sha256,
        "training_rows_sha256": str(registration["training_rows_sha256"]),
        "runtime": str(registration["runtime"]),
    }


def _given(value: str) -> str:
    """A parameter's value, "" for one that is not given."""
    return "" if value == NONE else value


def _is_alive(step: Step, run_id: str) -> bool:
    """Whether a run may still confirm what it registered; when in doubt, yes."""
    from azureml.core import Run

    try:
        return attempt(lambda: Run.get(step.workspace, run_id).get_status(), f"run {run_id}") not in _ENDED
    except UnavailableError:
        return True


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


# the command


def main(arguments: list[str] | None = None) -> int:
    """Run one step; what goes wrong is the last line, and a tag on the pipeline's run."""
    options = _parser().parse_args(arguments)
    step = None
    try:
        step = Step(options)
        {"train": train, "evaluate": evaluate, "register": register}[options.step](step)
    except MlopsError as error:
        return _fail(step, error)
    except Exception as error:
        # A full disk, a file that lacks a key: told like the rest, since the run's tag is what people see.
        kind = UnavailableError if isinstance(error, OSError) else MlopsError
        return _fail(step, kind(f"{type(error).__name__}: {error}", where=Path(__file__).name, next_step=_UNEXPECTED))
    return 0


def _fail(step: Step | None, error: MlopsError) -> int:
    if step:
        _report(step, error)
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _report(step: Step, error: MlopsError) -> None:
    try:
        step.tag_parent({ERROR: f"step {step.options.step}: {error}", EXIT_CODE: str(error.exit_code)})
    except MlopsError as second:
        say(f"could not be put on the run: {second}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="step.py", description=__doc__)
    parser.add_argument("step", choices=("train", "evaluate", "register"))
    for name in ("dataset-name", "datastore", "dataset-version", "data-file-path"):
        parser.add_argument(f"--{name}", default=NONE)
    for name in ("model-name", "caller-run-id", "build-id", "build-uri", "git-commit"):
        parser.add_argument(f"--{name}", default=NONE)
    parser.add_argument("--allow-run-cancel", default="true")
    parser.add_argument("--trained", help="the output of train")
    parser.add_argument("--evaluation", default="", help="the output of evaluate; none: registers without comparing")
    parser.add_argument("--output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
