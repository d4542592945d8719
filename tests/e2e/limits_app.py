"""An app whose jobs use more than they may: on $BROKER_URL, one file in $HOLD keeps them until it is gone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_chaperone import Chaperone, health_check, heartbeat
from dramatiq_chaperone.health import JobFacts

broker = RedisBroker(url=os.environ["BROKER_URL"])
broker.add_middleware(Chaperone())
dramatiq.set_broker(broker)
HOLD = Path(os.environ["HOLD"])


@health_check
def refused_rows(job: JobFacts) -> tuple[str, str] | None:
    return ("degraded", "every second row is refused") if job.metadata.get("refused", 0) > 1 else None


def hold() -> None:
    while HOLD.exists():
        time.sleep(0.01)


@dramatiq.actor(memory_limit=150, max_retries=1, min_backoff=10, max_backoff=10)
def hoard() -> None:
    block = b"x" * 300_000_000
    hold()
    del block


@dramatiq.actor(timeout=1, max_retries=0)
def spin() -> None:
    while True:
        pass


@dramatiq.actor(memory_limit=5000)
def import_rows() -> None:
    heartbeat(rows=4, refused=2)
    hold()
