"""The services of Resource Manager, in the order in which they are asked."""

from __future__ import annotations

from emulators.arm import beside, groups, operations, sites
from emulators.arm.passage import Passage

SERVICES = (operations.routes, groups.routes, sites.routes, beside.routes, beside.vault, Passage())
