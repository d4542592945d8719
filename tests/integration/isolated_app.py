"""An app with isolated actors, for a worker in the test's own process; imported anew for each test, and by its zygote.

Environment: NOTES (a file), MEMORY_EVENTS (a file that stands in for that of the cgroup).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, SkipMessage
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from dramatiq_chaperone import (
    Chaperone,
    SupervisedActor,
    breaker,
    current_job,
    heartbeat,
    initiated_by,
    report_progress,
    supervision_id,
    track,
)
from dramatiq_chaperone.breakers.permits import find
from dramatiq_chaperone.supervision.isolation import zygote

broker = StubBroker()
backend = StubBackend()


class Locks(dramatiq.Middleware):
    """Puts something into each message that stays in its process."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        message.options["lock"] = threading.Lock()

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        del message.options["lock"]


for middleware in (Results(backend=backend), CurrentMessage(), AsyncIO(), Locks()):
    broker.add_middleware(middleware)
chaperone = Chaperone()
broker.add_middleware(chaperone)
logger = logging.getLogger("isolated_app")
memory: list[bytes] = []
if "MEMORY_EVENTS" in os.environ:  # stands in for the system's own count
    zygote.memory_events = lambda cgroups, root: Path(os.environ["MEMORY_EVENTS"])


class Unpicklable(Exception):
    def __init__(self, code: int, *, lock: Any) -> None:
        super().__init__(f"code {code}")
        self.lock = lock


def note(*what: object) -> None:
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(" ".join(map(str, what)) + "\n")


def guarded() -> None:
    """Writes down whether its worker's permit is there."""
    with breaker("payments", half_open_attempts=1, success_threshold=1):
        note("guarded", find("payments") is not None)
    raise ValueError("a bug of our own")


def isolated(fn: Callable[..., Any], **options: Any) -> Any:
    return dramatiq.actor(**{"broker": broker, "isolate": True, "max_retries": 0, "store_results": True, **options})(fn)


def add(x: int, y: int) -> list[int]:
    return [x + y, os.getpid(), os.getppid()]


def who() -> dict[str, Any]:
    job = current_job()
    assert job is not None
    message = CurrentMessage.get_current_message()
    assert message is not None
    return {
        "job": job.job_id,
        "run": job.run_id,
        "actor": job.actor_name,
        "queue": job.queue,
        "retries": job.retries,
        "thread": job.thread,
        "id": supervision_id(),
        "message": message.message_id,
        "options": sorted(message.options),
    }


def fail(text: str) -> None:
    raise KeyError(text)


def fail_strangely() -> None:
    raise Unpicklable(7, lock=threading.Lock())


def return_strangely() -> Any:
    return threading.Lock()


def skip() -> None:
    raise SkipMessage("not today")


def report(times: int) -> None:
    heartbeat(hello="there", password="hunter22")
    for _ in track(range(times), phase="counting"):
        pass
    report_progress(times, times * 2, last=True)


def log() -> None:
    logger.info("hello %s", "worker", extra={"shoe": 43, "odd": threading.Lock()})
    logger.debug("not to be seen")
    try:
        raise ValueError("inner")
    except ValueError:
        logger.exception("it went wrong")


def send() -> str:
    with initiated_by("user", 42):
        message = plain.send("from inside", password="hunter22")
    return str(message.message_id)


def plain(text: str, password: str = "") -> list[Any]:
    """Runs in a thread, unless its message says otherwise."""
    return [text, os.getpid()]


async def nap(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("cleaned up")
        raise
    return f"{os.getpid()}"


def blink(seconds: float) -> None:
    time.sleep(seconds)
    note("returned", supervision_id())


def sleep(seconds: float) -> None:
    note("start", os.getpid())
    try:
        time.sleep(seconds)
    finally:
        note("end", os.getpid())


def grind() -> None:
    """Sits in C code for hours."""
    note("start", os.getpid())
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)


def crash(how: str) -> None:
    note("start", os.getpid())
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    else:
        os.kill(os.getpid(), getattr(signal, how))


def run_out_of_memory() -> None:
    """Ends as the system would end it."""
    Path(os.environ["MEMORY_EVENTS"]).write_text("oom_kill 1\n")
    os.kill(os.getpid(), signal.SIGKILL)


def grow(mb: int, seconds: float = 0.0) -> int:
    memory.append(os.urandom(1) * (mb << 20))
    if seconds:
        time.sleep(seconds)
    return len(memory)


def hold_files(count: int, seconds: float) -> None:
    with contextlib.ExitStack() as files:
        for _ in range(count):
            files.enter_context(Path(os.devnull).open())
        time.sleep(seconds)


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))


def draw() -> float:
    return random.random()


def look_around() -> dict[str, Any]:
    """What it can see of the processes that made it."""
    return {
        "fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{fd}").exists()],
        "threads": [thread.name for thread in threading.enumerate()],
        "argv": sys.argv,
        "oom": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


def terminate_a_child() -> int:
    """Programs that it starts can be stopped with the usual signals."""
    with subprocess.Popen(["sleep", "60"]) as process:
        process.terminate()
        return process.wait(10)


def cooperate() -> str:
    """Ends when it is asked to."""
    note("start", os.getpid())
    job = current_job()
    assert job is not None
    while not job.cancelled:
        time.sleep(0.01)
    return "cancelled"


def count_first(number: int) -> int:
    return number + 1


ISOLATED = (
    *(add, who, fail, fail_strangely, return_strangely, skip, report, log, send, nap, sleep, grind, crash, grow, burn, draw),
    *(look_around, terminate_a_child, cooperate, count_first, blink, run_out_of_memory, hold_files),
)
actors = {fn.__name__: isolated(fn) for fn in ISOLATED}
actors["guarded"] = isolated(guarded, breaker="payments")
plain = dramatiq.actor(broker=broker, max_retries=0, store_results=True)(plain)  # type: ignore[assignment]


class Classy(SupervisedActor):
    class Meta:
        broker = broker
        isolate = True
        max_retries = 0
        store_results = True

    def perform(self, n: int) -> list[Any]:
        self.heartbeat(n=n)
        return [n, self.supervision_id()]
