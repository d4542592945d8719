"""What the breakers of a process share with the rest of it: the settings, a worker's way to its watcher, what others told.

Light, for every worker has it, whether it has a breaker or not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..circuits import CLOSED, Circuit, Policy
from .states import BreakerState, state_of

if TYPE_CHECKING:
    from ..settings import Settings

#: What is told of a circuit: its state, without what only the next step needs.
TOLD: Final = (
    *("state", "mode", "failures", "successes", "openings", "version"),
    *("opened_at", "reopens_at", "half_opened_at", "last_failure_at", "last_error"),
)
#: Characters of the last error that are told, where the circuit is not closed.
ERROR_WIDTH: Final = 120
#: What all errors together may take, in bytes, for a control block has 64 KB; those that come later are left out.
ERRORS_BYTES: Final = 8 << 10


class Link(Protocol):
    """A worker's way to its watcher."""

    def is_watched(self) -> bool:
        """Whether there is one just now."""

    def look(self) -> None:
        """See what it has told, at once."""

    def append(self, entry: tuple[Any, ...]) -> None:
        """Write into the journal."""


class Clock:
    """The clock of whoever keeps the circuits, as far as it is known here."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Unix seconds."""
        return time.monotonic() + self._ahead_s

    def set(self, now: float) -> None:
        """It shows *now*."""
        self._ahead_s = now - time.monotonic()

    @property
    def ahead_s(self) -> float:
        """By so much it is ahead of this host's."""
        return self.now() - time.time()


class Sharing:
    """One for each process.

    Attributes:
      settings: those of ``Chaperone(...)``, None where there is none.
      link: of a worker that may have a watcher.
      circuits: the shared circuits that are known here, by service.
      adopt: hears of each circuit that was told; set by the registry.
      changed: called when the settings have changed; likewise.
      flush: tells what was not told, for the journal is about to end; likewise.
    """

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.link: Link | None = None
        self.circuits: dict[str, Circuit] = {}
        self.clock = Clock()
        self.adopt: Callable[[str, Circuit], None] = self.keep
        self.changed: Callable[[], None] = lambda: None
        self.flush: Callable[[], None] = lambda: None

    def use(self, settings: Settings) -> None:
        """Settings that go before those of the environment."""
        if settings is not self.settings:
            self.settings = settings
            self.changed()

    def told(self, message: dict[str, Any]) -> None:
        """What the watcher has put into the control block; see :func:`telling`."""
        self.clock.set(message["now"] + time.time() - message["at"])
        for service, values in message["circuits"]:
            self.adopt(service, Circuit(**dict(zip(TOLD, values, strict=True))))

    def keep(self, service: str, circuit: Circuit) -> None:
        """Know it from now on, unless it is older than what is known."""
        known = self.circuits.get(service)
        if known is None or circuit.version > known.version:
            self.circuits[service] = circuit

    def state(self, service: str, policy: Policy | None = None) -> BreakerState:
        """What this process knows of *service*, without asking anybody."""
        circuit = self.circuits.get(service, _UNKNOWN)
        return state_of(service, circuit, policy or Policy(), self.clock.now(), self.clock.ahead_s)

    def forked(self) -> None:
        """The parent's watcher is not ours."""
        self.link = None


_UNKNOWN: Final = Circuit()
shared: Final = Sharing()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.forked)


def telling(circuits: list[tuple[str, Circuit]], now: float) -> dict[str, Any]:
    """A message for :meth:`Sharing.told`; *now* is the time by the clock of whoever keeps the circuits."""
    told, left = [], ERRORS_BYTES
    for service, circuit in circuits:
        error = circuit.last_error[:ERROR_WIDTH] if circuit.last_error and circuit.state != CLOSED else None
        if error is not None and (left := left - len(json.dumps(error))) < 0:
            error = None
        shown = replace(circuit, last_error=error)
        told.append([service, [getattr(shown, name) for name in TOLD]])
    return {"now": now, "at": time.time(), "circuits": told}
