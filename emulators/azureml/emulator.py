"""The emulator as one object: start, settings, faults, stop."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

from emulators.azureml import identity
from emulators.azureml.certificates import Authority
from emulators.azureml.faults import Fault
from emulators.azureml.processes import Warm
from emulators.azureml.proxy import Proxy
from emulators.azureml.services import Services
from emulators.azureml.world import GROUP, REGION, SUBSCRIPTION, TENANT, World

_LOCAL = "localhost,127.0.0.1"


class Emulator:
    """Azure ML on a port of this machine, from ``start`` to ``stop``; usable as a context manager.

    Everything is forgotten at ``stop``, and the folder removed when none was given. ``warm`` forks the steps from a
    process that has imported the SDK already.
    """

    def __init__(
        self, folder: Path | None = None, *, port: int = 0, verbose: bool = False, warm: bool = False
    ) -> None:
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="azureml-emulator-")) if folder is None else folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.world = World(self.folder)
        self.services = Services(self.world, verbose=verbose)
        self._authority = Authority(self.folder)
        self._proxy = Proxy(port, self._authority, self.services)
        self.port = self._proxy.server_address[1]
        self._thread = threading.Thread(target=self._proxy.serve_forever, name="azureml-emulator", daemon=True)
        self.world.environ = self.redirection()
        if warm:
            self.world.starter = Warm(self.world.environ)

    def __enter__(self) -> Emulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, end the steps that still run, forget everything."""
        self.world.stop_steps()
        self._proxy.shutdown()
        self._proxy.server_close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def plant(self, fault: Fault) -> None:
        self.services.faults.plant(fault)

    def redirection(self) -> dict[str, str]:
        """The variables that lead an unchanged SDK here. HOME is one of them: the SDK keeps caches there."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        proxy = f"http://127.0.0.1:{self.port}"
        bundle = str(self._authority.bundle)
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
        """``redirection`` and the project's settings for ``workspace``, which is made when it is not there."""
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
