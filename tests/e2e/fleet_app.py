"""An app for real workers.  Its actors write down what they did in a ledger of their own, to which the store is held.

Environment: LEDGER (a file), BROKER_URL (redis:// or amqp://), QUEUE, HEARTBEAT_TIMEOUT (ms), CLOCK_FILE (how many seconds
the clock is off).
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

if "CLOCK_FILE" in os.environ:
    _right_time = time.time

    def _wrong_time() -> float:
        return _right_time() + float(Path(os.environ["CLOCK_FILE"]).read_text() or 0)

    time.time = _wrong_time

import dramatiq
from dramatiq import Broker

from dramatiq_chaperone import Chaperone, current_job, heartbeat, supervision_id

QUEUE = os.environ.get("QUEUE", "default")


def make_broker() -> Broker:
    url = os.environ["BROKER_URL"]
    if url.startswith("amqp"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=url)
    from dramatiq.brokers.redis import RedisBroker

    return RedisBroker(url=url, heartbeat_timeout=int(os.environ.get("HEARTBEAT_TIMEOUT", "60000")), maintenance_chance=1_000_000)


broker = make_broker()
if os.environ.get("SUPERVISED", "1") == "1":
    broker.add_middleware(Chaperone())
dramatiq.set_broker(broker)


def note(what: str) -> None:
    """One line, in one write: ``what job_id``."""
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{what} {supervision_id()} {os.getpid()}\n".encode())
    finally:
        os.close(fd)


@dramatiq.actor(queue_name=QUEUE, max_retries=3, min_backoff=50, max_backoff=200)
def work(seconds: float = 0.0, fail_first: bool = False) -> None:
    """Takes *seconds*; fails in its first run where it is told to."""
    note("start")
    if seconds:
        time.sleep(seconds)
    job = current_job()
    if fail_first and job is not None and job.retries == 0:
        note("fail")
        raise RuntimeError("the first time")
    note("end")


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def fail() -> None:
    """Always fails, for good."""
    note("start")
    note("fail")
    raise ValueError("always")


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def hold(path: str) -> None:
    """Runs until the file *path* is there, and says every tenth of a second that it lives."""
    note("start")
    while not Path(path).exists():
        heartbeat(waiting_for=path)
        time.sleep(0.1)
    note("end")


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def burn(seconds: float) -> None:
    """Uses one core for *seconds*."""
    note("start")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))
    note("end")


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def threads() -> int:
    """The number of threads of ours in this process, for the ledger."""
    note(f"threads={sum(each.name.startswith('chaperone-') for each in threading.enumerate())}")
    return 0
