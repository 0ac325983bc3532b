"""The Azure ML adapter with the real azureml-sdk, against the emulator: publish, train, gate, register, withdraw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Looked for, not imported: the SDK takes over HOME when it is imported, which must be that of the emulator.
if find_spec("azureml") is None:
    pytest.skip("azureml-sdk is not installed: see docs/azure-ml.md", allow_module_level=True)

from ml_service.errors import IntegrityError, UsageError  # noqa: E402
from ml_service.package import hash_files, sha256_of  # noqa: E402
from ml_service.ports import RunStatus  # noqa: E402
from tests.support.repositories import PROJECT as MODEL  # noqa: E402
from tests.support.rigs.azureml import AzureMlRig, build, redirected, shared_emulator  # noqa: E402


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AzureMlRig]:
    emulator = shared_emulator()
    with redirected(emulator.redirection()):
        yield AzureMlRig(tmp_path, emulator)
    assert emulator.services.unknown == []
    emulator.services.faults.clear()


def test_a_build_trains_registers_and_downloads_a_model(rig: AzureMlRig, tmp_path: Path) -> None:
    """From publication to the files of a registered version, with everything that the port promises on it."""
    published = rig.publish("b1")
    submitted = rig.platform.submit(published, build("b1"), rig.data)
    lines: list[str] = []
    run = rig.platform.wait(submitted, lines.append)

    assert (RunStatus.COMPLETED, f"{MODEL}:1", "") == (run.status, run.registered, run.error)
    assert (published.id, build("b1"), True) == (run.pipeline_id, run.build, run.verdict["accept"])
    assert [f"step {name}: Completed" for name in ("train", "evaluate", "register")] == [
        line for line in lines if line.endswith("Completed")
    ]
    assert lines[0].startswith("portal: https://")

    version = rig.platform.model_of_build(MODEL, "b1")
    assert version is not None
    assert version == rig.platform.champion(MODEL) == rig.platform.version(MODEL, "1")
    assert {
        "run_id": run.id,
        "build_id": "b1",
        "build_uri": build("b1").uri,
        "git_commit": build("b1").git_commit,
        "pipeline_id": published.id,
        "data_sha256": sha256_of(rig.data),
        "lock_sha256": sha256_of(rig.root / "requirements" / "all.txt"),
        "training_rows_sha256": version.files["training-rows.json"],
        "runtime": "script",
    } == version.tags
    assert pytest.approx(1.25) == version.metrics["mse"]
    (tmp_path / "model").mkdir()
    rig.platform.download(version, tmp_path / "model")
    assert version.files == hash_files(tmp_path / "model")


def test_what_people_look_for_is_on_the_run(rig: AzureMlRig) -> None:
    """Metrics, dataset, verdict and the build are on the pipeline's run; the metrics are on the step's run too."""
    run = rig.train("b1")

    recorded = rig.workspace.runs[run.id]
    assert ("b1", build("b1").uri) == (recorded["tags"]["BuildId"], recorded["tags"]["BuildUri"])
    assert f"{MODEL}:1" == recorded["tags"]["dataset"]
    assert json.loads(recorded["tags"]["verdict.reason"]) == "first of its name"
    steps = {step["name"]: step["runId"] for step in rig.workspace.runs.values() if step["parentRunId"] == run.id}
    for identifier in (run.id, steps["train"]):
        assert [metric["name"] for metric in rig.workspace.metrics[identifier]] == ["mse"]


def test_a_candidate_that_is_not_better_cancels_the_run(rig: AzureMlRig) -> None:
    """The second run is canceled by the gate, says why, and nothing is registered."""
    rig.train("b1")
    run = rig.train("b2", shift=1.0)

    assert (RunStatus.CANCELED, False, "not better") == (run.status, run.verdict["accept"], run.verdict["reason"])
    assert (rig.platform.model_of_build(MODEL, "b2"), _champion(rig)) == (None, "1")
    assert [f"{MODEL}:1"] == list(rig.workspace.models)


def test_a_better_candidate_is_the_new_champion(rig: AzureMlRig) -> None:
    """The champion is restored from the registry, compared, and followed by the better one."""
    rig.train("b1", shift=1.0)
    run = rig.train("b2")

    assert (RunStatus.COMPLETED, f"{MODEL}:2") == (run.status, run.registered)
    assert pytest.approx(1.0) == run.verdict["improvement"]
    assert _champion(rig) == "2"


def test_without_cancellation_a_rejected_run_completes(rig: AzureMlRig) -> None:
    """ALLOW_RUN_CANCEL=false: the run ends as completed, and registers nothing all the same."""
    rig.train("b1")
    run = rig.train("b2", cancel=False)

    assert (RunStatus.COMPLETED, "", False) == (run.status, run.registered, run.verdict["accept"])
    assert [f"{MODEL}:1"] == list(rig.workspace.models)


def test_without_evaluation_every_model_is_registered(rig: AzureMlRig) -> None:
    """RUN_EVALUATION=false: train and register, and the verdict says that nothing was compared."""
    rig.train("b1")
    run = rig.train("b2", evaluate=False, shift=5.0)

    assert (RunStatus.COMPLETED, f"{MODEL}:2") == (run.status, run.registered)
    assert run.verdict["reason"] == "RUN_EVALUATION=false: registered without comparing"


def test_a_retried_build_finds_its_own_pipeline(rig: AzureMlRig) -> None:
    """Publishing the same again gives the same id; other content under the same build id is refused."""
    first = rig.publish("b1")
    assert first == rig.publish("b1")
    assert [first] == rig.platform.pipelines(MODEL, "b1")

    with pytest.raises(UsageError, match="published other content already"):
        rig.publish("b1", shift=1.0)
    assert [first] == rig.platform.pipelines(MODEL, "b1")
    assert rig.platform.pipelines(MODEL, "b0") == []


def test_a_run_is_what_was_published(rig: AzureMlRig) -> None:
    """Sources that change after publication do not reach the compute."""
    published = rig.publish("b1")
    (rig.root / MODEL / "__main__.py").write_text("raise SystemExit('changed after publication')")
    run = rig.platform.wait(rig.platform.submit(published, build("b1"), rig.data), lambda line: None)
    assert RunStatus.COMPLETED == run.status


def test_training_is_reused_when_nothing_changed(rig: AzureMlRig) -> None:
    """The same sources on the same data train once, and each run has the plots; other data trains again."""
    rig.train("b1")
    lines: list[str] = []
    published = rig.publish("b1")
    reusing = rig.platform.wait(rig.platform.submit(published, build("b1"), rig.data), lines.append)
    assert "step train: Completed (reused)" in lines
    assert "mean.svg" in rig.platform.plots(reusing)

    lines.clear()
    rig.write_data(1, 2, 3, 4)
    rig.platform.wait(rig.platform.submit(published, build("b1"), rig.data), lines.append)
    assert "step train: Completed" in lines


def test_changed_data_is_a_new_version_of_the_dataset(rig: AzureMlRig) -> None:
    """Data is uploaded when it is missing or changed, and not otherwise."""
    rig.publish("b1")
    rig.publish("b2")
    rig.write_data(1, 2)
    rig.publish("b3")
    versions = rig.workspace.datasets[MODEL]["versions"]
    assert [version["latest"]["versionId"] for version in versions] == ["1", "2"]
    assert sha256_of(rig.data) == versions[-1]["tags"]["sha256"]


def test_a_changed_lock_is_a_changed_environment(rig: AzureMlRig) -> None:
    """The environment's name holds the hash of the lock, its packages are the lock's with their hashes."""
    rig.publish("b1")
    rig.publish("b2")
    lock = rig.root / "requirements" / "azureml.txt"
    first = f"{MODEL}-{sha256_of(lock)[:12]}"
    lock.write_text("numpy==2.0.1 --hash=sha256:22\n")
    rig.publish("b3")

    assert [first, f"{MODEL}-{sha256_of(lock)[:12]}"] == list(rig.workspace.environments)
    (registered,) = rig.workspace.environments[first]
    conda = registered["python"]["condaDependencies"]["dependencies"]
    assert [line for entry in conda if isinstance(entry, dict) for line in entry["pip"]] == [
        "numpy==2.0.0 --hash=sha256:00 --hash=sha256:11"
    ]
    assert "python=3.11" in conda


def test_the_cluster_is_created_once_as_the_settings_say(rig: AzureMlRig) -> None:
    """Found or created: size, priority and nodes are those of the settings."""
    rig.publish("b1")
    rig.publish("b2")
    ((name, cluster),) = rig.workspace.computes.items()
    wanted = cluster["properties"]["properties"]
    assert (name, wanted["vmSize"], wanted["vmPriority"].lower()) == ("train-cluster", "STANDARD_DS2_V2", "lowpriority")
    assert (wanted["scaleSettings"]["minNodeCount"], wanted["scaleSettings"]["maxNodeCount"]) == (0, 4)


def test_the_agentless_task_of_azure_pipelines_starts_the_same_run(rig: AzureMlRig) -> None:
    """A run that our code did not submit is found by its BuildId tag, with the defaults of the publication."""
    import requests

    published = rig.publish("b1")
    entry = rig.platform._publications.get(published.id)
    answer = requests.post(
        entry.sdk.endpoint,
        json={"ExperimentName": MODEL, "ParameterAssignments": {}, "tags": {"BuildId": "b1"}},
        headers=rig.platform._workspace._auth.get_authentication_header(),
        timeout=60,
    )
    answer.raise_for_status()
    (run,) = rig.platform.runs(MODEL, "b1")
    assert RunStatus.COMPLETED == rig.platform.wait(run, lambda line: None).status
    version = rig.platform.model_of_build(MODEL, "b1")
    assert version is not None and build("b1").git_commit == version.tags["git_commit"]


def test_data_file_path_registers_what_lies_in_the_datastore(rig: AzureMlRig) -> None:
    """The pipeline's own parameter: a file of the datastore becomes the next version of the dataset."""
    import requests

    published = rig.publish("b1")
    store = rig.platform._workspace.get_default_datastore()
    store.upload_files([str(rig.write_data(7, 9))], target_path="landing", overwrite=True, show_progress=False)
    requests.post(
        rig.platform._publications.get(published.id).sdk.endpoint,
        json={
            "ExperimentName": MODEL,
            "ParameterAssignments": {"data_file_path": "landing/mean.csv", "caller_run_id": "adf-1"},
            "tags": {"BuildId": "b1"},
        },
        headers=rig.platform._workspace._auth.get_authentication_header(),
        timeout=60,
    ).raise_for_status()
    (run,) = rig.platform.runs(MODEL, "b1")
    rig.platform.wait(run, lambda line: None)
    tags = rig.workspace.runs[run.id]["tags"]
    assert (f"{MODEL}:2", sha256_of(rig.data), "adf-1") == (tags["dataset"], tags["data_sha256"], tags["caller_run_id"])


