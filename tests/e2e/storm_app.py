"""The fleet's app for a storm.  Its actors write down when they begin, that they still run, and how they end.

Environment: as in the fleet's app.  A line of the ledger is ``what job_id run_id pid seconds``: the seconds are monotonic,
so those of all processes of the machine can be compared.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import dramatiq

from dramatiq_chaperone import current_job, heartbeat, track
from tests.e2e.fleet_app import QUEUE

STEP_S = 0.05


def note(what: str) -> None:
    """One line, in one write."""
    job = current_job()
    assert job is not None
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{what} {job.job_id} {job.run_id} {os.getpid()} {time.monotonic():.6f}\n".encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def on_the_ledger() -> Iterator[None]:
    note("start")
    try:
        yield
    except BaseException as error:
        note(type(error).__name__)
        raise
    note("end")


def steps(seconds: float) -> range:
    return range(max(1, round(seconds / STEP_S)))


def go_on() -> None:
    """Take a short time, and say afterwards that this run still goes on."""
    time.sleep(STEP_S)
    note("alive")


def actor(**options: Any) -> Any:
    return dramatiq.actor(**{"queue_name": QUEUE, "max_retries": 3, "min_backoff": 50, "max_backoff": 200, **options})


@actor()
def plain(seconds: float) -> None:
    with on_the_ledger():
        for _ in steps(seconds):
            go_on()


@actor()
def flaky(seconds: float) -> None:
    """Fails in its first run, and in its second one."""
    with on_the_ledger():
        for _ in steps(seconds):
            go_on()
        job = current_job()
        if job is not None and job.retries < 2:
            raise RuntimeError("not yet")


@actor(max_retries=1)
def hopeless(seconds: float) -> None:
    """Fails, for good the second time."""
    with on_the_ledger():
        for _ in steps(seconds):
            go_on()
        raise ValueError("always")


@actor()
def reporting(seconds: float) -> None:
    with on_the_ledger():
        for _ in track(steps(seconds), phase="counting"):
            go_on()


@actor(isolate=True)
def alone(seconds: float) -> None:
    with on_the_ledger():
        for _ in steps(seconds):
            go_on()


@actor()
def long(seconds: float) -> None:
    """So long that an operator finds the time to kill it."""
    with on_the_ledger():
        for step in steps(seconds):
            heartbeat(step=step)
            go_on()


@actor(time_limit=1000, max_retries=1)
def late(seconds: float) -> None:
    """Is interrupted by its time limit."""
    with on_the_ledger():
        for _ in steps(seconds):
            go_on()


@actor()
def venom() -> None:
    """Ends its worker."""
    with on_the_ledger():
        os.kill(os.getpid(), signal.SIGKILL)


#: Of a hundred messages.
SHARES = {plain: 58, flaky: 12, hopeless: 4, reporting: 10, alone: 9, long: 4, late: 3}
LONG_S, SHORT_S = 3.0, (0.05, 0.2)


def send_all(jobs: int, poisonous: int, seconds: float, seed: int) -> None:
    """Send *jobs* messages over so many seconds, in an order that is the same for a *seed*; the poisonous ones in their first third."""
    luck = random.Random(seed)
    kinds = luck.choices(list(SHARES), weights=list(SHARES.values()), k=jobs)
    for number in luck.sample(range(max(poisonous, jobs // 3)), poisonous):
        kinds[number] = venom
    began = time.monotonic()
    for number, kind in enumerate(kinds):
        time.sleep(max(0.0, began + seconds * number / jobs - time.monotonic()))
        kind.send(*(() if kind is venom else (LONG_S,) if kind in {long, late} else (luck.uniform(*SHORT_S),)))
