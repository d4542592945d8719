"""Leadership: which of all exporters serves the totals of the fleet, so that no sum counts them twice."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from ..store import leases

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..store import Store

LEASE: Final = "exporter"
#: Held by a ``chaperone exporter``: while somebody has it, no watcher renews the other.
CLAIM: Final = "exporter-claim"
#: Seconds between two renewals, and after which a lease that was not renewed is free.
RENEW_S: Final = 3.0
LEASE_S: Final = 12.0


class Leadership:
    """One candidate for the lease.  Used by one thread.

    Parameters:
      holder: unique for this process and start.
      has_precedence: a watcher yields to it at its next renewal.
      clock: monotonic seconds.
    """

    def __init__(self, holder: str, *, has_precedence: bool, clock: Callable[[], float] = monotonic) -> None:
        self._holder, self._has_precedence, self._clock = holder, has_precedence, clock
        self._next_renewal = 0.0
        self._leads_until = 0.0

    @property
    def leads(self) -> bool:
        """Whether the lease is held; without a store it runs out by itself."""
        return self._clock() < self._leads_until

    def renew(self, store: Store) -> None:
        """Take or renew the lease if that is due.  Raises StoreError."""
        now = self._clock()
        if now < self._next_renewal:
            return
        self._next_renewal = now + RENEW_S
        is_allowed = self._claim(store) if self._has_precedence else not leases.is_held(store, CLAIM)
        if is_allowed and leases.acquire(store, LEASE, self._holder, seconds=LEASE_S) is not None:
            self._leads_until = now + LEASE_S
        elif self._leads_until:
            self._leads_until = 0.0
            leases.release(store, LEASE, self._holder)

    def leave(self, store: Store) -> None:
        """Give up what is held, so that another need not wait.  Raises StoreError."""
        self._leads_until = self._next_renewal = 0.0
        leases.release(store, LEASE, self._holder)
        if self._has_precedence:
            leases.release(store, CLAIM, self._holder)

    def _claim(self, store: Store) -> bool:
        return leases.acquire(store, CLAIM, self._holder, seconds=LEASE_S) is not None
