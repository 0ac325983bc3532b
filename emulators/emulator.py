"""The emulator as one object: start, settings, faults, stop."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from emulators.arm.services import SERVICES as ARM_SERVICES
from emulators.arm.world import World as ArmWorld
from emulators.azureml.processes import ForkServer
from emulators.azureml.services import SERVICES as AZUREML_SERVICES
from emulators.azureml.world import World
from emulators.wire import identity
from emulators.wire.account import GROUP, REGION, SUBSCRIPTION, TENANT
from emulators.wire.certificates import Authority
from emulators.wire.faults import Fault
from emulators.wire.http import Service
from emulators.wire.proxy import Proxy
from emulators.wire.services import Services

_LOCAL = "localhost,127.0.0.1"


class Emulator:
    """Azure on a port of this machine, from ``start`` to ``stop``; usable as a context manager.

    ``world`` is the state of Azure ML, ``arm`` that of Resource Manager's other services. ``stop`` deletes both, the
    containers, and the folder unless the caller named one. With ``warm``, the steps of Azure ML are forked from a
    process that has imported the SDK.
    """

    def __init__(self, folder: Path | None = None, *, port: int = 0, verbose: bool = False, warm: bool = False) -> None:
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="azure-emulator-")) if folder is None else folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.world = World(self.folder)
        self.arm = ArmWorld(self.folder)
        known: list[tuple[Service, Any]] = [(identity.routes, self.world)]
        known += [(service, self.world) for service in AZUREML_SERVICES]
        known += [(service, self.arm) for service in ARM_SERVICES]
        self.services = Services(self.world, known, self.arm.tunnel, verbose=verbose)
        self.authority = Authority(self.folder)
        self._proxy = Proxy(port, self.authority, self.services)
        self.port = self._proxy.server_address[1]
        self._thread = threading.Thread(target=self._proxy.serve_forever, name="azure-emulator", daemon=True)
        self.world.environ = self.redirection()
        if warm:
            self.world.starter = ForkServer(self.world.environ)

    def __enter__(self) -> Emulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, end the steps and containers that still run, and delete all state."""
        self.world.stop_steps()
        self.arm.stop()
        self._proxy.shutdown()
        self._proxy.server_close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def plant(self, fault: Fault) -> None:
        """Answer the next calls that match wrongly."""
        self.services.faults.plant(fault)

    def redirection(self) -> dict[str, str]:
        """Return the environment variables that lead an unchanged SDK here. HOME is one: the SDK has caches there."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        proxy = f"http://127.0.0.1:{self.port}"
        bundle = str(self.authority.bundle)
        return {
            "HTTPS_PROXY": proxy,
            "HTTP_PROXY": proxy,
            "https_proxy": proxy,
            "http_proxy": proxy,
            "NO_PROXY": _LOCAL,
            "no_proxy": _LOCAL,
            "REQUESTS_CA_BUNDLE": bundle,
            "SSL_CERT_FILE": bundle,
            "CURL_CA_BUNDLE": bundle,
            "HOME": str(home),
        }

    def settings(self, workspace: str = "emulated") -> dict[str, str]:
        """Return ``redirection`` and the settings for ``workspace``, which is created when there is none."""
        self.world.add_workspace(workspace)
        return {
            **self.redirection(),
            "SUBSCRIPTION_ID": SUBSCRIPTION,
            "TENANT_ID": TENANT,
            "RESOURCE_GROUP": GROUP,
            "WORKSPACE_NAME": workspace,
            "LOCATION": REGION,
            "SP_APP_ID": "00000000-0000-0000-0000-0000000005b0",
            "SP_APP_SECRET": identity.SECRET,
        }
