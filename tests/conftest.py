"""No test may depend on, or write to, what the person or pipeline that runs it has set up for real work.

Here, too, it is decided which tests stay together when several processes share the suite, and which come first.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from ml_service import telemetry
from ml_service.config import SECTIONS, CoreSettings
from ml_service.config.fields import declared

_OF_THE_MACHINE = frozenset(("KUBECONFIG", "DOCKER_HOST", "PIP_INDEX_URL", "IMAGE_BUILD_NETWORK"))
"""What tests of containers and clusters need to find them."""

_OF_THE_PIPELINE = ("CI", "TF_BUILD", "MLOPS_OUTPUTS")


_ON_THE_CLUSTER = tuple(f"tests/adapters/test_{name}.py" for name in ("aks_target", "aks_weights", "cluster_page"))


def settings() -> set[str]:
    """Every setting that there is."""
    return {setting.name for section in (CoreSettings, *SECTIONS.values()) for setting in declared(section).values()}


for name in (settings() - _OF_THE_MACHINE).union(_OF_THE_PIPELINE):
    os.environ.pop(name, None)


telemetry.turn_off()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first: a worker that begins with them at the end would keep the others waiting."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """Return 0 for tests on a cluster, 1 for ways through many tasks, 2 for adapters, 3 for other slow ones."""
    marks = {mark.name for mark in item.iter_markers()}
    if "kubernetes" in marks:
        return 0
    if item.nodeid.startswith("tests/e2e/"):
        return 1
    if "docker" in marks or item.nodeid.startswith("tests/adapters/"):
        return 2
    return 3 if "slow" in marks else 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers whole groups of tests: those of a class, or of a file, on one rig.

    What tests of a group share is made once. The tests of a contract suite share nothing across rigs. All tests on the
    cluster are one group: side by side, their pods would ask for more than one small node has, and each makes and
    removes the same kinds of custom objects.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            test, _, parameters = nodeid.partition("[")
            group, rig = test.rpartition("::")[0], _rig(parameters)
            if test.startswith(_ON_THE_CLUSTER) or (test.startswith("tests/contract/") and rig == "aks"):
                return "cluster"
            return f"{group}[{rig}]" if test.startswith("tests/contract/") else group

    return GroupScheduling(config, log)


def _rig(parameters: str) -> str:
    """Return the name of the rig among a test's parameters, such as ``docker`` in ``docker-crash]``."""
    from tests.support.rigs import PLATFORM_RIGS, TARGET_RIGS

    return next((word for word in parameters.rstrip("]").split("-") if word in {**TARGET_RIGS, **PLATFORM_RIGS}), "")
