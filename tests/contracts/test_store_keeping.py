"""Retention and leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, counters, leases, open_store, queries, retention
from tests.contracts.conftest import NOW, Process, StoreSettings, booted, ended, enqueued, started, totals
from tests.waiting import wait_until

DAY = 86_400.0


def jobs(store: Store) -> set[str]:
    return {job_id for (job_id,) in store.rows("SELECT job_id FROM {supervised_jobs}")}


def prune(store: Store, settings: StoreSettings, days: float, *, everything: bool = False) -> dict[str, int]:
    found: dict[str, int] = {}
    for table, count in retention.prune(store, settings, now=NOW + days * DAY, everything=everything):
        found[table] = found.get(table, 0) + count
    return found


def fill(store: Store) -> None:
    worker = Process(store)
    sample = (records.SAMPLED, NOW, "good", "r1", 500, 900, "exact", 12.5, 0.1, True, None)
    worker.writes(booted(), enqueued("good"), started("good", "r1"), sample)
    worker.writes(ended("good", "r1"), started("bad", "r2"), ended("bad", "r2", outcome="failed", status="failed"))
    dead = (records.DEAD, NOW, "bad", 0, "work", "default", NOW, "rejected", None, None, None, None, False)
    worker.writes(dead, enqueued("waiting"), started("claimed", "r3"), (records.EVENT, NOW, "JobStuck", "good", None, None, "{}"))


def test_ages(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    fill(store)
    settings = make_settings()
    assert prune(store, settings, 6.9) == {}
    assert prune(store, settings, 7.1)["supervised_jobs"] == 1
    assert jobs(store) == {"bad", "waiting", "claimed"}
    assert store.rows("SELECT COUNT(*) FROM {heartbeats}") == [(0,)]
    assert len(queries.list_dead_letters(store)) == 1
    before = totals(store, counters.JOBS)
    found = prune(store, settings, 31)
    assert (found["dead_letter_jobs"], found["events"], found["rollups"], found["hours"]) == (1, 1, 1, 1)
    assert jobs(store) == set()
    assert store.rows("SELECT COUNT(*) FROM {supervised_job_errors}") == [(0,)]
    assert totals(store, counters.JOBS) == before


def test_what_a_live_worker_claims_stays(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    fill(store)
    Process(store, "host-1-aaaa").store.apply(
        Process(store).origin, [(records.BEAT, NOW + 31 * DAY, 5, 1, 1.0, 0, 0, None)], start=30, end=40
    )
    prune(store, make_settings(), 31)
    assert jobs(store) == {"claimed"}


def test_zero_is_for_ever(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    fill(store)
    prune(store, make_settings(retention_completed=0, retention_failed=0, dlq_retention_days=0), 400)
    assert jobs(store) == {"good", "bad", "waiting", "claimed"}
    assert len(queries.list_dead_letters(store)) == 1


def test_everything_that_has_ended(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    fill(store)
    prune(store, make_settings(), 0.1, everything=True)
    assert jobs(store) == {"waiting", "claimed"}
    assert len(queries.list_dead_letters(store)) == 1


def test_batches(store: Store, make_settings: Callable[..., StoreSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    Process(store).writes(*(entry for n in range(35) for entry in (started(f"j{n}", f"r{n}"), ended(f"j{n}", f"r{n}"))))
    found = [count for table, count in retention.prune(store, make_settings(), now=NOW + 8 * DAY) if table == "supervised_jobs"]
    assert found == [10, 10, 10, 5]


def test_one_holder(store: Store) -> None:
    assert leases.acquire(store, "monitor", "a", seconds=60) == 1
    assert leases.acquire(store, "monitor", "b", seconds=60) is None
    assert leases.acquire(store, "monitor", "a", seconds=60) == 1
    assert leases.holds(store, "monitor", "a", 1)
    assert leases.acquire(store, "exporter", "b", seconds=60) == 1
    assert leases.release(store, "monitor", "a")
    assert not leases.release(store, "monitor", "a")
    assert leases.acquire(store, "monitor", "b", seconds=60) == 2
    assert not leases.holds(store, "monitor", "a", 1)


def test_a_lease_runs_out(store: Store) -> None:
    assert leases.acquire(store, "monitor", "a", seconds=0.05) == 1
    assert wait_until(lambda: leases.acquire(store, "monitor", "b", seconds=60), timeout_s=10) == 2
    assert not leases.holds(store, "monitor", "a", 1)


def test_many_want_a_lease(make_store: Callable[..., Store], make_settings: Callable[..., StoreSettings]) -> None:
    store = make_store(table_prefix="lease_")
    barrier, found, lock = threading.Barrier(6), [], threading.Lock()

    def want(number: int) -> None:
        mine = open_store(make_settings(table_prefix="lease_"), create=True)
        barrier.wait(30)
        epoch = leases.acquire(mine, "monitor", f"holder-{number}", seconds=60)
        with lock:
            found.append(epoch)
        mine.close()

    threads = [threading.Thread(target=want, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found, key=str) == [1, None, None, None, None, None]
    assert store.rows("SELECT COUNT(*) FROM {leases}") == [(1,)]


def test_claims_of_runs_go_when_they_have_run_out(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    for name in ("run:0:j1", "run:1:j1", "monitor"):
        assert leases.acquire(store, name, "a", seconds=30 * DAY)
    now = store.rows("SELECT COUNT(*) FROM {leases}")
    assert now == [(3,)]
    found = dict(retention.prune(store, make_settings(), now=time.time() + 29 * DAY))
    assert "leases" not in found
    found = dict(retention.prune(store, make_settings(), now=time.time() + 31 * DAY))
    assert found["leases"] == 2
    assert store.rows("SELECT name FROM {leases}") == [("monitor",)]
