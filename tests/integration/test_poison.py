"""Suspects in front of a worker: what the store says of them decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, Worker

from dramatiq_chaperone import records
from dramatiq_chaperone.errors import StoreError, StoreUnavailable
from dramatiq_chaperone.journal.suspects import encode
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import Store, crashes, open_store
from dramatiq_chaperone.supervision import poison
from dramatiq_chaperone.supervision.admission import Refused
from dramatiq_chaperone.supervision.desk import ANSWER_S, StoreDesk
from dramatiq_chaperone.supervision.poison import Suspicion
from dramatiq_chaperone.supervision.policy import policy_of_unknown
from dramatiq_chaperone.supervision.slots import RunningJobs
from tests.integration.conftest import Bench
from tests.waiting import wait_until


class Ward:
    """A bench with its store, and suspects as the watcher tells them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.settings: Settings = bench.chaperone.settings
        self.store: Store = open_store(self.settings, create=True)
        self.runs: list[str] = []

        @bench.actor(actor_name="work", max_retries=0)
        def work(job_id: str) -> None:
            self.runs.append(job_id)

        self.work = work

    def crash(self, job_id: str, number: int, *, is_running: bool = True) -> None:
        """A worker of another life died; this message was in its hands."""
        name, now = f"host-{number}-aaaa", time.time()
        origin = records.Origin(name, "host", "boot-1", number, 0.0, "worker")
        entries = [
            (records.WORKER, now, "StubBroker", None, '["default"]', 1, None, "{}"),
            (records.ENQUEUED, now, job_id, "work", "default", 0, 0, now, None, None, None, False, None, None, None, None),
        ]
        if is_running:
            entries.append((records.STARTED, now, job_id, f"r{number}", 0, "work", "default", "T", 0, now, 0.0, None, None, None))
        self.store.apply(origin, entries, start=0, end=10)
        self.store.worker_lost(origin, at=now, exit_code=-9, exit_cause="SIGKILL", is_certain=True)
        crashes.suspect(self.store, name, [job_id], at=now)

    def tell(self, *job_ids: str) -> None:
        """What the watcher writes into the control block."""
        wait_until(lambda: self.bench.tape.entries(records.WORKER))
        for reader, _ in self.bench.tape._readers.values():
            reader.tell({"known": {"suspects": encode(job_ids)}, "requests": {}, "commands": []})
        working = self.bench.chaperone._runtime._working  # type: ignore[union-attr]
        wait_until(lambda: len(working.gate.suspicion.suspects) == len(job_ids))  # type: ignore[union-attr]

    def send(self, job_id: str, **options: Any) -> None:
        message = Message(queue_name="default", actor_name="work", args=(job_id,), kwargs={}, options=options, message_id=job_id)
        self.bench.broker.enqueue(message)

    def dead(self) -> list[Any]:
        return self.bench.tape.entries(records.DEAD)


@pytest.fixture
def ward(make_bench: Callable[..., Bench]) -> Any:
    made = Ward(make_bench(max_crashes=3))
    yield made
    made.store.close()


def test_the_fourth_delivery_is_dead_lettered_with_its_crashes(ward: Ward) -> None:
    for number in range(3):
        ward.crash("j1", number)
        ward.crash("j2", number + 10, is_running=number < 2)
    ward.bench.work()
    ward.tell("j1", "j2")
    for job_id in ("j1", "j2", "j3"):
        ward.send(job_id)
    ward.bench.join()
    assert sorted(ward.runs) == ["j2", "j3"], "one that was only held beside it runs"
    (letter,) = ward.dead()
    assert (letter.job_id, letter.reason) == ("j1", "poison")
    first, *lines = letter.message.splitlines()
    assert first == "It ended 3 workers (max_crashes is 3):"
    assert [line.split()[0] for line in lines] == ["host-0-aaaa", "host-1-aaaa", "host-2-aaaa"]
    assert all(line.endswith(": SIGKILL") for line in lines)
    (event,) = [each for each in ward.bench.tape.entries(records.EVENT) if each.name == "JobPoisoned"]
    assert event.job_id == "j1"
    assert '"crashes":3' in event.data
    assert len(ward.bench.broker.dead_letters) == 1


def test_a_suspect_that_runs_is_written_down_before(ward: Ward) -> None:
    ward.crash("j1", 1)
    ward.bench.work()
    ward.tell("j1")
    ward.send("j1")
    ward.bench.join()
    assert ward.runs == ["j1"]
    own = ward.bench.chaperone._runtime._working.journal.origin.worker_id  # type: ignore[union-attr]
    assert ward.store.rows("SELECT worker_id FROM {suspects} WHERE started_at IS NOT NULL") == [(own,)]


@pytest.mark.parametrize(
    ("on_message", "on_actor", "runs"), [(None, None, 0), (5, None, 1), (0, 1, 1), (None, 0, 1), (None, 5, 1), (2, 9, 0)]
)
def test_the_limit_comes_from_the_message_the_actor_or_the_settings(
    make_bench: Callable[..., Bench], on_message: int | None, on_actor: int | None, runs: int
) -> None:
    ward = Ward(make_bench(max_crashes=3))
    if on_actor is not None:
        ward.work.options["max_crashes"] = on_actor
    for number in range(3):
        ward.crash("j1", number)
    ward.bench.work()
    ward.tell("j1")
    ward.send("j1", **({} if on_message is None else {"max_crashes": on_message}))
    ward.bench.join()
    assert len(ward.runs) == runs
    ward.store.close()


