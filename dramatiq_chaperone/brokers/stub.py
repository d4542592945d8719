"""The queues of a StubBroker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dramatiq.common import dq_name

from .inspector import BrokerLetter, QueueReading, made_at, queues_of


def make(broker: Any) -> StubInspector:
    """The inspector of this broker."""
    return StubInspector(broker)


class StubInspector:
    """It looks into the broker's own queues: they are in this process."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def readings(self, more: Iterable[str] = ()) -> list[QueueReading]:
        """See :class:`.Inspector`."""
        return [self._reading(queue) for queue in queues_of(self._broker, more)]

    def _reading(self, name: str) -> QueueReading:
        queue, delayed = self._broker.queues.get(name), self._broker.queues.get(dq_name(name))
        dead = len(self._broker.dead_letters_by_queue.get(name, ()))
        if queue is None:
            return QueueReading(name, 0, 0, dead, None)
        with queue.mutex:
            ready, head = len(queue.queue), next(iter(queue.queue), None)
        return QueueReading(name, ready, 0 if delayed is None else delayed.unfinished_tasks, dead, made_at(head))

    def dead_letters(self, queue: str, *, limit: int) -> list[BrokerLetter] | None:
        """See :class:`.Inspector`."""
        kept = list(self._broker.dead_letters_by_queue.get(queue, ()))[-limit:]
        return [BrokerLetter(each.message_id, each.actor_name, queue, each.message_timestamp / 1000) for each in reversed(kept)]

    def close(self) -> None:
        """There is no connection."""
