"""Runs of the training pipeline as the port means them, and watching one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ml_service.azure_devops import sanitize_log_line
from ml_service.errors import MlopsError
from ml_service.platforms.azureml_v1.sdk import attempt
from ml_service.platforms.azureml_v1.step import ERROR, EXIT_CODE, REGISTERED, VERDICT
from ml_service.ports import Build, Progress, Run, RunStatus

_ENDED = {
    "Completed": RunStatus.COMPLETED,
    "Finished": RunStatus.COMPLETED,
    "Canceled": RunStatus.CANCELED,
    "Failed": RunStatus.FAILED,
}
_POLL_FIRST, _POLL_LONGEST = 1.0, 15.0
_INTERRUPTED = 130


def read_run(run: Any, where: str) -> Run:
    """What a pipeline's run says about itself, as one of ours."""
    record = attempt(run._client.run.get_run, f"run {run.id} of {where}")
    tags: Mapping[str, str] = record.tags or {}
    status = _ENDED.get(record.status, RunStatus.RUNNING)
    verdict = {name.removeprefix(VERDICT): _value(text) for name, text in tags.items() if name.startswith(VERDICT)}
    error, code = "", 0
    if status is RunStatus.FAILED:
        error = sanitize_log_lines(tags.get(ERROR, "")) or _said(record)
        code = int(tags.get(EXIT_CODE, "1"))
    if status is RunStatus.CANCELED and verdict.get("accept", True):
        # The gate cancels a run that it rejected; any other cancellation was somebody's request.
        status, error, code = RunStatus.FAILED, "was canceled by request", _INTERRUPTED
    return Run(
        id=str(run.id),
        pipeline_id=str((record.properties or {}).get("azureml.pipelineid", "")),
        build=Build(tags.get("BuildId", ""), tags.get("BuildUri", ""), tags.get("GitCommit", "")),
        status=status,
        url=str(run.get_portal_url()),
        error=error,
        exit_code=code,
        registered=sanitize_log_line(tags.get(REGISTERED, "")),
        verdict=verdict,
    )


def sanitize_log_lines(text: str) -> str:
    """Several lines, each safe to print."""
    return "\n".join(sanitize_log_line(line) for line in text.splitlines())


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return sanitize_log_line(value) if isinstance(value, str) else value


def _said(record: Any) -> str:
    inner = getattr(record.error, "error", None)
    return sanitize_log_line(str(getattr(inner, "message", "") or "failed without saying why"))[:600]


class Watch:
    """Follows a run: says what its steps say, and each change of a step's status."""

    def __init__(self, run: Any, where: str, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._where = f"run {run.id} of {where}"
        self._seen: dict[str, str] = {}
        self._shown: dict[str, int] = {}

    def has_ended(self) -> bool:
        """Whether the run has ended, as of now."""
        return attempt(self._run._client.run.get_run, self._where).status in _ENDED

    def until_ended(self) -> None:
        """Return when the run has ended. Asks often at first and then less."""
        pause = _POLL_FIRST
        while not self.has_ended():
            self._say_changes()
            time.sleep(pause)
            pause = min(pause * 1.2, _POLL_LONGEST)
        self._say_changes()

    def _say_changes(self) -> None:
        for step in self._steps():
            if step.status != "NotStarted":
                self._say_log(step)
            if self._seen.get(step.run_id) == step.status:
                continue
            self._seen[step.run_id] = step.status
            reused = " (reused)" if "azureml.reusedrunid" in (step.properties or {}) else ""
            self._progress(sanitize_log_line(f"step {step.name}: {step.status}{reused}"))

    def _steps(self) -> list[Any]:
        """The steps' records in the order of their start; those whose end was seen already are left out.

        The SDK's public ``get_children`` makes four calls for each step, each time; the records come in one.
        """
        client = self._run._client.run
        listed = attempt(lambda: list(client.get_child_runs(self._run.id)), self._where)
        going = [step for step in listed if self._seen.get(step.run_id) not in _ENDED]
        return sorted(going, key=lambda step: step.created_utc)

    def _say_log(self, step: Any) -> None:
        """What the step said since we last looked."""
        try:
            text = attempt(lambda: self._log(step.run_id), f"log of step {step.name}")
        except MlopsError:
            # A log that cannot be read now is no reason to stop waiting; the next look shows the rest.
            return
        lines = text.split("\n")[:-1]
        for line in islice(lines, self._shown.get(step.run_id, 0), None):
            self._progress(sanitize_log_line(line))
        self._shown[step.run_id] = max(len(lines), self._shown.get(step.run_id, 0))

    def _log(self, step_id: str) -> str:
        """The step's own output: the newest layout calls it user_logs/std_log.txt, an older one 70_driver_log.txt."""
        import requests
        from azureml.core import Run as SdkRun

        details = SdkRun(self._run.experiment, step_id)._client.get_runstatus()
        files: Mapping[str, str] = details.log_files or {}
        names = [name for name in sorted(files) if name.endswith(("std_log.txt", "70_driver_log.txt"))]
        if not names:
            return ""
        answer = requests.get(files[names[0]], timeout=30)
        answer.raise_for_status()
        return answer.text
