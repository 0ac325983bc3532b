"""No test may depend on, or write to, what the person or pipeline that runs it has set up for real work."""

from __future__ import annotations

import os

from ml_service.config import SECTIONS, CoreSettings
from ml_service.config.fields import declared

_OF_THE_MACHINE = frozenset(("KUBECONFIG", "DOCKER_HOST", "PIP_INDEX_URL", "IMAGE_BUILD_NETWORK"))
"""What tests of containers and clusters need to find them."""

_OF_THE_PIPELINE = ("CI", "TF_BUILD", "MLOPS_OUTPUTS")


def settings() -> set[str]:
    """Every setting that there is."""
    return {setting.name for section in (CoreSettings, *SECTIONS.values()) for setting in declared(section).values()}


for name in (settings() - _OF_THE_MACHINE).union(_OF_THE_PIPELINE):
    os.environ.pop(name, None)
