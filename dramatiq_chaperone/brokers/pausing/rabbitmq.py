"""A paused consumer of a RabbitmqBroker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import pika.exceptions  # type: ignore[import-untyped]  # it has no types
from dramatiq.errors import ConnectionClosed

#: A connection that is looked after notices at the latest after so many seconds that its queue is resumed.
_NOTICE_S: Final = 0.05
_GIVEN_BACK: Final = "is_given_back"


def make(broker: Any, queue_name: str, inner: Any, timeout_s: float) -> RabbitmqHolder:
    """The holder of this consumer."""
    return RabbitmqHolder(queue_name, inner, timeout_s)


class RabbitmqHolder:
    """The channel stays open, with what runs on it; only its subscription ends."""

    def __init__(self, queue_name: str, inner: Any, timeout_s: float) -> None:
        self._queue_name, self._inner, self._timeout_s = queue_name, inner, timeout_s

    def give_back(self, fetched: list[Any]) -> None:
        """See :class:`.Holder`.  What pika has kept goes back with the end of the subscription."""
        inner = self._inner
        with _translated():
            inner.channel.cancel()
            for message in fetched:
                # One of a connection before this one has gone back with it.
                if message._tag in inner.known_tags:
                    inner.known_tags.discard(message._tag)
                    inner.channel.basic_nack(message._tag, requeue=True)

    def give_back_one(self, message: Any) -> None:
        """See :class:`.Holder`."""
        inner = self._inner
        with _translated():
            if message._tag in inner.known_tags:
                inner.known_tags.discard(message._tag)
                inner.connection.add_callback_threadsafe(partial(inner.channel.basic_nack, message._tag, requeue=True))
        setattr(message, _GIVEN_BACK, True)

    def ack(self, message: Any) -> None:
        """In the place of the consumer's own, which would warn of a message that it does not know any more."""
        if not getattr(message, _GIVEN_BACK, False):
            self._inner.ack(message)

    def stay(self, resumed: threading.Event, timeout_s: float) -> None:
        """See :class:`.Holder`."""
        until = time.monotonic() + timeout_s
        with _translated():
            while not resumed.is_set() and (left := until - time.monotonic()) > 0:
                self._inner.connection.process_data_events(min(left, _NOTICE_S))

    def resume(self) -> None:
        """See :class:`.Holder`."""
        inner = self._inner
        with _translated():
            inner.iterator = inner.channel.consume(self._queue_name, inactivity_timeout=self._timeout_s)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (AssertionError, pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError) as error:
        raise ConnectionClosed(error) from None
