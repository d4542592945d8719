"""Violations and health on every database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, counters, queries, retention
from tests.contracts.conftest import NOW, Process, StoreSettings, beat, booted, ended, enqueued, job, started, totals

MB = 1_000_000


def moment(after_s: float) -> datetime:
    return datetime.fromtimestamp(NOW + after_s, UTC)


def violated(job_id: str | None = "j1", run: str | None = "r1", *, at: float = NOW, **more: Any) -> tuple[Any, ...]:
    known: dict[str, Any] = {
        "type": "memory", "limit": 100.0 * MB, "actual": 250.5 * MB, "attribution": "shared" if job_id is None else "exact",
        "metadata": '{"is_default": false, "history": [[-1.0, 5], [0.0, 250]]}', "actor": "work", "queue": "default", "is_default": False,
        **more,
    }  # fmt: skip
    return tuple(records.Violated(kind=records.VIOLATED, at=at, job_id=job_id, run_id=run, **known))


def checked(status: str, run: str = "r1", *, job_id: str = "j1", at: float = NOW, reason: str | None = None) -> tuple[Any, ...]:
    return tuple(records.HealthChecked(records.HEALTH_CHECKED, at, job_id, run, status, reason, None, True))


def passed(store: Store) -> dict[tuple[str, str, str], float]:
    found = queries.counters(store, name=counters.VIOLATIONS)
    return {(labels["queue"], labels["actor"], labels["type"]): value for _, labels, value in found}


def test_a_violation_of_a_job(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started())
    worker.writes(violated(at=NOW + 5), violated(at=NOW + 9, type="cpu", limit=80.0, actual=99.5, metadata=None))
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert detail["status"] == "running"
    memory, cpu = detail["violations"]
    assert (memory["type"], memory["limit"], memory["actual"], memory["attribution"]) == ("memory", 100.0 * MB, 250.5 * MB, "exact")
    assert (memory["run_id"], memory["worker_id"], memory["created_at"].timestamp()) == ("r1", "host-1-aaaa", NOW + 5)
    assert memory["metadata"]["history"] == [[-1.0, 5], [0.0, 250]]
    assert (cpu["type"], cpu["limit"], cpu["actual"], cpu["metadata"]) == ("cpu", 80.0, 99.5, None)
    assert passed(store) == {("default", "work", "memory"): 1, ("default", "work", "cpu"): 1}


def test_a_violation_of_a_worker_has_no_job(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), violated(None, None, actor="", queue=""))
    found, total = queries.list_violations(store, since=datetime.fromtimestamp(NOW - 1, UTC))
    assert total == 1
    assert (found[0]["job_id"], found[0]["worker_id"], found[0]["run_id"], found[0]["attribution"]) == (None, "host-1-aaaa", None, "shared")
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert detail["violations"] == []
    assert passed(store) == {("", "", "memory"): 1}


def test_a_slice_that_comes_twice_counts_once(store: Store) -> None:
    worker = Process(store)
    worker.writes(enqueued(), started())
    entries = [violated(), violated(None, None), checked("unhealthy")]
    for _ in range(2):
        store.apply(worker.origin, entries, start=worker.position, end=worker.position + 10)
    _, total = queries.list_violations(store, since=datetime.fromtimestamp(NOW - 1, UTC))
    assert total == 2
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert len(detail["health_checks"]) == 1


def test_a_default_limit_is_on_record_and_not_counted(store: Store) -> None:
    Process(store).writes(enqueued(), started(), violated(is_default=True))
    assert passed(store) == {}
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert len(detail["violations"]) == 1


def test_a_violation_that_comes_before_its_job_is_known(store: Store) -> None:
    """Its start may be in a journal that is written later."""
    Process(store, "other").writes(violated(), checked("unhealthy"))
    Process(store, "web", "producer").writes(enqueued())
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert (detail["actor_name"], detail["health"], len(detail["violations"])) == ("work", "unhealthy", 1)


def test_the_health_of_a_job_is_that_of_its_latest_run(store: Store) -> None:
    first, second = Process(store), Process(store, "host-2")
    first.writes(enqueued(), started(), checked("degraded", at=NOW + 1, reason="memory at 80 % of its limit or more"))
    assert job(store)["health"] == "degraded"
    first.writes(checked("unhealthy", at=NOW + 2))
    assert job(store)["health"] == "unhealthy"
    first.writes(ended(outcome="failed", status=None), enqueued(retries=1))
    second.writes(started(run="r2", retries=1))
    assert job(store)["health"] is None, "nobody has looked at this run"
    first.writes(checked("healthy", at=NOW + 3))
    assert job(store)["health"] is None, "a late word about the run before"
    second.writes(checked("degraded", "r2", at=NOW + 4))
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert detail["health"] == "degraded"
    assert [(each["status"], each["reason"], each["run_id"]) for each in detail["health_checks"]] == [
        ("degraded", "memory at 80 % of its limit or more", "r1"),
        ("unhealthy", None, "r1"),
        ("healthy", None, "r1"),
        ("degraded", None, "r2"),
    ]


def test_a_start_of_the_same_slice_clears_it(store: Store) -> None:
    again = (ended(outcome="failed", status=None), enqueued(retries=1), started(run="r2", retries=1))
    Process(store).writes(enqueued(), started(), checked("unhealthy"), *again)
    assert job(store)["health"] is None


@pytest.mark.parametrize("status", ["degraded", "unhealthy"])
def test_words_that_no_database_takes_cost_only_themselves(store: Store, status: str) -> None:
    strange = 'a\0b \ud800 "quoted"'
    entries = [violated(type="x" * 100, metadata=json.dumps({"text": strange})), checked(status, reason=strange), violated(limit="much")]
    Process(store).writes(enqueued(), started(), *entries)
    assert totals(store, counters.UNWRITABLE) == {"journal": 1}
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert (detail["health"], len(detail["violations"]), len(detail["health_checks"])) == (status, 1, 1)


def test_they_go_with_their_job_and_a_workers_by_the_clock(store: Store, make_settings: Any) -> None:
    settings: StoreSettings = make_settings()
    Process(store).writes(enqueued(), started(), violated(), violated(None, None), checked("unhealthy"), ended())
    list(retention.prune(store, settings, now=NOW + 8 * 86_400))
    assert store.rows("SELECT COUNT(*) FROM {job_health_checks}")[0][0] == 0
    assert store.rows("SELECT COUNT(*) FROM {resource_violations}")[0][0] == 1
    list(retention.prune(store, settings, now=NOW + 31 * 86_400))
    assert store.rows("SELECT COUNT(*) FROM {resource_violations}")[0][0] == 0


def test_how_running_jobs_are(store: Store) -> None:
    worker, now = Process(store), moment(20)
    for number in range(5):
        worker.writes(enqueued(f"j{number}", at=NOW + number), started(f"j{number}", f"r{number}", at=NOW + number))
    worker.writes(
        checked("degraded", "r1", job_id="j1", at=NOW + 10),
        checked("unhealthy", "r2", job_id="j2", at=NOW + 10, reason="memory over its limit"),
        checked("degraded", "r2", job_id="j2", at=NOW + 11),
        checked("unhealthy", "r2", job_id="j2", at=NOW + 12, reason="memory over its limit"),
        checked("unhealthy", "r3", job_id="j3", at=NOW + 10),
        ended("j3", "r3", at=NOW + 13),
    )
    store.execute("UPDATE {supervised_jobs} SET status = 'stalled' WHERE job_id = 'j4'")

    assert queries.health_counts(store, now=now) == {"healthy": 1, "degraded": 1, "unhealthy": 2, "unknown": 0}
    everything = queries.running_health(store, now=now)
    assert [row["job_id"] for row in everything] == ["j4", "j2", "j1", "j0"]
    checks = [row["check"] for row in everything]
    assert [None if each is None else (each["status"], each["reason"]) for each in checks] == [
        None, ("unhealthy", "memory over its limit"), ("degraded", None), None,
    ]  # fmt: skip
    assert [row["job_id"] for row in queries.running_health(store, now=now, among=("unhealthy",))] == ["j4", "j2"]
    assert [row["job_id"] for row in queries.running_health(store, now=now, among=("degraded", "unhealthy"), limit=2)] == ["j4", "j2"]
    assert queries.running_health(store, now=now, among=("unknown",)) == []


def unseen(store: Store, after_s: float) -> dict[str, bool]:
    return {row["job_id"]: row["is_unseen"] for row in queries.running_health(store, now=moment(after_s))}


def test_a_running_job_of_which_nothing_is_heard_is_unknown_unless_it_was_worse(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted(), beat(1))
    for number in range(5):
        worker.writes(enqueued(f"j{number}"), started(f"j{number}", f"r{number}"))
    worker.writes(
        checked("degraded", "r1", job_id="j1"),
        checked("unhealthy", "r2", job_id="j2"),
        checked("healthy", "r3", job_id="j3"),
        ended("j4", "r4"),
    )
    store.execute("UPDATE {supervised_jobs} SET status = 'stalled' WHERE job_id = 'j0'")
    assert queries.health_counts(store, now=moment(29)) == {"healthy": 1, "degraded": 1, "unhealthy": 2, "unknown": 0}
    assert not any(unseen(store, 29).values())

    assert queries.health_counts(store, now=moment(100)) == {"healthy": 0, "degraded": 1, "unhealthy": 2, "unknown": 1}
    (row,) = queries.running_health(store, now=moment(100), among=("unknown",))
    assert (row["job_id"], row["is_unseen"], row["heard_at"]) == ("j3", True, moment(0))
    assert "worker_heard_at" not in row
    assert queries.running_health(store, now=moment(100), among=("healthy",)) == []
    assert [row["job_id"] for row in queries.running_health(store, now=moment(100), among=("unhealthy",))] == ["j2", "j0"]
    assert unseen(store, 100) == dict.fromkeys(("j0", "j1", "j2", "j3"), True)
    assert queries.heard_of(store, "j3", now=moment(100)) == {"is_unseen": True, "heard_at": moment(0)}
    assert queries.heard_of(store, "j4", now=moment(100))["is_unseen"] is False, "it has ended"
    assert queries.heard_of(store, "none", now=moment(100)) == {}


def test_a_worker_that_is_heard_of_is_enough(store: Store) -> None:
    """It looks seldom, and then has nothing to say of a job that is well."""
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), beat(1, at=NOW + 90))
    assert queries.health_counts(store, now=moment(100))["healthy"] == 1
    assert queries.heard_of(store, "j1", now=moment(100)) == {"is_unseen": False, "heard_at": moment(90)}
    assert queries.health_counts(store, now=moment(121))["unknown"] == 1
    worker.writes(checked("healthy", at=NOW + 125))
    assert queries.health_counts(store, now=moment(150))["healthy"] == 1, "what is heard of the job alone is enough too"


def test_a_worker_with_a_longer_heartbeat_has_longer(store: Store) -> None:
    slow = tuple(records.Beat(records.BEAT, NOW, 1, 1, 1.0, 0, 0, '{"heartbeat_s": 60}'))
    Process(store).writes(booted(), slow, enqueued(), started())
    Process(store, "host-2").writes(booted(), beat(1), enqueued("j2"), started("j2", "r2"))
    assert unseen(store, 179) == {"j1": False, "j2": True}
    assert queries.health_counts(store, now=moment(179)) == {"healthy": 1, "degraded": 0, "unhealthy": 0, "unknown": 1}
    assert unseen(store, 181) == {"j1": True, "j2": True}
