"""The queues of a RabbitmqBroker."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import pika.exceptions  # type: ignore[import-untyped]  # it has no types
from dramatiq.common import dq_name, xq_name

from .inspector import BrokerLetter, QueueReading, queues_of

_NOT_FOUND: Final = 404
#: What the server asks for unless it, or the URL, says otherwise.  Source: rabbitmq.com/docs/heartbeats.
_HEARTBEAT_S: Final = 60.0
#: A queue that is not there is asked for again after so many seconds, for each time costs a channel and a line in pika's log.
_MISSING_S: Final = 60.0


def make(broker: Any) -> RabbitmqInspector:
    """The inspector of this broker."""
    return RabbitmqInspector(broker)


class RabbitmqInspector:
    """Three passive declares a queue, on a channel of its own, which the broker ends where a queue is missing.

    The connection is the one that a RabbitmqBroker makes for each thread: one more in the process that reads.
    """

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._channel: Any = None
        #: Until when a queue counts as missing, in monotonic seconds.
        self._missing: dict[str, float] = {}

    def readings(self, more: Iterable[str] = ()) -> list[QueueReading]:
        """See :class:`.Inspector`."""
        was_open = self._channel is not None
        try:
            return [self._reading(queue) for queue in queues_of(self._broker, more)]
        except (pika.exceptions.AMQPError, OSError):
            self.close()
            if not was_open:
                raise
        # A connection that lies idle for long is ended by the broker; a new one tells whether it is there.
        return self.readings(more)

    def _reading(self, queue: str) -> QueueReading:
        """Dramatiq declares a queue with its delay queue and its dead letters, so one that is missing has neither."""
        is_declared_here = queue in self._broker.queues and queue not in self._broker.queues_pending
        if not is_declared_here and time.monotonic() < self._missing.get(queue, 0.0):
            return QueueReading(queue, 0, 0, 0, None)
        ready = self._depth(queue)
        if ready is None:
            self._missing[queue] = time.monotonic() + _MISSING_S
            return QueueReading(queue, 0, 0, 0, None)
        return QueueReading(queue, ready, self._depth(dq_name(queue)) or 0, self._depth(xq_name(queue)) or 0, None)

    def dead_letters(self, queue: str, *, limit: int) -> list[BrokerLetter] | None:
        """RabbitMQ shows a message only to who takes it."""
        return None

    def _depth(self, name: str) -> int | None:
        if self._channel is None:
            self._channel = self._broker.connection.channel()
        try:
            return int(self._channel.queue_declare(queue=name, passive=True).method.message_count)
        except pika.exceptions.ChannelClosedByBroker as error:
            self._channel = None
            if error.reply_code != _NOT_FOUND:
                raise
            return None

    def close(self) -> None:
        """End the connection of this thread."""
        self._channel = None
        del self._broker.connection


def lease_s(broker: Any) -> float:
    """Seconds after which the server takes a connection that says nothing for dead, and gives its messages to others."""
    parameters = broker.parameters[0] if isinstance(broker.parameters, list) else broker.parameters
    heartbeat = getattr(parameters, "heartbeat", None)
    return float(heartbeat) if isinstance(heartbeat, int) and heartbeat > 0 else _HEARTBEAT_S
