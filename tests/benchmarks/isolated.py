"""What an isolated job costs: ``python -m tests.benchmarks.isolated TIMES`` prints it as JSON.

One job after the other, each sent when the one before it has ended: what is measured is the way of a job, not a queue.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from statistics import median, quantiles

import psutil
from dramatiq.worker import Worker

from tests.benchmarks.isolated_app import broker, first_line, seen
from tests.waiting import wait_until


def way(times: int, *, isolate: bool) -> dict[str, float]:
    """Milliseconds from send() to the first line of the actor, and to the end of the job; median and 95 %."""
    begun, ended = [], []
    for number in range(times + 20):
        seen.clear()
        sent = time.monotonic()
        first_line.send_with_options(isolate=isolate)
        wait_until(lambda: seen, interval_s=0.0005)
        if number >= 20:  # the first ones only warm up
            begun.append(1000 * (seen[0][0] - sent))
            ended.append(1000 * (seen[0][1] - sent))
    return {
        "begun": median(begun),
        "begun 95 %": quantiles(begun, n=20)[-1],
        "ended": median(ended),
        "ended 95 %": quantiles(ended, n=20)[-1],
    }


def cpu(processes: list[psutil.Process]) -> float:
    """Seconds that they, and the children that they waited for, have used."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def main(times: int) -> None:
    """Measure and print."""
    logging.getLogger("dramatiq").setLevel(logging.ERROR)
    worker = Worker(broker, worker_threads=4, worker_timeout=10)
    worker.start()
    thread = way(times, isolate=False)
    isolated = way(times, isolate=True)
    (zygote,) = (child for child in psutil.Process().children() if "dramatiq_chaperone" in " ".join(child.cmdline()))
    before, began = cpu([psutil.Process(), zygote]), time.monotonic()
    for _ in range(times):
        first_line.send()
    broker.join("default")
    worker.join()
    span, used = time.monotonic() - began, cpu([psutil.Process(), zygote]) - before
    memory, own = zygote.memory_full_info(), psutil.Process().memory_full_info()
    worker.stop()
    figures = {"rate": times / span, "cpu": 1000 * used / times, "rss": memory.rss, "uss": memory.uss, "worker": own.rss}
    print(json.dumps({"thread": thread, "isolated": isolated, **figures}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
