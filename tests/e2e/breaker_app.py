"""An app for real workers with a circuit breaker.  Environment: BROKER_URL (redis://), LEDGER (a file)."""

from __future__ import annotations

import os
import sys
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_chaperone import Chaperone, breaker
from dramatiq_chaperone.breakers.sharing import shared

broker = RedisBroker(url=os.environ["BROKER_URL"])
broker.add_middleware(Chaperone())
dramatiq.set_broker(broker)


def note(*what: object) -> None:
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, (" ".join(map(str, what)) + "\n").encode())
    finally:
        os.close(fd)


@dramatiq.actor(max_retries=0)
def look(until: str) -> None:
    """Writes down what it sees, whenever that changes, until there is a file."""
    svc, before = breaker("payments", failure_threshold=3, timeout=0.5, success_threshold=1), None
    while not os.path.exists(until):
        svc.call(int, fallback=0)
        seen = (svc.status.state, svc.status.mode, shared.state("unused").state, "peewee" in sys.modules)
        if seen != before:
            note(os.getpid(), time.time(), *seen)
            before = seen
        time.sleep(0.01)


@dramatiq.actor(max_retries=0)
def fail() -> None:
    with breaker("payments"):
        raise ConnectionError("no route to payments")
