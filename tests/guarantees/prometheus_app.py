"""Runs some jobs with Dramatiq's Prometheus middleware, and prints what it has counted.  Environment: SUPERVISED."""

from __future__ import annotations

import os
import re

import dramatiq
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware.prometheus import Prometheus

from dramatiq_chaperone import Chaperone

broker = StubBroker()
broker.add_middleware(Prometheus())
if os.environ["SUPERVISED"] == "1":
    broker.add_middleware(Chaperone())


@dramatiq.actor(broker=broker, max_retries=1, min_backoff=1, max_backoff=2)
def work(is_bad: bool) -> None:
    """Fails where it is told to."""
    if is_bad:
        raise ValueError


def counted() -> str:
    """What was counted, without what depends on time."""
    import prometheus_client
    from prometheus_client import multiprocess

    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    lines = prometheus_client.generate_latest(registry).decode().splitlines()
    kept = [line for line in lines if not line.startswith("#") and "_milliseconds_sum" not in line and "_bucket" not in line]
    return re.sub(r'pid="\d+"', 'pid=""', "\n".join(sorted(kept)))


if __name__ == "__main__":
    broker.emit_after("process_boot")
    worker = Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    for is_bad in (False, True, False):
        work.send(is_bad)
    work.send_with_options(args=(False,), delay=50)
    broker.join("default", fail_fast=False)
    worker.join()
    print(counted())
    worker.stop()
