"""The fleet's app with isolated actors.  Environment: as there."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from typing import Any

import dramatiq
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from dramatiq_chaperone import heartbeat, report_progress, track
from tests.e2e.fleet_app import QUEUE, broker, note, work

STORED: dict[str, Any] = {}
if os.environ["BROKER_URL"].startswith("redis"):
    STORED["store_results"] = True
    backend = RedisBackend(url=os.environ["BROKER_URL"])
    broker.add_middleware(Results(backend=backend))


def isolated(**options: Any) -> Any:
    return dramatiq.actor(**{"queue_name": QUEUE, "isolate": True, "max_retries": 0, **options})


@isolated(**STORED)
def add(x: int, y: int) -> int:
    """The sum, and where it was made, for the ledger."""
    note("start")
    note("end")
    return x + y


@isolated(max_retries=1, min_backoff=50, max_backoff=100)
def fall() -> None:
    """Always fails, for good the second time."""
    note("start")
    raise LookupError("nothing there") from ValueError("the reason")


@isolated(heartbeat_interval=5)
def report() -> None:
    """Heartbeats, progress, and a line in the log."""
    note("start")
    heartbeat(saved=1)
    for _ in track(range(200), phase="counting"):
        time.sleep(0.005)
    report_progress(100, 200, phase="half")
    logging.getLogger("app").warning("a line of %s", "the job")


@isolated()
def sleep(seconds: float) -> None:
    """Takes *seconds*."""
    note("start")
    time.sleep(seconds)
    note("end")


@isolated()
def grind() -> None:
    """Sits in C code for hours."""
    note("start")
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)


@isolated(memory_limit=150)
def leak() -> None:
    """Takes more and more memory."""
    note("start")
    kept = []
    while True:
        kept.append(os.urandom(4 << 20))
        time.sleep(0.02)


@isolated(max_retries=1, min_backoff=50, max_backoff=100)
def crash() -> None:
    """Ends its process as nothing else would."""
    note("start")
    os.abort()


@isolated()
def send(times: int) -> None:
    """Sends messages."""
    note("start")
    for _ in range(times):
        work.send()
    note("end")
