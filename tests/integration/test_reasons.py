"""Whatever a message waits for: what hangs on it stays whole, and it runs once, without a retry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import dramatiq
import pytest
from dramatiq.middleware import AgeLimit, GroupCallbacks, Pipelines, Retries
from dramatiq.rate_limits.backends import StubBackend as RateLimits
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend
from dramatiq.results.errors import ResultMissing

from dramatiq_chaperone import breaker, records
from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.supervision import disk
from dramatiq_chaperone.supervision.disk import FreeSpace
from tests.guarantees.conftest import MakeStage, Stage, broker_kind, make_stage, quick_restarts
from tests.waiting import wait_until

__all__ = ["broker_kind", "make_stage", "quick_restarts"]

#: What is put off is looked at again after so many seconds.
STEP_S = 0.3


class Reason(Protocol):
    """Why messages wait.

    Attributes:
      settings: of the Chaperone.
      options: of the actors that wait.
    """

    settings: dict[str, Any]
    options: dict[str, Any]

    def begin(self, stage: Stage) -> None:
        """From now on they wait."""

    def wait(self, stage: Stage, count: int) -> None:
        """Until so many do."""

    def end(self) -> None:
        """They need not wait any more."""


class FullDisk:
    """Less is free than they need."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: dict[str, Any] = {"disk_space_threshold": 100}
        self.options: dict[str, Any] = {}
        self._free_mb = 10.0
        monkeypatch.setattr(disk, "free_space", lambda paths: FreeSpace("/data", self._free_mb))
        monkeypatch.setattr(disk, "STEP_S", STEP_S)
        monkeypatch.setattr(disk, "READ_EVERY_S", 0.05)

    def begin(self, stage: Stage) -> None:
        pass

    def wait(self, stage: Stage, count: int) -> None:
        wait_until(lambda: len({entry.job_id for entry in stage.entries(records.DEFERRED)}) >= count, timeout_s=20, what="all to wait")

    def end(self) -> None:
        self._free_mb = 1000.0


class OpenBreaker:
    """The breaker that they need is open; somebody else in their queue needs none."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.options = {"breaker": "payments"}
        registry().clear()
        self._breaker = breaker("payments", timeout=STEP_S)

    def begin(self, stage: Stage) -> None:
        stage.actor(lambda: None, actor_name="other")
        self._breaker.force_open()

    wait = FullDisk.wait

    def end(self) -> None:
        self._breaker.auto()


class PausedQueue:
    """The breaker is open, and everything in their queue needs it."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.options = {"breaker": "payments"}
        registry().clear()
        self._breaker = breaker("payments", timeout=600, half_open_attempts=1, success_threshold=1)

    def begin(self, stage: Stage) -> None:
        self._breaker.open()

    def wait(self, stage: Stage, count: int) -> None:
        pausing = stage.chaperone._runtime._working.gate.pausing  # type: ignore[union-attr]
        assert pausing is not None
        wait_until(lambda: pausing.is_idle(stage.queue), what="the pause")
        assert stage.entries(records.DEFERRED) == []

    def end(self) -> None:
        self._breaker.half_open()


@pytest.fixture(params=["disk", "breaker", "queue"])
def reason(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, chaperone_env: object) -> Iterator[Reason]:
    made: Reason = FullDisk(monkeypatch) if request.param == "disk" else {"breaker": OpenBreaker, "queue": PausedQueue}[request.param]()
    yield made
    registry().clear()


@pytest.fixture
def make(make_stage: MakeStage, reason: Reason, broker_kind: str) -> Callable[..., Stage]:
    """``make(middleware)``: a stage on a broker of each kind, whose jobs wait, and an empty store."""

    def stage(*middleware: dramatiq.Middleware) -> Stage:
        made = make_stage(broker_kind, middleware=(lambda: [*middleware, Retries()]) if middleware else None, **reason.settings)
        assert made.chaperone is not None
        open_store(made.chaperone.settings, create=True).close()
        reason.begin(made)
        return made

    return stage


def check_no_retry(stage: Stage) -> None:
    """Nor did anything run that waited."""
    assert {(end.status, end.retries) for end in stage.entries(records.ENDED)} == {("completed", 0)}
    assert stage.entries(records.SKIPPED) == []


def test_a_result_is_missing_and_then_there(make: Callable[..., Stage], reason: Reason) -> None:
    backend = StubBackend()
    stage = make(Results(backend=backend))
    work = stage.actor(lambda: 42, actor_name="work", store_results=True, **reason.options)
    message = work.send()
    stage.work()
    reason.wait(stage, 1)
    with pytest.raises(ResultMissing):
        message.get_result(backend=backend)
    reason.end()
    assert message.get_result(backend=backend, block=True, timeout=20_000) == 42
    wait_until(lambda: stage.entries(records.ENDED))
    check_no_retry(stage)


