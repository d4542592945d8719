"""Messages that are put off: they wait, lose nothing of what they carry, use no retry, and run once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis

from dramatiq_chaperone import records
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.supervision import disk
from dramatiq_chaperone.supervision.disk import FreeSpace
from tests.guarantees.conftest import MakeStage, Stage, broker_kind, each_stage, make_stage, quick_restarts
from tests.waiting import wait_until

__all__ = ["broker_kind", "each_stage", "make_stage", "quick_restarts"]

STEP_S = 0.3


class Disk:
    """The only file system there is."""

    def __init__(self) -> None:
        self.free_mb = 10.0

    def read(self, paths: Any) -> FreeSpace:
        return FreeSpace("/data", self.free_mb)

    def becomes(self, free_mb: float, stage: Stage) -> None:
        """So much is free, and the worker knows it."""
        self.free_mb = free_mb
        wait_until(lambda: stage.chaperone._runtime._working.gate.disk._space.free_mb == free_mb)  # type: ignore[union-attr]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk with 10 MB left, which waiting messages look at again soon."""
    made = Disk()
    monkeypatch.setattr(disk, "free_space", made.read)
    monkeypatch.setattr(disk, "STEP_S", STEP_S)
    monkeypatch.setattr(disk, "READ_EVERY_S", 0.05)
    return made


@pytest.fixture
def make(make_stage: MakeStage, full: Disk) -> Callable[..., Stage]:
    """``make("redis")``: a stage whose jobs wait for 100 MB, and an empty store."""

    def stage(kind: str = "stub", **more: Any) -> Stage:
        made = make_stage(kind, **{"disk_space_threshold": 100, **more})
        assert made.chaperone is not None
        open_store(made.chaperone.settings, create=True).close()
        return made

    return stage


@pytest.fixture
def held(make: Callable[..., Stage], broker_kind: str) -> Stage:
    """The same on a broker of each kind."""
    return make(broker_kind)


def wait_put_off(stage: Stage, times: int = 1) -> list[Any]:
    wait_until(lambda: len(stage.entries(records.DEFERRED)) >= times, timeout_s=20, what=f"{times} deferrals")
    return stage.entries(records.DEFERRED)


class TestWaiting:
    def test_a_message_waits_and_then_runs_once_as_it_was_sent(self, held: Stage, full: Disk) -> None:
        ran: list[Any] = []

        @held.actor(max_retries=1)
        def work(number: int, *, name: str) -> None:
            options = dramatiq.middleware.CurrentMessage.get_current_message().options  # type: ignore[union-attr]
            ran.append((number, name, options.get("retries"), options["mine"]))

        held.broker.add_middleware(dramatiq.middleware.CurrentMessage())
        message = work.send_with_options(args=(7,), kwargs={"name": "ü"}, mine=[1])
        held.work()
        deferred = wait_put_off(held, 2)
        assert ran == []
        assert {entry.job_id for entry in deferred} == {message.message_id}
        assert all(entry.eta >= entry.enqueued_at + STEP_S for entry in deferred)
        assert deferred[0].enqueued_at == message.message_timestamp / 1000
        full.free_mb = 1000
        held.join()
        assert ran == [(7, "ü", None, [1])]
        assert held.entries(records.SKIPPED) == []
        (end,) = held.entries(records.ENDED)
        assert (end.status, end.retries) == ("completed", 0)
        held.stop()
        assert held.waiting() == held.delayed() == held.dead() == []

    def test_the_hooks_are_those_of_a_delayed_message(self, held: Stage, full: Disk) -> None:
        work = held.actor(lambda: None, actor_name="work")
        message = work.send()
        held.work(threads=1)
        wait_put_off(held)
        full.free_mb = 1000
        held.join()
        hooks = [hook for hook in held.spy.of(message.message_id) if not hook.startswith("before_declare")]
        # The consumer of the delay queue has it at once, and calls its own hooks meanwhile.
        own = [hook for hook in hooks if hook != "before_delay_message"]
        first = own.index("before_process_message")
        assert own[first : first + 4] == ["before_process_message", "before_enqueue", "after_enqueue", "after_skip_message"]
        assert hooks.count("after_process_message") == 1
        # Put off once more or not: each time the copy is enqueued, delayed, enqueued for good, and each of them is acknowledged.
        times = hooks.count("after_skip_message")
        assert hooks.count("before_delay_message") == times
        assert hooks.count("after_enqueue") == hooks.count("after_ack") == 1 + 2 * times

    def test_what_runs_goes_on(self, held: Stage, full: Disk) -> None:
        full.free_mb = 1000
        going, reached, done = threading.Event(), threading.Event(), []

        @held.actor
        def hold() -> None:
            reached.set()
            going.wait(10)
            done.append(1)

        hold.send()
        held.work()
        assert reached.wait(10)
        full.becomes(1, held)
        hold.send()
        wait_put_off(held)
        going.set()
        wait_until(lambda: done == [1])
        full.free_mb = 1000
        held.join()
        assert done == [1, 1]

    def test_only_the_actors_that_need_space_wait(self, make: Callable[..., Stage], broker_kind: str, full: Disk) -> None:
        stage, ran = make(broker_kind, disk_space_threshold=None), []
        writes = stage.actor(lambda: ran.append("writes"), actor_name="writes", disk_space_threshold=50)
        reads = stage.actor(lambda: ran.append("reads"), actor_name="reads")
        careful = stage.actor(lambda: ran.append("small"), actor_name="small", disk_space_threshold=50)
        writes.send()
        reads.send()
        careful.send_with_options(disk_space_threshold=0)
        stage.work()
        wait_until(lambda: sorted(ran) == ["reads", "small"])
        wait_put_off(stage)
        full.free_mb = 60
        stage.join()
        assert sorted(ran) == ["reads", "small", "writes"]

    def test_a_retry_waits_too_and_stays_the_same_retry(self, held: Stage, full: Disk) -> None:
        full.free_mb = 1000
        runs: list[int] = []

        @held.actor(max_retries=1, min_backoff=1, max_backoff=1)
        def fail() -> None:
            runs.append(1)
            full.becomes(1 if len(runs) == 1 else 1000, held)
            raise ValueError

        fail.send()
        held.work()
        deferred = wait_put_off(held, 2)
        assert {entry.retries for entry in deferred} == {1}
        full.free_mb = 1000
        held.join()
        assert len(runs) == 2
        assert [(end.retries, end.status) for end in held.entries(records.ENDED)] == [(0, None), (1, "failed")]

    def test_its_events_say_why_and_until_when(self, held: Stage, full: Disk) -> None:
        message = held.actor(lambda: None, actor_name="work").send()
        held.work()
        wait_put_off(held, 3)
        full.free_mb = 1000
        held.join()
        told = [json.loads(event.data) for event in held.entries(records.EVENT) if event.name == "JobDeferred"]
        assert {(event["job_id"], event["reason"]) for event in told} == {(message.message_id, "less than 100 MB are free on /data")}
        assert len(told) < len(held.entries(records.DEFERRED)) + 1
        names = [event.name for event in held.entries(records.EVENT)]
        wait_until(lambda: "DiskSpaceRecovered" in [event.name for event in held.entries(records.EVENT)])
        assert names.count("DiskSpaceLow") == 1


