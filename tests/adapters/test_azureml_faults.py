"""What the Azure ML adapter does when Azure fails: it tries again within bounds, or says what happened."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Looked for, not imported: the SDK takes over HOME when it is imported, which must be that of the emulator.
if find_spec("azureml") is None:
    pytest.skip("azureml-sdk is not installed: see docs/azure-ml.md", allow_module_level=True)

from emulators import Fault  # noqa: E402
from emulators.wire.identity import MANAGED_IDENTITY, SECRET, make_token  # noqa: E402
from ml_service.errors import ConfigurationError, MlopsError, UnavailableError, UsageError  # noqa: E402
from ml_service.package import hash_files  # noqa: E402
from ml_service.platforms.azureml_v1 import assets  # noqa: E402
from ml_service.platforms.azureml_v1.registry import LostRace, Registry  # noqa: E402
from ml_service.ports import RunStatus  # noqa: E402
from tests.support.repositories import PROJECT  # noqa: E402
from tests.support.rigs.azureml import AzureMlRig, build, redirected, shared_emulator  # noqa: E402


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AzureMlRig]:
    emulator = shared_emulator()
    with redirected(emulator.redirection()):
        yield AzureMlRig(tmp_path, emulator)
    emulator.services.faults.clear()
    emulator.world.failing_steps = {}
    emulator.world.compute_provisioning_error = ""
    emulator.world.compute_quota = 100
    emulator.world.compute_looks = 0
    emulator.world.token_life = 3600.0
    assert emulator.services.unknown == []


@pytest.mark.parametrize("status", [429, 503, 500, 0], ids=["429", "503", "500", "dropped"])
def test_a_transient_answer_is_asked_for_again(rig: AzureMlRig, status: int) -> None:
    """Too many requests, a fault of Azure's, a dropped connection: the next try is taken."""
    rig.platform.pipelines(PROJECT, "b1")
    rig.emulator.plant(Fault("GET .*/Pipelines$", status))
    assert rig.platform.pipelines(PROJECT, "b1") == []
    assert rig.emulator.services.faults.left() == 0


def test_a_lasting_fault_ends_after_a_bounded_number_of_tries(rig: AzureMlRig) -> None:
    """The message names the resource, and says whose fault it is."""
    rig.platform.pipelines(PROJECT, "b1")
    before = len(rig.emulator.services.log)
    rig.emulator.plant(Fault("GET .*/Pipelines$", 500, times=1000, message="the store is down"))
    with pytest.raises(UnavailableError) as raised:
        rig.platform.pipelines(PROJECT, "b1")
    assert f"pipelines of workspace {rig.workspace_name}" == raised.value.where
    assert "Azure has a fault of its own" in raised.value.what
    assert len(rig.emulator.services.log) - before < 20


def test_an_error_without_details_is_waited_out(rig: AzureMlRig) -> None:
    """The SDK's exception for such an answer breaks when it is shown as text; the wait goes on all the same."""
    run = rig.submit("b1")
    rig.emulator.plant(Fault("GET .*/history/.*runs/", 503, times=6))
    assert RunStatus.COMPLETED == rig.platform.wait(run, lambda line: None).status
    assert rig.emulator.services.faults.left() == 0


def test_a_submission_whose_answer_was_lost_is_not_repeated(rig: AzureMlRig) -> None:
    """The run was started, its answer dropped: it is found again by its tag, and there is one run."""
    published = rig.publish("b1")
    rig.emulator.plant(Fault("POST .*/PipelineSubmit/", 0, done=True))
    run = rig.platform.submit(published, build("b1"), rig.data)
    assert [run.id] == [each.id for each in rig.platform.runs(PROJECT, "b1")]
    assert RunStatus.COMPLETED == rig.platform.wait(run, lambda line: None).status


def test_a_submission_is_not_repeated_when_it_cannot_be_looked_for(rig: AzureMlRig) -> None:
    """Its answer was lost and the list of runs does not answer: no second run is started, and what to do is said."""
    published = rig.publish("b1")
    rig.emulator.plant(Fault("POST .*/PipelineSubmit/", 0, done=True))
    rig.emulator.plant(Fault("POST .*/runs:query$", 503, times=12))
    with pytest.raises(UnavailableError, match="the answer was lost and the run cannot be looked for") as raised:
        rig.platform.submit(published, build("b1"), rig.data)
    assert "inv check-model" in raised.value.next_step
    rig.emulator.services.faults.clear()
    assert len(rig.platform.runs(PROJECT, "b1")) == 1


