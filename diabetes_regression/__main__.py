"""``python -m diabetes_regression STEP …``: the steps of the project, files in and files out.

A step imports only what it needs: ``train`` does not wait for pandas, nor ``evaluate`` for scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diabetes_regression.errors import StepError

# ONNX Runtime calls its vendor and leaves files in HOME unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

DISK_REFUSES = 5
INTERRUPTED = 130

EXAMPLES = """\
examples:
  python -m diabetes_regression validate --data data/diabetes.csv --reference data/reference.json
  python -m diabetes_regression train --data data/diabetes.csv \\
      --parameters diabetes_regression/parameters.json --output out/candidate
  python -m diabetes_regression evaluate --data data/diabetes.csv --parameters diabetes_regression/parameters.json \\
      --candidate out/candidate --output out/evaluation
  python -m diabetes_regression register --candidate out/candidate \\
      --verdict out/evaluation/verdict.json --output out/registration

exit codes: 0 done, 2 usage, 3 data or parameters rejected, 5 the disk refuses, 8 content is not what its hash says
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step and return its exit code. Progress goes to standard output, what went wrong to standard error."""
    options = _parser().parse_args(arguments)
    try:
        print(_run(options), flush=True)
    except StepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:  # what a step did not expect: a disk that fails, a folder where a file should be
        print(f"{error.filename or options.step}: {error.strerror or error}; next: look at that place", file=sys.stderr)
        return DISK_REFUSES
    except KeyboardInterrupt:
        print(f"{options.step}: interrupted; next: run it again", file=sys.stderr)
        return INTERRUPTED
    return 0


def _run(options: argparse.Namespace) -> str:
    if options.step == "train":
        from diabetes_regression.train import train

        return train(options.data, options.parameters, options.output)
    if options.step == "evaluate":
        from diabetes_regression.evaluate import evaluate

        return evaluate(options.data, options.parameters, options.candidate, options.champion, options.output)
    if options.step == "register":
        from diabetes_regression.register import register

        return register(options.candidate, options.verdict, options.output)
    if options.step == "validate":
        from diabetes_regression.validate import validate

        return validate(options.data, options.reference, options.report)
    from diabetes_regression.validate import make_reference

    return make_reference(options.data, options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diabetes_regression",
        description="The steps of the project, from data to registration. Files in, files out.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    _add_validate(steps)
    _add_train(steps)
    _add_evaluate(steps)
    _add_register(steps)
    _add_reference(steps)
    return parser


Steps = argparse._SubParsersAction  # the class of what add_subparsers returns has no public name


def _add(steps: Steps[argparse.ArgumentParser], name: str, description: str, example: str) -> argparse.ArgumentParser:
    return steps.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example:\n  python -m diabetes_regression {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_validate(steps: Steps[argparse.ArgumentParser]) -> None:
    step = _add(steps, "validate", "check the data: schema, values, duplicates, drift", "--data data/diabetes.csv")
    _data(step)
    step.add_argument(
        "--reference", type=Path, metavar="FILE", help="what to measure drift against (none: not measured)"
    )
    step.add_argument("--report", type=Path, metavar="FILE", help="where to write all that was found, as JSON")


def _add_train(steps: Steps[argparse.ArgumentParser]) -> None:
    example = "--data data/diabetes.csv --parameters diabetes_regression/parameters.json --output out/candidate"
    step = _add(steps, "train", "fit a model, write it as ONNX with its metrics and plots", example)
    _data(step)
    _parameters(step)
    step.add_argument("--output", type=Path, metavar="DIR", required=True, help="where to write the candidate")


def _add_evaluate(steps: Steps[argparse.ArgumentParser]) -> None:
    example = (
        "--data data/diabetes.csv --parameters diabetes_regression/parameters.json \\\n"
        "      --candidate out/candidate --champion out/champion --output out/evaluation"
    )
    step = _add(steps, "evaluate", "compare the candidate with the champion, write the verdict", example)
    _data(step)
    _parameters(step)
    _candidate(step)
    step.add_argument(
        "--champion", type=Path, metavar="DIR", help="the registered model to beat (none: the first of its name)"
    )
    step.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="where to write verdict.json and a plot"
    )


def _add_register(steps: Steps[argparse.ArgumentParser]) -> None:
    example = "--candidate out/candidate --verdict out/evaluation/verdict.json --output out/registration"
    step = _add(steps, "register", "write down what is to be registered, if the verdict accepts", example)
    _candidate(step)
    step.add_argument("--verdict", type=Path, metavar="FILE", required=True, help="the verdict.json of evaluate")
    step.add_argument("--output", type=Path, metavar="DIR", required=True, help="where to write registration.json")


def _add_reference(steps: Steps[argparse.ArgumentParser]) -> None:
    example = "--data data/diabetes.csv --output data/reference.json"
    step = _add(steps, "reference", "write what validate measures drift against", example)
    _data(step)
    step.add_argument("--output", type=Path, metavar="FILE", required=True, help="where to write the reference")


def _data(step: argparse.ArgumentParser) -> None:
    step.add_argument("--data", type=Path, metavar="FILE", required=True, help="the CSV file: AGE SEX BMI BP S1..S6 Y")


def _parameters(step: argparse.ArgumentParser) -> None:
    step.add_argument("--parameters", type=Path, metavar="FILE", required=True, help="parameters.json")


def _candidate(step: argparse.ArgumentParser) -> None:
    step.add_argument("--candidate", type=Path, metavar="DIR", required=True, help="what train wrote")


if __name__ == "__main__":
    sys.exit(main())
