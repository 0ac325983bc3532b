"""Settings: every value that cannot be meant is refused by the name of its setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ml_service.config import PLATFORMS, LocalSettings, Settings, is_plain
from ml_service.errors import ConfigurationError, MlopsError, UsageError

FLAGS = ("RUN_EVALUATION", "ALLOW_RUN_CANCEL", "REQUIRE_IMAGE", "CI", "TF_BUILD", "AML_REBUILD_ENVIRONMENT")
NUMBERS = ("SMOKE_TIMEOUT", "LOCAL_STARTUP_TIMEOUT", "LOCAL_DRAIN_TIMEOUT")
WHOLE = ("LOCAL_PORT", "SCORING_WORKERS", "AML_CLUSTER_MIN_NODES", "AML_CLUSTER_MAX_NODES")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with two projects."""
    for name in ("diabetes_regression", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "project.json").write_text("{}")
    return tmp_path


def refused(env: Mapping[str, str], root: Path) -> MlopsError:
    """The error that this environment gives."""
    with pytest.raises(MlopsError) as caught:
        Settings.from_env(env, root)
    return caught.value


def test_an_empty_environment_is_this_machine(root: Path) -> None:
    """Nothing need be set."""
    settings = Settings.from_env({}, root)
    assert (settings.platform, settings.project, settings.build_id) == ("local", "diabetes_regression", "")
    assert (settings.home, settings.store) == (root / ".mlops", root / ".mlops" / "store")
    assert (settings.run_evaluation, settings.allow_run_cancel, settings.require_image) == (True, True, False)
    assert settings.local == LocalSettings()


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["maybe", "2", "truth"])
def test_a_flag_that_is_neither_true_nor_false_is_named(root: Path, name: str, value: str) -> None:
    """The error is one of configuration and says how to set it."""
    error = refused({name: value}, root)
    assert (type(error), error.where, error.next_step) == (ConfigurationError, name, f"set {name}=true or false")


@pytest.mark.parametrize("value, expected", [("1", True), ("YES", True), ("on", True), ("False", False), ("no", False)])
def test_a_flag_may_be_written_as_people_do(root: Path, value: str, expected: bool) -> None:
    """Case does not matter."""
    assert Settings.from_env({"REQUIRE_IMAGE": value}, root).require_image is expected


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["soon", "nan", "inf", "-1", "1e999"])
def test_a_time_that_is_no_number_or_too_small_is_named(root: Path, name: str, value: str) -> None:
    """Neither words nor numbers that no clock reaches."""
    assert refused({name: value}, root).where == name


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", ["many", "1.5", "-1", "70000", "²"])
def test_a_count_that_is_not_whole_or_out_of_range_is_named(root: Path, name: str, value: str) -> None:
    """The error names the range."""
    error = refused({name: value}, root)
    assert error.where == name
    assert "whole number from" in error.what


@pytest.mark.parametrize("value", ["", "  ", "$(LOCAL_PORT)"])
def test_what_a_pipeline_leaves_unset_is_unset(root: Path, value: str) -> None:
    """Azure Pipelines passes an undefined variable as its macro, or empty."""
    assert Settings.from_env({"LOCAL_PORT": value}, root).local.port == 8080


def test_an_unknown_platform_is_an_error_that_lists_the_known(root: Path) -> None:
    """Exit code 2."""
    error = refused({"MLOPS_PLATFORM": "cloud"}, root)
    assert (type(error), error.exit_code) == (UsageError, 2)
    assert error.next_step == f"use one of {', '.join(PLATFORMS)}"


@pytest.mark.parametrize("name", ["missing", "../another", "not-a-name"])
def test_an_unknown_project_is_an_error_that_lists_the_known(root: Path, name: str) -> None:
    """A project is a folder of the repository, never a path."""
    error = refused({"MLOPS_PROJECT": name}, root)
    assert (type(error), error.next_step) == (UsageError, "use one of: another, diabetes_regression")


@pytest.mark.parametrize("value", ["../x", "a b", "-x", ".x", "a;b", "##vso[x]", "é", "x" * 65])
def test_a_build_id_that_could_be_a_path_or_a_command_is_refused(root: Path, value: str) -> None:
    """The error names where the id came from."""
    assert refused({"BUILD_BUILDID": value}, root).where == "BUILD_BUILDID"
    with pytest.raises(UsageError) as caught:
        Settings.from_env({}, root, build_id=value)
    assert caught.value.where == "--build-id"


@pytest.mark.parametrize("value", ["a/b", "a'b", "a:1", "a b"])
def test_a_model_name_that_could_be_a_path_or_a_query_is_refused(root: Path, value: str) -> None:
    """MODEL_NAME ends up in file names and queries."""
    assert refused({"MODEL_NAME": value}, root).where == "MODEL_NAME"


@pytest.mark.parametrize("name", ["20260101.1", "a", "A_b-c.d", "x" * 64])
def test_a_plain_name_is_plain(name: str) -> None:
    """Letters, digits, dots, dashes and underscores."""
    assert is_plain(name)


def test_an_option_wins_over_the_environment(root: Path) -> None:
    """``--project``, ``--platform`` and ``--build-id``, and the source of the build id is told."""
    env = {"MLOPS_PROJECT": "another", "MLOPS_PLATFORM": "azureml", "BUILD_BUILDID": "7"}
    settings = Settings.from_env(env, root, platform="local", project="diabetes_regression", build_id="8")
    assert (settings.platform, settings.project) == ("local", "diabetes_regression")
    assert (settings.build_id, settings.build_id_source) == ("8", "--build-id")
    assert Settings.from_env(env, root).build_id_source == "BUILD_BUILDID"


def test_paths_are_absolute_from_the_repository(root: Path) -> None:
    """Whatever the working directory is."""
    settings = Settings.from_env({"MLOPS_HOME": "state", "MLOPS_STORE": "/shared", "DATA_FILE": "d.csv"}, root)
    assert (settings.home, settings.store, settings.data_file) == (root / "state", Path("/shared"), root / "d.csv")


def test_azure_pipelines_counts_as_ci(root: Path) -> None:
    """The agent sets TF_BUILD, and not always CI."""
    settings = Settings.from_env({"TF_BUILD": "True"}, root)
    assert (settings.is_ci, settings.azure_pipelines) == (True, True)


def test_no_secret_is_in_what_settings_print(root: Path) -> None:
    """A traceback or a debug line may hold ``repr(settings)``."""
    settings = Settings.from_env({"SP_APP_SECRET": "s3cret", "ANOTHER": "s3cret"}, root)
    assert settings.azure.sp_app_secret == "s3cret"
    assert "s3cret" not in repr(settings)
