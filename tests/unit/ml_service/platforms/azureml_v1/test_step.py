"""The command around a step on Azure ML's compute: no SDK is needed for these."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from ml_service.platforms.azureml_v1 import step as azureml_step


class Told:
    """A step that records the tags of the pipeline's run."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.tags: dict[str, str] = {}
        made.append(self)

    def tag_parent(self, tags: dict[str, str]) -> None:
        self.tags.update(tags)


made: list[Told] = []


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space left on device"), 5), (KeyError("newest"), 1)], ids=["disk", "key"]
)
def test_what_nobody_expected_is_told_like_the_rest(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's tag and the last line say it, without a traceback."""

    def breaks(step: Any) -> None:
        raise error

    monkeypatch.setattr(azureml_step, "Step", Told)
    monkeypatch.setattr(azureml_step, "train", breaks)
    assert code == azureml_step.main(["train"])
    said = capsys.readouterr().err
    assert f"{type(error).__name__}: {error}" in said and "Traceback" not in said
    assert f"{type(error).__name__}: {error}" in made[-1].tags["error"]
    assert str(code) == made[-1].tags["exit_code"]


def test_only_a_parameter_that_is_not_given_is_empty() -> None:
    """An address may hold the word that stands for it."""
    assert ["", "https://dev.azure.com/nonesuch/p"] == [
        azureml_step._given(value) for value in ("none", "https://dev.azure.com/nonesuch/p")
    ]