def cancel(ward: Ward, job_id: str, *, has_letter: bool = False) -> None:
    """An operator has ended it for good, in a worker of another life."""
    now = time.time()
    origin = records.Origin("host-1-aaaa", "host", "boot-1", 1, 0.0, "worker")
    end = (records.ENDED, now, job_id, "r1", 0, "work", "default", "killed", "cancelled", 1.0, None, None, None, None, now - 1, "T")
    told = (records.EVENT, now, "JobCancelled", job_id, None, None, '{"cancelled_by":"jo","reason":"wrong file"}')
    dead = (records.DEAD, now, job_id, 0, "work", "default", now, "cancelled", None, None, None, None, False)
    position = ward.store.position(origin.worker_id)
    ward.store.apply(origin, [end, told, *([dead] if has_letter else [])], start=position, end=position + 10)


@pytest.mark.parametrize("max_crashes", [0, 3])
@pytest.mark.parametrize("has_letter", [True, False])
def test_what_was_cancelled_and_comes_again_is_dead_lettered_once(
    make_bench: Callable[..., Bench], has_letter: bool, max_crashes: int
) -> None:
    ward = Ward(make_bench(max_crashes=max_crashes))
    cancel(ward, "j1", has_letter=has_letter)
    ward.bench.work()
    ward.tell("j1")
    for job_id in ("j1", "j2"):
        ward.send(job_id)
    ward.bench.join()
    assert ward.runs == ["j2"]
    assert len(ward.bench.broker.dead_letters) == 1
    assert [(each.job_id, each.reason, each.message) for each in ward.dead()] == (
        [] if has_letter else [("j1", "cancelled", "jo has cancelled it: wrong file")]
    )
    ward.store.close()


def test_what_was_cancelled_elsewhere_and_runs_is_ended(ward: Ward) -> None:
    began = threading.Event()

    @dramatiq.actor(broker=ward.bench.broker, actor_name="slow", max_retries=3)
    def slow() -> None:
        began.set()
        for _ in range(1000):
            time.sleep(0.02)

    ward.bench.work()
    ward.bench.broker.enqueue(Message("default", "slow", (), {}, {}, message_id="j1"))
    assert began.wait(10)
    cancel(ward, "j1")
    ward.tell("j1")
    end = ward.bench.tape.one(records.ENDED, "j1")
    assert (end.outcome, end.status) == ("killed", "cancelled")
    (event,) = [each for each in ward.bench.tape.entries(records.EVENT) if each.name == "JobCancelled"]
    assert '"cancelled_by":"jo"' in event.data
    assert [each.reason for each in ward.dead()] == ["cancelled"]


def test_where_the_store_does_not_answer_it_runs(ward: Ward) -> None:
    for number in range(3):
        ward.crash("j1", number)
    ward.bench.work()
    ward.store.execute("DROP TABLE {suspects}")
    ward.tell("j1")
    ward.send("j1")
    ward.bench.join()
    assert ward.runs == ["j1"]


def test_the_last_chances_of_two_are_taken_one_after_the_other(ward: Ward) -> None:
    """The innocent that only ran beside the other must not be counted with it a third time."""
    running: list[str] = []
    most: list[int] = []

    @dramatiq.actor(broker=ward.bench.broker, actor_name="slow", max_retries=0)
    def slow(job_id: str) -> None:
        running.append(job_id)
        most.append(len(running))
        time.sleep(0.3)
        running.remove(job_id)

    for number in range(2):
        for job_id in ("j1", "j2", "j3"):
            ward.crash(job_id, number + int(job_id[1]) * 10)
    ward.bench.work(threads=4)
    ward.tell("j1", "j2", "j3")
    for job_id in ("j1", "j2", "j3"):
        ward.bench.broker.enqueue(Message("default", "slow", (job_id,), {}, {}, message_id=job_id))
    ward.bench.join()
    assert len(most) == 3
    assert max(most) == 1


def test_without_a_watcher_a_worker_finds_the_suspects_itself(make_bench: Callable[..., Bench]) -> None:
    ward = Ward(make_bench(watcher=False))
    for number in range(3):
        ward.crash("j1", number)
    worker = Worker(ward.bench.broker, worker_timeout=50, worker_threads=1)  # no tape stands where a watcher would
    worker.start()
    try:
        working = ward.bench.chaperone._runtime._working  # type: ignore[union-attr]
        wait_until(lambda: working.gate.suspicion.suspects)  # type: ignore[union-attr]
        ward.send("j1")
        ward.bench.broker.join("default", fail_fast=False)
        worker.join()
        assert ward.runs == []
        assert len(ward.bench.broker.dead_letters) == 1
    finally:
        worker.stop()
        ward.store.close()


