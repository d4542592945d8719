"""What the workers have to know of the dead: whose messages have to go back, and which messages are suspects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from ..store import Store, crashes
from ..store.crashes import Return

#: A worker that was asked to give messages back is asked again after so many seconds, or another one is.
AGAIN_S: Final = 3.0
#: Those that nobody could give back for so long are asked about less often: their broker may be elsewhere.
SOON_S: Final = 60.0
SELDOM_S: Final = 60.0
#: Seconds between two sweeps.
SWEEP_S: Final = 60.0


class Crashes:
    """A duty of :class:`~dramatiq_chaperone.store.turns.StoreTurns`.

    Parameters:
      suspected: told at each turn which messages are suspects, by their ids.
      give_back: told whose messages have to go back, when there are any, and again every few seconds.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        suspected: Callable[[list[str]], None],
        give_back: Callable[[Sequence[Return]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._suspected, self._give_back, self._clock = suspected, give_back, clock
        #: When each was first seen, and when it is to be asked for next; monotonic.
        self._seen: dict[str, tuple[float, float]] = {}
        self._next_sweep = 0.0

    def turn(self, store: Store) -> None:
        """Look, and tell."""
        self._suspected(crashes.suspects(store))
        now = self._clock()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            crashes.sweep(store)
        found = crashes.returns(store)
        self._seen = {each.worker_id: self._seen.get(each.worker_id, (now, now)) for each in found}
        due = [each for each in found if now >= self._seen[each.worker_id][1]]
        for each in due:
            first, _ = self._seen[each.worker_id]
            self._seen[each.worker_id] = (first, now + (AGAIN_S if now - first < SOON_S else SELDOM_S))
        if due:
            self._give_back(due)

    def leave(self, store: Store) -> None:
        """Nothing is held."""
