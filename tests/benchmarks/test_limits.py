"""How soon a passed limit is noticed, and what holding jobs to their limits costs."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import Chaperone, records
from dramatiq_chaperone.errors import MemoryLimitExceeded, TimeoutExceeded
from dramatiq_chaperone.limits import MB
from dramatiq_chaperone.supervision.jobs import Job
from dramatiq_chaperone.supervision.sampler import Readings
from tests.benchmarks.figures import Table
from tests.benchmarks.lab import median, rounds
from tests.integration.conftest import Tape
from tests.waiting import wait_until

pytestmark = pytest.mark.benchmark

TIMES = rounds(20)
BLOCK, LIMIT_MB = 200 * MB, 100


@contextlib.contextmanager
def at_work(state_dir: Path, threads: int) -> Iterator[tuple[StubBroker, Tape, Callable[[], Any]]]:
    """A broker whose jobs are supervised here, what is written down, and the worker's part of the runtime."""
    chaperone = Chaperone(state_dir=str(state_dir))
    broker = StubBroker(middleware=[])
    broker.add_middleware(chaperone)
    chaperone.after_process_boot(broker)
    broker.declare_queue("default")
    worker = Worker(broker, worker_timeout=50, worker_threads=threads)
    worker.start()
    tape = Tape(chaperone.settings.journal_dir)
    try:
        yield broker, tape, lambda: chaperone._runtime._working  # type: ignore[union-attr]
    finally:
        worker.stop()
        chaperone.close()
        broker.close()
        tape.close()


def test_detection(chaperone_env: Callable[..., None], state_dir: Path) -> None:
    """From the moment at which a job passes its limit to the record of it, and to the interrupt in the job."""
    passed: list[float] = []
    interrupted: list[float] = []
    with at_work(state_dir, 1) as (broker, tape, _):

        @dramatiq.actor(broker=broker, memory_limit=LIMIT_MB, on_memory="interrupt")
        def hoard(wait_s: float) -> None:
            time.sleep(wait_s)
            passed.append(time.time())  # before: the interrupt may come while the memory is filled
            with contextlib.suppress(MemoryLimitExceeded):
                block = b"x" * BLOCK
                while block:
                    time.sleep(0.001)
            interrupted.append(time.time())

        @dramatiq.actor(broker=broker)
        def linger(timeout_s: float) -> None:
            passed.append(time.time() + timeout_s)
            with contextlib.suppress(TimeoutExceeded):
                while True:
                    time.sleep(0.001)
            interrupted.append(time.time())

        table = Table("limits", "figure", "median", "worst", "of")
        for actor, what in ((hoard, "memory limit"), (linger, "timeout")):
            passed.clear()
            interrupted.clear()
            known = len(tape.entries(records.VIOLATED))
            for number in range(1, TIMES + 1):
                moment = random.uniform(0.1, 1.5)
                actor.send_with_options(args=(moment,), **({"timeout": moment} if actor is linger else {}))
                wait_until(lambda number=number: len(interrupted) == number, timeout_s=30)
            entries = wait_until(
                lambda known=known: len(tape.entries(records.VIOLATED)) == known + TIMES and tape.entries(records.VIOLATED)
            )
            noticed = [each.at - at for each, at in zip(entries[known:], passed, strict=True)]
            stopped = [each - at for each, at in zip(interrupted, passed, strict=True)]
            for label, values in ((f"{what} passed → on record", noticed), (f"{what} passed → interrupted", stopped)):
                table.add(label, f"{median(values):.2f} s", f"{max(values):.2f} s", str(TIMES))
    table.publish()


def test_cost(chaperone_env: Callable[..., None], state_dir: Path) -> None:
    """Eight jobs, limits on all of them, a full history: the CPU of one look at all, of the sampler's own and of each judge's."""
    released, begun = threading.Event(), threading.Barrier(9)
    with at_work(state_dir, 8) as (broker, _, working):

        @dramatiq.actor(broker=broker, memory_limit=100_000, cpu_limit=90, timeout=1000, file_descriptor_limit=100_000)
        def wait() -> None:
            begun.wait(30)
            released.wait(60)

        for _ in range(8):
            wait.send()
        begun.wait(30)
        process = working()
        process.sampler.stop()
        running: list[tuple[Any, Job]] = process.running.running()
        table = Table("limits-cost", "figure", "median", "worst", "budget")
        parts: dict[str, list[float]] = {"whole sample": [], **{type(judge).__name__: [] for judge in process.sampler._judges}}
        now = time.monotonic()
        for _ in range(200):
            now += 1.0
            began = time.thread_time()
            process.sampler.sample(now)
            parts["whole sample"].append(time.thread_time() - began)
            readings = Readings(now + 0.5, time.time(), 80 * MB, True, 20)
            for judge in process.sampler._judges:
                began = time.thread_time()
                judge.look(running, readings)
                parts[type(judge).__name__].append(time.thread_time() - began)
        released.set()
    for name, costs in parts.items():
        settled = costs[70:]
        budget = "3,000 µs" if name == "whole sample" else "–"
        table.add(f"{name}, 8 running jobs", f"{median(settled) * 1e6:.0f} µs", f"{max(settled) * 1e6:.0f} µs", budget)
    table.publish()