def test_a_publication_whose_answer_was_lost_is_found_again(rig: AzureMlRig) -> None:
    """The task fails or not, but the build has one pipeline in the end."""
    rig.emulator.plant(Fault("POST .*/Pipelines/Create$", 500, done=True))
    try:
        rig.publish("b1")
    except MlopsError:
        pass
    published = rig.publish("b1")
    assert [published] == rig.platform.pipelines(PROJECT, "b1")


def test_a_registration_whose_answer_was_lost_leaves_one_version(rig: AzureMlRig) -> None:
    """The SDK repeats the call by itself, and then the registry holds the model twice: the twin is removed."""
    rig.emulator.plant(Fault("POST .*/modelmanagement/.*/models$", 503, done=True))
    run = rig.train("b1")
    assert RunStatus.COMPLETED == run.status
    assert [run.registered] == list(rig.workspace.models)


def test_a_token_that_expires_in_the_middle_is_renewed(rig: AzureMlRig) -> None:
    """Service principals sign in again; a run that outlives the token of its caller is followed to its end."""
    rig.emulator.world.token_life = 302.0  # the SDK renews a token five minutes before its end
    platform = rig.open()
    run = platform.submit(rig.publish("b1"), build("b1"), rig.data)
    rig.emulator.world.token_life = 3600.0
    assert RunStatus.COMPLETED == platform.wait(run, lambda line: None).status
    signed_in = [line for line in rig.emulator.services.log if "POST login.microsoftonline.com" in line]
    assert len(signed_in) > 1


def test_a_step_that_fails_says_why(rig: AzureMlRig) -> None:
    """The project rejects the data: the run has the project's words and exit code, its log was shown."""
    rig.write_data("text")
    lines: list[str] = []
    run = rig.platform.wait(rig.submit("b1"), lines.append)
    assert (RunStatus.FAILED, 3, "") == (run.status, run.exit_code, run.registered)
    assert "not a number in column Y" in run.error
    assert "step train: Failed" in lines


def test_a_step_that_dies_without_a_word_is_a_failed_run(rig: AzureMlRig) -> None:
    """No message from our code: then Azure's own is shown."""
    rig.emulator.world.failing_steps = {"evaluate": "out of memory"}
    run = rig.train("b1")
    assert RunStatus.FAILED == run.status
    assert run.error == "Step evaluate failed: process exited with code 1: out of memory"
    assert rig.workspace.models == {}


def test_text_from_azure_cannot_act_as_a_command_of_the_agent(rig: AzureMlRig) -> None:
    """What a step printed, or Azure answered, is shown as text: no logging command, no line of its own."""
    rig.emulator.world.failing_steps = {"train": "##vso[task.setvariable variable=V]x"}
    lines: list[str] = []
    run = rig.platform.wait(rig.submit("b1"), lines.append)
    rig.emulator.plant(Fault("GET .*/Pipelines$", 403, message="##vso[task.complete result=Succeeded]\n##[error]x"))
    with pytest.raises(UnavailableError) as raised:
        rig.platform.pipelines(PROJECT, "b1")
    for text in (*lines, run.error, str(raised.value)):
        assert "##vso[" not in text and "##[" not in text
    assert "# #vso[task.setvariable" in run.error


def test_a_cluster_that_does_not_come_up_is_named(rig: AzureMlRig) -> None:
    """Azure accepts the cluster and then cannot allocate it."""
    rig.emulator.world.compute_provisioning_error = "no capacity in westeurope"
    with pytest.raises(UnavailableError, match="no capacity in westeurope") as raised:
        rig.publish("b1")
    assert f"compute cluster train-cluster of workspace {rig.workspace_name}" == raised.value.where
    assert rig.platform.pipelines(PROJECT, "b1") == []


