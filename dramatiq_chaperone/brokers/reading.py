"""Writes down what the broker says of its queues, in a process that has the user's broker object."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from dramatiq import Broker

from .. import records
from ..journal import Journal
from ..service import Service
from .inspector import Inspector

#: Seconds between two readings.
READ_EVERY_S: Final = 5.0
#: A broker that hangs may hold a stop up so long, in seconds.
STOP_S: Final = 1.0


class QueueReader(Service):
    """Reads once each time that it is asked, or every 5 s by itself.

    It has a thread of its own, started by the first reading: a broker that hangs must not hold up the sampler, which keeps
    the time limits.  One that is away is logged once, as an internal error, and asked again at the next turn.

    Parameters:
      paused: the queues from which this process fetches nothing, and what everything in them waits for, where that is known.
    """

    name = "queues"

    def __init__(
        self, journal: Journal, broker: Broker, inspector: Inspector, paused: Callable[[], Mapping[str, str | None]] = dict[str, str | None]
    ) -> None:
        super().__init__(interval_s=threading.TIMEOUT_MAX)
        self._journal, self._inspector, self._paused = journal, inspector, paused
        self._broker = type(broker).__name__

    def ask(self) -> None:
        """Take one reading soon; one that is under way will do."""
        if self.is_running:
            self.wake()
        else:
            self.start()

    def read_on(self) -> None:
        """From now on read every 5 s, for nobody else asks."""
        self.interval_s = READ_EVERY_S
        self.ask()

    def run_once(self) -> None:
        """Take one reading."""
        paused = self._paused()
        for reading in self._inspector.readings():
            is_paused, paused_for = reading.queue in paused, paused.get(reading.queue)
            self._journal.append((records.QUEUE_READ, time.time(), self._broker, *reading, is_paused, paused_for))

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            self._guarded(self._inspector.close)  # here, for a connection is this thread's
