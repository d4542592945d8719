"""An app for real workers.  Its actors write down what they did in a ledger of their own, to which the store is held.

Environment: LEDGER (a file), BROKER_URL (redis:// or amqp://), QUEUE, HEARTBEAT_TIMEOUT (ms), CLOCK_FILE (how many seconds
the clock is off), SLOW_IMPORT (seconds that the import takes), WATCHER_GRACE (seconds that a worker waits for a watcher),
CONFIRM_DELIVERY (1: RabbitMQ confirms what is sent).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
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
from dramatiq.worker import ConsumerThread

from dramatiq_chaperone import Chaperone, current_job, heartbeat, supervision_id
from dramatiq_chaperone.runtime.worker import WorkerProcess

time.sleep(float(os.environ.get("SLOW_IMPORT", "0")))
if "WATCHER_GRACE" in os.environ:
    WorkerProcess.grace_s = float(os.environ["WATCHER_GRACE"])

QUEUE = os.environ.get("QUEUE", "default")


def make_broker() -> Broker:
    url = os.environ["BROKER_URL"]
    if url.startswith("amqp"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        # Without confirmation what is published just before a kill -9 may be gone though what it came from is acknowledged.
        return RabbitmqBroker(url=url, confirm_delivery=os.environ.get("CONFIRM_DELIVERY") == "1")
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


@dramatiq.actor(queue_name=QUEUE)
def deafen() -> None:
    """Ends the threads that fetch messages; the process lives on."""
    for thread in threading.enumerate():
        if isinstance(thread, ConsumerThread):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


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
def fail_unless(path: str) -> None:
    """Fails for good, until the file *path* is there."""
    note("start")
    if not Path(path).exists():
        raise ValueError(f"there is no {path}")
    note("end")


if os.environ.get("MORE_ACTORS") == "1":

    @dramatiq.actor(queue_name=QUEUE, max_retries=0)
    def newcomer() -> None:
        """Only some workers know it."""
        note("start")
        note("end")


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def grow(mb: int, path: str) -> None:
    """Takes *mb* of memory, some at a time, and dies by SIGKILL once the file *path* is there."""
    note("start")
    kept = []
    while not Path(path).exists():
        if len(kept) < mb // 10:
            kept.append(bytearray(10 << 20))
        time.sleep(0.1)
    os.kill(os.getpid(), 9)


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def hold(path: str) -> None:
    """Runs until the file *path* is there, and says every tenth of a second that it lives."""
    note("start")
    while not Path(path).exists():
        heartbeat(waiting_for=path)
        time.sleep(0.1)
    note("end")


@dramatiq.actor(queue_name=QUEUE, max_retries=0, max_crashes=3)
def poison() -> None:
    """Ends its worker in its first line."""
    note("start")
    os.kill(os.getpid(), signal.SIGKILL)


@dramatiq.actor(queue_name=QUEUE, max_retries=3, min_backoff=50, max_backoff=200)
def nap(seconds: float, fail: bool = False) -> None:
    """Sleeps in short naps, so that a process that was stopped goes on where it was; fails in the end where it is told to."""
    note("start")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
    if fail:
        note("fail")
        raise RuntimeError("in the end")
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


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def modules() -> None:
    """Whether this process has loaded what serves metrics, for the ledger."""
    note(f"prometheus_client={'prometheus_client' in sys.modules}")
