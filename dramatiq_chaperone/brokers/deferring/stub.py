"""Putting a message off on a StubBroker."""

from __future__ import annotations

from typing import Any

from dramatiq.common import current_millis

from . import copy_of


def make(broker: Any) -> StubDeferrer:
    """The deferrer of this broker."""
    return StubDeferrer(broker)


class StubDeferrer:
    """The queues are in this process: nothing can come between."""

    leaves_doubt = False

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def contender(self, proxy: Any) -> str | None:
        """See :class:`.Deferrer`."""
        return None

    def put_off(self, proxy: Any, eta_ms: int, number: int) -> bool:
        """See :class:`.Deferrer`."""
        broker = self._broker
        copy = copy_of(getattr(proxy, "_message", proxy), eta_ms, number)
        delay = max(0, eta_ms - current_millis())
        broker.emit_before("enqueue", copy, delay)
        broker.queues[copy.queue_name].put(copy.encode())
        broker.emit_after("enqueue", copy, delay)
        return True
