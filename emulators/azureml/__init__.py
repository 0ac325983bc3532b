"""Azure ML v1 as its SDK sees it: sign-in, ARM, the data plane, blob storage, and compute.

It answers what this project calls and 501 to anything else. Steps are processes of this machine. Start it with
``python -m emulators.azureml``, or in a test with ``Emulator``; plant faults with ``Emulator.plant``. Validation,
roles, quotas and timing are invented: see docs/azure-ml.md.
"""

from emulators.azureml.emulator import Emulator
from emulators.azureml.faults import Fault

__all__ = ["Emulator", "Fault"]
