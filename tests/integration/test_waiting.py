"""Jobs that need a service: while its breaker is open they wait, use no retry, and run when it recovers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Retries, SkipMessage

from dramatiq_chaperone import BreakerOpen, breaker, records
from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.store import open_store
from tests.guarantees.conftest import MakeStage, Stage, broker_kind, make_stage, quick_restarts
from tests.waiting import wait_until

__all__ = ["broker_kind", "make_stage", "quick_restarts"]

#: Seconds that a breaker stays open.
OPEN_S = 1.0


@pytest.fixture(autouse=True)
def no_breakers(chaperone_env: object) -> Iterator[None]:
    registry().clear()
    yield
    registry().clear()


class Service:
    """Payments: up or down."""

    def __init__(self) -> None:
        self.is_up = True
        self.calls: list[tuple[float, Any]] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def call(self, number: Any = None) -> None:
        with self._lock:
            self.calls.append((time.monotonic(), number))
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if not self.is_up:
                raise ConnectionError("no route to payments")
        finally:
            with self._lock:
                self.now -= 1

    @property
    def numbers(self) -> list[Any]:
        return [number for _, number in self.calls]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def make(make_stage: MakeStage) -> Callable[..., Stage]:
    """``make("redis")``: a stage and an empty store."""

    def stage(kind: str = "stub", **more: Any) -> Stage:
        made = make_stage(kind, **more)
        assert made.chaperone is not None
        open_store(made.chaperone.settings, create=True).close()
        breaker("payments", failure_threshold=2, timeout=OPEN_S, half_open_attempts=1, success_threshold=1)
        return made

    return stage


@pytest.fixture
def stage(make: Callable[..., Stage], broker_kind: str) -> Stage:
    """The same on a broker of each kind."""
    return make(broker_kind)


def state() -> str:
    return breaker("payments").status.state


def mixed(stage: Stage) -> Any:
    """An actor in the same queue that needs nothing: the queue is not paused."""
    return stage.actor(lambda: None, actor_name="other")


def wait_put_off(stage: Stage, times: int = 1) -> list[Any]:
    wait_until(lambda: len(stage.entries(records.DEFERRED)) >= times, timeout_s=20, what=f"{times} deferrals")
    return stage.entries(records.DEFERRED)


class TestWaiting:
    def test_it_waits_once_for_an_opening_and_runs_when_trials_pass(self, stage: Stage, service: Service) -> None:
        mixed(stage)
        pay = stage.actor(service.call, actor_name="pay", breaker="payments", max_retries=1)
        stage.work()
        breaker("payments").open()
        reopens_at = breaker("payments").status.reopens_at
        assert reopens_at is not None
        messages = [pay.send(number) for number in range(5)]
        deferred = wait_put_off(stage, 5)
        assert service.calls == []
        assert all(entry.eta >= reopens_at.timestamp() - 0.1 for entry in deferred)
        stage.join()
        assert sorted(service.numbers) == list(range(5))
        assert state() == "closed"
        assert {(end.status, end.retries) for end in stage.entries(records.ENDED)} == {("completed", 0)}
        first = [entry.job_id for entry in deferred[:5]]
        assert sorted(first) == sorted(message.message_id for message in messages), "each once while it was open"
        stage.stop()
        assert stage.waiting() == stage.delayed() == stage.dead() == []

    def test_failures_open_it_and_what_failed_uses_its_retries(self, stage: Stage, service: Service) -> None:
        mixed(stage)
        pay = stage.actor(service.call, actor_name="pay", breaker="payments", max_retries=5, min_backoff=10, max_backoff=20)
        service.is_up = False
        for number in range(10):
            pay.send(number)
        stage.work(threads=2)
        wait_until(lambda: state() == "open")
        wait_put_off(stage, 8)
        assert len(service.calls) <= 2 + 2
        service.is_up = True
        stage.join()
        assert sorted(set(service.numbers)) == list(range(10))
        failed = [end for end in stage.entries(records.ENDED) if end.outcome == "failed"]
        last = [end for end in stage.entries(records.ENDED) if end.status == "completed"]
        assert len(last) == 10
        assert sum(end.retries for end in last) == len(failed) == len(service.calls) - 10

    def test_a_list_waits_for_each_of_them(self, stage: Stage, service: Service) -> None:
        mixed(stage)
        pay = stage.actor(service.call, actor_name="pay", breaker=["mail", "payments"])
        stage.work()
        breaker("payments").open()
        pay.send()
        wait_put_off(stage)
        stage.join()
        assert len(service.calls) == 1
        assert breaker("mail").status.succeeded == 1

    def test_a_message_may_say_otherwise(self, stage: Stage, service: Service) -> None:
        pay = stage.actor(service.call, actor_name="pay", breaker="payments")
        other = stage.actor(service.call, actor_name="other")
        breaker("payments").force_open()
        other.send_with_options(args=("waits",), breaker="payments")
        pay.send_with_options(args=("runs",), breaker=[])
        stage.work()
        wait_put_off(stage)
        wait_until(lambda: service.numbers == ["runs"])
        breaker("payments").auto()
        stage.join()
        assert service.numbers == ["runs", "waits"]

    def test_trials_are_limited_across_two_workers(self, stage: Stage, service: Service) -> None:
        mixed(stage)
        going = threading.Event()

        @stage.actor(breaker="payments", max_retries=0)
        def pay() -> None:
            service.now += 1
            service.most = max(service.most, service.now)
            going.wait(20)
            service.now -= 1
            service.calls.append((0.0, None))

        stage.work()
        stage.work()
        breaker("payments").open()
        for _ in range(8):
            pay.send()
        wait_put_off(stage, 8)
        wait_until(lambda: state() == "half_open", timeout_s=20)
        wait_put_off(stage, 12)  # those without a permit
        assert service.most == 1
        going.set()
        stage.join()
        assert len(service.calls) == 8
        assert state() == "closed"


class TestPermits:
    def held(self) -> int:
        return len(breaker("payments")._circuit.permits)

    def half_open(self) -> None:
        breaker("payments").half_open()

    def test_a_guard_inside_does_not_take_another(self, make: Callable[..., Stage]) -> None:
        stage, seen = make(), []

        @stage.actor(breaker="payments", max_retries=0)
        def pay() -> None:
            with breaker("payments"):
                seen.append(self.held())

        self.half_open()
        pay.send()
        stage.run()
        assert seen == [1]
        assert state() == "closed"

    def test_what_the_guard_saw_counts_and_not_the_job(self, make: Callable[..., Stage]) -> None:
        stage = make()

        @stage.actor(breaker="payments", max_retries=0)
        def pay() -> None:
            with breaker("payments"):
                pass
            raise ValueError("a bug of our own")

        self.half_open()
        pay.send()
        stage.run()
        assert state() == "closed"
        for _ in range(3):
            pay.send()
        stage.join()
        assert state() == "closed"
        assert breaker("payments").status.failed == 0
        assert breaker("payments")._is_plain

    def test_a_failure_in_the_guard_counts_once(self, make: Callable[..., Stage]) -> None:
        stage = make()

        @stage.actor(breaker="payments", max_retries=0)
        def pay() -> None:
            with breaker("payments"):
                raise ConnectionError

        pay.send()
        stage.run()
        assert (state(), breaker("payments").status.failure_count, breaker("payments").status.failed) == ("closed", 1, 1)

    def test_without_a_guard_the_job_counts(self, make: Callable[..., Stage], service: Service) -> None:
        stage = make()
        pay = stage.actor(service.call, actor_name="pay", breaker="payments", max_retries=0)
        service.is_up = False
        pay.send()
        stage.run()
        assert breaker("payments").status.failure_count == 1
        service.is_up = True
        self.half_open()
        pay.send()
        stage.join()
        assert (state(), breaker("payments").status.succeeded) == ("closed", 1)

    @pytest.mark.parametrize("error", [dramatiq.errors.Retry("later", delay=1), SkipMessage("no"), dramatiq.RateLimitExceeded("full")])
    def test_what_says_nothing_of_the_service_gives_the_permit_back(self, make: Callable[..., Stage], error: Exception) -> None:
        stage = make()

        @stage.actor(breaker="payments", max_retries=0)
        def pay() -> None:
            raise error

        self.half_open()
        pay.send()
        stage.run()
        assert (state(), self.held()) == ("half_open", 0)

    def test_an_async_actor_passes_it_on(self, make: Callable[..., Stage]) -> None:
        stage, seen = make(middleware=lambda: [Retries(), dramatiq.middleware.AsyncIO()]), []

        @stage.actor(breaker="payments", max_retries=0)
        async def pay() -> None:
            async with breaker("payments"):
                seen.append(self.held())

        self.half_open()
        pay.send()
        stage.run()
        assert (seen, state()) == ([1], "closed")

    def test_none_is_held_while_the_deaths_of_others_are_waited_for(self, stage: Stage, service: Service) -> None:
        """A message that a dead worker held may wait for seconds until that is on record; the trials of others must not."""
        mixed(stage)
        pay = stage.actor(service.call, actor_name="pay", breaker="payments", max_retries=0)
        assert stage.chaperone is not None
        self.half_open()
        stage.work(threads=1)
        working = stage.chaperone._runtime._working  # type: ignore[union-attr]
        assert working is not None
        dead, asked = {"host-9-aaaa"}, threading.Event()

        def unrecorded() -> set[str]:
            asked.set()
            return set(dead)

        suspicion = working.gate.suspicion
        suspicion._unrecorded = unrecorded
        message = pay.message()
        suspicion.add([message.message_id])
        stage.broker.enqueue(message)
        assert asked.wait(10), "it is looked at"
        with breaker("payments"):  # the only permit there is
            assert self.held() == 1
            dead.clear()
            wait_put_off(stage)
            with contextlib.closing(open_store(stage.chaperone.settings, create=False)) as store:
                begun = "SELECT job_id FROM {suspects} WHERE started_at IS NOT NULL"
                assert store.rows(begun) == [], "it did not run, and no death of this worker is its doing"
        stage.join()
        assert len(service.calls) == 1
        assert state() == "closed"


class TestQueues:
    def test_a_queue_in_which_everything_waits_is_paused(self, stage: Stage, service: Service) -> None:
        pay = stage.actor(service.call, actor_name="pay", breaker="payments")
        refund = stage.actor(service.call, actor_name="refund", breaker=["mail", "payments"])
        breaker("payments").open()
        for number in range(10):
            (pay if number % 2 else refund).send(number)
        stage.work(threads=1)
        pausing = stage.chaperone._runtime._working.gate.pausing  # type: ignore[union-attr]
        assert pausing is not None
        wait_until(lambda: pausing.paused == {stage.queue: frozenset({"breaker"})})
        stage.chaperone._runtime._working.queues.ask()  # type: ignore[union-attr]
        wait_until(lambda: "waiting for payments" in [read.paused_for for read in stage.entries(records.QUEUE_READ) if read.paused])
        # What is given back is acknowledged too, and comes again: there is nothing to join.
        wait_until(lambda: len([end for end in stage.entries(records.ENDED) if end.status == "completed"]) == 10, timeout_s=20)
        assert sorted(service.numbers) == list(range(10))
        assert stage.entries(records.DEFERRED) == stage.entries(records.SKIPPED) == []
        assert {(end.status, end.retries) for end in stage.entries(records.ENDED)} == {("completed", 0)}
        wait_until(lambda: pausing.paused == {})

    @pytest.mark.parametrize("order", ["close", "disable", "metrics_only"])
    def test_it_goes_on_within_a_second_when_somebody_lets_it(
        self, make: Callable[..., Stage], service: Service, monkeypatch: pytest.MonkeyPatch, order: str
    ) -> None:
        stage = make()
        pay = stage.actor(service.call, actor_name="pay", breaker="payments")
        breaker("payments").force_open()
        stage.work()
        working = stage.chaperone._runtime._working  # type: ignore[union-attr]
        assert working is not None
        needs, pausing = working.gate.needs, working.gate.pausing
        assert pausing is not None
        turn, resume, turns, resumed = needs.turn, pausing.resume, [0], []

        def counted() -> None:
            turns[0] += 1
            turn()

        def noted(*queues: str, by: str) -> None:
            resumed.append(turns[0])
            resume(*queues, by=by)

        monkeypatch.setattr(needs, "turn", counted)
        monkeypatch.setattr(pausing, "resume", noted)
        took = []
        for number in range(1, 4):
            pay.send()
            wait_until(lambda: pausing.paused)
            before = turns[0]
            if order == "close":
                breaker("payments").auto()
            else:
                getattr(breaker("payments"), order)()
            at, after = time.monotonic(), turns[0]
            wait_until(lambda wanted=number: len(service.calls) == wanted)
            took.append(service.calls[-1][0] - at)
            assert before < resumed[-1] <= after + 1, "the next turn resumes it"
            breaker("payments").force_open()
        print(f"{order}: after", [round(each, 2) for each in took], "s")
        assert working.sampler.interval_s <= 1, "a turn a second"
        assert min(took) < 1.25, "that turn, and fetching what waits"


def test_a_job_that_ends_with_it_is_retried_when_a_call_may_be_let_through(stage: Stage) -> None:
    ends: list[float] = []

    @stage.actor(max_retries=1, min_backoff=600_000)
    def pay() -> None:
        ends.append(time.time())
        with breaker("payments"):
            pass

    stage.work()
    breaker("payments").open()
    pay.send()
    stage.join()
    assert len(ends) == 2
    assert OPEN_S - 0.2 < ends[1] - ends[0] < 30
    assert [(end.retries, end.status) for end in stage.entries(records.ENDED)] == [(0, None), (1, "completed")]


def test_a_running_job_whose_breaker_is_open_is_degraded(make: Callable[..., Stage]) -> None:
    stage, going = make(), threading.Event()
    pay = stage.actor(lambda: going.wait(20) and None, actor_name="pay", breaker="payments")
    pay.send()
    stage.work()
    wait_until(lambda: stage.entries(records.STARTED))
    breaker("payments").force_open()
    (checked,) = wait_until(lambda: stage.entries(records.HEALTH_CHECKED))
    assert (checked.status, checked.reason) == ("degraded", "circuit open: payments")
    going.set()
    stage.join()


def test_it_says_what_it_waits_for(make: Callable[..., Stage]) -> None:
    import json

    stage = make()
    mixed(stage)
    pay = stage.actor(lambda: None, actor_name="pay", breaker="payments")
    stage.work()
    breaker("payments").open()
    message = pay.send()
    wait_put_off(stage)
    stage.join()
    told = [json.loads(event.data) for event in stage.entries(records.EVENT) if event.name == "JobDeferred"]
    assert {(each["job_id"], each["reason"], each["service"]) for each in told} == {
        (message.message_id, "waiting for payments", "payments")
    }
    assert BreakerOpen("payments", None, 2.0).delay >= 2000
