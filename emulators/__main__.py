"""``python -m emulators``: run the emulator until Ctrl-C, and print the settings to export."""

from __future__ import annotations

import argparse
import shlex
import signal
import threading
from pathlib import Path

from emulators.emulator import Emulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--folder", type=Path, help="where to keep blobs and logs of steps; a temporary one by default")
    parser.add_argument("--workspace", default="emulated", help="name of the workspace that exists")
    parser.add_argument("--verbose", action="store_true", help="print every call, not only the unknown ones")
    options = parser.parse_args()
    serve(options.port, options.folder, options.workspace, verbose=options.verbose)


def serve(port: int = 0, folder: Path | None = None, workspace: str = "emulated", *, verbose: bool = False) -> None:
    """Run until interrupted or terminated."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Emulator(folder, port=port, verbose=verbose) as emulator:
        for name, value in emulator.settings(workspace).items():
            print(f"export {name}={shlex.quote(value)}")
        print("unset SSL_CERT_DIR")
        print("export MLOPS_PLATFORM=azureml", flush=True)
        try:
            stop.wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
