"""Interrupts that race the end of a job: none lands outside of the actor."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dramatiq.middleware import Middleware, Retries, TimeLimit, TimeLimitExceeded
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from dramatiq_chaperone import heartbeat, records, report_progress
from dramatiq_chaperone.errors import JobCancelled
from dramatiq_chaperone.supervision import execution
from dramatiq_chaperone.supervision.ladder import StopLadder
from dramatiq_chaperone.supervision.stopping import Stop, interrupt, settle
from tests.integration.conftest import Bench
from tests.scaling import scaled
from tests.waiting import wait_until


class Acknowledged(Middleware):
    """Counts how often each message was acknowledged or rejected, and processed."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.processed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def after_ack(self, broker: Any, message: Any) -> None:
        with self._lock:  # a retry may be over before its place in the delay queue is
            self.ended[message.message_id] += 1

    after_nack = after_ack

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        self.processed[message.message_id] += 1


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads take turns every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Sniper(threading.Thread):
    """Interrupts whatever runs, at random."""

    def __init__(self, running: Any) -> None:
        super().__init__(daemon=True)
        self._running = running
        self.is_over = False
        self.sent = 0

    def run(self) -> None:
        while not self.is_over:
            for slot, job in self._running.running():
                if random.random() < 0.2:
                    self.sent += interrupt(slot, job, TimeLimitExceeded)
            time.sleep(random.random() / 2000)


def work(number: int, returned: list[int]) -> int:
    """A little of everything: Python, a call that lets go of the interpreter, and a last statement."""
    total = sum(each % 7 for each in range(number % 200))
    if number % 3:
        time.sleep(number % 5 / 4000)
    returned.append(number)
    return total


