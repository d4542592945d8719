"""Monitor: what has to be done once in a whole fleet, by whoever holds the lease."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from .store import Store, leases, retention

if TYPE_CHECKING:
    from .settings import Settings

LEASE: Final = "monitor"
#: The lease is renewed so often, and runs out after three renewals that did not come; seconds.
RENEW_S: Final = 20.0
LEASE_S: Final = 60.0
#: Seconds between two rounds of retention: by the clock, never "when idle", for a busy fleet is the one whose tables grow.
RETENTION_EVERY_S: Final = 3600.0
#: A round stops after so many seconds and goes on at the next turn, so that commands are not kept waiting.
ROUND_S: Final = 0.5


class Monitor:
    """A duty of :class:`~dramatiq_chaperone.store.turns.StoreTurns`.  Candidates are the watchers, and processes without one.

    Parameters:
      holder: unique for this process and start.
      clock: monotonic seconds.
    """

    def __init__(self, settings: Settings, holder: str, *, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._holder, self._clock = settings, holder, clock
        self._epoch: int | None = None
        self._next_renewal = 0.0
        self._next_retention = 0.0

    def turn(self, store: Store) -> None:
        """Take or renew the lease, and do what is due."""
        now = self._clock()
        if now >= self._next_renewal:
            self._next_renewal = now + RENEW_S
            self._epoch = leases.acquire(store, LEASE, self._holder, seconds=LEASE_S)
        if self._epoch is not None and now >= self._next_retention and self._retain(store, self._epoch, now + ROUND_S):
            self._next_retention = now + RETENTION_EVERY_S

    def leave(self, store: Store) -> None:
        """Give the lease up, so that another need not wait for it to run out."""
        if self._epoch is not None:
            self._epoch = None
            leases.release(store, LEASE, self._holder)

    def _retain(self, store: Store, epoch: int, until: float) -> bool:
        """Go on with a round of retention; whether it came to its end."""
        for _ in retention.prune(store, self._settings):
            if self._clock() >= until or not leases.holds(store, LEASE, self._holder, epoch):
                return False
        return True
