"""The local platform's registry, opened in this process: races, damage, and what others leave there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_service.errors import ConfigurationError, IntegrityError, UnavailableError, UsageError
from ml_service.platforms.local.mlflow_store import CHAMPION, MlflowStore, default_uri, version_tags
from ml_service.ports import ModelVersion
from tests.support.local_platform import LocalPlatformEnv

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> LocalPlatformEnv:
    return LocalPlatformEnv(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def client(env: LocalPlatformEnv) -> MlflowClient:
    """MLflow's own view of the store."""
    uri = default_uri(env.settings.store)
    from mlflow import MlflowClient  # takes seconds, which tests that are left out should not cost

    return MlflowClient(uri, uri)


def open_store(env: LocalPlatformEnv, machine: Path | None = None) -> MlflowStore:
    """The store as a machine sees it: with lock files of its own, on the tracking store that all share."""
    return MlflowStore(default_uri(env.settings.store), machine or env.settings.store, "experiment")


def register(store: MlflowStore, name: str, files: Path, *, newest_seen: int | None = None) -> ModelVersion:
    """Register a version as a run does."""
    files.mkdir(parents=True, exist_ok=True)
    (files / "model.txt").write_text(name)
    registration = {
        "runtime": "script",
        "training_rows_sha256": "",
        "files": {"model.txt": hashlib.sha256(name.encode()).hexdigest()},
        "metrics": {"mse": 1.0},
    }
    seen = store.newest(name) if newest_seen is None else newest_seen
    run = store.start_run("run", {})
    return store.register(run, name, files, version_tags(registration, {"build_id": "b"}), newest_seen=seen)


def test_a_race_lost_to_another_machine_is_noticed(env: LocalPlatformEnv, tmp_path: Path) -> None:
    """A lock file does not reach another machine, but its version is seen: ours is taken back, theirs stays."""
    here, there = open_store(env, tmp_path / "here"), open_store(env, tmp_path / "there")
    seen_before_the_gate = here.newest("raced")
    theirs = register(there, "raced", tmp_path / "theirs")
    with pytest.raises(UnavailableError, match="another run registered raced:1") as caught:
        register(here, "raced", tmp_path / "ours", newest_seen=seen_before_the_gate)
    assert "inv train" in caught.value.next_step
    assert here.versions("raced") == [theirs]
    assert here.champion("raced") == theirs


def test_a_run_killed_between_version_and_alias_is_finished_by_the_next(
    env: LocalPlatformEnv, client: MlflowClient, tmp_path: Path
) -> None:
    """The version was whole already, so it is the champion."""
    store = open_store(env)
    register(store, "settled", tmp_path)
    second = register(store, "settled", tmp_path)
    client.set_registered_model_alias("settled", CHAMPION, "1")
    assert env.platform.champion("settled") == second
    assert store.champion("settled") == second


def stored(client: MlflowClient, version: ModelVersion) -> Path:
    """Where the store keeps the version's file."""
    artifacts = client.get_run(version.tags["mlflow_run_id"]).info.artifact_uri
    (path,) = Path(artifacts.removeprefix("file://")).rglob("model.txt")
    return path


def test_a_damaged_version_is_named_with_the_way_out(
    env: LocalPlatformEnv, client: MlflowClient, tmp_path: Path
) -> None:
    """Exit code 8; withdrawing it is the next step."""
    store = open_store(env)
    version = register(store, "damaged", tmp_path / "files")
    stored(client, version).write_text("other")
    with pytest.raises(IntegrityError, match="model.txt was changed") as caught:
        store.download(version, make(tmp_path / "download"))
    assert caught.value.next_step.startswith("withdraw damaged:1")


def test_files_that_are_gone_are_told_as_unavailable(
    env: LocalPlatformEnv, client: MlflowClient, tmp_path: Path
) -> None:
    """The store is named."""
    store = open_store(env)
    version = register(store, "gone", tmp_path / "files")
    stored(client, version).unlink()
    with pytest.raises((UnavailableError, IntegrityError)):
        store.download(version, make(tmp_path / "download"))


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_what_others_put_under_the_name_is_not_ours_to_serve(
    env: LocalPlatformEnv, client: MlflowClient, tmp_path: Path
) -> None:
    """A version without our tags is neither listed nor champion, and does not stop the next registration."""
    store = open_store(env)
    ours = register(store, "shared", tmp_path)
    client.create_model_version("shared", "file:///elsewhere")
    assert store.versions("shared") == [ours]
    assert store.settle("shared") == ours
    with pytest.raises(UsageError, match="shared:2 is not registered"):
        store.version("shared", "2")
    assert register(store, "shared", tmp_path).version == "3"
    assert [version.version for version in store.versions("shared")] == ["1", "3"]


def test_an_alias_set_by_hand_is_put_right(env: LocalPlatformEnv, client: MlflowClient, tmp_path: Path) -> None:
    """The champion is what the gate registered last and nobody withdrew."""
    store = open_store(env)
    first, second = register(store, "aliased", tmp_path), register(store, "aliased", tmp_path)
    assert store.withdraw(second, "bad") == first
    client.set_registered_model_alias("aliased", CHAMPION, "2")
    assert env.platform.champion("aliased") == first
    assert store.withdraw(first, "bad too") is None
    with pytest.raises(Exception, match="alias"):
        client.get_model_version_by_alias("aliased", CHAMPION)


def test_a_version_tells_metrics_and_files_as_they_were_registered(env: LocalPlatformEnv, tmp_path: Path) -> None:
    """And when it was made, in UTC."""
    version = register(open_store(env), "told", tmp_path)
    assert (dict(version.metrics), sorted(version.files), version.tags["runtime"]) == (
        {"mse": 1.0},
        ["model.txt"],
        "script",
    )
    assert version.created.endswith("+00:00")


def test_what_mlflow_says_is_one_line_without_a_password(tmp_path: Path) -> None:
    """An address may hold one; logs may not."""
    with pytest.raises(UnavailableError) as caught:
        MlflowStore("postgresql+psycopg2://user:s3cret@127.0.0.1:9/none", tmp_path, "experiment")
    assert "s3cret" not in str(caught.value)
    assert caught.value.where == "postgresql+psycopg2://127.0.0.1:9/none"


def test_a_missing_driver_is_told_with_the_install_line(tmp_path: Path) -> None:
    """Exit code 4: the kind of store is known, its driver is not here."""
    with pytest.raises(ConfigurationError, match="pip install pymssql"):
        MlflowStore("mssql+pymssql://127.0.0.1:9/none", tmp_path, "experiment")


def test_a_database_that_is_none_is_told_by_its_address(tmp_path: Path) -> None:
    """Truncated or overwritten by something else."""
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match=r"mlflow\.db"):
        MlflowStore("", tmp_path, "experiment")


def test_frozen_sources_that_changed_are_not_run(env: LocalPlatformEnv) -> None:
    """What was published is checked before each run; exit code 8."""
    run = env.submit("frozen", "frozen")
    env.platform.cancel(run)
    frozen = env.settings.store / "pipelines" / "mean_regression" / "frozen"
    (frozen / "sources" / "mean_regression" / "parameters.json").write_text("{}")
    with pytest.raises(IntegrityError, match="parameters.json was changed"):
        env.submit("frozen", "frozen")
    (frozen / "pipeline.json").write_text(json.dumps({"id": 1}))
    with pytest.raises(IntegrityError, match=r"pipeline\.json"):
        env.platform.pipelines("mean_regression", "frozen")
    for path in sorted(frozen.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    frozen.rmdir()
