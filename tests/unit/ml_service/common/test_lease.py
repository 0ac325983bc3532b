"""A lease: waited for while its holder renews it, taken from one that is dead, renewed and freed by its own."""

from __future__ import annotations

import pytest

from ml_service.common import lease as leases
from ml_service.errors import UnavailableError
from tests.support.waiting import wait_until

DURATION = 0.3


class MemoryLease:
    """A lease in memory. ``holder`` is somebody else; one that is alive changes the text whenever it is read."""

    where = "lease toy"

    def __init__(self, holder: str = "", *, is_alive: bool = False) -> None:
        self.text = holder
        self.is_alive = is_alive
        self.renewals = self.failures = 0

    def read(self) -> str:
        if self.is_alive:
            self.text = f"{self.text.split()[0]} {len(self.text.split()) + 1} {self.text.split()[-1]}x"
        return self.text

    def take(self) -> bool:
        self.text = "us"
        return True

    def renew(self) -> None:
        self.renewals += 1
        if self.failures:
            self.failures -= 1
            raise UnavailableError("no answer")

    def release(self) -> None:
        self.text = ""


def test_a_free_lease_is_taken_renewed_and_freed() -> None:
    """Three times within its duration."""
    lease = MemoryLease()
    with leases.held(lease, print, duration=DURATION, timeout=0):
        assert lease.text == "us"
        wait_until(lambda: lease.renewals >= 2, "two renewals")
    assert lease.text == ""


def test_a_renewal_that_fails_is_repeated() -> None:
    """A lost request is no lost lease."""
    lease = MemoryLease()
    lease.failures = 1
    with leases.held(lease, print, duration=DURATION, timeout=0):
        wait_until(lambda: lease.renewals >= 2, "two renewals")


def test_a_holder_that_renews_keeps_its_lease() -> None:
    """Whoever waits says so once, and names the holder when it gives up."""
    lines: list[str] = []
    lease = MemoryLease("them 1", is_alive=True)
    with pytest.raises(UnavailableError, match="another deployment is still running: them") as caught:
        with leases.held(lease, lines.append, duration=DURATION, timeout=0.2):
            pass
    assert caught.value.where == "lease toy"
    assert lines == ["another deployment is running, or was killed a moment ago; waiting for its lease"]


def test_the_lease_of_a_dead_holder_is_taken() -> None:
    """Dead is who has not written for the duration, by the clock of whoever waits."""
    lease = MemoryLease("them 1")
    with leases.held(lease, print, duration=DURATION, timeout=30):
        assert lease.text == "us"
