"""Messages that were put off: what the job's row says, on every database."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, queries
from tests.contracts.conftest import NOW, Process, ended, enqueued, job, started, totals


def deferred(
    job_id: str = "j1", *, at: float = NOW, retries: int = 0, eta: float = NOW + 30, reason: str | None = "space"
) -> tuple[Any, ...]:
    return tuple(records.Deferred(records.DEFERRED, at, job_id, retries, "work", "default", NOW, eta, reason))


def row(store: Store) -> dict[str, Any]:
    (found,), _ = queries.list_jobs(store)
    return found


def test_it_is_pending_until_its_eta_with_no_run_and_no_retry(store: Store) -> None:
    Process(store).writes(enqueued(), deferred())
    found = row(store)
    assert (found["status"], found["attempt"], found["retries"], found["deliveries"]) == ("pending", 0, 0, 1)
    assert found["eta"].timestamp() == NOW + 30
    assert totals(store, "chaperone_jobs") == {}


def test_the_latest_eta_counts_whoever_reports_first(store: Store) -> None:
    reports = [[deferred(at=NOW + 30 * n, eta=NOW + 30 * n + 30)] for n in range(3)]
    for number, order in enumerate(itertools.permutations(reports)):
        for process, slice_ in enumerate(order):
            Process(store, f"w-{number}-{process}").writes(*slice_)
        assert row(store)["eta"].timestamp() == NOW + 90
        assert row(store)["deliveries"] == 3 * (number + 1)


def test_a_deferral_that_is_reported_late_takes_nothing_back(store: Store) -> None:
    Process(store, "w-1").writes(started(at=NOW + 40), ended(at=NOW + 41, started_at=NOW + 40))
    Process(store, "w-2").writes(enqueued(), deferred())
    found = row(store)
    assert (found["status"], found["attempt"], found["deliveries"]) == ("completed", 1, 2)
    assert job(store)["run_id"] == "r1"


@pytest.mark.parametrize("in_one", [True, False])
def test_a_retry_that_is_put_off_stays_that_retry(store: Store, in_one: bool) -> None:
    entries = [
        *(enqueued(), started(), enqueued(retries=1, retry_at=NOW + 5, payload=None), ended(outcome="failed", status=None)),
        *(deferred(retries=1, at=NOW + 5, eta=NOW + 35), enqueued(retries=1, at=NOW + 35, payload=None)),
    ]
    process = Process(store)
    if in_one:
        process.writes(*entries)
    else:
        for entry in entries:
            process.writes(entry)
    found = row(store)
    assert (found["status"], found["retries"], found["attempt"]) == ("pending", 1, 1)
    assert found["eta"].timestamp() == NOW + 35
    process.writes(started(run="r2", retries=1, at=NOW + 36), ended(run="r2", retries=1, at=NOW + 37, started_at=NOW + 36))
    assert row(store)["status"] == "completed"


@pytest.mark.parametrize("in_one", [True, False])
def test_what_jobs_wait_for_is_counted_by_the_last_reason(store: Store, in_one: bool) -> None:
    entries = [entry for n in range(5) for entry in (enqueued(f"j{n}"), deferred(f"j{n}"))]
    last = [deferred("j0", at=NOW + 1, reason="payments"), started("j1", at=NOW + 2), enqueued("j5", eta=NOW + 90)]
    last += [enqueued("j6"), deferred("j6")[:-1], enqueued("j7"), deferred("j7", eta=NOW - 100)]  # of an earlier version; of long ago
    now = datetime.fromtimestamp(NOW, UTC)
    process = Process(store)
    if in_one:
        process.writes(*entries, *last)
    else:
        process.writes(*entries)
        process.writes(*last)
    assert queries.waiting_jobs(store, now) == {"space": 3, "payments": 1}
    process.writes(started("j0", at=NOW + 3), ended("j0", at=NOW + 4, outcome="failed", status=None), ended("j1", at=NOW + 4))
    assert queries.waiting_jobs(store, now) == {"space": 3}
    process.writes(deferred("j0", retries=1, reason="payments"), deferred("j1", at=NOW + 1))
    assert queries.waiting_jobs(store, now) == {"space": 3, "payments": 1}, "a report that comes late changes nothing"


def test_what_lies_in_a_paused_queue_waits_too(store: Store) -> None:
    def read(queue: str, at: float, ready: int, reason: str | None) -> tuple[Any, ...]:
        return tuple(records.QueueRead(records.QUEUE_READ, at, "RedisBroker", queue, ready, 0, 0, None, reason is not None, reason))

    process = Process(store)
    process.writes(enqueued(), deferred(reason="payments"), enqueued("j2"), read("default", NOW, 5, "payments"), read("mail", NOW, 9, None))
    process.writes(read("old", NOW - 100, 7, "payments"))
    now = datetime.fromtimestamp(NOW, UTC)
    assert queries.waiting_jobs(store, now) == {"payments": 6}
    assert (queries.job_detail(store, "j2") or {})["queue_paused_for"] == "payments"
    process.writes(read("default", NOW + 5, 5, None))
    assert queries.waiting_jobs(store, now) == {"payments": 1}
    assert (queries.job_detail(store, "j2") or {})["queue_paused_for"] is None
