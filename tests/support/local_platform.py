"""The local platform on stores of their own, without the seconds that MLflow takes to create an empty database."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ml_service.config import Settings
from ml_service.platforms.local.platform import LocalPlatform
from ml_service.platforms.local.run import LOG
from ml_service.ports import Build, ModelVersion, Run
from tests.support.repositories import PROJECT, TESTS, definition, make_repository

CODE = TESTS.parent


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "mlflow.db"
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
        return path.read_bytes()


class LocalPlatformEnv:
    """A repository with ``tasks.py`` and the project ``mean_regression``, and a store."""

    def __init__(self, directory: Path, *, create: bool = True, **env: str) -> None:
        """``create`` puts an empty database into the store; ``env`` holds settings."""
        self.root = make_repository(directory)
        shutil.copyfile(CODE / "tasks.py", self.root / "tasks.py")
        self.env = {"MLOPS_PROJECT": PROJECT, "MLOPS_HOME": str(directory / ".mlops")} | env
        if create:
            self.settings.store.mkdir(parents=True)
            (self.settings.store / "mlflow.db").write_bytes(_empty_database())

    @property
    def settings(self) -> Settings:
        return Settings.from_env(self.env, self.root)

    @property
    def platform(self) -> LocalPlatform:
        """Another view of the store, as another task has it."""
        return LocalPlatform(self.settings)

    @property
    def data(self) -> Path:
        return self.root / "data" / "mean.csv"

    def submit(self, build_id: str, model_name: str = "", **options: Any) -> Run:
        """Publish the project with these parameters under a build, and start it."""
        platform, build = self.platform, Build(build_id)
        published = platform.publish(definition(self.root, model_name, **options), build)
        return platform.submit(published, build, self.data)

    def train(self, build_id: str, model_name: str = "", **options: Any) -> Run:
        """The same, to its end."""
        return self.platform.wait(self.submit(build_id, model_name, **options), lambda line: None)

    def directory(self, run: Run) -> Path:
        return self.settings.store / "runs" / run.id

    def log(self, run: Run) -> str:
        """What a run has said so far."""
        path = self.directory(run) / LOG
        return path.read_text() if path.exists() else ""

    def pid(self, run: Run) -> int:
        """The process that executes a run."""
        return int((self.directory(run) / "pid").read_text())

    def inv(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start ``inv ARGUMENTS`` in the repository."""
        passed = {name: value for name, value in os.environ.items() if name not in ("TF_BUILD", "MLOPS_OUTPUTS")}
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *arguments],
            cwd=self.root,
            env={**passed, "PYTHONPATH": str(CODE), **self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def whole_versions(self, model_name: str = PROJECT) -> list[ModelVersion]:
        """Every version the registry has, after each has been fetched and compared with its hashes."""
        platform = self.platform
        versions = platform._store.versions(model_name)
        for version in versions:
            with tempfile.TemporaryDirectory() as directory:
                platform.download(version, Path(directory))
            assert json.loads(json.dumps(dict(version.metrics)))
            assert {"run_id", "build_id", "pipeline_id", "data_sha256", "lock_sha256"} <= version.tags.keys()
        return versions


def ended(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    """The exit code of a task, what it said, and its errors."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err
