"""Brings commands from the store to the workers of this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import StoreError
from ..records import Command
from ..service import Service
from ..store import commands, open_store

if TYPE_CHECKING:
    from ..settings import Settings
    from ..store import Store


class Courier(Service):
    """Claims the commands for *targets* once a second, and delivers them.

    Parameters:
      targets: the worker_ids to ask for, asked anew each turn.
      deliver: called with each command, once.
    """

    name = "commands"

    def __init__(self, settings: Settings, targets: Callable[[], Sequence[str]], deliver: Callable[[Command], None]) -> None:
        super().__init__(interval_s=1.0)
        self._settings, self._targets, self._deliver = settings, targets, deliver
        self._store: Store | None = None

    def run_once(self) -> None:
        """One turn; a store that is away is the writer's to report."""
        targets = self._targets()
        if not targets:
            return
        try:
            if self._store is None:
                self._store = open_store(self._settings, create=False)
            found = commands.claim(self._store, targets)
        except StoreError:
            self._store = None
            return
        for command in found:
            self._deliver(command)

    def drain(self) -> None:
        """Close the connection."""
        if self._store is not None:
            self._store.close()
            self._store = None
