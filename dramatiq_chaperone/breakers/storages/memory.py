"""Circuits of this process alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ...circuits import Altered, Circuit, Operation, new_circuit
from ..sharing import Clock


class MemoryStorage:
    """Keeps circuits in memory; see :class:`~.Storage`.

    Parameters:
      took: hears of each step.
    """

    is_shared = False

    def __init__(
        self, took: Callable[[str, Altered, bool], None] = lambda service, altered, is_said: None, *, clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        self._took = took
        self._circuits: dict[str, Circuit] = {}
        self._lock = threading.Lock()

    def apply(self, service: str, operation: Operation, *, is_kept: bool, wait_s: float = 0.0) -> Altered | None:
        """Take a step."""
        with self._lock:
            now = self.clock.now()
            step = operation(self._circuits.get(service) or new_circuit(now), now)
            self._circuits[service] = step.circuit
        altered = Altered(step, now)
        if self._took is not None:
            self._took(service, altered, False)
        return altered

    def read(self, service: str) -> Circuit | None:
        """The circuit, None where there is none."""
        return self._circuits.get(service)

    def forked(self) -> None:
        """The lock may be in the hands of a thread of the parent's."""
        self._lock = threading.Lock()
