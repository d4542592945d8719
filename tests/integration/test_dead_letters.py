"""A retry of a dead letter in a process without a watcher: its worker claims it, sends it, and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import Chaperone
from dramatiq_chaperone.store import Store, commands, open_store, queries
from tests.waiting import wait_until


class Bench:
    """A worker in this process that writes to the store by itself, and an actor that fails until it is mended."""

    def __init__(self, state_dir: Path) -> None:
        self.chaperone = Chaperone(state_dir=str(state_dir))
        self.broker = StubBroker()
        self.broker.add_middleware(self.chaperone)
        self.is_mended = False
        self.calls: list[Any] = []

        @dramatiq.actor(broker=self.broker, max_retries=0)
        def charge(amount: int, *, currency: str) -> None:
            self.calls.append((amount, currency))
            if not self.is_mended:
                raise ValueError("broken")

        self.charge = charge
        self.worker = Worker(self.broker, worker_timeout=50, worker_threads=2)
        self.worker.start()
        self.store: Store = wait_until(self._opened)

    def _opened(self) -> Store | None:
        try:
            return open_store(self.chaperone.settings, create=False)
        except Exception:
            return None

    def fails(self) -> str:
        """The id of a job that has failed for good."""
        message = self.charge.send(5, currency="EUR")
        wait_until(lambda: queries.dead_letters_like(self.store, message.message_id))
        return str(message.message_id)

    def asks(self, **arguments: Any) -> Any:
        asked = commands.issue(self.store, commands.FLEET, "retry", {"by": "ann", **arguments}, issued_by="ann")
        return wait_until(lambda: (found := commands.answer(self.store, asked)).outcome and found, timeout_s=20)

    def close(self) -> None:
        self.worker.stop()
        self.chaperone.close()
        self.broker.close()
        self.store.close()


@pytest.fixture
def bench(chaperone_env: Callable[..., None], state_dir: Path) -> Iterator[Bench]:
    bench = Bench(state_dir)
    yield bench
    bench.close()


def test_it_is_sent_once(bench: Bench) -> None:
    job_id = bench.fails()
    bench.is_mended = True
    answer = bench.asks(job_id=job_id)
    assert answer.outcome == "done"
    ((new_id),) = answer.detail["retried"].values()
    wait_until(lambda: (queries.job_row(bench.store, new_id) or {}).get("status") == "completed")
    assert bench.calls == [(5, "EUR")] * 2
    again = bench.asks(job_id=job_id)
    assert (again.outcome, new_id in again.detail["reason"]) == ("refused", True)
    assert bench.calls == [(5, "EUR")] * 2


def test_a_retry_that_fails_is_a_dead_letter_of_its_own(bench: Bench) -> None:
    first = bench.fails()
    ((second),) = bench.asks(job_id=first).detail["retried"].values()
    (letter,) = wait_until(lambda: queries.dead_letters_like(bench.store, second))
    assert letter["retried_as"] is None
    bench.is_mended = True
    assert bench.asks(dead_letter=str(letter["id"])).outcome == "done"


@pytest.mark.parametrize("arguments", [{"job_id": "nobody"}, {"dead_letter": "4711"}, {"dead_letters": ["1e5", "x"]}, {}])
def test_what_makes_no_sense_is_refused(bench: Bench, arguments: dict[str, Any]) -> None:
    answer = bench.asks(**arguments)
    assert answer.outcome == "refused"
    assert answer.detail["reason"]
