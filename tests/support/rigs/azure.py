"""The targets aci and webapp against the emulated Resource Manager, which runs their images on the engine."""

from __future__ import annotations

import atexit
import os
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from emulators import Emulator
from ml_service.ports import Release, Target
from ml_service.targets import open_target
from tests.support.containers import engine_or_skip, push_image, registry_or_skip, settings_for

ADMIN = "emulated-admin-password"
ACR = "emulated.azurecr.io"


@cache
def shared_emulator() -> Emulator:
    """The emulator of this test process."""
    emulator = Emulator()
    emulator.arm.retry_after = "0.1"
    emulator.start()
    atexit.register(emulator.stop)
    return emulator


class AzureRig:
    """One of the targets under a name of its own, and pushed images of the stand-in server."""

    kind = ""
    defaults: Mapping[str, str] = {}

    def __init__(self, directory: Path, **variables: str) -> None:
        self.client = engine_or_skip()
        self._registry = registry_or_skip()
        self.emulator = shared_emulator()
        self.home = directory / "home"
        self.name = f"t{uuid.uuid4().hex[:10]}"
        settings = self.emulator.settings()
        self._redirected = mock.patch.dict(os.environ, self.emulator.redirection())
        self._redirected.start()
        os.environ.pop("SSL_CERT_DIR", None)
        named = {f"{self.kind.upper()}_DEPLOYMENT_NAME": self.name}
        self.variables = {**settings, **self.defaults, **named, **variables}
        self.target: Target = self.again()

    def again(self, **variables: str) -> Target:
        """Another view of the same deployment, perhaps with other settings."""
        return self.elsewhere(self.home, **variables)

    def elsewhere(self, home: Path, **variables: str) -> Target:
        """The view of another machine, with an MLOPS_HOME of its own."""
        return open_target(self.kind, settings_for(home, **{**self.variables, **variables}))

    def prepare(self, release: Release) -> Release:
        """Have an image of the release in the registry."""
        return push_image(self.client, release, f"{self._registry}/test-standin")

    def in_acr(self, release: Release) -> Release:
        """The same image, as it is named in an Azure Container Registry that wants to know who pulls."""
        from dataclasses import replace

        world = self.emulator.arm
        world.registries[ACR] = {"admin": True, "password": ADMIN}
        world.engine.registries[ACR] = self._registry
        return replace(release, image=release.image.replace(self._registry, ACR))

    def log(self) -> list[str]:
        """What was asked of the emulator."""
        return self.emulator.services.log

    def close(self) -> None:
        """Remove everything; nothing unknown may have been asked."""
        self.emulator.services.faults.clear()
        try:
            self.again().undeploy(print)
            assert self.emulator.services.unknown == []
        finally:
            self._redirected.stop()
            self.client.close()


class AciRig(AzureRig):
    """The address moves with each version, so a client asks for it while versions change."""

    kind = "aci"
    defaults = {"ACI_ALLOW_HTTP": "true", "ACI_STARTUP_TIMEOUT": "60", "ACI_DRAIN_SECONDS": "0", "ACI_CPU": "0.5"}

    def groups(self) -> dict[str, Any]:
        """The container groups of the deployment."""
        found = self.emulator.arm.groups.items()
        return {n: g for n, g in found if g.body["tags"].get("mlops-deployment") == self.name}


class WebAppRig(AzureRig):
    """With a deployment slot."""

    kind = "webapp"
    defaults = {"WEBAPP_PLAN": "emulated", "WEBAPP_SLOT": "staging", "WEBAPP_STARTUP_TIMEOUT": "60"}
