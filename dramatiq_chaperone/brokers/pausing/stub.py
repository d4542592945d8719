"""A paused consumer of a StubBroker."""

from __future__ import annotations

import threading
from typing import Any


def make(broker: Any, queue_name: str, inner: Any, timeout_s: float) -> StubHolder:
    """The holder of this consumer."""
    return StubHolder(inner)


class StubHolder:
    """The queue is in this process: what was fetched is put back at its head, and counts as not done all the while."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def give_back(self, fetched: list[Any]) -> None:
        """See :class:`.Holder`."""
        queue = self._inner.queue
        with queue.mutex:
            queue.queue.extendleft(message.encode() for message in reversed(fetched))
            queue.not_empty.notify_all()
        for _ in fetched:
            self._inner.prefetch_semaphore.release()

    def give_back_one(self, message: Any) -> None:
        """See :class:`.Holder`.  The acknowledgement counts one as done, so there is one more."""
        queue = self._inner.queue
        with queue.mutex:
            queue.queue.appendleft(message.encode())
            queue.unfinished_tasks += 1
            queue.not_empty.notify()

    def stay(self, resumed: threading.Event, timeout_s: float) -> None:
        """See :class:`.Holder`."""
        resumed.wait(timeout_s)

    def resume(self) -> None:
        """See :class:`.Holder`."""
