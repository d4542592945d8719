"""What a child of multiprocessing runs."""

from __future__ import annotations

from tests.e2e.fleet_app import work


def send(number: int) -> None:
    """Send so many messages."""
    for _ in range(number):
        work.send()
