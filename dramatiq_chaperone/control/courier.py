"""Brings commands from the store to the workers of this host."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from ..records import Command
from ..store import Store, commands

#: Commands for the fleet that are taken in one turn, at most: each may name many jobs, and a control block is small.
FLEET_PER_TURN: Final = 2


class Courier:
    """Claims the commands for *targets* and delivers them; a duty of :class:`~dramatiq_chaperone.store.turns.StoreTurns`.

    Parameters:
      targets: the worker_ids to ask for, asked anew each turn.
      deliver: called with each command, once.
      living: the workers among them that can carry out what is for the fleet; by default all.
    """

    def __init__(
        self, targets: Callable[[], Sequence[str]], deliver: Callable[[Command], None], *, living: Callable[[], Sequence[str]] | None = None
    ) -> None:
        self._targets, self._deliver = targets, deliver
        self._living = living or targets

    def turn(self, store: Store) -> None:
        """Claim and deliver what is there."""
        for command in commands.claim(store, self._targets()):
            self._deliver(command)
        for command in commands.claim_for_fleet(store, self._living(), limit=FLEET_PER_TURN, choose=random.choice):
            self._deliver(command)

    def leave(self, store: Store) -> None:
        """Nothing is held: a command that was not claimed waits for another, or expires."""