def test_a_withdrawn_version_is_champion_no_more(rig: AzureMlRig) -> None:
    """The alias falls back to the version before, then to none; withdrawing again changes nothing."""
    rig.train("b1", shift=1.0)
    rig.train("b2")
    newest, oldest = rig.platform.version(MODEL, "2"), rig.platform.version(MODEL, "1")

    assert oldest == rig.platform.withdraw(newest, "wrong data")
    assert oldest == rig.platform.withdraw(newest, "another reason")
    assert (
        rig.platform.version(MODEL, "2").withdrawn,
        rig.platform.model_of_build(MODEL, "b2"),
    ) == ("wrong data", None)
    assert None is rig.platform.withdraw(oldest, "all wrong")
    with pytest.raises(UsageError, match="not registered"):
        rig.platform.version(MODEL, "9")


def test_a_run_can_be_canceled(rig: AzureMlRig) -> None:
    """A run that somebody cancels failed by request, and registers nothing from then on."""
    run = rig.submit("b1", seconds=120)
    rig.platform.cancel(run)
    (ended,) = rig.platform.runs(MODEL, "b1")
    assert (RunStatus.FAILED, "was canceled by request", 130) == (ended.status, ended.error, ended.exit_code)
    assert rig.workspace.models == {}


def test_a_version_whose_bytes_changed_is_refused(rig: AzureMlRig, tmp_path: Path) -> None:
    """What the workspace hands out is compared with the hashes of the registration."""
    rig.train("b1")
    version = rig.platform.version(MODEL, "1")
    rig.damage(version)
    (tmp_path / "model").mkdir()
    with pytest.raises(IntegrityError, match="model/mean.json was changed"):
        rig.platform.download(version, tmp_path / "model")


def _champion(rig: AzureMlRig) -> str:
    champion = rig.platform.champion(MODEL)
    return champion.version if champion else ""
