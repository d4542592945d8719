"""Putting a message off on a RabbitmqBroker: a copy that the broker confirms, and then the acknowledgement of the message."""

from __future__ import annotations

import threading
from typing import Any, Final
from uuid import uuid4

import pika  # type: ignore[import-untyped]  # it has no types
import pika.exceptions  # type: ignore[import-untyped]
from dramatiq.common import current_millis

from . import ORIGINAL, copy_of

#: The name of a copy: an option of it.
_COPY: Final = "deferral"


def make(broker: Any) -> RabbitmqDeferrer:
    """The deferrer of this broker."""
    return RabbitmqDeferrer(broker)


class RabbitmqDeferrer:
    """Publishes on a channel of its own, for Dramatiq's are not confirmed unless the user wants it.

    The connection is the one that a RabbitmqBroker makes for each thread.
    """

    leaves_doubt = True

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._own = threading.local()

    def contender(self, proxy: Any) -> str | None:
        """See :class:`.Deferrer`.  A message that comes for the first time is the only one."""
        # Of each message: a proxy takes ten times as long to find its options.
        name: str | None = proxy._message.options.get(_COPY)
        return name or (ORIGINAL if proxy.redelivered else None)

    def put_off(self, proxy: Any, eta_ms: int, number: int) -> bool:
        """See :class:`.Deferrer`.  The broker gives a message away again only when this worker's connection has ended."""
        broker = self._broker
        message = getattr(proxy, "_message", proxy)
        copy = copy_of(message, eta_ms, number).copy(options={_COPY: str(uuid4())})
        delay = max(0, eta_ms - current_millis())
        broker.emit_before("enqueue", copy, delay)
        properties = pika.BasicProperties(delivery_mode=2, priority=copy.options.get("broker_priority"))
        try:
            self._channel().basic_publish("", copy.queue_name, copy.encode(), properties, mandatory=True)
        except (pika.exceptions.AMQPError, OSError):
            self._own.channel = None
            raise
        broker.emit_after("enqueue", copy, delay)
        return True

    def _channel(self) -> Any:
        """A channel that is open: that an idle connection was ended by the broker is only seen when one looks."""
        connection = self._broker.connection
        if not _is_alive(connection):
            del self._broker.connection
            connection = self._broker.connection
        channel = getattr(self._own, "channel", None)
        if channel is None or not channel.is_open or channel.connection is not connection:
            channel = self._own.channel = connection.channel()
            channel.confirm_delivery()
        return channel


def _is_alive(connection: Any) -> bool:
    try:
        if connection.is_open:
            connection.process_data_events(0)
    except (pika.exceptions.AMQPError, OSError):
        return False
    return bool(connection.is_open)
