"""Brings commands from the store to the workers of this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..records import Command
from ..store import Store, commands


class Courier:
    """Claims the commands for *targets* and delivers them; a duty of :class:`~dramatiq_chaperone.store.turns.StoreTurns`.

    Parameters:
      targets: the worker_ids to ask for, asked anew each turn.
      deliver: called with each command, once.
    """

    def __init__(self, targets: Callable[[], Sequence[str]], deliver: Callable[[Command], None]) -> None:
        self._targets, self._deliver = targets, deliver

    def turn(self, store: Store) -> None:
        """Claim and deliver what is there."""
        for command in commands.claim(store, self._targets()):
            self._deliver(command)

    def leave(self, store: Store) -> None:
        """Nothing is held: a command that was not claimed waits for another, or expires."""
