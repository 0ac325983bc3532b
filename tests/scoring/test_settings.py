"""Settings come from the environment; one that cannot be meant is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from scoring_service.errors import ConfigurationError
from scoring_service.settings import Settings


def test_defaults_and_values() -> None:
    """Unset and empty are the same."""
    env = {"AZUREML_MODEL_DIR": "/p", "SCORING_WORKERS": "3", "SCORING_PORT": "", "SCORING_AUTH": "off"}
    read = Settings.from_env(env)
    assert (Path("/p"), 3, 5001, False) == (read.package, read.workers, read.port, read.auth)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCORING_WORKERS", "0"),
        ("SCORING_WORKERS", "two"),
        ("SCORING_PORT", "65536"),
        ("SCORING_AUTH", "no"),
        ("SCORING_TIMEOUT", "nan"),
        ("SCORING_MAX_BODY", "1.5"),
        ("AZUREML_MODEL_DIR", ""),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: str) -> None:
    """Exit code 4."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env({"AZUREML_MODEL_DIR": "/p", name: value})
    assert (name, 4) == (caught.value.where, caught.value.exit_code)
