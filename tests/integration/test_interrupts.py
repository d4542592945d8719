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

from dramatiq_chaperone import records
from dramatiq_chaperone.supervision import execution
from dramatiq_chaperone.supervision.stopping import interrupt, settle
from tests.integration.conftest import Bench
from tests.scaling import scaled
from tests.waiting import wait_until


class Acknowledged(Middleware):
    """Counts how often each message was acknowledged or rejected, and processed."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.processed: Counter[str] = Counter()

    def after_ack(self, broker: Any, message: Any) -> None:
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
