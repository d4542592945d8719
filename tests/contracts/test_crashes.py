"""What is kept of a crash, on every database: cause, last samples, last stack, and who is suspect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, queries
from tests.contracts.conftest import NOW, MakeStore, Process, booted, enqueued, started

MB = 1 << 20


def sampled(job: str, run: str, at: float, mb: int, cpu: float = 5.0) -> tuple[Any, ...]:
    return (records.SAMPLED, at, job, run, mb * MB, mb * MB, "exact", cpu, 1.0, True, None)


def crash(store: Store) -> Process:
    """A worker with a job that grows, one that was stuck, and one that is calm."""
    worker = Process(store)
    worker.writes(booted())
    for name in ("calm", "grows", "stuck"):
        worker.writes(enqueued(name), started(name, f"run-{name}", at=NOW - 100, timeout_at=NOW + 500))
    for n in range(15):
        worker.writes(sampled("grows", "run-grows", NOW - 20 + n, 100 + 50 * n), sampled("calm", "run-calm", NOW - 20 + n, 100))
    beat = (records.HEARTBEAT, NOW - 3, "grows", "run-grows", "h1", "progress", None, 3.0, 4.0, "load", True)
    told = json.dumps({"run_id": "run-stuck", "evidence": {"stack": ["in outer", "in recv"]}})
    worker.writes(beat, (records.EVENT, NOW - 5, "JobStuck", "stuck", "host-1-aaaa", None, told))
    return worker


@pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])
def test_the_event_names_the_suspects(make_store: MakeStore, key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    worker = crash(store)
    assert store.worker_lost(worker.origin, at=NOW, exit_code=-9, exit_cause="SIGKILL (out of memory)") == ["calm", "grows", "stuck"]
    end = queries.worker_end(store, "host-1-aaaa")
    assert end is not None
    assert (end["name"], end["exit_code"], end["exit_cause"], end["pid"]) == ("WorkerCrashed", -9, "SIGKILL (out of memory)", 1)
    assert end["jobs"] == ["calm", "grows", "stuck"]
    assert [(each["job_id"], each["reasons"]) for each in end["suspects"]] == [
        ("grows", ["memory grew by 450 MB while it ran"]),
        ("stuck", ["it was stuck"]),
        ("calm", []),
    ]


def test_each_run_keeps_what_was_known_of_it(store: Store) -> None:
    worker = crash(store)
    worker.dies()
    runs = queries.lost_runs(store, "host-1-aaaa")
    assert [run["job_id"] for run in runs] == ["grows", "stuck", "calm"]
    grows, stuck, calm = (run["context"] for run in runs)
    assert len(grows["samples"]) == 10
    assert grows["samples"][-1][1] == 800 * MB
    assert (grows["progress"], grows["phase"]) == (75.0, "load")
    assert grows["suspicion"] == {"place": 1, "among": 3, "reasons": ["memory grew by 450 MB while it ran"]}
    assert stuck["stack"] == ["in outer", "in recv"]
    assert "stack" not in calm


def test_what_is_not_known_is_unknown_and_never_guessed(store: Store) -> None:
    worker = crash(store)
    store.worker_lost(worker.origin, at=NOW, exit_code=None, exit_cause=None)
    row = queries.worker_of(store, "host-1-aaaa")
    assert row is not None
    assert (row["exit_code"], row["exit_cause"]) == (None, "unknown")
    assert {run["exit_cause"] for run in queries.lost_runs(store, "host-1-aaaa")} == {"unknown"}


def test_a_message_that_ends_workers_is_suspect_the_next_time(store: Store) -> None:
    first = Process(store, "w1")
    first.writes(booted(), enqueued("poison"), started("poison", "run-1", at=NOW - 50))
    first.dies()
    second = Process(store, "w2")
    second.writes(booted(), enqueued("calm"), started("calm", "run-2", at=NOW - 50), started("poison", "run-3", at=NOW - 50))
    second.dies()
    end = queries.worker_end(store, "w2")
    assert end is not None
    assert [(each["job_id"], each["reasons"]) for each in end["suspects"]] == [
        ("poison", ["a worker died with it before"]),
        ("calm", []),
    ]


def test_a_worker_that_had_nothing_to_do(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted())
    assert worker.dies() == []
    end = queries.worker_end(store, "host-1-aaaa")
    assert end is not None
    assert (end["jobs"], end["suspects"]) == ([], [])
    assert queries.worker_end(store, "nobody") is None


def test_the_beginning_of_a_worker(store: Store) -> None:
    for name in ("web-1-aa", "web-1-ab", "web-2-aa"):
        Process(store, name).writes(booted())
    assert queries.workers_like(store, "web-1") == ["web-1-aa", "web-1-ab"]
    assert queries.workers_like(store, "web-2") == ["web-2-aa"]
    assert queries.workers_like(store, "db") == []
