"""What dead workers held: who has to give it back, who is a suspect, and how often a message ended its worker."""

from __future__ import annotations

import time

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.control.crashes import AGAIN_S, SELDOM_S, SOON_S, SWEEP_S, Crashes
from dramatiq_chaperone.store import Store, crashes
from tests.contracts.conftest import NOW, MakeStore, Process, booted, ended, enqueued, started


def boot(broker: str = "RedisBroker", broker_id: str | None = "broker-1") -> tuple[object, ...]:
    return tuple(records.WorkerBooted(records.WORKER, NOW, broker, broker_id, '["default"]', 8, None, "{}"))


def dies(worker: Process, *, at: float = NOW, is_certain: bool = True) -> list[str]:
    return worker.store.worker_lost(worker.origin, at=at, exit_code=-9, exit_cause="SIGKILL", is_certain=is_certain)


@pytest.fixture
def now() -> float:
    return time.time()


@pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])
def test_what_a_dead_worker_ran_is_suspect_and_has_to_go_back(make_store: MakeStore, key_type: str, now: float) -> None:
    store = make_store(primary_key_type=key_type)
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), enqueued("j2"), started("j2", "r2"), ended("j2", "r2"))
    assert crashes.suspects(store) == []
    assert dies(worker, at=now) == ["j1"]
    assert crashes.suspects(store) == ["j1"]
    assert crashes.returns(store) == [crashes.Return("host-1-aaaa", "broker-1", ("default",), True)]
    assert [(each.worker_id, each.cause) for each in crashes.crashes(store, "j1")] == [("host-1-aaaa", "SIGKILL")]
    assert crashes.crashes(store, "j2") == []
    crashes.given_back(store, "host-1-aaaa", at=now)
    assert crashes.returns(store) == []


def test_a_second_time_changes_nothing(store: Store, now: float) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started())
    for _ in range(2):
        assert dies(worker, at=now) == ["j1"]
    assert len(crashes.crashes(store, "j1")) == 1
    crashes.given_back(store, "host-1-aaaa", at=now)
    dies(worker, at=now)
    assert crashes.returns(store) == []


def test_a_worker_that_is_only_silent_is_not_certain_until_its_death_is_seen(store: Store, now: float) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started())
    dies(worker, at=now, is_certain=False)
    assert [each.is_certain for each in crashes.returns(store)] == [False]
    dies(worker, at=now)
    assert [each.is_certain for each in crashes.returns(store)] == [True]
    dies(worker, at=now, is_certain=False)
    assert [each.is_certain for each in crashes.returns(store)] == [True]


def test_a_broker_that_gives_messages_back_itself_has_nothing_to_return(store: Store, now: float) -> None:
    worker = Process(store)
    worker.writes(boot("RabbitmqBroker", None), enqueued(), started())
    dies(worker, at=now)
    assert crashes.returns(store) == []
    assert crashes.suspects(store) == ["j1"]


def test_leases_that_a_living_worker_shares_are_left_alone(store: Store, now: float) -> None:
    """Forks of one process have one broker object's id."""
    one, other = Process(store), Process(store, "host-2-bbbb")
    one.writes(booted(), enqueued(), started())
    other.writes(booted())
    dies(one, at=now)
    assert crashes.returns(store) == []


def test_a_suspect_is_one_until_its_job_has_ended(store: Store, now: float) -> None:
    worker, other = Process(store), Process(store, "host-2-bbbb")
    worker.writes(booted(), enqueued(), started())
    dies(worker, at=now)
    crashes.suspect(store, "host-1-aaaa", ["j1", "j3"], at=now)
    assert sorted(crashes.suspects(store)) == ["j1", "j3"], "one that was only held, and that the store has not heard of"
    other.writes(boot(broker_id="broker-2"), started("j1", "r2", at=now), ended("j1", "r2", at=now))
    assert crashes.suspects(store) == ["j3"]
    assert [crashes.sweep(store), crashes.sweep(store)] == [1, 0]
    assert store.rows("SELECT job_id FROM {suspects}") == [("j3",)]


