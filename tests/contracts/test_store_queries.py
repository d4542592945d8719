"""Every read on every database; and on PostgreSQL, with many rows, by index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone.store import Store, losses, open_store, queries, retention
from tests.contracts.conftest import NOW, Process, StoreSettings, booted, drop_tables, ended, enqueued, origin, started
from tests.scaling import scaled


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


@pytest.fixture
def filled(store: Store) -> Store:
    """Twenty jobs, one a second; every third one fails, every fourth one still runs."""
    worker = Process(store)
    entries: list[tuple[Any, ...]] = [booted()]
    for n in range(20):
        names = {"actor": f"actor{n % 2}", "queue": f"queue{n % 3}"}
        entries += [enqueued(f"job{n:02}", at=NOW + n, **names), started(f"job{n:02}", f"run{n}", at=NOW + n, **names)]
        if n % 4:
            done = {"outcome": "failed", "status": "failed"} if n % 3 == 0 else {}
            entries.append(ended(f"job{n:02}", f"run{n}", at=NOW + n + 0.5, **names, **done))  # type: ignore[arg-type]
    worker.writes(*entries)
    return store


def ids(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["job_id"] for row in rows]


def test_summary(filled: Store) -> None:
    summary = queries.status_summary(filled)
    assert (summary["jobs"]["running"], summary["jobs"]["failed"], summary["jobs"]["completed"], summary["jobs"]["lost"]) == (5, 5, 10, 0)
    assert summary["workers"] == {"running": 1}
    assert summary["queues"] == {"queue0": {"running": 2}, "queue1": {"running": 2}, "queue2": {"running": 1}}


def test_pages_are_newest_first_and_complete(filled: Store) -> None:
    found: list[str] = []
    after: str | None = None
    while True:
        rows, after = queries.list_jobs(filled, limit=7, after=after)
        found += ids(rows)
        if after is None:
            break
    assert found == [f"job{n:02}" for n in reversed(range(20))]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "running"}, [16, 12, 8, 4, 0]),
        ({"status": ["running", "failed"], "queue": "queue0"}, [18, 15, 12, 9, 6, 3, 0]),
        ({"actor": "actor1", "status": "failed"}, [15, 9, 3]),
        ({"since": moment(NOW + 17.5)}, [19, 18]),
        ({"search": "job1"}, [19, 18, 17, 16, 15, 14, 13, 12, 11, 10]),
        ({"search": "TOR1", "status": "running"}, []),
        ({"search": "TOR1", "status": "failed"}, [15, 9, 3]),
        ({"search": "50%_'"}, []),
        ({"worker": "host-1-aaaa", "queue": "queue2", "since": moment(NOW + 10)}, [17, 14, 11]),
        ({"worker": "nobody"}, []),
    ],
)
def test_filters(filled: Store, filters: dict[str, Any], expected: list[int]) -> None:
    rows, _ = queries.list_jobs(filled, **filters)
    assert ids(rows) == [f"job{n:02}" for n in expected]


def test_a_page_from_elsewhere_is_refused(filled: Store) -> None:
    with pytest.raises(ValueError, match="page"):
        queries.list_jobs(filled, after="nonsense")


def test_rows_are_fit_for_people(filled: Store) -> None:
    rows, _ = queries.list_jobs(filled, limit=1)
    assert rows[0]["created_at"] == moment(NOW + 19)
    assert not queries.HIDDEN & rows[0].keys()
    assert json.loads(json.dumps(rows, default=str))


def test_children_and_unknown(filled: Store) -> None:
    Process(filled, "other").writes(enqueued("child", parent_job_id="job00"))
    detail = queries.job_detail(filled, "job00")
    assert detail is not None
    assert detail["children"] == ["child"]
    assert queries.job_detail(filled, "unknown") is None


def test_actors(filled: Store) -> None:
    assert queries.names(filled, "actor_name") == ["actor0", "actor1"]
    rows = queries.actor_summary(filled, since=moment(NOW - 60))
    runs = {(row["queue"], row["actor_name"]): (row["runs_succeeded"], row["runs_failed"]) for row in rows}
    assert sum(good for good, _ in runs.values()) == 10
    assert sum(bad for _, bad in runs.values()) == 5
    assert sum(sum(row["buckets"].values()) for row in rows) == 15
    assert sum(row["runs_failed"] for row in queries.rollup_minutes(filled, since=moment(NOW - 60))) == 5


# PostgreSQL explains


class _Recorded:
    """The statements that a store runs."""

    def __init__(self, store: Store) -> None:
        self._execute = store.execute
        self.seen: list[tuple[str, Sequence[Any]]] = []
        store.execute = self  # type: ignore[method-assign, assignment]

    def __call__(self, text: str, values: Sequence[Any] = ()) -> Any:
        self.seen.append((text, values))
        return self._execute(text, values)

    def sequential_scans(self) -> list[str]:
        """Tables that a statement reads from end to end, with the statement."""
        found = []
        for text, values in self.seen:
            if text.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
                plan = self._execute("EXPLAIN (FORMAT JSON) " + text, values).fetchall()[0][0]
                found += [f"{table}: {text}" for table in _scans(plan[0]["Plan"])]
        return found


def _scans(plan: dict[str, Any]) -> Iterator[str]:
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from _scans(part)


#: Empty or small here, where a scan is what the planner should choose.
SMALL = ("workers", "leases", "counters", "chaperone_schema", "open_runs", "commands", "audit_log")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_read_scans_a_large_table(postgres_url: str) -> None:
    settings = StoreSettings(postgres_url)
    store = open_store(settings, create=True)
    try:
        _fill(store, scaled(1_000_000, at_least=20_000))
        store.execute("SET jit = off")
        recorded = _Recorded(store)
        _read_all(store)
        list(retention.prune(store, settings, now=NOW))
        losses.worker_lost(store, origin("w3"), at=NOW, exit_code=-9, exit_cause="SIGKILL")
        Process(store, "w4").writes(started("job5", "other-run"), ended("job5", "other-run"), ended("job7", "run7"))
        store.position("w4")
        scans = [scan for scan in recorded.sequential_scans() if not scan.split(":")[0].endswith(SMALL)]
        assert scans == []
        assert len(recorded.seen) > 50
    finally:
        del store.execute
        drop_tables(store)
        store.close()


def _fill(store: Store, jobs: int) -> None:
    """Many jobs, nearly all of them ended; errors, heartbeats and events in proportion; straight in SQL, for speed."""
    store.execute(
        "INSERT INTO {supervised_jobs} (job_id, created_at, updated_at, actor_name, queue, status, level, run_id, started_at, ended_at, "
        "worker_id, completed_at, failed_at, ended_by, attempt, parent_job_id) "
        "SELECT 'job' || n, t, t, 'actor' || n % 100, 'queue' || n % 10, s, 22, 'run' || n, t, "
        "CASE WHEN s = 'running' THEN NULL ELSE t END, "
        "'w' || n % 50, CASE s WHEN 'completed' THEN t END, CASE s WHEN 'failed' THEN t END, n / 1000, 1, "
        "CASE WHEN n % 10 = 0 THEN 'job' || n / 10 END FROM "
        "(SELECT n, to_timestamp(?::float8) - n * INTERVAL '1 second' AS t, CASE WHEN n % 1000 = 0 THEN 'running' "
        "WHEN n % 1000 = 1 THEN 'pending' WHEN n % 20 = 0 THEN 'failed' ELSE 'completed' END AS s "
        "FROM generate_series(1, ?::bigint) AS n) AS x",
        (NOW, jobs),
    )
    for table, more, values in (
        ("supervised_job_errors", ", run_id, outcome, worker_id", ", 'error' || id, 'failed', worker_id"),
        ("heartbeats", ", kind", ", 'sample'"),
        ("resource_violations", ", type", ", 'memory'"),
        ("job_health_checks", ", status", ", 'healthy'"),
        ("dead_letter_jobs", ", job_id, failed_at", ", job_id, created_at"),
    ):
        store.execute(
            f"INSERT INTO {{{table}}} (supervised_job_id, created_at{more}) "
            f"SELECT id, created_at{values} FROM {{supervised_jobs}} WHERE id % 4 = 0"
        )
    store.execute(
        "INSERT INTO {events} (created_at, name, job_id, worker_id) SELECT created_at, 'JobStuck', job_id, worker_id FROM {supervised_jobs}"
    )
    store.execute(
        "INSERT INTO {rollups} (series, minute_at, queue, actor_name) SELECT 'series' || n % 100, "
        "date_trunc('minute', to_timestamp(?::float8)) - (n / 100) * INTERVAL '1 minute', 'queue', 'actor' || n % 100 "
        "FROM generate_series(1, ?::bigint) AS n",
        (NOW, jobs),
    )
    store.execute(
        "INSERT INTO {flushes} (process, sequence, updated_at) SELECT 'p' || n, n, to_timestamp(?::float8) FROM generate_series(1, 5000) n",
        (NOW,),
    )
    for table in ("supervised_jobs", "supervised_job_errors", "heartbeats", "events", "rollups", "flushes", "dead_letter_jobs",
                  "resource_violations", "job_health_checks"):  # fmt: skip
        store.execute(f"VACUUM ANALYZE {{{table}}}")


def _read_all(store: Store) -> None:
    queries.status_summary(store)
    since = moment(NOW - 600)
    _, after = queries.list_jobs(store)
    filters: list[dict[str, Any]] = [
        *({"status": status} for status in (*queries.LIVE, *queries.FINAL)),
        *({"queue": "queue3"}, {"actor": "actor7"}, {"worker": "w3"}, {"worker": "w3", "status": "running"}, {"search": "job77"}),
        *({"search": "tor42"}, {"since": since}, {"after": after}, {"status": ["running", "lost"], "since": since, "queue": "queue0"}),
        *({"status": "failed", "actor": "actor20"}, {"status": "running", "after": after}),
    ]
    for each in filters:
        queries.list_jobs(store, **each)
    queries.names(store, "queue")
    queries.job_detail(store, "job1000")
    queries.list_workers(store)
    queries.list_dead_letters(store)
    queries.list_events(store)
    queries.list_events(store, since=since)
    queries.actor_summary(store, since=since)
    queries.rollup_minutes(store, since=since)
    queries.counters(store)
