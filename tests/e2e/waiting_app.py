"""The fleet's app with jobs that need a shop.

Environment, beside the fleet's: SHOP (a URL), SHOP_QUEUE (theirs; the fleet's own has actors that need nothing).
"""

from __future__ import annotations

import os
from typing import Any
from urllib.request import urlopen

import dramatiq

from dramatiq_chaperone import breaker
from dramatiq_chaperone.breakers.breaker import CircuitBreaker
from tests.e2e.fleet_app import broker

__all__ = ["breaker", "broker", "order"]

SHOP_QUEUE = os.environ["SHOP_QUEUE"]

breaker("shop", failure_threshold=5, timeout=1.5, half_open_attempts=1, success_threshold=1)


_alone = CircuitBreaker._alone


def _note_alone(svc: CircuitBreaker, operation: Any) -> Any:
    """A line in the ledger for each step that this process took by itself, for the store had not answered within 250 ms."""
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"alone {os.getpid()} -\n".encode())
    os.close(fd)
    return _alone(svc, operation)


CircuitBreaker._alone = _note_alone  # type: ignore[method-assign]


def buy() -> None:
    with urlopen(os.environ["SHOP"], timeout=20) as response:
        response.read()


@dramatiq.actor(queue_name=SHOP_QUEUE, breaker="shop", max_retries=1000, min_backoff=50, max_backoff=100)
def order() -> None:
    buy()
