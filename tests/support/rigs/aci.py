"""The rig of the aci target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_service.ports import Endpoint, Target
from tests.support.rigs.azure import AzureRig


class AciRig(AzureRig):
    """Container groups of a deployment."""

    kind = "aci"
    defaults = {"ACI_ALLOW_HTTP": "true", "ACI_STARTUP_TIMEOUT": "60", "ACI_DRAIN_SECONDS": "0", "ACI_CPU": "0.5"}

    def under_load(self) -> tuple[Target, Callable[[], Endpoint] | None]:
        # The address moves with each version (ADR 0070).
        return self.open(ACI_DRAIN_SECONDS="6"), self.open().endpoint

    def groups(self) -> dict[str, Any]:
        """Return the container groups of the deployment by name."""
        groups = self.emulator.arm.groups.items()
        return {name: group for name, group in groups if group.body["tags"].get("mlops-deployment") == self.name}