class TestRedis:
    def test_a_message_whose_lease_was_lost_is_left_alone(self, make: Callable[..., Stage], full: Disk) -> None:
        stage, ran, taken = make("redis"), [], []
        broker = stage.broker
        assert isinstance(broker, RedisBroker)
        keep = stage.actor(ran.append, actor_name="keep")

        class Thief(dramatiq.Middleware):
            """Another worker has the message by the time that it is to be put off."""

            def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
                if "deferrals" in message.options:
                    (lease,) = broker.client.smembers(leases)
                    broker.client.smove(leases, "dramatiq:__acks__.another.default", lease)
                    taken.append(lease)

        broker.add_middleware(Thief())
        leases = f"dramatiq:__acks__.{broker.broker_id}.default"
        message = keep.send(1)
        stage.work(threads=1)
        wait_until(lambda: "after_ack" in stage.spy.of(message.message_id), timeout_s=20)
        assert ran == stage.entries(records.DEFERRED) == stage.entries(records.SKIPPED) == []
        stage.stop()
        assert stage.delayed() == stage.waiting() == []
        assert broker.client.hkeys("dramatiq:default.msgs") == taken, "it is the other worker's"

    def test_nothing_is_left_behind(self, make: Callable[..., Stage], full: Disk) -> None:
        stage = make("redis")
        broker = stage.broker
        assert isinstance(broker, RedisBroker)
        keep = stage.actor(lambda: None, actor_name="keep")
        for _ in range(30):
            keep.send()
        worker: Worker = stage.work()
        wait_put_off(stage, 60)
        full.free_mb = 1000
        stage.join()
        assert all(not consumer.consumer.inner.queued_message_ids for consumer in worker.consumers.values())  # type: ignore[union-attr]
        stage.stop()
        left = [key for key in broker.client.keys("dramatiq:*") if b"__heartbeats__" not in key]
        assert left == []


def test_a_deferral_is_known_by_its_number(held: Stage, full: Disk) -> None:
    """On the copy: what a broker shows of it, and what tells it from an older one."""
    held.actor(lambda: None, actor_name="work").send()
    held.work()
    wait_put_off(held, 2)
    full.free_mb = 1000
    held.join()
    numbers = {json.loads(each)["options"].get("deferrals", 0) for each in held.spy.wire}
    assert numbers == set(range(len(held.entries(records.DEFERRED)) + 1))
    etas = [json.loads(each)["options"].get("eta") for each in held.spy.wire]
    assert all(eta is None or eta > current_millis() - 60_000 for eta in etas)
