"""Dead letters on every database: each is sent again once, whoever asks for it and whoever dies meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import records
from dramatiq_chaperone.deadletters import retry
from dramatiq_chaperone.errors import CommandRefused
from dramatiq_chaperone.store import Store, commands, deadletters
from dramatiq_chaperone.store.deadletters import Picked
from dramatiq_chaperone.store.times import stored_time
from tests.contracts.conftest import NOW, MakeStore, Process, booted, ended, enqueued, started

KEY_TYPES = pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])


def dead(job: str = "j1", *, at: float = NOW, payload: dict[str, Any] | None = None, complete: bool = True, **more: Any) -> tuple[Any, ...]:
    known: dict[str, Any] = {
        "retries": 3, "actor": "work", "queue": "default", "enqueued_at": NOW, "reason": "retries exhausted", "exception": "ValueError",
        "message": "no", "trace": "Traceback", **more,
    }  # fmt: skip
    text = json.dumps(payload or {"args": [job], "kwargs": {"n": 1}, "options": {"retries": 3, "max_retries": 3, "tenant": "t"}})
    return tuple(records.Dead(kind=records.DEAD, at=at, job_id=job, payload=text, payload_complete=complete, **known))


def bury(store: Store, *jobs: str, name: str = "host-1-aaaa", **more: Any) -> list[str]:
    """Jobs that failed for good; gives the keys of their dead letters, in the same order."""
    worker = Process(store, name)
    for number, job in enumerate(jobs):
        worker.writes(
            enqueued(job), started(job, f"run-{job}"), ended(job, f"run-{job}", outcome="failed", status="failed"),
            dead(job, at=NOW + number, **more),
        )  # fmt: skip
    found = dict(store.rows("SELECT job_id, id FROM {dead_letter_jobs}"))
    return [str(found[job]) for job in jobs]


def row(store: Store, letter: str) -> tuple[Any, ...]:
    found = {str(key): (at, new) for key, at, new in store.rows("SELECT id, retried_at, retried_as FROM {dead_letter_jobs}")}
    return found[letter]


def claim(store: Store, letter: str, new_id: str = "new", **more: Any) -> deadletters.Claim:
    return deadletters.claim(store, letter, new_id=new_id, who="ann", origin="cli", **more)


class TestClaim:
    @KEY_TYPES
    def test_it_is_in_the_row_and_in_the_audit_log(self, make_store: MakeStore, key_type: str) -> None:
        store = make_store(primary_key_type=key_type)
        (letter,) = bury(store, "j1")
        got = claim(store, letter)
        assert (got.job_id, got.actor, got.queue, got.args, got.kwargs) == ("j1", "work", "default", ["j1"], {"n": 1})
        at, retried_as = row(store, letter)
        assert at is not None
        assert retried_as == "new"
        assert store.rows("SELECT who, what, target, origin, result FROM {audit_log}") == [
            ("ann", "retry dead letter", "j1", "cli", "as new")
        ]

    def test_of_many_at_once_one_gets_it(self, store: Store) -> None:
        (letter,) = bury(store, "j1")
        got: list[str] = []
        barrier = threading.Barrier(6)

        def take(number: int) -> None:
            barrier.wait()
            try:
                got.append(claim(store, letter, f"new-{number}").new_id)
            except CommandRefused:
                return
            finally:
                store.close()

        threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [row(store, letter)[1]]

    def test_arguments_that_are_not_complete(self, store: Store) -> None:
        (letter,) = bury(store, "j1", complete=False)
        assert claim(store, letter).args == [1], "the sender's own record is complete"
        store.execute("UPDATE {supervised_jobs} SET payload_complete = ?", (False,))
        (other,) = bury(store, "j2", name="host-2-bbbb", complete=False)
        store.execute("UPDATE {supervised_jobs} SET payload_complete = ?", (False,))
        with pytest.raises(CommandRefused, match="redacted or cut"):
            claim(store, other)
        assert row(store, other) == (None, None)

    @pytest.mark.parametrize("letter", ["4711", "none", "", "9" * 30])
    def test_one_that_is_not_there(self, store: Store, letter: str) -> None:
        with pytest.raises(CommandRefused, match="no dead letter"):
            claim(store, letter)

    def test_who_dies_between_claim_and_send_sends_nothing_and_nobody_else_does(self, store: Store) -> None:
        (letter,) = bury(store, "j1")
        claim(store, letter, "never-sent")
        with pytest.raises(CommandRefused, match="retried already, as job never-sent, which is not on record"):
            claim(store, letter)
        with pytest.raises(CommandRefused, match="just now"):
            claim(store, letter, again=True)
        store.execute("UPDATE {dead_letter_jobs} SET retried_at = ?", (stored_time(store.kind, NOW - 1e6),))
        with pytest.raises(CommandRefused, match="not on record"):
            claim(store, letter)
        assert claim(store, letter, "sent", again=True).new_id == "sent"
        assert row(store, letter)[1] == "sent"

    def test_a_person_cannot_renew_what_was_sent(self, store: Store) -> None:
        (letter,) = bury(store, "j1")
        claim(store, letter, "sent")
        Process(store, "host-2-bbbb").writes(enqueued("sent"))
        store.execute("UPDATE {dead_letter_jobs} SET retried_at = ?", (stored_time(store.kind, NOW - 1e6),))
        with pytest.raises(CommandRefused, match="as job sent, which is pending"):
            claim(store, letter, again=True)


class TestJobsWithoutOne:
    @KEY_TYPES
    def test_a_job_that_failed_gets_one_at_its_retry(self, make_store: MakeStore, key_type: str) -> None:
        store = make_store(primary_key_type=key_type)
        Process(store).writes(enqueued(), started(), ended(outcome="failed", status="failed"))
        letter = deadletters.letter_of(store, "j1")
        assert deadletters.letter_of(store, "j1") == letter
        assert claim(store, letter).args == [1]
        assert store.rows("SELECT reason, exception FROM {dead_letter_jobs}") == [(deadletters.NOT_KEPT, "ValueError")]

    def test_others_do_not(self, store: Store) -> None:
        Process(store).writes(enqueued(), started(), ended())
        with pytest.raises(CommandRefused, match="completed"):
            deadletters.letter_of(store, "j1")
        with pytest.raises(CommandRefused, match="not on record"):
            deadletters.letter_of(store, "j2")

    def test_the_latest_of_several(self, store: Store) -> None:
        bury(store, "j1")
        Process(store, "host-2-bbbb").writes(dead("j1", at=NOW + 100, reason="poison"))
        letter = deadletters.letter_of(store, "j1")
        key = int(letter) if store.key_type == "id" else letter
        assert store.rows("SELECT reason FROM {dead_letter_jobs} WHERE id = ?", (key,)) == [("poison",)]


class Broker(StubBroker):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__(middleware=[])
        self.sent: list[Any] = []
        self.fails = False

    def take(self, message: Any, job_id: str) -> None:
        if self.fails:
            raise ConnectionError("no broker")
        self.sent.append((message, job_id))


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()

    @dramatiq.actor(broker=broker, queue_name="default")
    def work(name: str, n: int) -> None: ...

    yield broker
    broker.close()


def retried(store: Store, broker: Broker, *letters: str, **more: Any) -> Any:
    return retry(store, broker, broker.take, letters, who="ann", origin="cli", **more)


class TestRetry:
    def test_the_message_is_that_of_its_sender_with_a_new_id(self, store: Store, broker: Broker) -> None:
        (letter,) = bury(store, "j1")
        done = retried(store, broker, letter)
        ((message, job_id),) = broker.sent
        assert done.retried == {letter: message.message_id}
        assert row(store, letter)[1] == message.message_id != "j1"
        assert (job_id, message.queue_name, message.actor_name, message.args, message.kwargs) == (
            "j1",
            "default",
            "work",
            ("j1",),
            {"n": 1},
        )
        assert message.options == {"max_retries": 3, "tenant": "t"}

    def test_each_once(self, store: Store, broker: Broker) -> None:
        letters = bury(store, "j1", "j2", "j3")
        assert len(retried(store, broker, *letters, *letters).retried) == 3
        again = retried(store, broker, *letters)
        assert not again.retried
        assert all("retried already" in reason for reason in again.refused.values())
        assert len(broker.sent) == 3

    def test_an_actor_that_is_not_known_here_is_not_claimed(self, store: Store, broker: Broker) -> None:
        (letter,) = bury(store, "j1", actor="elsewhere")
        assert retried(store, broker, letter).unknown == {letter: "there is no actor elsewhere here"}
        assert row(store, letter) == (None, None)

    def test_a_queue_that_is_gone_is_that_of_the_actor_now(self, store: Store, broker: Broker) -> None:
        (letter,) = bury(store, "j1", queue="gone")
        retried(store, broker, letter)
        assert broker.sent[0][0].queue_name == "default"

    def test_a_broker_that_fails_leaves_the_claim(self, store: Store, broker: Broker) -> None:
        """It may have taken the message before it failed: nobody knows."""
        (letter,) = bury(store, "j1")
        broker.fails = True
        assert "may or may not be sent" in retried(store, broker, letter).refused[letter]
        broker.fails = False
        assert retried(store, broker, letter).retried == {}
        assert broker.sent == []


class TestPurge:
    @KEY_TYPES
    def test_by_key(self, make_store: MakeStore, key_type: str) -> None:
        store = make_store(primary_key_type=key_type)
        letters = bury(store, "j1", "j2", "j3")
        assert list(deadletters.purge(store, letters=letters[:2])) == [2]
        assert store.rows("SELECT job_id FROM {dead_letter_jobs}") == [("j3",)]
        assert store.rows("SELECT COUNT(*) FROM {supervised_jobs}") == [(3,)]

    def test_all_that_are_named_however_many(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deadletters, "BATCH", 2)
        letters = bury(store, "j1", "j2", "j3", "j4", "j5", "j6")
        assert list(deadletters.purge(store, letters=letters[:2])) == [2]
        assert list(deadletters.purge(store, letters=letters[:5])) == [2, 1], "those of the first two are gone"
        assert store.rows("SELECT job_id FROM {dead_letter_jobs}") == [("j6",)]

    @pytest.mark.parametrize(
        ("picked", "left"),
        [
            (Picked(), []),
            (Picked(actor="work"), ["j4"]),
            (Picked(queue="mail"), ["j1", "j2", "j3", "j4"]),
            (Picked(reason="poison"), ["j1", "j2", "j3"]),
            (Picked(exception="valueE"), []),
            (Picked(exception="e_r"), ["j1", "j2", "j3", "j4"]),
            (Picked(exception="%"), ["j1", "j2", "j3", "j4"]),
            (Picked(since=datetime.fromtimestamp(NOW + 1, UTC), actor="work"), ["j1", "j4"]),
            (Picked(before=datetime.fromtimestamp(NOW + 1, UTC)), ["j2", "j3"]),
            (Picked(retried=True), ["j2", "j3", "j4"]),
            (Picked(retried=False), ["j1"]),
        ],
    )
    def test_by_what_they_are(self, store: Store, picked: Picked, left: list[str]) -> None:
        letters = bury(store, "j1", "j2", "j3")
        bury(store, "j4", name="host-2-bbbb", reason="poison", actor="other")
        claim(store, letters[0])
        number = deadletters.count(store, picked)
        assert sum(deadletters.purge(store, picked)) == number == 4 - len(left)
        assert [job for (job,) in store.rows("SELECT job_id FROM {dead_letter_jobs} ORDER BY job_id")] == left


class TestCommandsForTheFleet:
    """Who carries a retry out: any worker that has the actor."""

    def ask(self, store: Store, queue: str = "default") -> str:
        return commands.issue(store, commands.FLEET, "retry", {"queue": queue}, issued_by="ann", seconds=60)

    def passes(self, store: Store, worker: Process, command: str) -> None:
        detail = json.dumps({"reason": "there is no actor work here", "workers": [worker.origin.worker_id]})
        worker.writes((records.COMMAND_DONE, NOW, command, records.PASSED, detail))

    def test_one_worker_gets_it(self, store: Store) -> None:
        asked = self.ask(store)
        (taken,) = commands.claim_for_fleet(store, ["w1", "w2"], limit=5)
        assert (taken.command_id, taken.target, taken.arguments) == (asked, "w1", {"queue": "default"})
        assert commands.claim_for_fleet(store, ["w1", "w2"], limit=5) == []

    def test_one_that_serves_the_queue_goes_first(self, store: Store) -> None:
        for name, queues in (("w1", "mail"), ("w2", "default")):
            boot = (records.WORKER, NOW, "RedisBroker", "b", json.dumps([queues]), 8, None, "{}")
            Process(store, name).writes(boot)
        self.ask(store)
        self.ask(store, "mail")
        self.ask(store, "other")
        assert [each.target for each in commands.claim_for_fleet(store, ["w1", "w2"], limit=5)] == ["w2", "w1", "w1"]

    def test_one_that_has_not_the_actor_passes_it_on(self, store: Store) -> None:
        first, second = Process(store, "w1"), Process(store, "w2")
        first.writes(booted())
        asked = self.ask(store)
        assert commands.claim_for_fleet(store, ["w1"], limit=5)
        self.passes(store, first, asked)
        assert commands.answer(store, asked) == (None, {"reason": "there is no actor work here", "workers": ["w1"]})
        assert commands.claim_for_fleet(store, ["w1"], limit=5) == [], "it has said no"
        (taken,) = commands.claim_for_fleet(store, ["w1", "w2"], limit=5)
        assert taken.target == "w2"
        self.passes(store, second, asked)
        assert commands.answer(store, asked).detail["workers"] == ["w1", "w2"]
        (taken,) = commands.claim_for_fleet(store, ["w3"], limit=5)
        Process(store, "w3").writes((records.COMMAND_DONE, NOW, asked, "done", "{}"))
        assert commands.answer(store, asked) == ("done", {})
        self.passes(store, first, asked)
        assert commands.answer(store, asked) == ("done", {}), "an answer stands"

    def test_one_that_was_asked_itself_refuses(self, store: Store) -> None:
        worker = Process(store, "w1")
        asked = commands.issue(store, "w1", "retry", {}, issued_by="ann")
        commands.claim(store, ["w1"])
        self.passes(store, worker, asked)
        assert commands.answer(store, asked).outcome == "refused"

    def test_what_nobody_here_can_do_does_not_hold_up_the_rest(self, store: Store) -> None:
        worker = Process(store, "w1")
        stuck = [self.ask(store) for _ in range(5)]
        while commands.claim_for_fleet(store, ["w1"], limit=5):
            for each in stuck:
                self.passes(store, worker, each)
        asked = self.ask(store)
        assert [each.command_id for each in commands.claim_for_fleet(store, ["w1"], limit=2)] == [asked]
