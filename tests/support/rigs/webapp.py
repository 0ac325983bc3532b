"""The rig of the webapp target."""

from __future__ import annotations

from tests.support.rigs.azure import AzureRig


class WebAppRig(AzureRig):
    """An app with a deployment slot."""

    kind = "webapp"
    defaults = {"WEBAPP_PLAN": "emulated", "WEBAPP_SLOT": "staging", "WEBAPP_STARTUP_TIMEOUT": "60"}
