"""The context of the steps on Azure ML's compute: the snapshot, the run, and the names that both sides agree on."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service.package import compare_files, hash_files
from ml_service.platforms.azureml_v1.registry import Registry
from ml_service.platforms.azureml_v1.sdk import attempt, import_sdk, translated
from ml_service.project import run_step

PIPELINE_JSON = "pipeline.json"
"""In the snapshot: the hashes of what was published, so that a step can check that it runs exactly that."""

NONE = "none"
"""The value of a pipeline parameter that has none: the service does not accept an empty one."""

VERDICT, ERROR, EXIT_CODE, REGISTERED = "verdict.", "error", "exit_code", "registered"
"""Names of the tags on the pipeline's run that ``AzureMlPlatform`` reads back."""

PLOTS = "plots/"
"""Prefix of the plots' names among the files of the pipeline's run."""

_TAG_LENGTH = 900
"""Characters of a tag's value. The service refuses more than 1000."""


def say(line: str) -> None:
    """Print one line to the step's log."""
    print(line, flush=True)


def or_empty(value: str) -> str:
    """Return a parameter's value, "" for NONE."""
    return "" if value == NONE else value


def empty_directory(directory: Path) -> Path:
    """Create ``directory`` with nothing in it, and return it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


@dataclass(frozen=True)
class Snapshot:
    """The content of ``pipeline.json``."""

    project: str
    files: Mapping[str, str]
    lock_sha256: str

    @classmethod
    def read(cls) -> Snapshot:
        """Read it from the working directory, and compare every file with it.

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
    """The run of one step, and the pipeline's run above it.

    Raises:
        IntegrityError: the compute did not get what was published.
        UnavailableError: the run or the workspace cannot be reached.
    """

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
        """Run ``python -m PROJECT …`` in the snapshot.

        Raises:
            MlopsError: the project's step failed; of the kind that its exit code names.
        """
        say(f"python -m {self.snapshot.project} {arguments[0]}")
        run_step(self.snapshot.project, arguments, Path(), os.environ, say)

    def tag_parent(self, tags: Mapping[str, str]) -> None:
        """Set tags on the pipeline's run, which is where people look. Long values are cut."""
        short = {name: value[:_TAG_LENGTH] for name, value in tags.items() if value}
        attempt(lambda: self.parent.set_tags(short), f"tags of run {self.parent.id}")

    def log_metrics(self, run: Any, metrics: Mapping[str, float]) -> None:
        """Log metrics on ``run`` and send them: the SDK sends batches, and the last is lost when the process ends."""
        with translated(f"metrics of run {run.id}"):
            for name, value in metrics.items():
                run.log(name, value)
            run.flush(timeout_seconds=120)

    def upload_plots(self, plots: Path) -> None:
        """Add plots to the files of the pipeline's run, where ``AzureMlPlatform.plots`` reads them.

        ``log_image`` does not accept SVG. The plots of training are uploaded by the step after it: when the output of
        training is reused, its own step does not run. A name cannot be uploaded twice, so call this once a run.
        """
        for plot in sorted(plots.glob("*.svg")):
            with translated(f"plot {plot.name} of run {self.parent.id}"):
                self.parent.upload_file(f"{PLOTS}{plot.name}", str(plot))
