"""The services of Resource Manager, in the order in which they are tried."""

from __future__ import annotations

from emulators.arm import auxiliary, groups, operations, sites
from emulators.arm.host_router import HostRouter

SERVICES = (operations.routes, groups.routes, sites.routes, auxiliary.routes, auxiliary.vault, HostRouter())