def test_a_pipeline_runs_through_once(make: Callable[..., Stage], reason: Reason) -> None:
    stage, ran = make(Pipelines()), []
    first = stage.actor(lambda number: number + 1, actor_name="first", **reason.options)
    second = stage.actor(ran.append, actor_name="second", **reason.options)
    dramatiq.pipeline([first.message(1), second.message()], broker=stage.broker).run()
    stage.work()
    reason.wait(stage, 1)
    assert ran == []
    reason.end()
    wait_until(lambda: len(stage.entries(records.ENDED)) == 2, timeout_s=20)
    assert ran == [2]
    check_no_retry(stage)


def test_the_callback_of_a_group_runs_once(make: Callable[..., Stage], reason: Reason) -> None:
    stage, ran, called = make(GroupCallbacks(RateLimits())), [], []
    member = stage.actor(ran.append, actor_name="member", **reason.options)
    done = stage.actor(lambda: called.append(len(ran)), actor_name="done", **reason.options)
    group = dramatiq.group([member.message(number) for number in range(5)], broker=stage.broker)
    group.add_completion_callback(done.message())
    group.run()
    stage.work()
    reason.wait(stage, 5)
    assert ran == []
    reason.end()
    wait_until(lambda: len(stage.entries(records.ENDED)) == 6, timeout_s=20)
    assert (sorted(ran), called) == ([0, 1, 2, 3, 4], [5])
    check_no_retry(stage)


def test_they_keep_their_priority(make: Callable[..., Stage], reason: Reason, request: pytest.FixtureRequest, broker_kind: str) -> None:
    """The worker's only thread is held, by what needs nothing, until all of them are in the worker's hands."""
    stage, ran, held = make(), [], threading.Event()
    queue = request.getfixturevalue("rabbitmq_queue")() if broker_kind == "rabbitmq" else "held"
    hold = stage.actor(lambda: held.wait(20) and None, actor_name="hold", queue_name=queue, disk_space_threshold=0)
    low = stage.actor(lambda: ran.append("low"), actor_name="low", priority=10, **reason.options)
    high = stage.actor(lambda: ran.append("high"), actor_name="high", priority=-10, **reason.options)
    for _ in range(3):
        low.send()
        high.send()
    worker = stage.work(threads=1, prefetch=20)
    reason.wait(stage, 6)
    assert {sent.priority for sent in stage.entries(records.ENQUEUED)} == {10, -10}
    hold.send()
    wait_until(lambda: stage.entries(records.STARTED))
    reason.end()
    wait_until(lambda: worker.work_queue.qsize() == 6, timeout_s=10, what="all to be fetched")
    held.set()
    wait_until(lambda: len(stage.entries(records.ENDED)) == 7, timeout_s=20)
    assert ran == ["high"] * 3 + ["low"] * 3
    check_no_retry(stage)


def test_a_message_grows_older_while_it_waits(make: Callable[..., Stage], reason: Reason) -> None:
    stage, ran = make(AgeLimit()), []
    old = stage.actor(lambda: ran.append("old"), actor_name="old", max_age=int(STEP_S * 1000), **reason.options)
    young = stage.actor(lambda: ran.append("young"), actor_name="young", max_age=600_000, **reason.options)
    sent = old.send()
    young.send()
    stage.work()
    reason.wait(stage, 2)
    wait_until(lambda: time.time() > sent.message_timestamp / 1000 + STEP_S)
    reason.end()
    wait_until(lambda: stage.entries(records.DEAD) and ran, timeout_s=20)
    assert ran == ["young"]
    assert [entry.reason for entry in stage.entries(records.DEAD)] == ["age"]


@pytest.mark.parametrize("broker_kind", ["redis", "rabbitmq"])
def test_a_worker_that_stops_leaves_what_waits_to_the_next(make: Callable[..., Stage], reason: Reason) -> None:
    stage, ran = make(), []
    keep = stage.actor(ran.append, actor_name="keep", **reason.options)
    for number in range(20):
        keep.send(number)
    stage.work()
    reason.wait(stage, 20)
    stage.stop()
    assert ran == []
    reason.end()
    stage.work()
    wait_until(lambda: len(stage.entries(records.ENDED)) == 20, timeout_s=20)
    assert sorted(ran) == list(range(20))
    check_no_retry(stage)
    stage.stop()
    assert stage.waiting() == stage.delayed() == stage.dead() == []
