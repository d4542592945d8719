"""What alerts cost the workers: nothing, for it is the holder of the monitor's lease that judges and sends."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone.events import JobMovedToDeadLetterQueue
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.store.rows import put_events
from tests.benchmarks.figures import Table, ratio
from tests.benchmarks.lab import Burst, Lab, Worker, chaperones, median, messages, rounds, rss_mb
from tests.receivers import WebServer

pytestmark = pytest.mark.benchmark

#: Events that come with each burst, and the jobs that they are about.
FAILURES, JOBS = 1000, 50


def test_alerts_cost_workers_nothing(lab: Lab) -> None:
    """Ten thousand failures come while no-op jobs run: CPU of the worker a job, with alerts and without."""
    variant = next(each for each in chaperones() if each.watcher)
    table = Table("alerts", "figure", "without alerts", "with alerts", "ratio", "budget")
    with (
        closing(WebServer()) as server,
        lab.worker(variant, CHAPERONE_ALERTING_ENABLED="0") as quiet,
        lab.worker(variant, CHAPERONE_ALERT_URLS=f"json://{server.address}", CHAPERONE_ALERT_GROUP_WAIT="1") as loud,
    ):
        found: dict[str, list[Burst]] = {"quiet": [], "loud": []}
        for worker in (quiet, loud):
            worker.wait_store()
        for number in range(rounds(10) + 1):
            pair = [("quiet", quiet), ("loud", loud)]
            for name, worker in pair if number % 2 else pair[::-1]:
                fail(worker, number)
                found[name].append(worker.burst(messages(2000)))
        without, with_ = ([burst.cpu_us for burst in found[name][1:]] for name in ("quiet", "loud"))
        table.add(
            "CPU of the worker per message in a storm",
            f"{median(without):.1f} µs",
            f"{median(with_):.1f} µs",
            ratio(with_, without),
            "1.02",
        )
        assert quiet.watcher_pid is not None
        assert loud.watcher_pid is not None
        memory = [rss_mb(pid) for pid in (quiet.watcher_pid, loud.watcher_pid)]
        table.add("memory of the watcher that sends", f"{memory[0]:.0f} MB", f"{memory[1]:.0f} MB", "–", "90 MB")
        assert server.got
    table.publish()


def fail(worker: Worker, number: int) -> None:
    """As many jobs as that fail for good, as often as that."""
    settings = Settings.load({"database_url": worker.env["CHAPERONE_DATABASE_URL"]}, environ={"HOME": "/nonexistent"})
    rows: list[list[Any]] = []
    about: dict[str, Any] = {"actor_name": "a", "exception": "ValueError", "failed_at": datetime.now(UTC), "reason": "rejected"}
    for n in range(FAILURES):
        event = JobMovedToDeadLetterQueue(job_id=f"j{number}-{n % JOBS}", **about)
        data = json.dumps(dataclasses.asdict(event), default=str)
        rows.append([time.time(), "JobMovedToDeadLetterQueue", event.job_id, None, None, data])
    with closing(open_store(settings, create=False)) as store:
        store.transact(lambda: put_events(store, rows))
