"""The runs of one experiment: start one, find them again."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from ml_service.errors import MlopsError, UnavailableError, UsageError
from ml_service.platforms.azureml_v1.sdk import attempt, is_missing, is_transient, status_of, translate
from ml_service.ports import Build

_SUBMISSION = "submission"
"""A tag with a random value, by which a submission is found again when its response is lost."""

_SUBMIT_TIMEOUT = 60


class Experiment:
    """The pipeline runs of the experiment ``name``; ``where`` names the workspace in messages."""

    def __init__(self, workspace: Any, name: str, where: str) -> None:
        self._workspace = workspace
        self._name = name
        self._where = where

    def submit(self, endpoint: str, build: Build, dataset_version: str, where: str) -> str:
        """Start a run by the REST endpoint of a published pipeline; return its id.

        Raises:
            UnavailableError: it was refused, or nobody can tell whether it was started.
        """
        submission = secrets.token_hex(8)
        tags = {"BuildId": build.id, "BuildUri": build.uri, "GitCommit": build.git_commit, _SUBMISSION: submission}
        body = {
            "ExperimentName": self._name,
            "ParameterAssignments": {"dataset_version": dataset_version},
            "tags": {name: value for name, value in tags.items() if value},
        }
        return self._post(endpoint, body, submission, where)

    def _post(self, endpoint: str, body: Mapping[str, Any], submission: str, where: str) -> str:
        """Start the run as Azure Pipelines' own task does, at most once; return its id.

        The SDK's ``submit`` sets tags in a second call: a run whose submitter died between the two would belong to no
        build. A submission must not be repeated blindly either. When a response is lost, the service may have started
        the run all the same, so the run with the submission's tag is looked up before anything is sent again.
        """
        import requests

        for attempts_left in (2, 1, 0):
            # Before anything is sent: a sign-in that fails is not a lost response.
            header = attempt(self._workspace._auth.get_authentication_header, where)
            try:
                response = requests.post(endpoint, json=body, headers=header, timeout=_SUBMIT_TIMEOUT)
                response.raise_for_status()
                return str(response.json()["Id"])
            except Exception as error:
                if 400 <= status_of(error) < 500 and not is_transient(error):
                    # Refused, so nothing was started.
                    raise translate(error, where) from None
                if run_id := self._find_submission(submission, where):
                    return run_id
                if not attempts_left or not is_transient(error):
                    raise translate(error, where) from None
                time.sleep(2 * (3 - attempts_left))
        raise UnavailableError("could not be started", where=where)

    def _find_submission(self, submission: str, where: str) -> str:
        """Return the id of the run that a submission started, "" when it started none.

        Raises:
            UnavailableError: the runs cannot be listed. Sent again, the submission might start a second run.
        """
        try:
            runs = self.runs({_SUBMISSION: submission})
        except MlopsError as error:
            raise UnavailableError(
                f"the answer was lost and the run cannot be looked for: {error.what}",
                where=where,
                next_step="run: inv check-model, before inv train again",
            ) from None
        return str(runs[0].id) if runs else ""

    def runs(self, tags: Mapping[str, str]) -> list[Any]:
        """Return the pipeline runs with these tags as the SDK's objects, oldest first."""
        from azureml.core import Experiment as SdkExperiment

        def query() -> list[Any]:
            try:
                experiment = SdkExperiment(self._workspace, self._name, _create_in_cloud=False)
                return list(experiment.get_runs(type="azureml.PipelineRun", tags=dict(tags)))
            except Exception as error:
                if is_missing(error):
                    return []
                raise

        runs = attempt(query, f"experiment {self._name} of {self._where}")
        return sorted(runs, key=lambda run: run._run_dto["created_utc"])

    def run(self, run_id: str) -> Any:
        """Return the SDK's object for a run.

        Raises:
            UsageError: there is no such run.
        """
        from azureml.core import Run as SdkRun

        def get() -> Any:
            try:
                return SdkRun.get(self._workspace, run_id)
            except Exception as error:
                if is_missing(error):
                    raise UsageError(
                        f"there is no run {run_id!r}", where=self._where, next_step="run: inv train"
                    ) from None
                raise

        return attempt(get, f"run {run_id} of {self._where}")