def test_what_was_only_held_has_no_crash(store: Store, now: float) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), enqueued("j2"), started("j2", "r2"))
    dies(worker, at=now)
    crashes.suspect(store, "host-1-aaaa", ["j1", "j2"], at=now)
    assert crashes.crashes(store, "j1") == []
    assert len(crashes.crashes(store, "j2")) == 1
    assert crashes.counts(store, ["j1", "j2", "j3"]) == {"j2": 1}
    assert crashes.counts(store, []) == {}


class TestWrittenThrough:
    """The journal of the worker is gone with its disk: only what was written to the store is known."""

    def test_a_start_counts_when_its_worker_is_lost(self, store: Store, now: float) -> None:
        crashes.begin(store, "j1", "host-1-aaaa", at=now)
        worker = Process(store)
        worker.writes(booted(), beat(now))
        assert crashes.crashes(store, "j1") == [], "it runs"
        dies(worker, at=now + 1, is_certain=False)
        assert [each.worker_id for each in crashes.crashes(store, "j1")] == ["host-1-aaaa"]

    def test_a_worker_that_was_never_heard_of_counts_too(self, store: Store, now: float) -> None:
        crashes.begin(store, "j1", "host-1-aaaa", at=now)
        assert len(crashes.crashes(store, "j1")) == 1

    def test_one_that_is_silent_for_long_counts_before_anybody_says_so(self, store: Store, now: float) -> None:
        crashes.begin(store, "j1", "host-1-aaaa", at=now - 120)
        Process(store).writes(booted(), beat(now - 100))
        assert len(crashes.crashes(store, "j1")) == 1

    def test_a_start_is_one_crash_with_what_the_journal_says(self, store: Store, now: float) -> None:
        worker = Process(store)
        crashes.begin(store, "j1", "host-1-aaaa", at=now)
        worker.writes(booted(), enqueued(), started(at=now))
        dies(worker, at=now + 1)
        assert len(crashes.crashes(store, "j1")) == 1

    def test_a_run_that_failed_in_time_is_no_crash(self, store: Store, now: float) -> None:
        worker = Process(store)
        crashes.begin(store, "j1", "host-1-aaaa", at=now)
        worker.writes(booted(), enqueued(), started(at=now), ended(at=now + 1, outcome="failed", status=None))
        dies(worker, at=now + 2)
        assert crashes.crashes(store, "j1") == []

    def test_a_run_that_succeeded_and_was_not_acknowledged_is_no_crash(self, store: Store, now: float) -> None:
        worker = Process(store)
        crashes.begin(store, "j1", "host-1-aaaa", at=now)
        worker.writes(booted(), enqueued(), started(at=now), ended(at=now + 1))
        dies(worker, at=now + 2)
        assert crashes.crashes(store, "j1") == []

    def test_the_first_time_is_counted_once_where_nobody_can_tell_who_ran(self, store: Store, now: float) -> None:
        for number in range(3):
            crashes.suspect(store, f"host-{number}-aaaa", ["j1"], at=now + number, unseen=True)
        assert [each.worker_id for each in crashes.crashes(store, "j1")] == ["host-0-aaaa"]

    def test_three_deaths_are_three_crashes_oldest_first(self, store: Store, now: float) -> None:
        crashes.suspect(store, "host-0-aaaa", ["j1", "j2"], at=now, unseen=True)
        for number in (2, 1):
            crashes.begin(store, "j1", f"host-{number}-aaaa", at=now + number)
        assert [each.worker_id for each in crashes.crashes(store, "j1")] == ["host-0-aaaa", "host-1-aaaa", "host-2-aaaa"]
        assert len(crashes.crashes(store, "j2")) == 1


def beat(at: float) -> tuple[object, ...]:
    return tuple(records.Beat(records.BEAT, at, 1, 1000, 0.0, 0, 0, None))


def test_a_message_is_taken_when_another_worker_has_begun_it_since(store: Store, now: float) -> None:
    worker, other = Process(store), Process(store, "host-2-bbbb")
    worker.writes(booted(), enqueued(), started(at=now))
    assert not crashes.is_taken(store, "j1", "host-1-aaaa", since=now - 5)
    assert not crashes.is_taken(store, "j9", "host-1-aaaa", since=now - 5)
    other.writes(booted(), started("j1", "r2", at=now + 60))
    assert crashes.is_taken(store, "j1", "host-1-aaaa", since=now + 30)
    assert not crashes.is_taken(store, "j1", "host-1-aaaa", since=now + 90)


