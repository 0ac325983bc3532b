"""The command around ``python -m PROJECT STEP`` on Azure ML's compute: ``step.py train|evaluate|register …``.

The project knows files only. Here the data comes from the workspace's dataset and the champion from its registry;
metrics, tags and the verdict go to the run; and a run whose candidate is not better is canceled. The working directory
is the published snapshot.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ml_service.errors import MlopsError, UnavailableError
from ml_service.platforms.azureml_v1.step_context import ERROR, EXIT_CODE, NONE, Step, say
from ml_service.platforms.azureml_v1.step_gate import evaluate, register
from ml_service.platforms.azureml_v1.step_train import train

_UNEXPECTED = "run: inv train again; when it comes again, publish again under another build id"


def main(arguments: list[str] | None = None) -> int:
    """Run one step and return its exit code. An error is the last line printed, and a tag on the pipeline's run."""
    options = _parser().parse_args(arguments)
    step = None
    try:
        step = Step(options)
        {"train": train, "evaluate": evaluate, "register": register}[options.step](step)
    except MlopsError as error:
        return _fail(step, error)
    except Exception as error:
        # A full disk, a file that lacks a key: reported like the rest, since people see the run's tag.
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
    parser.add_argument(
        "--evaluation", default="", help="the output of evaluate; without it, register does not compare"
    )
    parser.add_argument("--output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
