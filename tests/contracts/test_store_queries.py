"""Every read on every database; and on PostgreSQL, with many rows, by index."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.alerts.judging import Judge
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import Store, alerts, breakers, crashes, deliveries, leases, losses, open_store, queries, retention, silence
from dramatiq_chaperone.store.deadletters import Picked
from dramatiq_chaperone.store.readings import read_totals, read_workers
from dramatiq_chaperone.store.times import stored_time
from tests.contracts.conftest import NOW, Process, StoreSettings, booted, drop_tables, ended, enqueued, event, origin, started
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


def pages(read: Callable[..., tuple[list[dict[str, Any]], str | None]]) -> list[dict[str, Any]]:
    """Every page of a list, one after the other."""
    found, after = read(after=None)
    while after is not None:
        rows, after = read(after=after)
        found += rows
    return found


def test_the_beginning_of_an_id(filled: Store) -> None:
    assert queries.ids_like(filled, "job1", limit=3) == ["job10", "job11", "job12"]
    assert queries.ids_like(filled, "job03") == ["job03"]
    assert queries.ids_like(filled, "beef") == []
    Process(filled, "other").writes(enqueued("job03-b"))
    assert queries.ids_like(filled, "job03") == ["job03"], "an id that begins another one"


def test_workers_come_in_pages(filled: Store) -> None:
    for n in range(5):
        Process(filled, f"host-2-{n}").writes(booted(NOW + n))
    Process(filled, "host-2-0").dies()
    newest = [f"host-2-{n}" for n in reversed(range(5))]

    def read(**more: Any) -> Any:
        return queries.worker_page(filled, limit=2, **more)

    assert [row["worker_id"] for row in pages(read) if row["worker_id"] != "host-1-aaaa"] == newest
    assert {row["worker_id"] for row in pages(lambda after: read(statuses=["lost"], after=after))} == {"host-2-0"}
    assert len(pages(lambda after: read(statuses=["lost", "running"], after=after))) == 6
    worker = queries.worker_of(filled, "host-2-0")
    assert worker is not None
    assert worker["exit_cause"] == "SIGKILL"
    assert queries.worker_of(filled, "nobody") is None


def test_events_come_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Process(store)
    worker.writes(*(event("JobStuck" if n % 3 else "JobLost", f"j{n % 2}", at=NOW + n) for n in range(12)))

    def times(**picked: Any) -> list[float]:
        rows = pages(lambda after: queries.event_page(store, limit=2, after=after, **picked))
        return [row["created_at"].timestamp() - NOW for row in rows]

    assert times() == list(reversed(range(12)))
    assert times(job="j1") == [11, 9, 7, 5, 3, 1]
    assert times(name="JobLost") == [9, 6, 3, 0]
    assert times(name="JobLost", job="j1", since=moment(NOW + 5)) == [9]
    assert times(name="Nothing") == []
    monkeypatch.setattr(queries, "EVENTS_SEARCHED", 4)
    assert times(name="JobLost") == [9, 6, 3, 0], "a page that looked in vain leads to the next one"
    assert queries.event_page(store, name="Nothing")[1] is not None


def test_dead_letters_come_in_pages(store: Store) -> None:
    worker = Process(store)
    for n in range(7):
        letter = records.Dead(records.DEAD, NOW + n, f"job{n}", 0, f"actor{n % 2}", "default", NOW, "age", None, None, None, None, False)
        worker.writes(enqueued(f"job{n}"), tuple(letter))

    def read(**more: Any) -> Any:
        return queries.dead_letter_page(store, Picked(), limit=2, **more)

    assert ids(pages(read)) == [f"job{n}" for n in reversed(range(7))]
    assert ids(queries.dead_letter_page(store, Picked(actor="actor1", since=moment(NOW + 2)))[0]) == ["job5", "job3"]
    assert ids(queries.dead_letters_to_retry(store, Picked(retried=False), limit=3)) == ["job0", "job1", "job2"]
    assert ids(queries.dead_letters_like(store, "job3")) == ["job3"]
    assert len(queries.dead_letters_like(store, "job")) == 7
    assert queries.dead_letters_of(store, ["job1", "job9"]) == {"job1"}
    assert queries.dead_letter_counts(store, since=moment(NOW + 4)) == {"default": 3}


def test_violations_and_breakers(filled: Store) -> None:
    for n in range(3):
        filled.execute(
            "INSERT INTO {resource_violations} (supervised_job_id, worker_id, created_at, type, actual) "
            "SELECT id, worker_id, created_at, 'memory', ? FROM {supervised_jobs} WHERE job_id = ?",
            (n, f"job0{n}"),
        )
    rows, total = queries.list_violations(filled, since=moment(NOW + 1), limit=1)
    assert ([(row["job_id"], row["type"], row["actual"]) for row in rows], total) == ([("job02", "memory", 2.0)], 2)
    assert queries.list_violations(filled, since=moment(NOW + 60)) == ([], 0)

    for service in ("mail", "bank"):
        filled.execute(
            "INSERT INTO {circuit_breakers} (service, created_at, updated_at, state, mode) "
            "SELECT ?, created_at, created_at, 'open', 'auto' FROM {supervised_jobs} WHERE job_id = 'job00'",
            (service,),
        )
    assert [row["service"] for row in queries.list_breakers(filled)] == ["bank", "mail"]


def test_jobs_are_counted_by_state(filled: Store) -> None:
    assert queries.job_counts(filled, ("running", "stalled")) == {"running": 5, "stalled": 0}


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


def test_what_an_exporter_reads(filled: Store) -> None:
    beat = (records.BEAT, NOW + 40, 1, 100, 1.0, 0, 0, '{"consumers": 2}')
    Process(filled, "w2").writes(booted(), beat, enqueued("waits", at=NOW + 30), enqueued("later", at=NOW + 29, eta=NOW + 900))
    filled.execute(
        f"INSERT INTO {{queues}} (queue, broker, ready, {filled.quote('delayed')}, dead, paused, read_at) "
        "VALUES ('queue0', 'b', 1, 2, 3, ?, ?)",
        (False, stored_time(filled.kind, NOW)),
    )
    totals = read_totals(filled)
    assert totals.queues["queue0"] == {"running": 2}
    first = totals.running[0]
    assert (first["queue"], first["actor_name"], first["started_at"]) == ("queue0", "actor0", moment(NOW))
    assert totals.oldest == {"default": moment(NOW)}
    assert [(row["ready"], row["delayed"], row["dead"], row["oldest_at"], row["paused"]) for row in totals.depths] == [
        (1, 2, 3, None, False)
    ]
    assert totals.workers == {"running": 2}
    assert sum(value for name, _, value in totals.counters if name == "chaperone_jobs_total") == 15
    assert [(row["worker_id"], row["gauges"]) for row in read_workers(filled, ["w2"])] == [("w2", {"consumers": 2})]
    assert len(read_workers(filled, None)) == 2


# PostgreSQL explains


class _Recorded:
    """The statements that a store runs."""

    def __init__(self, store: Store) -> None:
        self._execute = store.execute
        self.seen: list[tuple[str, Sequence[Any]]] = []
        #: Seconds, and the statement that took them.
        self.slowest = (0.0, "")
        store.execute = self  # type: ignore[method-assign, assignment]

    def __call__(self, text: str, values: Sequence[Any] = ()) -> Any:
        self.seen.append((text, values))
        began = time.monotonic()
        cursor = self._execute(text, values)
        self.slowest = max(self.slowest, (time.monotonic() - began, text))
        return cursor

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
SMALL = (
    *("workers", "leases", "counters", "chaperone_schema", "open_runs", "commands", "audit_log", "queues", "circuit_breakers"),
    *("hours", "suspects", "returns", "silences", "alert_groups"),
)


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
        assert recorded.slowest[0] < 1, recorded.slowest
        _look_after_alerts(store)
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


def _look_after_alerts(store: Store) -> None:
    """What the sender of alerts asks in its turns."""
    judge = Judge(Settings.load(environ={"HOME": "/nonexistent"}))
    epoch = leases.acquire(store, "monitor", "test", seconds=3600)
    assert epoch is not None
    store.execute("UPDATE {events} SET to_judge = 1 WHERE job_id = 'job7'")
    judge.turn(store, leases.Lease("monitor", "test", epoch), NOW)
    alerts.list_alerts(store)
    alerts.firing(store)
    deliveries.next_of(store, "mail", NOW)
    deliveries.channels_that_wait(store)
    deliveries.sending(store)
    deliveries.sent_since(store, "mail", NOW - 60)
    deliveries.flooded(store, "mail", NOW)
    deliveries.statistics(store, since=NOW - 3600, now=NOW)


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
    columns = "created_at, updated_at, first_seen_at, last_seen_at, fingerprint, type, severity, status, is_point, is_settled"
    store.execute(
        f"INSERT INTO {{alerts}} ({columns}) SELECT created_at, created_at, created_at, created_at, job_id, 'job_failed', 'error', "
        "CASE WHEN id % 1000 = 0 THEN 'firing' ELSE 'happened' END, 1, CASE WHEN id % 1000 = 0 THEN 0 ELSE 1 END "
        "FROM {supervised_jobs}"
    )
    store.execute(
        "INSERT INTO {alert_deliveries} (alert_id, created_at, channel, attempt, result, alerts, finished_at) "
        "SELECT id, created_at, 'mail', 1, 'sent', '[]', created_at FROM {alerts}"
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
    queries.waiting_jobs(store, moment(NOW))
    queries.list_workers(store)
    queries.list_dead_letters(store)
    queries.list_events(store)
    queries.list_events(store, since=since)
    queries.ids_like(store, "job77")
    queries.stuck_jobs(store, now=since)
    queries.stuck_jobs(store, now=since, threshold_s=60)
    queries.running_on(store, "w3")
    _, after = queries.event_page(store)
    for picked in (
        {"job": "job5"},
        {"name": "JobLost"},
        {"name": "JobStuck", "since": since},
        {"name": "JobLost", "after": after},
        {"after": after},
    ):
        queries.event_page(store, **picked)  # type: ignore[arg-type]  # each has the right type for its name
    queries.running_health(store, now=since)
    queries.running_health(store, now=moment(NOW + 600), among=("unknown",))
    queries.heard_of(store, "job1000", now=since)
    queries.health_counts(store, now=since)
    queries.worker_page(store, statuses=("running",))
    _, after = queries.dead_letter_page(store, Picked())
    for some in (Picked(since=since), Picked(retried=False), Picked(actor="actor8", since=since)):
        queries.dead_letter_page(store, some)
        queries.dead_letters_to_retry(store, some, limit=50)
    queries.dead_letter_page(store, Picked(), after=after)
    queries.dead_letters_like(store, "job77")
    queries.dead_letters_of(store, ["job8", "job12"])
    queries.dead_letter_counts(store, since=since)
    queries.workers_like(store, "w")
    queries.worker_end(store, "w3")
    queries.lost_runs(store, "w3")
    for heard in silence.live_workers(store):
        silence.record_overdue(store, heard, silent_s=60, grace_s=30, at=NOW)
    queries.list_violations(store, since=since)
    queries.list_breakers(store)
    queries.service_events(store, "payments")
    breakers.read_told(store)
    breakers.read_states(store)
    queries.job_counts(store, ("running", "stalled"))
    queries.actor_summary(store, since=since)
    queries.rollup_minutes(store, since=since)
    queries.counters(store)
    queries.list_queues(store)
    queries.queue_rates(store, since=since)
    crashes.suspects(store)
    crashes.sweep(store)
    crashes.returns(store)
    crashes.crashes(store, "job1000")
    crashes.counts(store, ["job1000", "job77"])
    crashes.is_taken(store, "job1000", "w1", since=NOW)
    read_totals(store)
    read_workers(store, None)
