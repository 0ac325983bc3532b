"""The one subscription that is emulated: its ids, how long tokens live, and formats that all services share."""

from __future__ import annotations

import datetime
import threading
import uuid
from typing import Any

REGION = "westeurope"
TENANT = "00000000-0000-0000-0000-00000000aad0"
SUBSCRIPTION = "00000000-0000-0000-0000-0000000005b5"
GROUP = "emulated"

Json = dict[str, Any]


class Account:
    """Base of each service's state. Handlers hold ``lock`` while they answer; work that takes time runs without it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.token_life = 3600.0
        self.revoked_before = 0.0


def now() -> str:
    """Return the time, UTC, as the services write it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def new_id() -> str:
    return str(uuid.uuid4())


def error(code: str, message: str) -> Json:
    """Return the envelope in which Azure reports an error."""
    return {"error": {"code": code, "message": message}}
