"""The command around a step on Azure ML's compute: no SDK is needed for these."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from ml_service.platforms.azureml_v1 import step as azureml_step
from ml_service.platforms.azureml_v1.step_context import or_empty


class RecordingStep:
    """A step that records the tags of the pipeline's run."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.tags: dict[str, str] = {}
        steps.append(self)

    def tag_parent(self, tags: dict[str, str]) -> None:
        self.tags.update(tags)


steps: list[RecordingStep] = []


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space left on device"), 5), (KeyError("newest"), 1)], ids=["disk", "key"]
)
def test_an_unexpected_error_is_reported_like_the_rest(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's tag and the last line name it, without a traceback."""

    def breaks(step: Any) -> None:
        raise error

    monkeypatch.setattr(azureml_step, "Step", RecordingStep)
    monkeypatch.setattr(azureml_step, "train", breaks)
    assert code == azureml_step.main(["train"])
    printed = capsys.readouterr().err
    assert f"{type(error).__name__}: {error}" in printed and "Traceback" not in printed
    assert f"{type(error).__name__}: {error}" in steps[-1].tags["error"]
    assert str(code) == steps[-1].tags["exit_code"]


def test_only_the_word_for_no_value_is_empty() -> None:
    """An address may contain that word."""
    assert [or_empty(value) for value in ("none", "https://dev.azure.com/nonesuch/p")] == [
        "",
        "https://dev.azure.com/nonesuch/p",
    ]