@pytest.mark.soak
@pytest.mark.timeout(900)
# An interrupt may land in the garbage collector's callback, which hypothesis has one of: nothing of ours, and nowhere to go.
@pytest.mark.filterwarnings("ignore:.*gc_cumulative:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("restless_threads")
def test_interrupts_under_load(make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    jobs, backend, acknowledged = scaled(100_000, at_least=2000), StubBackend(), Acknowledged()
    results = Results(backend=backend, store_results=True)  # type: ignore[no-untyped-call]
    bench = make_bench(middleware=[results, acknowledged, TimeLimit(), Retries(max_retries=0)])
    returned: list[int] = []
    actor = bench.actor(lambda number: work(number, returned), actor_name="work")
    worker = bench.work(threads=12)
    running = bench.chaperone._runtime._working.running  # type: ignore[union-attr]
    sniper = Sniper(running)
    sniper.start()
    messages = [actor.send(number) for number in range(jobs)]
    try:
        wait_until(lambda: sum(acknowledged.ended.values()) >= jobs, timeout_s=800, interval_s=0.05, what="every job to end")
    finally:
        sniper.is_over = True
        sniper.join()

    assert all(thread.is_alive() for thread in worker.workers)
    assert [(slot.job, slot.sent) for slot in running.slots.values()] == [(None, None)] * len(running.slots)
    assert set(acknowledged.ended.values()) == set(acknowledged.processed.values()) == {1}
    assert "Unexpected failure" not in caplog.text
    wait_until(lambda: len(bench.tape.entries(records.ENDED)) == jobs)
    ends = {entry.job_id: entry.outcome for entry in bench.tape.entries(records.ENDED)}
    succeeded = {number for number, message in enumerate(messages) if ends[message.message_id] == "succeeded"}
    # Between its last statement and its return a job still runs: that is a few instructions.
    assert succeeded <= set(returned)
    assert len(set(returned) - succeeded) <= jobs / 100
    assert len(returned) == len(set(returned))
    assert 0 < jobs - len(succeeded) <= sniper.sent
    for number, message in enumerate(messages):
        if number in succeeded:
            assert message.get_result(backend=backend) == sum(each % 7 for each in range(number % 200))
        else:
            with pytest.raises(ResultFailure, match="TimeLimitExceeded"):
                message.get_result(backend=backend)


class Slow(Middleware):
    """Takes its time after each job: an interrupt that comes late would hit it."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        time.sleep(random.random() / 500)

    def after_skip_message(self, broker: Any, message: Any) -> None:
        time.sleep(random.random() / 500)


class Operator(threading.Thread):
    """Stops whatever runs, at random: as an operator, at a limit, or one after the other."""

    def __init__(self, running: Any, ladder: StopLadder) -> None:
        super().__init__(daemon=True)
        self._running, self._ladder = running, ladder
        self.is_over = False
        #: Runs that were stopped, by run_id: the stop was begun while the wrapper had not seen their end.
        self.stopped: Counter[str] = Counter()
        self.killed: set[str] = set()

    def run(self) -> None:
        limit = Stop("interrupt", "timeout", TimeLimitExceeded)
        kill = Stop("kill", "operator", JobCancelled, by="ann", is_final=True)
        while not self.is_over:
            for slot, job in self._running.running():
                for stop in random.choice([(limit,), (kill,), (limit, kill), (), (), (), (), ()]):
                    if self._ladder.stop(slot, job, stop):
                        self.stopped[job.run_id] += 1
                        if stop.is_final:
                            self.killed.add(job.job_id)
            time.sleep(random.random() / 2000)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*gc_cumulative:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("restless_threads")
def test_stops_under_load(make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    jobs, backend, acknowledged = scaled(100_000, at_least=2000), StubBackend(), Acknowledged()
    results = Results(backend=backend, store_results=True)  # type: ignore[no-untyped-call]
    bench = make_bench(middleware=[Slow(), results, acknowledged, TimeLimit(), Retries(max_retries=3, min_backoff=1, max_backoff=5)])
    began: Counter[int] = Counter()

    def reporting(number: int) -> int:
        began[number] += 1
        if number % 2:
            heartbeat(number=number)
        total = work(number, [])
        if number % 4 == 1:
            report_progress(1, 1)
        return total

    actor = bench.actor(reporting, actor_name="work")
    worker = bench.work(threads=12)
    working = bench.chaperone._runtime._working
    assert working is not None
    operator = Operator(working.running, working.ladder)
    operator.start()
    messages = [actor.send(number) for number in range(jobs)]
    numbers = {message.message_id: number for number, message in enumerate(messages)}

    def ended() -> dict[str, Any]:
        return {entry.job_id: entry for entry in bench.tape.entries(records.ENDED) if entry.status is not None}

    try:
        wait_until(lambda: len(ended()) >= jobs, timeout_s=800, interval_s=0.5, what="every job to end")
    finally:
        operator.is_over = True
        operator.join()
    bench.join()

    assert all(thread.is_alive() for thread in worker.workers)
    assert [(slot.job, slot.sent) for slot in working.running.slots.values()] == [(None, None)] * len(working.running.slots)
    assert "Unexpected failure" not in caplog.text
    runs: dict[str, list[Any]] = {}
    for entry in bench.tape.entries(records.ENDED):
        runs.setdefault(entry.job_id, []).append(entry)
    starts = Counter(entry.job_id for entry in bench.tape.entries(records.STARTED))
    for job_id, number in numbers.items():
        *before, last = sorted(runs[job_id], key=lambda end: end.retries)
        assert len(runs[job_id]) == starts[job_id]
        # Each run is acknowledged once; so is each retry in its delay queue.
        assert acknowledged.ended[job_id] == 2 * starts[job_id] - 1
        assert began[number] <= starts[job_id]
        # What has returned, or was killed, does not run again; what runs again was interrupted.
        assert [(end.outcome, end.status) for end in before] == [("interrupted", None)] * len(before)
        assert last.status in {"completed", "cancelled", "failed"}
        if last.status == "completed":
            assert messages[number].get_result(backend=backend) == sum(each % 7 for each in range(number % 200))
        else:
            assert operator.stopped[last.run_id]
        if last.status == "cancelled":
            assert job_id in operator.killed
            with pytest.raises(ResultFailure, match="JobCancelled"):
                messages[number].get_result(backend=backend)
    outcomes = Counter(end.status for end in ended().values())
    print(f"{jobs} jobs, {sum(starts.values())} runs: {dict(outcomes)}")
    dead = Counter(entry.job_id for entry in bench.tape.entries(records.DEAD))
    assert dead == Counter(job_id for job_id, end in ended().items() if end.status != "completed")
    assert outcomes["cancelled"] > jobs / 50
    assert outcomes["completed"] > jobs / 50


def test_an_interrupt_that_comes_with_the_call_of_settle(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks for one whenever a function begins, before the first line of it."""
    bench = make_bench(middleware=[Retries(max_retries=0)])
    calls: list[str] = []

    def interrupted_once(slot: Any) -> None:
        calls.append(slot.job.job_id)
        if len(calls) == 1:
            raise TimeLimitExceeded
        settle(slot)

    monkeypatch.setattr(execution, "settle", interrupted_once)
    message = bench.actor(lambda: None, actor_name="work").send()
    bench.work(threads=1)
    assert bench.tape.one(records.ENDED, message.message_id).outcome == "succeeded"
    assert calls == [message.message_id] * 2
    assert not bench.chaperone._runtime._working.running.running()  # type: ignore[union-attr]


def test_a_message_may_ask_for_supervision_where_its_actor_does_not(bench: Bench) -> None:
    actor = bench.actor(lambda: None, actor_name="private", supervised=False)
    actor.send()
    message = actor.send_with_options(supervised=True)
    bench.work()
    bench.join()
    assert bench.tape.one(records.STARTED).job_id == bench.tape.one(records.ENDED).job_id == message.message_id
