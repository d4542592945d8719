"""A place in line for what would else come due all at once."""

from __future__ import annotations

import threading


class Line:
    """Gives each message that waits for one thing its own moment: *until* + place ÷ ramp.

    It is of one process: a fleet of ten lets ten times as many through.

    Parameters:
      per_s: the ramp, messages a second.
    """

    def __init__(self, *, per_s: float) -> None:
        self._step_s = 1 / per_s
        self._next = 0.0
        self._lock = threading.Lock()

    def place(self, until: float) -> float:
        """When the next message is due: at *until*, or one step after the message before it, whichever is later.

        The caller says *until* anew each time; a later one moves the line on, an earlier one does not overtake what waits.
        """
        with self._lock:
            at = max(until, self._next)
            self._next = at + self._step_s
            return at

    def clear(self) -> None:
        """Forget who waits: what they waited for is over."""
        with self._lock:
            self._next = 0.0
