"""An app with one actor, for :mod:`tests.benchmarks.isolated` and the zygote of its worker."""

from __future__ import annotations

from time import monotonic
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import Chaperone

broker = StubBroker()
broker.add_middleware(Chaperone())
#: (first line of the actor, end of the job as the worker saw it), monotonic seconds.
seen: list[tuple[float, float]] = []


class Clock(dramatiq.Middleware):
    """Takes down when a job began and ended."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        if exception is None:
            seen.append((result, monotonic()))


broker.add_middleware(Clock())


@dramatiq.actor(broker=broker, isolate=True, max_retries=0)
def first_line() -> float:
    """When it was reached."""
    return monotonic()
