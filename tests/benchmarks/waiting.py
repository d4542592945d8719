"""What waiting costs: ``python -m tests.benchmarks.waiting URL MODE NUMBER QUEUE`` prints seconds of CPU and commands of Redis, as JSON.

MODE: ``run``: the messages simply run; ``mixed``: the breaker that they need is open, and another actor of their queue needs none, so
each is put off; ``own``: every actor of their queue needs it, so the queue is paused.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import dramatiq
from dramatiq import Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from dramatiq_chaperone import Chaperone, breaker
from dramatiq_chaperone.runtime.worker import WorkerProcess
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.supervision import admission
from tests.waiting import wait_until

#: So long the breaker is open: each of them has been put off by then.
OPEN_S = 60.0

url, mode, number, queue = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
admission.RAMP_PER_S = 1000.0  # type: ignore[misc]
WorkerProcess.grace_s = float("inf")  # the journal is left to a watcher
WorkerProcess.grace_segments = 1 << 30

chaperone = Chaperone()
broker: Any = RabbitmqBroker(url=url) if url.startswith("amqp") else RedisBroker(url=url)  # type: ignore[no-untyped-call]
broker.add_middleware(chaperone)
chaperone.after_process_boot(broker)
shop = breaker("shop", timeout=OPEN_S, storage="memory")
ran = 0
lock = threading.Lock()


@dramatiq.actor(broker=broker, queue_name=queue, breaker="shop")
def work() -> None:
    """Counts."""
    global ran
    with lock:
        ran += 1


if mode == "mixed":

    @dramatiq.actor(broker=broker, queue_name=queue)
    def other() -> None:
        """Needs nothing."""


def commands() -> int:
    """What Redis has carried out so far, in scripts too."""
    return 0 if url.startswith("amqp") else int(broker.client.info("stats")["total_commands_processed"])


if __name__ == "__main__":
    open_store(chaperone.settings, create=True).close()
    for _ in range(number):
        work.send()
    worker = Worker(broker, worker_threads=8, worker_timeout=1000)
    cpu, before = time.process_time(), commands()
    began = time.monotonic()
    if mode != "run":
        shop.open()
    worker.start()
    wait_until(lambda: ran >= number, timeout_s=300, interval_s=0.5)
    used = time.process_time() - cpu, commands() - before
    took_s = time.monotonic() - began
    assert mode == "run" or (took_s > OPEN_S and shop.status.state == "closed")
    print(json.dumps({"cpu_s": used[0], "commands": used[1], "ran": ran, "took_s": took_s}))
    worker.stop()
