"""Has some jobs wait with Dramatiq's Prometheus middleware in place, and prints its gauges and counts at the end.

``python -m tests.e2e.gauges_app REASON URL QUEUE``.  REASON: ``disk``: it is full; ``breaker``: the breaker that they need is open, so they
are put off; ``queue``: likewise, and nothing else is in their queue, so it is paused.
"""

from __future__ import annotations

import sys
from typing import Any

import dramatiq
from dramatiq import Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware.prometheus import Prometheus

from dramatiq_chaperone import Chaperone, breaker
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.supervision import disk
from dramatiq_chaperone.supervision.disk import FreeSpace
from tests.waiting import wait_until

JOBS = 5

reason, url, queue = sys.argv[1:]
free_mb = [10.0 if reason == "disk" else 1000.0]
disk.free_space = lambda paths: FreeSpace("/data", free_mb[0])
disk.STEP_S = 0.2  # type: ignore[misc]

broker: Any = RabbitmqBroker(url=url) if url.startswith("amqp") else RedisBroker(url=url)  # type: ignore[no-untyped-call]
prometheus = Prometheus()
broker.add_middleware(prometheus)
chaperone = Chaperone(disk_space_threshold=100)
broker.add_middleware(chaperone)
skipped: list[str] = []
ran: list[str] = []


class Count(dramatiq.Middleware):
    """Notes what was put off or given back."""

    def after_skip_message(self, broker: object, message: object) -> None:
        skipped.append("")


broker.add_middleware(Count())


@dramatiq.actor(broker=broker, queue_name=queue, breaker=[] if reason == "disk" else "shop")
def work() -> None:
    """Says that it ran."""
    ran.append("")


if reason == "breaker":

    @dramatiq.actor(broker=broker, queue_name=queue)
    def other() -> None:
        """Needs nothing."""


def value(metric: object) -> dict[str, float]:
    """The samples of a metric, by queue."""
    samples = [sample for family in metric.collect() for sample in family.samples]  # type: ignore[attr-defined]
    return {sample.labels["queue_name"]: sample.value for sample in samples if not sample.name.endswith("_created")}


if __name__ == "__main__":
    open_store(chaperone.settings, create=True).close()
    shop = breaker("shop", timeout=0.2, storage="memory")
    if reason != "disk":
        shop.force_open()
    broker.emit_after("process_boot")
    worker = Worker(broker, worker_threads=2, worker_timeout=50)
    for _ in range(JOBS):
        work.send()
    worker.start()
    wait_until(lambda: len(skipped) >= (1 if reason == "queue" else 2 * JOBS), timeout_s=20)
    print(f"while they wait: {len(ran)} ran")
    free_mb[0] = 1000.0
    shop.auto()
    wait_until(lambda: len(ran) == JOBS, timeout_s=20)
    broker.join(queue)
    worker.join()
    print(f"in progress: {sum(value(prometheus.inprogress_messages).values()):g}")
    print(f"delayed: {sum(value(prometheus.inprogress_delayed_messages).values()):g}")
    print(f"failed: {sum(value(prometheus.total_errored_messages).values()):g}")
    print(f"ran or skipped: {sum(value(prometheus.total_messages).values()) - len(skipped):g}")
    worker.stop()
