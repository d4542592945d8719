"""What single calls cost: ``python -m tests.benchmarks.calls TIMES`` prints nanoseconds a call, as JSON.

They are made where users make them, in an actor that runs in a worker thread, with the sampler and the writer beside it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns, time

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import Worker

from dramatiq_chaperone import Chaperone, current_job, heartbeat, host, records, report_progress
from dramatiq_chaperone.journal import Journal

broker = StubBroker()
broker.add_middleware(Chaperone())
dramatiq.set_broker(broker)
results: dict[str, float] = {}

AT = time()
JOB_ID = "d2a7e1c4-5b0e-4f0a-9a4e-3f1f0a2b7c11"
PAYLOAD = '{"args":[1,"name@example.org"],"kwargs":{},"options":{}}'
#: What a job writes that simply runs.
JOB: tuple[tuple[object, ...], ...] = (
    records.Enqueued(records.ENQUEUED, AT, JOB_ID, "noop", "default", 0, 0, AT, None, None, PAYLOAD, True, None, None, None, None),
    records.Started(records.STARTED, AT, JOB_ID, "8b41ebf-1", 0, "noop", "default", "Thread-5", 0, AT, 0.01, None, None, None),
    records.Ended(
        records.ENDED, AT, JOB_ID, "8b41ebf-1", 0, "noop", "default", "succeeded", "completed", 0.01, 0.01, None, None, None, AT, "Thread-5"
    ),
)


def timed(times: int, loop: Callable[[int], None]) -> float:
    """Nanoseconds for each of *times*, the best of five: the others were disturbed."""
    best = float("inf")
    for _ in range(5):
        began = perf_counter_ns()
        loop(times)
        best = min(best, (perf_counter_ns() - began) / times)
    return best


def empty(times: int) -> None:
    for _ in range(times):
        pass


def progress(times: int) -> None:
    for number in range(times):
        report_progress(number, times)


def beats(times: int) -> None:
    for _ in range(times):
        heartbeat()


def beats_with_data(times: int) -> None:
    for number in range(times):
        heartbeat(row=number)


def appends(times: int) -> None:
    origin = records.Origin(host.new_worker_id(), host.host_name(), host.host_identity(), os.getpid(), 0.0, "producer")
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory), origin)
        append, entries = journal.append, [tuple(entry) for entry in JOB]
        for _ in range(times // 3):
            for entry in entries:
                append(entry)
        journal.close()


@dramatiq.actor
def measure(times: int) -> None:
    assert current_job() is not None
    loops = {"empty": empty, "report_progress": progress, "heartbeat": beats, "heartbeat with data": beats_with_data, "append": appends}
    for name, loop in loops.items():
        results[name] = timed(times if name != "append" else times // 4, loop)


if __name__ == "__main__":
    worker = Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    measure.send(int(sys.argv[1]))
    broker.join("default")
    worker.join()
    worker.stop()
    print(json.dumps(results))
