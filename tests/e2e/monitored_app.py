"""Actors for the dashboards: some that work, and each kind of trouble.  Environment: as of fleet_app."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import dramatiq

from dramatiq_chaperone import breaker, heartbeat, on
from dramatiq_chaperone.events import JobStuck
from tests.e2e.fleet_app import *  # noqa: F403 - the same app, with more actors
from tests.e2e.fleet_app import note

BANK, MAIL = "bank", "mail"


@dramatiq.actor(queue_name="reports", max_retries=0)
def report(seconds: float) -> None:
    """Asks a service that answers, and takes *seconds*."""
    note("start")
    breaker(BANK).call(time.sleep, seconds)
    note("end")


@dramatiq.actor(queue_name="reports", max_retries=0, breaker=MAIL)
def letter(fails: bool = False) -> None:
    """Needs a service that fails."""
    note("start")
    if fails:
        with breaker(MAIL, failure_threshold=1, timeout=600):
            raise ConnectionError("no route to the mail")
    note("end")


@dramatiq.actor(queue_name="reports", max_retries=0, timeout=0.5, on_timeout="record")
def late() -> None:
    """Passes the limit that is set for it."""
    note("start")
    time.sleep(1.5)
    note("end")


@dramatiq.actor(queue_name="reports", max_retries=0, heartbeat_interval=0.5, missed_heartbeats=2, memory_limit=4000)
def silent(path: str) -> None:
    """Sends no heartbeat until the file *path* is there."""
    note("start")
    while not Path(path).exists():
        time.sleep(0.05)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        heartbeat()
        time.sleep(0.1)
    note("end")


@dramatiq.actor(queue_name="reports", max_retries=0, max_crashes=1)
def venom() -> None:
    """Ends its worker."""
    note("start")
    os.kill(os.getpid(), signal.SIGKILL)


@on(JobStuck)
def fall_over(event: JobStuck) -> None:
    """A handler that is broken."""
    raise RuntimeError(event.job_id)
