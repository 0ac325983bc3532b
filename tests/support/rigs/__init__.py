"""The rigs: what the contract suites of ``tests/contract`` need to run an adapter, one class for each.

A sixth target need not be in this repository. Put this repository and the target's own on ``pythonpath``. Derive a
class from ``TargetRig`` and register it in a ``conftest.py``: ``TARGET_RIGS["sixth"] = SixthRig``, after
``TARGET_RIGS.clear()`` if the others are not to run. A test module with
``from tests.contract.test_target_contract import *`` then runs every promise of ``ml_service.ports.Target`` against it.
A platform does the same with ``PlatformRig``, ``PLATFORM_RIGS`` and ``tests.contract.test_platform_contract``. In this
repository a new adapter adds its rig here and its line to one of the two tables below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.rigs.aci import AciRig
from tests.support.rigs.aks import AksRig
from tests.support.rigs.azureml import RedirectedAzureMlRig
from tests.support.rigs.base import PlatformRig, TargetRig
from tests.support.rigs.docker import DockerRig
from tests.support.rigs.fake import FakePlatformRig, FakeTargetRig
from tests.support.rigs.local import LocalPlatformRig, LocalTargetRig
from tests.support.rigs.webapp import WebAppRig

__all__ = ["PLATFORM_RIGS", "TARGET_RIGS", "PlatformRig", "TargetRig", "rig_params"]

TARGET_RIGS: dict[str, type[TargetRig]] = {
    "aci": AciRig,
    "aks": AksRig,
    "docker": DockerRig,
    "fake": FakeTargetRig,
    "local": LocalTargetRig,
    "webapp": WebAppRig,
}

PLATFORM_RIGS: dict[str, type[PlatformRig]] = {
    "azureml": RedirectedAzureMlRig,
    "fake": FakePlatformRig,
    "local": LocalPlatformRig,
}


def rig_params(rigs: Mapping[str, type[TargetRig] | type[PlatformRig]]) -> list[Any]:
    """Return the parameters of a fixture that runs each test on every rig.

    ``tests/conftest.py`` reads the rig's name from a test's parameters and gives each rig to one worker at a time.
    """
    return [pytest.param(name, marks=rig.marks) for name, rig in sorted(rigs.items())]