def test_a_message_that_is_delivered_again_waits_for_the_record_of_the_death_that_decides(ward: Ward) -> None:
    """RabbitMQ delivers again in the moment of the death; the watcher takes a moment longer."""
    for number in range(2):
        ward.crash("j1", number)
        ward.crash("j2", number + 10)
    ward.bench.work()
    working = ward.bench.chaperone._runtime._working  # type: ignore[union-attr]
    assert working is not None
    running = RunningJobs()
    suspicion = Suspicion(running, working.recorder, working.gate.desk, tells_redelivery=True)
    running.slot().is_redelivered = True
    policy = policy_of_unknown("work", "default", ward.settings)
    late = threading.Timer(0.5, lambda: (ward.crash("j1", 2), ward.store.close()))
    late.start()
    verdict = suspicion.check(Message("default", "work", (), {}, {}, message_id="j1"), policy)
    late.join()
    assert isinstance(verdict, Refused)
    slot = running.slot()
    for job_id in ("j2", "j3"):  # nobody died of j2 again
        slot.message = Message("default", "work", (), {}, {}, message_id=job_id)
        assert suspicion.check(slot.message, policy) is None
        suspicion.begin(slot)
    assert ward.store.rows("SELECT job_id FROM {suspects} WHERE started_at IS NOT NULL ORDER BY job_id") == [("j2",), ("j3",)]


def test_a_suspect_that_does_not_run_after_all_has_not_begun(ward: Ward) -> None:
    """What waits for a service would else be charged with the death of a worker that it never ran in."""
    ward.bench.work()
    working = ward.bench.chaperone._runtime._working  # type: ignore[union-attr]
    assert working is not None
    running = RunningJobs()
    suspicion = Suspicion(running, working.recorder, working.gate.desk, tells_redelivery=True)
    slot, policy = running.slot(), policy_of_unknown("work", "default", ward.settings)
    slot.is_redelivered = True
    slot.message = Message("default", "work", (), {}, {}, message_id="j1")
    assert suspicion.check(slot.message, policy) is None
    slot.message = Message("default", "work", (), {}, {}, message_id="j2")  # j1 was put off
    suspicion.begin(slot)
    assert ward.store.rows("SELECT job_id FROM {suspects} WHERE started_at IS NOT NULL") == []


def test_a_suspect_waits_until_the_deaths_of_this_machine_are_on_record(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart the message is here before the watcher."""
    ward.bench.work()
    working = ward.bench.chaperone._runtime._working  # type: ignore[union-attr]
    assert working is not None
    running, dead = RunningJobs(), {"host-2-aaaa"}
    suspicion = Suspicion(running, working.recorder, working.gate.desk, tells_redelivery=True, unrecorded=lambda: set(dead))
    running.slot().is_redelivered = True
    policy = policy_of_unknown("work", "default", ward.settings)

    def record() -> None:
        for number in range(3):
            ward.crash("j1", number)
        ward.store.close()
        dead.clear()

    late = threading.Timer(0.5, record)
    late.start()
    verdict = suspicion.check(Message("default", "work", (), {}, {}, message_id="j1"), policy)
    late.join()
    assert isinstance(verdict, Refused)
    monkeypatch.setattr(poison, "RECORD_S", 0.3)
    dead.add("host-9-aaaa")  # one that nobody can write down
    for _ in range(2):
        assert suspicion.check(Message("default", "work", (), {}, {}, message_id="j2"), policy) is None
    assert suspicion._given_up == {"host-9-aaaa"}


class TestDesk:
    def test_it_answers_and_raises_what_was_raised(self, ward: Ward) -> None:
        desk = StoreDesk(ward.settings)
        try:
            assert desk.ask(crashes.suspects) == []
            with pytest.raises(ZeroDivisionError):
                desk.ask(lambda store: 1 / 0)
            assert desk.ask(lambda store: store.kind) == "sqlite"
        finally:
            desk.stop()

    def test_nobody_waits_long_and_then_not_at_all_for_a_while(self, ward: Ward) -> None:
        desk = StoreDesk(ward.settings)
        go = threading.Event()
        try:
            desk.ask(lambda store: None)
            with pytest.raises(StoreUnavailable):
                desk.ask(lambda store: go.wait(10))
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                desk.ask(lambda store: None)
            assert time.monotonic() - began < ANSWER_S
            go.set()
            desk._rests_until = time.monotonic()
            assert desk.ask(lambda store: 1) == 1
        finally:
            go.set()
            desk.stop()

    def test_without_a_store_it_says_so(self, ward: Ward) -> None:
        desk = StoreDesk(Settings.load({"database_url": "sqlite:////nowhere/at/all.sqlite3"}, environ={"HOME": "/nowhere"}))
        try:
            with pytest.raises(StoreError):
                desk.ask(crashes.suspects)
        finally:
            desk.stop()

    def test_it_bears_to_be_started_and_stopped_at_any_moment(self, ward: Ward) -> None:
        desk = StoreDesk(ward.settings)
        for _ in range(20):
            desk.open()
            desk.stop()
        assert desk.ask(lambda store: 1) == 1
        desk.stop()
