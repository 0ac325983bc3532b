"""Read runs of the training pipeline as the port defines them, and watch one until it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ml_service.azure_devops import sanitize_log_line
from ml_service.errors import MlopsError
from ml_service.platforms.azureml_v1.sdk import attempt
from ml_service.platforms.azureml_v1.step_context import ERROR, EXIT_CODE, REGISTERED, VERDICT
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
    """Return the state of a pipeline's run, from its record and the tags that its steps set."""
    record = attempt(run._client.run.get_run, f"run {run.id} of {where}")
    tags: Mapping[str, str] = record.tags or {}
    status = _ENDED.get(record.status, RunStatus.RUNNING)
    verdict = {name.removeprefix(VERDICT): _value(text) for name, text in tags.items() if name.startswith(VERDICT)}
    error, code = "", 0
    if status is RunStatus.FAILED:
        error = sanitize_log_lines(tags.get(ERROR, "")) or _error_message(record)
        code = int(tags.get(EXIT_CODE, "1"))
    if status is RunStatus.CANCELED and verdict.get("accept", True):
        # The gate cancels a run whose candidate it rejects. Any other cancellation was requested by a person.
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
    """Return ``text`` with each of its lines sanitized."""
    return "\n".join(sanitize_log_line(line) for line in text.splitlines())


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return sanitize_log_line(value) if isinstance(value, str) else value


def _error_message(record: Any) -> str:
    inner = getattr(record.error, "error", None)
    return sanitize_log_line(str(getattr(inner, "message", "") or "failed without a reason"))[:600]


class Watch:
    """Follow a run: pass on the log lines of its steps, and each change of a step's status."""

    def __init__(self, run: Any, where: str, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._where = f"run {run.id} of {where}"
        self._seen: dict[str, str] = {}
        self._shown: dict[str, int] = {}

    def has_ended(self) -> bool:
        """Read the run's status, and return whether it has ended."""
        return attempt(self._run._client.run.get_run, self._where).status in _ENDED

    def until_ended(self) -> None:
        """Wait until the run has ended. Poll each second at first, later every 15 seconds."""
        pause = _POLL_FIRST
        while not self.has_ended():
            self._pass_on_changes()
            time.sleep(pause)
            pause = min(pause * 1.2, _POLL_LONGEST)
        self._pass_on_changes()

    def _pass_on_changes(self) -> None:
        for step in self._steps():
            if step.status != "NotStarted":
                self._pass_on_log(step)
            if self._seen.get(step.run_id) == step.status:
                continue
            self._seen[step.run_id] = step.status
            reused = " (reused)" if "azureml.reusedrunid" in (step.properties or {}) else ""
            self._progress(sanitize_log_line(f"step {step.name}: {step.status}{reused}"))

    def _steps(self) -> list[Any]:
        """Return the records of the steps in the order of their start, without those that are known to have ended.

        The SDK's public ``get_children`` makes four calls for each step, each time. The records come in one call.
        """
        client = self._run._client.run
        listed = attempt(lambda: list(client.get_child_runs(self._run.id)), self._where)
        going = [step for step in listed if self._seen.get(step.run_id) not in _ENDED]
        return sorted(going, key=lambda step: step.created_utc)

    def _pass_on_log(self, step: Any) -> None:
        """Pass on the log lines that the step has written since the last call."""
        try:
            text = attempt(lambda: self._log(step.run_id), f"log of step {step.name}")
        except MlopsError:
            # A log that cannot be read now must not end the wait. The next call shows the rest.
            return
        lines = text.split("\n")[:-1]
        for line in islice(lines, self._shown.get(step.run_id, 0), None):
            self._progress(sanitize_log_line(line))
        self._shown[step.run_id] = max(len(lines), self._shown.get(step.run_id, 0))

    def _log(self, step_id: str) -> str:
        """Return the step's output: ``std_log.txt`` in the newest layout, ``70_driver_log.txt`` in an older one."""
        import requests
        from azureml.core import Run as SdkRun

        details = SdkRun(self._run.experiment, step_id)._client.get_runstatus()
        files: Mapping[str, str] = details.log_files or {}
        names = [name for name in sorted(files) if name.endswith(("std_log.txt", "70_driver_log.txt"))]
        if not names:
            return ""
        response = requests.get(files[names[0]], timeout=30)
        response.raise_for_status()
        return response.text
