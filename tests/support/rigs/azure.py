"""What the rigs of aci and webapp share: the emulated Resource Manager, which runs images on the engine."""

from __future__ import annotations

import atexit
import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from emulators import Emulator
from ml_service.ports import Release, Target
from ml_service.targets import open_target
from tests.support.images import STUB_IMAGE, push_image
from tests.support.rigs.base import TargetRig
from tests.support.services import engine_or_skip, registry_or_skip
from tests.support.settings import settings_for

ADMIN = "emulated-admin-password"
ACR = "emulated.azurecr.io"


@cache
def shared_emulator() -> Emulator:
    """Return the emulator of this test process. It starts once."""
    emulator = Emulator()
    emulator.arm.retry_after = "0.1"
    emulator.start()
    atexit.register(emulator.stop)
    return emulator


class AzureRig(TargetRig):
    """One of the targets under a name of its own, and pushed images of the stub server."""

    marks = (pytest.mark.docker,)
    clients = 4  # The emulated Azure runs in this process and must not starve.

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
        self.target = self.open()

    def open(self, **variables: str) -> Target:
        """Return another object for the same deployment, with other settings if there are any."""
        return self.elsewhere(self.home, **variables)

    def elsewhere(self, home: Path, **variables: str) -> Target:
        """Return the target as another machine has it, with an MLOPS_HOME of its own."""
        return open_target(self.kind, settings_for(home, **{**self.variables, **variables}))

    def prepare(self, release: Release) -> Release:
        """Push an image of the release to the registry."""
        return push_image(self.client, release, f"{self._registry}/{STUB_IMAGE}")

    def in_acr(self, release: Release) -> Release:
        """Return the release with its image in an Azure Container Registry that asks for a password."""
        arm = self.emulator.arm
        arm.registries[ACR] = {"admin": True, "password": ADMIN}
        arm.engine.registries[ACR] = self._registry
        return replace(release, image=release.image.replace(self._registry, ACR))

    def log(self) -> list[str]:
        """Return the requests that the emulator received."""
        return self.emulator.services.log

    def close(self) -> None:
        """Remove everything. Fail if the emulator received a request that it does not know."""
        self.emulator.services.faults.clear()
        try:
            super().close()
            assert self.emulator.services.unknown == []
        finally:
            self._redirected.stop()
            self.client.close()
