"""What the counters say of incidents: each is counted once, in the flush that brings it, on every database."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.events import JobRecovered, JobStuck
from dramatiq_chaperone.store import Store, crashes, leases, queries, stalls
from dramatiq_chaperone.store.incidents import loss_cause
from tests.contracts.conftest import NOW, Process, booted, ended, enqueued, started

ACTOR = {"queue": "default", "actor": "work"}


def counted(store: Store, name: str, label: str) -> Counter[str]:
    """A counter by one of its labels; the others must be those of the actor, where it has them."""
    found: Counter[str] = Counter()
    for _, labels, value in queries.counters(store, name=name):
        assert {**ACTOR, **labels} == {**labels, **ACTOR}
        found[labels[label]] += int(value)
    return found


def recoveries(store: Store, after: str) -> tuple[float, float]:
    """How many, and the sum of their seconds."""
    name = "chaperone_recovery_seconds"
    numbers = [
        sum(value for _, labels, value in queries.counters(store, name=f"{name}_{part}") if labels["after"] == after)
        for part in ("bucket", "sum")
    ]
    return numbers[0], round(numbers[1], 3)


def told(name: str, *, at: float = NOW, **data: Any) -> tuple[Any, ...]:
    text = json.dumps({"queue": "default", "actor_name": "work", **data})
    return tuple(records.StoredEvent(records.EVENT, at, name, "j1", "host-1-aaaa", None, text))


def dead(job: str, reason: str) -> tuple[Any, ...]:
    return tuple(records.Dead(records.DEAD, NOW, job, 0, "work", "default", NOW, reason, "ValueError", "no", "", None, False))


def test_what_was_sent_is_counted_once(store: Store) -> None:
    sender, worker = Process(store, "web-1-aaaa", "producer"), Process(store)
    sender.writes(enqueued("now"), enqueued("later", eta=NOW + 60), enqueued("now too"))
    worker.writes(
        booted(),
        enqueued("later", at=NOW + 60, eta=NOW + 60, payload=None),  # it is due
        *(started("now"), ended("now", outcome="failed", status=None), enqueued("now", retries=1, retry_at=NOW + 5)),
    )
    assert counted(store, "chaperone_enqueued_total", "queue") == {"default": 3}


def test_jobs_that_are_stuck_and_move_again(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), told("JobStuck", cause="deadlock"), told("JobRecovered", stuck_duration=12.5))
    worker.writes(told("JobStuck", cause="gil"), told("JobStuck", cause=""), told("JobLost"))
    facts: dict[str, Any] = {"job_id": "j1", "actor_name": "work", "queue": "default", "run_id": "r1"}
    seen = JobStuck(**facts, stuck_duration=30.0, cause="gil")
    back = JobRecovered(**facts, recovered_at=datetime.fromtimestamp(NOW, UTC), stuck_duration=4.5)
    store.transact(lambda: stalls.write(store, [seen], NOW))  # as the watcher and the monitor do it
    store.transact(lambda: stalls.write(store, [back], NOW))
    assert counted(store, "chaperone_stuck_total", "cause") == {"deadlock": 1, "gil": 2, "unknown": 1}
    assert recoveries(store, "stuck") == (2, 17.0)


def test_an_event_that_is_torn_holds_nothing_up(store: Store) -> None:
    worker = Process(store)
    torn = tuple(records.StoredEvent(records.EVENT, NOW, "JobStuck", "j1", "w", None, '"no object"'))
    assert worker.writes(booted(), enqueued(), torn, told("JobRecovered", stuck_duration="long")).is_new
    assert counted(store, "chaperone_stuck_total", "cause") == {}
    assert counted(store, "chaperone_enqueued_total", "queue") == {"default": 1}


def test_runs_that_are_lost_and_come_again(store: Store) -> None:
    first, second = Process(store), Process(store, "host-2-bbbb")
    first.writes(booted(), *(each for n in range(3) for each in (enqueued(f"j{n}"), started(f"j{n}", f"r{n}"))))
    assert first.dies(at=NOW + 10) == ["j0", "j1", "j2"]
    first.dies(at=NOW + 11)  # known already
    assert counted(store, "chaperone_lost_total", "cause") == {"SIGKILL": 3}
    assert counted(store, "chaperone_runs_total", "outcome") == {"lost": 3}
    assert counted(store, "chaperone_workers_lost_total", "cause") == {"SIGKILL": 1}
    second.writes(booted(), started("j0", "s0", at=NOW + 12), started("other", "o", at=NOW + 12))
    second.writes(ended("j0", "s0", at=NOW + 13, outcome="failed", status=None))
    second.writes(started("j0", "s1", at=NOW + 20, retries=1))  # a retry is no recovery
    second.writes(started("j1", "s2", at=NOW + 15), ended("j1", "s2", at=NOW + 16, started_at=NOW + 15))
    assert recoveries(store, "lost") == (2, 7.0)


def test_a_start_before_the_loss_is_no_recovery(store: Store) -> None:
    first, second = Process(store), Process(store, "host-2-bbbb")
    first.writes(booted(), enqueued(), started())
    first.dies(at=NOW + 10)
    second.writes(booted(), started("j1", "s", at=NOW + 9))
    assert recoveries(store, "lost") == (0, 0)
    assert crashes.returned(store, {}) == {}


def test_dead_letters_by_reason(store: Store) -> None:
    Process(store).writes(booted(), dead("j1", "poison"), dead("j2", "poison"), dead("j3", "age"))
    assert counted(store, "chaperone_dead_letters_total", "reason") == {"poison": 2, "age": 1}


@pytest.mark.parametrize(
    ("exit_cause", "counted_as"),
    [
        ("SIGKILL (out of memory)", "out of memory"),
        ("SIGSEGV", "SIGSEGV"),
        ("exit code 3", "exit code"),
        ("signal 42", "signal"),
        ("silent for 31 s", "silent"),
        ("unknown", "unknown"),
        ("a text of somebody", "unknown"),
    ],
)
def test_no_cause_makes_labels_grow(exit_cause: str, counted_as: str) -> None:
    assert loss_cause(exit_cause) == counted_as


def test_workers_of_each_queue_and_the_last_loss_of_each_host(store: Store) -> None:
    workers = [Process(store, f"host-{n}-aaaa") for n in range(3)]
    for worker in workers:
        worker.writes(booted())
    workers[0].dies(at=NOW)
    workers[1].dies(at=NOW + 5)
    assert queries.queue_workers(store) == {"default": 1}
    at = datetime.fromtimestamp(NOW, UTC)
    assert queries.last_losses(store, since=at - timedelta(hours=1)) == {"host": at + timedelta(seconds=5)}
    assert queries.last_losses(store, since=at + timedelta(hours=1)) == {}


def test_who_holds_a_lease(store: Store) -> None:
    assert leases.holder_of(store, "monitor") is None
    leases.acquire(store, "monitor", "web1-1-aaaa", seconds=60)
    found = leases.holder_of(store, "monitor")
    assert found is not None
    assert (found[0], found[1] > 0) == ("web1-1-aaaa", True)
    leases.release(store, "monitor", "web1-1-aaaa")
    assert leases.holder_of(store, "monitor") is None


def test_running_jobs_by_actor_and_limits(store: Store) -> None:
    worker = Process(store)
    worker.writes(
        booted(), *(each for n in range(3) for each in (enqueued(f"j{n}"), started(f"j{n}", f"r{n}", limits='{"memory_limit": 10}')))
    )
    worker.writes(
        *(
            tuple(records.Sampled(records.SAMPLED, NOW, f"j{n}", f"r{n}", 100 + n, 200, kind, 1.0, 0.1, False, None))
            for n, kind in enumerate(("exact", "exact", "shared"))
        )
    )
    (row,) = queries.running_by_actor(store)
    assert (row["limits"], row["memory_exact"], row["memory_peak"]) == ({"memory_limit": 10}, 101, 200)
