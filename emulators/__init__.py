"""Services of Azure answered on this machine, at the wire. Nothing here imports the rest of the repository.

Start them with ``python -m emulators``, or in a test with ``Emulator``; plant faults with ``Emulator.plant``.
"""

from emulators.emulator import Emulator
from emulators.wire.faults import Fault

__all__ = ["Emulator", "Fault"]
