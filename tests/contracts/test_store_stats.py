"""The figures of MetricsCollector, on every database; and on PostgreSQL how long they take with ten million jobs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, counters, open_store
from dramatiq_chaperone.store.migrations import m0002
from dramatiq_chaperone.store.stats import MetricsCollector
from tests.contracts.conftest import MakeStore, Process, StoreSettings, booted, drop_tables, ended, enqueued, started
from tests.contracts.test_store_queries import _Recorded
from tests.scaling import scaled

NOW = datetime(2026, 9, 21, 14, 31, 30, tzinfo=UTC)
MINUTE, HOUR = 60.0, 3600.0


def ago(seconds: float) -> float:
    return NOW.timestamp() - seconds


@pytest.fixture
def collector(store: Store) -> MetricsCollector:
    return MetricsCollector(store, clock=lambda: NOW)


@pytest.fixture
def run(store: Store) -> Callable[..., None]:
    """``run(job, seconds_ago)``: a job from its sending to its end."""
    process = Process(store)

    def write(job: str, seconds_ago: float, *, duration_s: float = 1.0, **names: str) -> None:
        at = ago(seconds_ago)
        parts = {each: names.pop(each) for each in ("outcome", "status") if each in names}
        process.writes(
            enqueued(job, at=at - 1, **names),
            started(job, f"run-{job}", at=at - 1, **names),
            ended(job, f"run-{job}", at=at, duration_s=duration_s, **parts, **names),  # type: ignore[arg-type]
        )

    return write


FAILED = {"outcome": "failed", "status": "failed"}


def test_nothing_yet(collector: MetricsCollector) -> None:
    assert set(collector.get_stats().values()) == {0}
    assert len(collector.get_stats()) == 9
    assert [(each["completed"], each["failed"]) for each in collector.get_hourly_throughput()] == [(0, 0)] * 24
    assert [each["count"] for each in collector.get_recent_throughput()] == [0] * 10
    assert collector.get_queue_depths() == collector.get_average_durations() == {}
    assert collector.get_worker_stats() == {"total": 0, "running": 0, "paused": 0, "stopped": 0, "healthy": 0}


def test_stats(store: Store, collector: MetricsCollector, run: Callable[..., None]) -> None:
    run("now", 10)
    run("recent", 58 * MINUTE)
    run("older", 90 * MINUTE)
    run("failed", 30 * MINUTE, **FAILED)
    run("failed before", 90 * MINUTE, **FAILED)
    run("skipped", 90 * MINUTE, outcome="interrupted", status="cancelled")
    other = Process(store, "other")
    other.writes(booted(), enqueued("waits", at=ago(5)), enqueued("runs", at=ago(5)), started("runs", "r", at=ago(4)))
    assert collector.get_stats() == {
        "total_jobs": 8,
        "pending": 1,
        "processing": 1,
        "completed": 3,
        "failed": 2,
        "completed_last_hour": 2,
        "failed_last_hour": 1,  # one hour, not the two of which the other one would be a part
        "active_workers": 1,
        "paused_workers": 0,
    }


def test_a_run_that_is_tried_again_is_no_failed_job(store: Store, collector: MetricsCollector) -> None:
    process = Process(store)
    process.writes(
        enqueued("j", at=ago(60)),
        started("j", "r1", at=ago(50)),
        ended("j", "r1", at=ago(40), outcome="failed", status=None),
        started("j", "r2", at=ago(30), retries=1),
        ended("j", "r2", at=ago(20), retries=1),
    )
    found = collector.get_stats()
    assert (found["completed_last_hour"], found["failed_last_hour"]) == (1, 0)
    assert sum(each["count"] for each in collector.get_recent_throughput()) == 1


def test_pruned_jobs_stay_in_the_totals(store: Store, collector: MetricsCollector, run: Callable[..., None]) -> None:
    run("one", 10)
    store.execute("DELETE FROM {supervised_jobs}")
    found = collector.get_stats()
    assert (found["total_jobs"], found["completed"]) == (1, 1)


def test_hours_are_those_of_the_clock_and_none_is_left_out(collector: MetricsCollector, run: Callable[..., None]) -> None:
    run("this hour", 31 * MINUTE)  # 14:00:30
    run("the hour before", 32 * MINUTE)  # 13:59:30
    run("failed", 32 * MINUTE, **FAILED)
    run("the first", 23 * HOUR + 31 * MINUTE)  # 15:00:30 of the day before
    run("too old", 23 * HOUR + 32 * MINUTE)
    found = collector.get_hourly_throughput()
    assert [each["hour"] for each in found] == [f"{hour % 24:02}:00" for hour in range(15, 39)]
    assert found[-2:] == [{"hour": "13:00", "completed": 1, "failed": 1}, {"hour": "14:00", "completed": 1, "failed": 0}]
    assert found[0] == {"hour": "15:00", "completed": 1, "failed": 0}
    assert sum(each["completed"] for each in found) == 3


def test_minutes(collector: MetricsCollector, run: Callable[..., None]) -> None:
    run("now", 5)
    run("failed now", 10, **FAILED)
    run("the first", 9 * MINUTE)
    run("too old", 10 * MINUTE)
    found = collector.get_recent_throughput()
    assert found[0] == {"minute": "14:22", "count": 1}
    assert found[-1] == {"minute": "14:31", "count": 2}
    assert (len(found), sum(each["count"] for each in found)) == (10, 3)


def test_depths_and_durations(store: Store, collector: MetricsCollector, run: Callable[..., None]) -> None:
    run("one", 10, duration_s=1.0, actor="a")
    run("two", 10, duration_s=2.0, actor="b")
    run("three", 10, duration_s=0.004, queue="mail")
    run("four", 10, duration_s=0.018, queue="mail")
    Process(store, "sender", "producer").writes(enqueued("w1"), enqueued("w2"), enqueued("w3", queue="mail"))
    assert collector.get_queue_depths() == {"default": 2, "mail": 1}
    assert collector.get_average_durations() == {"default": 1.5, "mail": 0.01}


def test_workers(store: Store, collector: MetricsCollector) -> None:
    for name, heard in (("fresh", 5.0), ("silent", 31.0), ("stopped", 5.0), ("lost", 5.0)):
        process = Process(store, name)
        process.writes(booted(ago(heard)), (records.BEAT, ago(heard), 1, 1, 1.0, 0, 0, None))
        if name == "stopped":
            process.writes((records.WORKER_STOPPED, ago(1)))
        if name == "lost":
            process.dies(ago(1))
    assert collector.get_worker_stats() == {"total": 4, "running": 2, "paused": 0, "stopped": 2, "healthy": 1}


def test_without_a_store_it_opens_that_of_the_environment(
    tmp_path: object, chaperone_env: Callable[..., None], make_store: MakeStore
) -> None:
    url = f"sqlite:///{tmp_path}/own.sqlite3"
    chaperone_env(DATABASE_URL=url)
    open_store(StoreSettings(url, table_prefix=""), create=True).close()
    collector = MetricsCollector()
    assert collector.get_stats()["total_jobs"] == 0
    collector.close()
    assert collector.get_worker_stats()["total"] == 0
    collector.close()


METHODS = ("get_stats", "get_hourly_throughput", "get_recent_throughput", "get_queue_depths", "get_average_durations", "get_worker_stats")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_figures_of_ten_million_jobs(postgres_url: str) -> None:
    """Ten million jobs of 100 actors on 5 queues: of them a thousandth waits or runs; beside the rollups of two days."""
    store = open_store(StoreSettings(postgres_url), create=True)
    try:
        _fill(store, scaled(10_000_000, at_least=100_000))
        collector = MetricsCollector(store, clock=lambda: NOW)
        recorded = _Recorded(store)
        for name in METHODS:
            getattr(collector, name)()
        scans = [scan for scan in recorded.sequential_scans() if scan.split(":")[0].endswith("supervised_jobs")]
        del store.execute
        assert scans == []
        for name in METHODS:
            took = []
            for _ in range(9):
                began = time.perf_counter()
                getattr(collector, name)()
                took.append(time.perf_counter() - began)
            print(f"{name}: median {1000 * statistics.median(took):.1f} ms, slowest {1000 * max(took):.1f} ms")
        assert sum(each["completed"] for each in collector.get_hourly_throughput()) > 0
    finally:
        drop_tables(store)
        store.close()


def _fill(store: Store, jobs: int) -> None:
    now = NOW - timedelta(seconds=NOW.second)
    part = 500_000  # a statement may take a minute
    for first in range(0, jobs, part):
        _fill_jobs(store, now, first + 1, min(first + part, jobs))
    store.execute(
        "INSERT INTO {rollups} (series, minute_at, queue, actor_name, runs_succeeded, runs_failed, retries, duration_seconds) "
        "SELECT 'series' || a, ?::timestamptz - m * INTERVAL '1 minute', 'queue' || a % 5, 'actor' || a, 49, 2, 1, 30 "
        "FROM generate_series(0, 2 * 24 * 60) AS m, generate_series(0, 99) AS a",
        (now,),
    )
    m0002.fill(store, store.key_type)
    for name, value in ((counters.JOBS, jobs / 40), (f"{counters.DURATION}_sum", 1e6), (f"{counters.DURATION}_count", 1e5)):
        store.execute(
            "INSERT INTO {counters} (series, name, labels, value) SELECT ? || a || o, ?, "
            "jsonb_build_object('actor', 'actor' || a, 'queue', 'queue' || a % 5, 'outcome', o), ? "
            "FROM generate_series(0, 99) AS a, unnest(ARRAY['completed', 'failed']) AS o",
            (name[-20:], name, value),
        )
    store.execute(
        "INSERT INTO {workers} (worker_id, created_at, updated_at, status, last_heartbeat_at) "
        "SELECT 'w' || n, ?::timestamptz, ?::timestamptz, 'running', ?::timestamptz FROM generate_series(1, 200) AS n",
        (now, now, now),
    )
    for table in ("supervised_jobs", "rollups", "hours", "counters", "workers"):
        store.execute(f"VACUUM ANALYZE {{{table}}}")


def _fill_jobs(store: Store, now: datetime, first: int, last: int) -> None:
    store.execute(
        "INSERT INTO {supervised_jobs} (job_id, created_at, updated_at, actor_name, queue, status, level) "
        "SELECT 'job' || n, t, t, 'actor' || n % 100, 'queue' || n % 5, CASE WHEN n % 1000 = 0 THEN 'pending' "
        "WHEN n % 10000 = 1 THEN 'running' WHEN n % 50 = 0 THEN 'failed' ELSE 'completed' END, 22 "
        "FROM (SELECT n, ?::timestamptz - n * INTERVAL '60 milliseconds' AS t FROM generate_series(?::bigint, ?::bigint) AS n) AS x",
        (now, first, last),
    )