def test_it_stays_taken_when_the_other_worker_has_died(store: Store, now: float) -> None:
    """Then the row is about the run here again."""
    worker, other = Process(store), Process(store, "host-2-bbbb")
    worker.writes(booted(), enqueued(), started(at=now))
    other.writes(booted(), started("j1", "r2", at=now + 60))
    dies(other, at=now + 61)
    assert store.rows("SELECT status, run_id FROM {supervised_jobs}") == [("running", "r1")]
    assert crashes.is_taken(store, "j1", "host-1-aaaa", since=now + 30)
    assert not crashes.is_taken(store, "j1", "host-1-aaaa", since=now + 90)
    assert not crashes.is_taken(store, "j1", "host-2-bbbb", since=now + 30)


def test_a_run_that_was_taken_and_failed_leaves_the_job_to_the_other(store: Store, now: float) -> None:
    worker, other = Process(store), Process(store, "host-2-bbbb")
    worker.writes(booted(), enqueued(), started(at=now))
    other.writes(booted(), started("j1", "r2", at=now + 60))
    worker.writes(ended(at=now + 61, outcome="failed", status="lost"))
    assert store.rows("SELECT status, run_id FROM {supervised_jobs}") == [("running", "r2")]
    other.writes(ended("j1", "r2", at=now + 62))
    assert store.rows("SELECT status, run_id FROM {supervised_jobs}") == [("completed", "r2")]
    assert crashes.crashes(store, "j1") == []


def test_the_duty_tells_who_is_a_suspect_and_asks_again_until_it_is_done(store: Store, now: float) -> None:
    told: list[list[str]] = []
    asked: list[list[str]] = []
    clock = [0.0]
    duty = Crashes(told.append, lambda dead: asked.append([each.worker_id for each in dead]), clock=lambda: clock[0])
    duty.turn(store)
    assert (told, asked) == ([[]], [])
    worker = Process(store)
    worker.writes(booted(), enqueued(), started())
    dies(worker, at=now)
    for _ in range(3):
        duty.turn(store)
    assert told[1:] == [["j1"]] * 3
    assert asked == [["host-1-aaaa"]], "it was asked a moment ago"
    clock[0] = AGAIN_S
    duty.turn(store)
    assert len(asked) == 2
    clock[0] = SOON_S + 1
    duty.turn(store)
    clock[0] += AGAIN_S
    duty.turn(store)
    assert len(asked) == 3, "nobody here can do it"
    clock[0] += SELDOM_S
    duty.turn(store)
    assert len(asked) == 4
    crashes.given_back(store, "host-1-aaaa", at=now)
    clock[0] += SELDOM_S
    duty.turn(store)
    assert len(asked) == 4
    worker.writes(ended())
    clock[0] += SWEEP_S
    duty.turn(store)
    assert told[-1] == []
    assert store.rows("SELECT id FROM {suspects}") == []
    duty.leave(store)


def test_what_was_cancelled_is_a_suspect_for_an_hour(store: Store, now: float) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), enqueued("j2"), started("j2", "r2"))
    assert crashes.cancelled(store, "j1") is None
    end = ended(outcome="killed", status="cancelled", at=now)
    told = '{"job_id":"j1","cancelled_by":"jo","reason":"wrong file"}'
    worker.writes(end, (records.EVENT, now, "JobCancelled", "j1", None, None, told))
    dies(worker, at=now)
    assert crashes.suspects(store) == ["j2", "j1"], "what ends workers goes first"
    assert crashes.cancelled(store, "j1") == ("jo", "wrong file", False)
    assert crashes.crashes(store, "j1") == [], "nobody died of it"
    worker = Process(store, "host-2-bbbb")
    dead = (records.DEAD, now, "j1", 0, "work", "default", now, "cancelled", None, None, None, None, False)
    worker.writes(booted(), dead, ended("j9", outcome="killed", status="cancelled", at=now - crashes.CANCELLED_S - 1))
    assert crashes.cancelled(store, "j1") == ("jo", "wrong file", True)
    assert crashes.cancelled(store, "j9") == ("operator", "", False)
    assert crashes.sweep(store) == 1
    assert crashes.suspects(store) == ["j2", "j1"]
