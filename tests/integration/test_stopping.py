"""Jobs that are stopped: what becomes of the job, its message and its worker."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dramatiq import Retry
from dramatiq.middleware import AsyncIO, Retries, SkipMessage, TimeLimitExceeded
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from dramatiq_chaperone import current_job, heartbeat, records
from dramatiq_chaperone.errors import CommandRefused, JobCancelled
from dramatiq_chaperone.supervision.stopping import Stop
from tests.integration.conftest import Bench
from tests.waiting import wait_until

BY_ANN = {"by": "ann@desk", "reason": "wrong file"}


class Room:
    """A bench with a worker in it, the ladder of that worker, and what became of its jobs."""

    def __init__(self, bench: Bench, *, threads: int = 2) -> None:
        self.bench = bench
        self.began = threading.Event()
        self.go = threading.Event()
        self.worker = bench.work(threads=threads)
        working = bench.chaperone._runtime._working  # type: ignore[union-attr]
        assert working is not None
        self.ladder, self.running = working.ladder, working.running
        self.process: Any = working.ladder._last_rung

    def kill(self, message: Any, **more: Any) -> dict[str, Any]:
        assert self.began.wait(10)
        return self.ladder.kill({"job_id": message.message_id, **BY_ANN, **more})

    def limit(self, message: Any, stop: Stop) -> None:
        assert self.began.wait(10)
        ((slot, job),) = [each for each in self.running.running() if each[1].job_id == message.message_id]
        assert self.ladder.stop(slot, job, stop)

    def end_of(self, message: Any) -> Any:
        return self.bench.tape.one(records.ENDED, message.message_id)

    def events(self, message: Any) -> list[tuple[str, dict[str, Any]]]:
        return [(event.name, json.loads(event.data)) for event in self.bench.tape.entries(records.EVENT, message.message_id)]

    def told(self, message: Any) -> list[str]:
        return [name for name, _ in self.events(message) if name.startswith(("JobStop", "JobKilled", "JobCancelled", "JobMoved"))]


def is_cancelled(room: Room, message: Any, *, means: str, exception: str = "JobCancelled") -> None:
    """The job is over for good: one run, one dead letter, and it says why."""
    end = room.end_of(message)
    assert (end.outcome, end.status) == ("killed", "cancelled")
    assert end.error[0].endswith(exception)
    dead = room.bench.tape.one(records.DEAD, message.message_id)
    assert dead.reason == "cancelled"
    assert dead.exception == end.error[0]
    wait_until(lambda: "JobCancelled" in room.told(message))
    events = dict(room.events(message))
    assert events["JobKilled"]["means"] == means
    assert (events["JobKilled"]["killed_by"], events["JobKilled"]["reason"]) == ("ann@desk", "wrong file")
    assert (events["JobCancelled"]["cancelled_by"], events["JobCancelled"]["reason"]) == ("ann@desk", "wrong file")
    room.bench.join()
    assert len(room.bench.tape.entries(records.STARTED, message.message_id)) == 1
    assert [each.message_id for each in room.bench.broker.dead_letters] == [message.message_id]


def spin(room: Room) -> None:
    room.began.set()
    while not room.go.is_set():
        sum(range(100))


class TestAnOperatorsKill:
    def test_it_interrupts_python_and_there_is_no_retry(self, make_bench: Callable[..., Bench]) -> None:
        backend = StubBackend()
        bench = make_bench(middleware=[Results(backend=backend, store_results=True), Retries(min_backoff=1)])  # type: ignore[no-untyped-call]
        actor = bench.actor(lambda: spin(room), actor_name="work")
        room = Room(bench)
        message = actor.send()
        assert room.kill(message)["is_new"]
        is_cancelled(room, message, means="interrupt")
        assert room.told(message) == [
            "JobStopRequested", "JobStopDelivered", "JobKilled", "JobCancelled", "JobMovedToDeadLetterQueue",
        ]  # fmt: skip
        assert room.end_of(message).error[1] == "Cancelled by ann@desk: wrong file"
        with pytest.raises(ResultFailure, match="JobCancelled"):
            message.get_result(backend=backend)
        assert all(thread.is_alive() for thread in room.worker.workers)

    def test_a_job_that_reports_hears_it_in_its_heartbeat(self, bench: Bench) -> None:
        cleaned = []

        def work() -> None:
            try:
                while True:
                    heartbeat()
                    room.began.set()
                    time.sleep(0.005)
            finally:
                heartbeat(cleaning=True)
                cleaned.append(current_job().cancelled)  # type: ignore[union-attr]

        actor = bench.actor(work, actor_name="work")
        room = Room(bench)
        message = actor.send()
        room.kill(message)
        is_cancelled(room, message, means="ask")
        assert cleaned == [True]

    @pytest.mark.parametrize("raised", [ValueError("its own"), Retry("again", delay=1), SkipMessage("not today"), SystemExit(3)])
    def test_however_it_goes_it_is_cancelled(self, bench: Bench, raised: BaseException) -> None:
        def work() -> None:
            try:
                spin(room)
            except JobCancelled:
                raise raised from None

        actor = bench.actor(work, actor_name="work", min_backoff=1)
        room = Room(bench)
        message = actor.send()
        room.kill(message)
        is_cancelled(room, message, means="interrupt", exception=type(raised).__name__)

    def test_what_returns_is_completed(self, bench: Bench) -> None:
        def work() -> None:
            try:
                spin(room)
            except JobCancelled:
                return

        actor = bench.actor(work, actor_name="work")
        room = Room(bench)
        message = actor.send()
        room.kill(message)
        end = room.end_of(message)
        assert (end.outcome, end.status) == ("succeeded", "completed")
        assert room.told(message) == ["JobStopRequested", "JobStopDelivered"]
        assert not bench.broker.dead_letters

    def test_it_is_final_after_a_limit_has_interrupted_already(self, bench: Bench) -> None:
        again = threading.Event()

        def work() -> None:
            try:
                spin(room)
            except TimeLimitExceeded:
                again.set()
                spin(room)

        actor = bench.actor(work, actor_name="work", min_backoff=1)
        room = Room(bench)
        message = actor.send()
        room.limit(message, Stop("interrupt", "timeout", TimeLimitExceeded))
        assert again.wait(10)
        room.kill(message)
        is_cancelled(room, message, means="interrupt")

    def test_an_asyncio_actor_is_cancelled(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(middleware=[AsyncIO(), Retries(min_backoff=1)])
        cleaned = []

        async def work() -> None:
            await asyncio.sleep(0.3)  # Dramatiq cancels nothing before its thread waits for it
            room.began.set()
            try:
                await asyncio.sleep(60)
            finally:
                cleaned.append(1)

        actor = bench.actor(work, actor_name="work")
        room = Room(bench)
        message = actor.send()
        room.kill(message)
        is_cancelled(room, message, means="interrupt")
        assert cleaned == [1]

    def test_one_that_reports_hears_it_there(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(middleware=[AsyncIO(), Retries(min_backoff=1)])

        async def work() -> None:
            while True:
                heartbeat()
                room.began.set()
                await asyncio.sleep(0.01)

        actor = bench.actor(work, actor_name="work")
        room = Room(bench)
        message = actor.send()
        room.kill(message)
        is_cancelled(room, message, means="ask")

    def test_of_a_run_that_another_worker_has_taken_the_broker_hears_nothing(self, bench: Bench) -> None:
        room = Room(bench)

        class Woken:
            """This process was stopped past its lease."""

            due_at, last_at = 0.0, float("inf")

            def has_lost(self, message: Any, started: float) -> bool:
                return True

        @bench.actor
        def work() -> None:
            room.began.set()
            while True:
                time.sleep(0.001)

        bench.chaperone._runtime._working.execution.gaps = Woken()  # type: ignore[union-attr, assignment]
        message = work.send()
        room.kill(message)
        wait_until(lambda: room.bench.tape.entries(records.ENDED, message.message_id))
        end = room.end_of(message)
        assert (end.outcome, end.status) == ("killed", "cancelled"), "the other worker learns of it, and ends it too"
        assert end.error[0].endswith("JobCancelled")
        bench.join()
        assert bench.tape.entries(records.DEAD, message.message_id) == []
        assert bench.broker.dead_letters == []
        assert {"JobCancelled", "JobMovedToDeadLetterQueue"} & set(room.told(message)) == {"JobCancelled"}

    def test_of_an_earlier_run_the_one_that_goes_on_is_left_alone(self, bench: Bench) -> None:
        room = Room(bench)
        actor = bench.actor(lambda: room.began.set() or (room.go.wait() and None), actor_name="work")
        message = actor.send()
        with pytest.raises(CommandRefused, match=r"run an-earlier-one of job .* does not go on here"):
            room.kill(message, run_id="an-earlier-one")
        ((_, job),) = room.running.running()
        assert job.stop is None
        assert room.kill(message, run_id=job.run_id)["run_id"] == job.run_id
        room.go.set()

    def test_a_job_that_is_not_running_is_refused(self, bench: Bench) -> None:
        room = Room(bench)
        answer = bench.chaperone._runtime._working.commands.run(  # type: ignore[union-attr]
            records.Command("1", "w", "kill", {"job_id": "unknown"})
        )
        assert answer[0] == "refused"
        assert "does not run here" in answer[1]
        assert room.worker


class TestALimits:
    def test_it_is_a_failed_attempt_and_retries_decides(self, bench: Bench) -> None:
        runs = []

        def work() -> None:
            runs.append(1)
            if len(runs) == 1:
                spin(room)

        actor = bench.actor(work, actor_name="work", min_backoff=1)
        room = Room(bench)
        message = actor.send()
        room.limit(message, Stop("kill", "timeout", TimeLimitExceeded))
        wait_until(lambda: len(bench.tape.entries(records.ENDED, message.message_id)) == 2)
        first, second = sorted(bench.tape.entries(records.ENDED, message.message_id), key=lambda end: end.retries)
        assert (first.outcome, first.status) == ("interrupted", None)
        assert (second.outcome, second.status) == ("succeeded", "completed")
        assert room.told(message) == ["JobStopRequested", "JobStopDelivered", "JobKilled"]

    def test_a_time_limit_is_on_the_timeline(self, bench: Bench) -> None:
        actor = bench.actor(lambda: spin(room), actor_name="work", timeout=0.1, max_retries=0)
        room = Room(bench)
        message = actor.send()
        assert room.end_of(message).outcome == "interrupted"
        assert room.told(message)[:3] == ["JobStopRequested", "JobStopDelivered", "JobKilled"]
        assert dict(room.events(message))["JobStopRequested"]["reason"] == "timeout"

    def test_one_that_is_ignored_too(self, bench: Bench) -> None:
        """A call into C, as this one, is not interrupted before it returns."""
        actor = bench.actor(lambda: room.began.set() or room.go.wait(), actor_name="work", timeout=0.1, kill_grace=0.1, max_retries=0)
        room = Room(bench)
        message = actor.send()
        wait_until(lambda: "JobStopIgnored" in room.told(message))
        ignored = dict(room.events(message))["JobStopIgnored"]
        assert ignored["consequence"] == "none: it was to be interrupted, not killed"
        assert ignored["waited"] >= 0.1
        room.go.set()
        assert room.end_of(message).outcome == "interrupted"


class TestItsProcessEnds:
    """Where nothing else helps.  The process of these tests lives on, of course."""

    def room(self, bench: Bench, *, threads: int = 2) -> tuple[Room, threading.Event]:
        room, ended = Room(bench, threads=threads), threading.Event()
        room.process._replaceable, room.process._end = True, ended.set
        return room, ended

    def release(self, room: Room) -> None:
        """As if nothing had happened: the test has to end."""
        room.process._thaw()
        room.go.set()
        for doomed in room.process._doomed:
            taken, doomed.slot.taken = doomed.slot.taken, None
            taken.set()

    def test_its_message_is_dead_before_and_nothing_else_begins(self, make_bench: Callable[..., Bench]) -> None:
        backend = StubBackend()
        bench = make_bench(middleware=[Results(backend=backend, store_results=True), Retries(min_backoff=1)])  # type: ignore[no-untyped-call]
        actor = bench.actor(lambda: room.began.set() or (room.go.wait() and None), actor_name="work", kill_grace=0.1)
        other = bench.actor(lambda: None, actor_name="other")
        room, ended = self.room(bench)
        message = actor.send()
        answer = room.kill(message)
        assert answer["obstacle"] is None
        assert ended.wait(10)
        late = other.send()
        end = room.end_of(message)
        assert (end.outcome, end.status, end.error[1]) == ("killed", "cancelled", "Cancelled by ann@desk: wrong file")
        assert end.cpu_seconds is not None
        assert [each.message_id for each in bench.broker.dead_letters] == [message.message_id]
        assert bench.tape.one(records.DEAD, message.message_id).reason == "cancelled"
        with pytest.raises(ResultFailure, match="JobCancelled"):
            message.get_result(backend=backend)
        assert room.told(message) == [
            "JobStopRequested", "JobStopDelivered", "JobStopIgnored", "JobKilled", "JobCancelled", "JobMovedToDeadLetterQueue",
        ]  # fmt: skip
        assert dict(room.events(message))["JobKilled"]["means"] == "process"
        assert bench.tape.one(records.WORKER_STOPPED)
        (stopped,) = [each for each in bench.tape.entries(records.EVENT) if each.name == "WorkerStopped"]
        assert message.message_id in json.loads(stopped.data)["reason"]
        assert not bench.tape.entries(records.STARTED, late.message_id)
        self.release(room)

    def test_a_limits_kill_is_a_failed_attempt(self, bench: Bench) -> None:
        actor = bench.actor(lambda: room.began.set() or (room.go.wait() and None), actor_name="work", kill_grace=0.1, min_backoff=60_000)
        room, ended = self.room(bench)
        message = actor.send()
        room.limit(message, Stop("kill", "timeout", TimeLimitExceeded))
        assert ended.wait(10)
        end = room.end_of(message)
        assert (end.outcome, end.status) == ("killed", None)
        (retry,) = [each for each in bench.tape.entries(records.ENQUEUED, message.message_id) if each.retries]
        assert retry.retry_at is not None
        assert not bench.broker.dead_letters
        bench.broker.flush_all()
        self.release(room)

    def test_a_job_that_wakes_up_meanwhile_does_not_get_out(self, bench: Bench) -> None:
        actor = bench.actor(lambda: room.began.set() or (room.go.wait() and None), actor_name="work", kill_grace=0.1)
        room, ended = self.room(bench)

        def wake() -> None:
            room.go.set()
            time.sleep(0.2)  # it would have got out by now
            ended.set()

        room.process._end = wake
        message = actor.send()
        room.kill(message)
        assert ended.wait(10)
        assert len(room.running.running()) == 1
        assert len(bench.tape.entries(records.ENDED, message.message_id)) == 1
        self.release(room)

    def test_with_another_job_in_it_it_does_not_unless_it_is_forced(self, bench: Bench) -> None:
        actor = bench.actor(lambda: room.began.set() or (room.go.wait() and None), actor_name="work", kill_grace=0.1)
        beside = threading.Event()
        other = bench.actor(lambda: beside.set() or (room.go.wait() and None), actor_name="other", supervised=False)
        room, ended = self.room(bench)
        other.send()
        message = actor.send()
        assert beside.wait(10)
        assert room.kill(message)["obstacle"] == "1 other job runs in this worker process"
        wait_until(lambda: "JobStopIgnored" in room.told(message))
        assert not ended.is_set()
        assert room.kill(message, force=True)["is_new"]
        assert ended.wait(10)
        self.release(room)

    def test_what_else_was_killed_does_not_come_back_either(self, bench: Bench) -> None:
        """Two in one process: what ends the one takes the other along, whatever its grace."""
        actor = bench.actor(lambda: room.began.set() or (room.go.wait() and None), actor_name="work", kill_grace=0.1)
        beside = threading.Event()
        other = bench.actor(lambda: beside.set() or (room.go.wait() and None), actor_name="other", kill_grace=600)
        plain = bench.actor(lambda: room.go.wait() and None, actor_name="plain")
        room, ended = self.room(bench, threads=3)
        first, second, third = actor.send(), other.send(), plain.send()
        assert beside.wait(10)
        wait_until(lambda: len(room.running.running()) == 3)
        room.kill(second)
        room.kill(first, force=True)
        assert ended.wait(10)
        for message in (first, second):
            assert (room.end_of(message).outcome, room.end_of(message).status) == ("killed", "cancelled")
        assert {each.message_id for each in bench.broker.dead_letters} == {first.message_id, second.message_id}
        assert not bench.tape.entries(records.ENDED, third.message_id)
        assert not bench.tape.entries(records.WORKER_STOPPED), "the third is lost with it, and recorded so"
        self.release(room)

    def test_a_broker_that_is_away_is_waited_for(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        actor = bench.actor(lambda: room.began.set() or (room.go.wait() and None), actor_name="work", kill_grace=0.1)
        room, ended = self.room(bench)
        message = actor.send()
        assert room.began.wait(10)
        consumer: Any = room.worker.consumers["default"].consumer
        nack, tries = consumer.nack, []

        def away(proxy: Any) -> None:
            tries.append(proxy)
            if len(tries) < 3:
                raise ConnectionError("away")
            nack(proxy)

        monkeypatch.setattr(consumer, "nack", away)
        room.kill(message)
        assert ended.wait(20)
        assert len(tries) == 3
        assert len(bench.tape.entries(records.ENDED, message.message_id)) == 1
        self.release(room)

    @pytest.mark.parametrize(
        ("replaceable", "siblings", "said"),
        [
            (False, 1, "nothing is known to start another worker process"),
            (True, 3, "has 3 worker processes"),
            (True, 1, None),
            (True, None, None),
        ],
    )
    def test_only_where_it_is_replaced(self, bench: Bench, replaceable: bool, siblings: int | None, said: str | None) -> None:
        room, _ = self.room(bench)
        room.process._replaceable, room.process._siblings = replaceable, siblings
        obstacle = room.process.obstacle(force=False)
        assert (said in obstacle) if said else obstacle is None
        assert room.process.obstacle(force=True) is None
