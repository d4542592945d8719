"""Reader: asks the store for an exporter, so that no scrape ever waits for longer than it wants to."""

from __future__ import annotations

import threading
from dataclasses import replace
from time import monotonic, time
from typing import TYPE_CHECKING

from ..store.readings import read_alert_health, read_totals, read_workers
from .collector import Growth, Reading, own_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..errors import StoreError
    from ..store import Store
    from ..store.queries import Row
    from .leadership import Leadership


class Reader:
    """A duty of :class:`~dramatiq_chaperone.store.turns.StoreTurns`: keeps the lease, and reads when it is asked to.

    Parameters:
      leadership: of the totals.
      may_lead: whether this process is in a position to serve them: it listens.
      wake: has the next turn taken at once.
      among: the worker_ids whose workers are served; None: those of the whole fleet.

    Attributes:
      trouble: why the last turn failed; None: it did not.
    """

    def __init__(
        self,
        leadership: Leadership,
        *,
        may_lead: Callable[[], bool],
        wake: Callable[[], None],
        among: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._leadership, self._may_lead, self._wake, self._among = leadership, may_lead, wake, among
        self._errors, self._sampling = Growth(), Growth()
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._reading = Reading()
        self.trouble: str | None = None

    def read(self, timeout_s: float) -> Reading:
        """A reading that began after this call; what there was before, with ``is_up`` false, if none comes within *timeout_s*.

        Any thread may call it.
        """
        with self._changed:
            self._asked += 1
            wanted = self._asked
            self._wake()
            is_new = self._changed.wait_for(lambda: self._answered >= wanted, timeout=timeout_s)
            reading = self._reading
        return replace(reading, is_up=reading.is_up and is_new, is_leader=self._leadership.leads)

    def turn(self, store: Store) -> None:
        """Renew the lease if due, and read if anybody asked.  Raises StoreError."""
        if self._may_lead():
            self._leadership.renew(store)
        with self._changed:
            asked = self._asked
        if asked > self._answered:
            self._answer(asked, self._read(store), None)

    def away(self, error: StoreError) -> None:
        """The store did not answer: those who wait get what there was before."""
        with self._changed:
            asked = self._asked
        self._answer(asked, replace(self._reading, is_up=False), str(error))

    def leave(self, store: Store) -> None:
        """Give the lease up.  Raises StoreError."""
        self._leadership.leave(store)

    def _answer(self, asked: int, reading: Reading, trouble: str | None) -> None:
        with self._changed:
            self._reading, self._answered, self.trouble = reading, asked, trouble
            self._changed.notify_all()

    def _read(self, store: Store) -> Reading:
        began = monotonic()
        workers = read_workers(store, None if self._among is None else self._among())
        self._errors.add({**{row["worker_id"]: _gauges(row).get("internal_errors", {}) for row in workers}, "": own_errors()})
        self._sampling.add({row["worker_id"]: {"": _gauges(row).get("sampler_cpu_seconds", 0.0)} for row in workers})
        totals = read_totals(store) if self._leadership.leads else None
        return Reading(
            is_up=True,
            read_at=time(),
            read_seconds=monotonic() - began,
            totals=totals,
            workers=workers,
            alert_health=read_alert_health(store),
            errors=dict(self._errors.total),
            sampler_cpu_seconds=self._sampling.total[""],
        )


def _gauges(row: Row) -> Row:
    found: Row = row["gauges"] or {}
    return found
