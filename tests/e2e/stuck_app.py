"""Actors that hang in every way, and such as only take their time.

Environment: as of fleet_app; SOCKET (a port where nobody answers), BEAT (seconds between two promised heartbeats).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from typing import Any

import dramatiq

from dramatiq_chaperone import current_job, heartbeat, report_progress, track
from tests.e2e.fleet_app import *  # noqa: F403 - the same app, with more actors
from tests.e2e.fleet_app import QUEUE, note

BEAT = float(os.environ.get("BEAT", "1"))
LOCK, LEFT, RIGHT = threading.Lock(), threading.Lock(), threading.Lock()
BOTH = threading.Barrier(2)


def hangs(**options: Any) -> Any:
    """An actor that promised heartbeats, and is only ever ended by its process."""
    return dramatiq.actor(queue_name=QUEUE, **{"max_retries": 0, "heartbeat_interval": BEAT, **options})


def step(number: int) -> int:
    return number * number % 7


@hangs()
def spin() -> None:
    note("start")
    number = 1
    while number:
        number = step(number) + 1


@hangs()
def doze() -> None:
    note("start")
    time.sleep(3600)


@hangs()
def fetch() -> None:
    note("start")
    with socket.create_connection(("127.0.0.1", int(os.environ["SOCKET"]))) as connection:
        connection.recv(1024)


@hangs()
def keep_lock() -> None:
    with LOCK:
        note("start")
        time.sleep(3600)


@hangs()
def want_lock() -> None:
    note("start")
    with LOCK:
        note("end")


@hangs()
def left() -> None:
    with LEFT:
        BOTH.wait()
        note("start")
        with RIGHT:
            note("end")


@hangs()
def right() -> None:
    with RIGHT:
        BOTH.wait()
        note("start")
        with LEFT:
            note("end")


@hangs()
def hold_gil(letters: int = 60) -> None:
    """The pattern takes for ever, and :mod:`re` never lets go of the GIL."""
    note("start")
    re.match(r"(a+)+$", "a" * letters + "b")
    note("end")


@hangs(heartbeat_interval=None)
def hold_gil_for(seconds: float) -> None:
    """The same for about so long: each letter more doubles it."""
    note("start")
    began = time.perf_counter()
    re.match(r"(a+)+$", "a" * 20 + "b")
    letters = 20 + round(math.log2(seconds / (time.perf_counter() - began)))
    re.match(r"(a+)+$", "a" * letters + "b")
    note("end")


@hangs(on_stuck="interrupt", max_retries=1, min_backoff=50)
def stubborn() -> None:
    note("start")
    while True:
        time.sleep(0.05)


@hangs(heartbeat_interval=None, timeout=2)
def deaf() -> None:
    """Goes on after its timeout, for C code waits."""
    note("start")
    time.sleep(3600)


@hangs()
def pause(seconds: float) -> None:
    """Says nothing for a while, then goes on."""
    note("start")
    time.sleep(seconds)
    until = time.monotonic() + 4
    while time.monotonic() < until:
        heartbeat()
        time.sleep(0.05)
    note("end")


@hangs()
def once() -> None:
    """Hangs in its first run, and is done in the next."""
    note("start")
    job = current_job()
    while job is not None and job.retries == 0:
        time.sleep(0.05)
    note("end")


def healthy(**options: Any) -> Any:
    return dramatiq.actor(queue_name=QUEUE, max_retries=0, **options)


@healthy()
def long_sql(seconds: float) -> None:
    with sqlite3.connect(":memory:") as connection:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT sum(i) FROM n"
            ).fetchall()
    note("end")


@healthy()
def big_sort(seconds: float) -> None:
    numbers = [(n * 7919) % 1_000_003 for n in range(400_000)]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sorted(numbers)
    note("end")


@healthy(heartbeat_interval=BEAT)
def long_sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        heartbeat()
        time.sleep(BEAT / 3)
    note("end")


@healthy()
def memory_burst(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        block = bytearray(100 << 20)
        block[::4096] = b"x" * len(block[::4096])
        del block
        time.sleep(0.2)
    note("end")


@healthy()
def slow_start(seconds: float) -> None:
    time.sleep(seconds)
    for _ in track(range(10)):
        time.sleep(0.01)
    note("end")


@healthy()
def quiet_wait(seconds: float) -> None:
    time.sleep(seconds)
    note("end")


@healthy()
def child(seconds: float) -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({seconds})"], check=True)
    note("end")


@healthy()
def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        step(3)
    note("end")


@healthy()
def digest(seconds: float) -> None:
    """C code that lets go of the GIL."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 200_000)
    note("end")


@healthy(heartbeat_interval=BEAT)
def bursts(seconds: float) -> None:
    """Works and reports in bursts, each time just before it is late."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for number in range(1000):
            report_progress(number, 1000)
        time.sleep(BEAT * 0.7)
    note("end")


HEALTHY = (long_sql, big_sort, long_sleep, memory_burst, slow_start, quiet_wait, child, busy, digest, bursts)