def test_a_cluster_that_another_build_is_creating_is_waited_for(
    rig: AzureMlRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said, since it takes minutes; and with an end, since it may never come."""
    rig.publish("b1")
    monkeypatch.setattr(assets, "_POLL_INTERVAL", 0.01)
    rig.emulator.world.compute_looks = 3
    rig.publish("b2")
    assert rig.emulator.world.compute_looks == 0
    monkeypatch.setattr(assets, "_COMPUTE_MINUTES", 0.001)
    rig.emulator.world.compute_looks = 100_000
    with pytest.raises(UnavailableError, match="is still Creating after"):
        rig.publish("b3")


def test_doctor_names_a_cluster_that_did_not_come_up(rig: AzureMlRig) -> None:
    """It is there, and it is of no use."""
    rig.emulator.world.compute_provisioning_error = "no capacity in westeurope"
    with pytest.raises(UnavailableError):
        rig.publish("b1")
    (compute,) = [finding for finding in rig.platform.diagnose() if not finding.ok]
    assert (compute.subject, "no capacity in westeurope" in compute.detail) == ("compute", True)


def test_a_cluster_beyond_the_quota_is_refused_with_the_setting_to_change(rig: AzureMlRig) -> None:
    """The next step names the setting."""
    rig.emulator.world.compute_quota = 2
    with pytest.raises(UnavailableError, match="beyond the quota") as raised:
        rig.publish("b1")
    assert "AML_CLUSTER_MAX_NODES" in raised.value.next_step


def test_a_wrong_workspace_is_named_with_how_we_signed_in(rig: AzureMlRig) -> None:
    """So that a person can tell a wrong name from a wrong identity."""
    with pytest.raises(UnavailableError) as raised:
        rig.open(WORKSPACE_NAME="nowhere").champion("m")
    assert "workspace emulated/nowhere (signed in by service principal" in raised.value.where
    assert "WORKSPACE_NAME" in raised.value.next_step


def test_missing_rights_name_the_role(rig: AzureMlRig) -> None:
    """403 while registering the environment: which resource, and which role to ask for."""
    rig.emulator.plant(Fault("PUT .*/environments/", 403, code="AuthorizationFailed", message="not authorized"))
    with pytest.raises(UnavailableError, match="no rights") as raised:
        rig.publish("b1")
    assert "environment mean_regression-" in raised.value.where
    assert "AzureML Data Scientist" in raised.value.next_step


def test_a_wrong_secret_is_not_shown(rig: AzureMlRig) -> None:
    """The message names the settings, never the secret."""
    with pytest.raises(UnavailableError, match="the sign-in was refused") as raised:
        rig.open(SP_APP_SECRET="hunter2-not-the-secret").champion("m")
    assert "SP_APP_SECRET" in raised.value.next_step
    assert "hunter2" not in str(raised.value) + repr(rig.open(SP_APP_SECRET="hunter2")._settings)


def test_half_a_service_principal_is_a_wrong_configuration(rig: AzureMlRig) -> None:
    """The missing setting is named, before anything is asked."""
    with pytest.raises(ConfigurationError, match="TENANT_ID"):
        rig.open(TENANT_ID="").champion("m")
    with pytest.raises(ConfigurationError, match="WORKSPACE_NAME"):
        rig.open(WORKSPACE_NAME="").champion("m")


def test_the_azure_cli_signs_in_when_there_is_no_service_principal(rig: AzureMlRig, tmp_path: Path) -> None:
    """As in Azure Pipelines, where the service connection logs the CLI in."""
    token = make_token(rig.emulator.world, "cli")
    answer = {"accessToken": token, "expires_on": 4070908800, "expiresOn": "2099-01-01 00:00:00.000000"}
    _command(tmp_path / "az", json.dumps(answer))
    with redirected({"PATH": f"{tmp_path}:{os.environ['PATH']}"}):
        assert None is rig.open(SP_APP_ID="", SP_APP_SECRET="").champion("m")


def test_a_managed_identity_signs_in_where_the_machine_has_one(rig: AzureMlRig) -> None:
    """The two variables that Azure's hosts set; what the address answers is what App Service answers."""
    host = {"IDENTITY_ENDPOINT": MANAGED_IDENTITY, "IDENTITY_HEADER": SECRET}
    with redirected(host):
        assert None is rig.open(SP_APP_ID="", SP_APP_SECRET="", **host).champion("m")
    assert any("GET 169.254.169.254/msi/token" in line for line in rig.emulator.services.log)
    with redirected({**host, "IDENTITY_HEADER": "of another host"}), pytest.raises(UnavailableError) as raised:
        rig.open(SP_APP_ID="", SP_APP_SECRET="", **host).champion("m")
    assert "signed in by managed identity" in raised.value.where


def test_without_any_sign_in_the_one_that_was_tried_is_named(rig: AzureMlRig, tmp_path: Path) -> None:
    """No service principal, and no Azure CLI on this machine."""
    with redirected({"PATH": str(tmp_path)}), pytest.raises(UnavailableError) as raised:
        rig.open(SP_APP_ID="", SP_APP_SECRET="").champion("m")
    assert "signed in by Azure CLI, since SP_APP_ID is not set" in raised.value.where
    assert "az login" in raised.value.next_step


def test_a_model_deleted_in_between_is_named(rig: AzureMlRig, tmp_path: Path) -> None:
    """Somebody deletes the version after it was found."""
    rig.train("b1")
    version = rig.platform.version(PROJECT, "1")
    rig.workspace.models.clear()
    with pytest.raises(UsageError, match=f"{PROJECT}:1 was deleted"):
        rig.platform.download(version, tmp_path)
    assert None is rig.platform.champion(PROJECT)


def test_a_download_is_repeated_and_then_given_up(rig: AzureMlRig, tmp_path: Path) -> None:
    """One fault of the storage is waited out; a lasting one is an error that shows no signature."""
    rig.train("b1")
    version = rig.platform.version(PROJECT, "1")
    rig.emulator.plant(Fault("GET .*blob.*/version/.*", 503))
    rig.platform.download(version, tmp_path / "one")
    assert version.files == hash_files(tmp_path / "one")
    rig.emulator.plant(Fault("GET .*blob.*/version/.*", 503, times=1000))
    before = len(rig.emulator.services.log)
    with pytest.raises(UnavailableError, match="Azure has a fault of its own") as raised:
        rig.platform.download(version, tmp_path / "two")
    assert f"model {PROJECT}:1 of workspace {rig.workspace_name}" == raised.value.where
    assert "sig=" not in str(raised.value)
    assert len(rig.emulator.services.log) - before < 10


def test_a_crash_between_registration_and_confirmation_leaves_nothing_to_see(rig: AzureMlRig) -> None:
    """The version stays pending: no reader sees it, and the next run is not stopped by it."""
    rig.emulator.plant(Fault("PATCH .*/models/", 400, times=1000))
    run = rig.train("b1")
    rig.emulator.services.faults.clear()
    assert (RunStatus.FAILED, [f"{PROJECT}:1"]) == (run.status, list(rig.workspace.models))
    assert (rig.platform.champion(PROJECT), rig.platform.model_of_build(PROJECT, "b1")) == (None, None)

    assert f"{PROJECT}:2" == rig.train("b2").registered


def test_two_registrations_at_once_leave_one_and_tell_the_other(rig: AzureMlRig, tmp_path: Path) -> None:
    """Both saw the same champion; the lower number stays, the other is taken back before anybody could see it."""
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "m").write_text("m")
    os.chdir(tmp_path)
    registration = {"files": {"m": "00"}, "metrics": {"mse": 1.0}}
    ended: list[object] = []

    def register(run_id: str) -> None:
        tags = {"run_id": run_id, "build_id": run_id, "build_uri": ""}
        try:
            registry = Registry(rig.open()._workspace)
            ended.append(
                registry.register(
                    "race", tmp_path / "version", tags, registration, newest_seen=0, is_alive=lambda run: True
                )
            )
        except LostRace as error:
            ended.append(error)

    threads = [threading.Thread(target=register, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([each for each in ended if isinstance(each, LostRace)]) == 1
    assert list(rig.workspace.models) == ["race:1"]


def test_doctor_says_what_is_wrong(rig: AzureMlRig) -> None:
    """Names that Azure does not take, and a quota that is too small, each with what to do."""
    rig.emulator.world.compute_quota = 1
    subjects = {finding.subject: finding for finding in rig.platform.diagnose() if not finding.ok}
    assert subjects.keys() == {"quota"}
    findings = rig.open(AML_COMPUTE_CLUSTER_NAME="9 lives", AML_CLUSTER_PRIORITY="cheap").diagnose()
    assert {f.subject for f in findings if not f.ok} == {"AML_COMPUTE_CLUSTER_NAME", "AML_CLUSTER_PRIORITY"}
    (workspace,) = [f for f in rig.open(WORKSPACE_NAME="nowhere").diagnose() if not f.ok]
    assert "workspace" == workspace.subject and "nowhere" in workspace.detail


def test_without_the_sdk_the_install_line_is_said(rig: AzureMlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """azureml-sdk is an optional group of dependencies."""
    monkeypatch.setitem(sys.modules, "azureml.core", None)
    with pytest.raises(ConfigurationError, match="azureml-sdk is not installed") as raised:
        rig.open().champion("m")
    assert "python3.11 requirements/sync.py .venv-all" in raised.value.next_step


def _command(path: Path, output: str) -> None:
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
