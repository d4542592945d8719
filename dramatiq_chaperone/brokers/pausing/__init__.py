"""Pausing the queues of one worker: it fetches nothing from them, and keeps its hold on what it runs.

Dramatiq's own pause loses that hold: on Redis the lease runs out, on RabbitMQ the connection is closed, and what runs is
given to another worker too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from heapq import heapify
from importlib import import_module
from typing import Any, Protocol

from dramatiq import Broker, Consumer, Worker
from dramatiq.common import dq_name

from ..inspector import kind_of

#: A paused consumer looks after its connection at least so often, in seconds.
TURN_S = 0.25


class Holder(Protocol):
    """What a paused consumer of one broker does; called in the consumer's own thread, which owns its connection, but for one method."""

    def give_back(self, fetched: list[Any]) -> None:
        """Fetch no more, and give back to the broker what was *fetched* and not begun, with what the consumer itself has kept.

        It lies at the head of its queue again, in its order, as far as the broker lets it.
        """

    def give_back_one(self, message: Any) -> None:
        """Give a message back that a worker thread has taken.

        Called in that thread, before its acknowledgement, which then does nothing.
        """

    def stay(self, resumed: threading.Event, timeout_s: float) -> None:
        """Wait until *resumed* is set, or for *timeout_s*; keep hold meanwhile of what runs, and pass its acknowledgements on."""

    def resume(self) -> None:
        """Fetch again."""


class Pausing:
    """Pauses and resumes the queues of *worker*.  Any thread may call it.

    Nothing that runs is touched, and nothing is lost: what was fetched and has not begun goes back, for other workers.
    A queue's delayed messages are a queue of their own, ``dq_name(queue)``; those that the worker holds stay with it.
    """

    def __init__(self, broker: Any, worker: Any, kind: str) -> None:
        self._broker, self._worker = broker, worker
        self._make_holder = import_module(f"{__package__}.{kind}").make
        self._consume = broker.consume
        #: Set while a queue is not paused; there is none for a queue that never was.
        self._open: dict[str, threading.Event] = {}
        self._by: dict[str, set[str]] = {}
        self._consumers: list[_Consumer] = []
        self._lock = threading.Lock()
        #: Sees each message of a delay queue that was fetched, and None at each turn without one, in the consumer's own thread
        #: and right before what is due is sent on; what it returns is taken instead.
        self.sieve: Callable[[str, Any], Any] = lambda queue_name, message: message

    def install(self) -> None:
        """Stand between the worker and each consumer that it will make.  Called before the worker has any."""
        self._broker.consume = self._make_consumer

    def uninstall(self) -> None:
        """Give the broker its own method back."""
        if self._broker.__dict__.get("consume") == self._make_consumer:
            del self._broker.consume

    def pause(self, *queues: str, by: str = "") -> None:
        """Fetch nothing from *queues* any more, beginning with their consumers' next turn (``worker_timeout`` at the latest).

        Parameters:
          by: who wants it; a queue stays paused until each who paused it has resumed it.
        """
        with self._lock:
            for queue in queues:
                self._by.setdefault(queue, set()).add(by)
                self._open.setdefault(queue, threading.Event()).clear()

    def resume(self, *queues: str, by: str = "") -> None:
        """Fetch from *queues* again, at once, unless somebody else has paused them too."""
        with self._lock:
            for queue in queues:
                holders = self._by.get(queue, set())
                holders.discard(by)
                if not holders and (opened := self._open.get(queue)) is not None:
                    opened.set()

    @property
    def paused(self) -> dict[str, frozenset[str]]:
        """Who has paused which queue, whether its consumer has got to it yet or not."""
        with self._lock:
            return {queue: frozenset(holders) for queue, holders in self._by.items() if holders}

    def is_idle(self, queue: str) -> bool:
        """Whether the consumer of a paused queue has given back what it had fetched: from then on nothing of it begins here."""
        return queue in self.paused and all(each.is_holding for each in list(self._consumers) if each.queue_name == queue)

    def fetched(self, queue: str) -> list[Any]:
        """Take what was fetched from *queue*, and has not begun, out of the worker's hands; first fetched, first."""
        work = self._worker.work_queue
        with work.mutex:
            mine = [item for item in work.queue if item.message.queue_name == queue]
            if not mine:
                return []
            work.queue[:] = [item for item in work.queue if item.message.queue_name != queue]
            heapify(work.queue)
            work.unfinished_tasks -= len(mine)
            if not work.unfinished_tasks:
                work.all_tasks_done.notify_all()
        return [item.message for item in sorted(mine, key=lambda item: item._queued_time)]

    def give_back(self, message: Any) -> bool:
        """Give back the message that this worker thread has taken and will not run; what is left for the caller is to skip it.

        Returns False, with nothing done, where its consumer is gone.

        Raises:
          Exception: the broker does not answer; whatever its library raises.
        """
        with self._lock:
            found = next((each for each in reversed(self._consumers) if each.queue_name == message.queue_name), None)
        if found is None:
            return False
        found.holder.give_back_one(message)
        return True

    def forget(self, consumer: _Consumer) -> None:
        """The consumer is closed."""
        with self._lock:
            if consumer in self._consumers:
                self._consumers.remove(consumer)

    def _make_consumer(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        inner = self._consume(queue_name=queue_name, prefetch=prefetch, timeout=timeout)
        holder = self._make_holder(self._broker, queue_name, inner, timeout / 1000)
        make = _DelayConsumer if dq_name(queue_name) == queue_name else _Consumer
        consumer = make(self, queue_name, inner, holder, timeout / 1000)
        with self._lock:
            self._consumers.append(consumer)
        return consumer


class _Consumer(Consumer):
    """A consumer that can be paused; all but fetching goes straight to the broker's own, *inner*."""

    def __init__(self, pausing: Pausing, queue_name: str, inner: Any, holder: Holder, timeout_s: float) -> None:
        self.queue_name = queue_name
        self.is_holding = False
        self.holder = holder
        self._pausing, self.inner, self._timeout_s = pausing, inner, timeout_s
        # As attributes, for each message is acknowledged.
        self.ack, self.nack, self.requeue = getattr(holder, "ack", inner.ack), inner.nack, inner.requeue  # type: ignore[method-assign]
        self._open = pausing._open

    def __next__(self) -> Any:
        opened = self._open.get(self.queue_name)
        if opened is None:
            return next(self.inner)
        if opened.is_set():
            if self.is_holding:
                self.holder.resume()
                self.is_holding = False
            return next(self.inner)
        if not self.is_holding:
            self.holder.give_back(self._pausing.fetched(self.queue_name))
            self.is_holding = True
        self.holder.stay(opened, min(TURN_S, self._timeout_s))
        return None

    def close(self) -> None:
        self._pausing.forget(self)
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _DelayConsumer(_Consumer):
    """One of a delay queue."""

    def __next__(self) -> Any:
        return self._pausing.sieve(self.queue_name, super().__next__())


def pausing_of(broker: Broker, worker: Worker) -> Pausing | None:
    """The means to pause *worker* on a broker or on a subclass of it; None for a class that is not known here."""
    kind = kind_of(broker)
    return None if kind is None else Pausing(broker, worker, kind)
