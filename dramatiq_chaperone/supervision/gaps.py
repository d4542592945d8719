"""A process that was stopped for longer than its lease: its messages have been given to others meanwhile.

It learns that from the time since the sampler's last turn, before it acknowledges, retries or sends anything: at the end of
each run, before each message begins, and before a delayed one is sent on.  On Redis it then looks at its leases; elsewhere it
asks the store who ran them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from heapq import heapify
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from dramatiq import Message

from ..errors import StoreError
from ..service import internal_error

if TYPE_CHECKING:
    from ..store import Store
    from .desk import StoreDesk


class OwnLeases(Protocol):
    """What this process holds; see brokers.leases."""

    def renew(self, queues: Iterable[str]) -> frozenset[str]:
        """The keys of the messages that this process holds, after it said that it lives."""


class Gaps:
    """The gaps in the life of this process.

    Parameters:
      lease_s: seconds without a sign of life after which the broker gives its messages to others.
      leases: None where the broker keeps none that can be looked at.
      queues: those that this process takes messages from.
      waiting: the messages that it has fetched and not begun.

    Attributes:
      due_at: the sampler has its next turn before this moment, monotonic, unless the process was stopped; infinite before
        its first one.
      last_at: when the last gap was found, monotonic.  Only runs that began before it may have been taken.
      doubtful: the fetched messages that may not be ours any more, by their keys: a retry of one, which has its id, has another.
    """

    def __init__(
        self,
        worker_id: str,
        desk: StoreDesk,
        *,
        lease_s: float,
        leases: OwnLeases | None,
        queues: Callable[[], Iterable[str]],
        waiting: Callable[[], list[Any]],
    ) -> None:
        self._worker_id, self._desk, self._leases, self._queues, self._waiting = worker_id, desk, leases, queues, waiting
        #: Half of it: the last sign of life may have been given some time before the gap.
        self._limit_s = lease_s / 2
        self._lock = threading.Lock()
        self.due_at = inf
        self.last_at = -inf
        self.doubtful: dict[str, Any] = {}
        #: What was still ours after the last gap; None where that could not be found out, or the store has to tell.
        self._held: frozenset[str] | None = None
        #: When the last gap began, at the latest; Unix seconds.
        self._began_at = 0.0

    def look(self) -> None:
        """See whether the process was stopped; a comparison where it was not."""
        now = time.monotonic()
        if now > self.due_at:
            self._found(now)

    @property
    def is_certain(self) -> bool:
        """Whether the broker itself tells what is ours; the store knows who ran a message, not which delivery of it."""
        return self._leases is not None

    def turn(self, now: float) -> None:
        """The sampler's turn."""
        if now > self.due_at:
            self._found(now)
        self.due_at = now + self._limit_s

    def has_lost(self, message: Any, started: float) -> bool:
        """Whether a run that has just ended, and began at *started* (monotonic), was taken by another worker meanwhile."""
        self.look()
        if started >= self.last_at:
            return False
        if self._leases is None:
            return self._is_taken(message)
        if self._held is None:
            self._held = self.held()
        return self._held is not None and key_of(message) not in self._held

    def has_lost_unbegun(self, message: Any) -> bool:
        """The same of a message that is about to begin."""
        key = key_of(message)
        is_first = time.monotonic() > self.due_at  # it was on its way when the process was stopped
        self.look()
        if self.doubtful.pop(key, None) is None and not is_first:
            return False
        if self._leases is None:
            return self._is_taken(message)
        held = self.held()  # it may have come back, with the same key
        return held is not None and key not in held

    def _found(self, now: float) -> None:
        """The process was stopped.  Whoever notices it first looks; the others wait for that."""
        with self._lock:
            if now <= self.due_at:
                return
            self._began_at = time.time() - (now - self.due_at) - self._limit_s
            try:
                waiting = self._waiting()
            except Exception as error:  # noqa: BLE001 - what is not known to wait is run
                internal_error("gaps", error)
                waiting = []
            self._held = self.held()
            if self._leases is None or self._held is not None:
                waiting = [*waiting, *self.doubtful.values()]
                self.doubtful = {key: each for each in waiting if (key := key_of(each)) not in (self._held or ())}
            self.last_at = time.monotonic()
            self.due_at = self.last_at + self._limit_s

    def held(self) -> frozenset[str] | None:
        """The keys of the messages that are ours now; None where that cannot be found out, or the store has to tell."""
        if self._leases is None:
            return None
        try:
            return self._leases.renew(self._queues())
        except Exception as error:  # noqa: BLE001 - whatever the broker's library raises; its acknowledgements will say the same
            internal_error("gaps", error)
            return None

    def _is_taken(self, message: Any) -> bool:
        job_id, since = message.message_id, self._began_at
        try:
            return self._desk.ask(lambda store: _is_taken(store, job_id, self._worker_id, since))
        except StoreError as error:
            internal_error("gaps", error, job_id=job_id)
            return False


class DelayQueues:
    """The messages that wait in this process for their time: what was taken meanwhile is for others to send on.

    Parameters:
      consumer: dramatiq's consumer thread of a queue; called in that thread.
    """

    def __init__(self, gaps: Gaps, consumer: Callable[[str], Any]) -> None:
        self._gaps, self._consumer = gaps, consumer
        #: The gap after which each was sifted, by its ``last_at``.
        self._sifted: dict[str, float] = {}

    def sift(self, queue: str, message: Any) -> Any:
        """Drop what is not ours any more of all that was fetched from *queue*.

        Parameters:
          message: what was fetched last, or None; it is returned, if it is ours.
        """
        gaps = self._gaps
        gaps.look()
        if self._sifted.get(queue, -inf) == gaps.last_at or (held := gaps.held()) is None:
            return message
        self._sifted[queue] = gaps.last_at
        thread = self._consumer(queue)
        consumer, waiting = thread.consumer, thread.delay_queue
        lost: list[Any] = []
        if message is not None and key_of(message) not in held:
            lost, message = [message], None
        cached = [(data, Message.decode(data)) for data in consumer.message_cache]
        consumer.message_cache[:] = [data for data, each in cached if key_of(each) in held]
        lost += [each for _, each in cached if key_of(each) not in held]
        # What was taken, came back and was fetched again is here twice with one key.
        again = {key_of(each) for each in (message, *(each for _, each in cached)) if each is not None}
        with waiting.mutex:
            kept = [item for item in waiting.queue if key_of(item.message) in held - again]
            lost += [item.message for item in waiting.queue if item not in kept]
            waiting.unfinished_tasks -= len(waiting.queue) - len(kept)
            waiting.queue[:] = kept
            heapify(waiting.queue)
        consumer.queued_message_ids.difference_update(each.message_id for each in lost)
        return message


def _is_taken(store: Store, job_id: str, worker_id: str, since: float) -> bool:
    from ..store import crashes

    return crashes.is_taken(store, job_id, worker_id, since=since)


def key_of(message: Any) -> str:
    """Its key in Redis, which each message has for itself; elsewhere that of the object, which is kept as long as it counts."""
    return str(message.options.get("redis_message_id") or id(message))
