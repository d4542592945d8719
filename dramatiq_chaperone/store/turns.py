"""Everything that a process asks of the store once a second, over one connection."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from ..errors import StoreError
from ..service import Service
from . import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from . import StoreSettings


class Duty(Protocol):
    """One thing to ask or do."""

    def turn(self, store: Store) -> None:
        """Once a second.  May raise StoreError."""

    def leave(self, store: Store) -> None:
        """At the end.  May raise StoreError."""


class StoreTurns(Service):
    """Takes the turns of *duties* once a second.  A store that is away is not reported here: the writer does that.

    Parameters:
      often: small ones, which are taken twice a second: what they find has to reach somebody within one.
      away: told each time that the store did not answer.
    """

    name = "duties"

    def __init__(
        self,
        settings: StoreSettings,
        duties: Sequence[Duty],
        *,
        often: Sequence[Duty] = (),
        away: Callable[[StoreError], None] = lambda error: None,
    ) -> None:
        super().__init__(interval_s=0.5 if often else 1.0)
        self._settings, self._duties, self._often, self._away = settings, duties, often, away
        self._is_between = False
        self._store: Store | None = None

    def run_once(self) -> None:
        """One turn of each."""
        try:
            if self._store is None:
                self._store = open_store(self._settings, create=False)
            for duty in self._often:
                duty.turn(self._store)
            if not self._is_between:
                for duty in self._duties:
                    duty.turn(self._store)
            self._is_between = bool(self._often) and not self._is_between
        except StoreError as error:
            if self._store is not None:
                self._store.close()
                self._store = None
            self._away(error)

    def wake(self) -> None:
        """Take the next turn of every duty now."""
        self._is_between = False
        super().wake()

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            self._guarded(self._leave)

    def _leave(self) -> None:
        """Let each take its leave, and close the connection; here, for it is this thread's."""
        store, self._store = self._store, None
        if store is None:
            return
        try:
            for duty in (*self._often, *self._duties):
                duty.leave(store)
        except StoreError:
            return  # what they hold runs out by itself
        finally:
            store.close()
