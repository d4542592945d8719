"""Where circuits are kept: in memory, or in the store.  The contract is one atomic operation a step."""

from __future__ import annotations

import random
import secrets
from typing import Final, Protocol

from ...circuits import Altered, Circuit, Operation, Outcome, Permit, Policy, Result, acquire, order, record
from .. import sharing

#: A guarded call waits so long for a storage, in seconds.
WAIT_S: Final = 0.25
#: An operator has more patience.
ORDER_WAIT_S: Final = 5.0


class Storage(Protocol):
    """A keeper of circuits.  Each method is atomic, takes at most 250 ms, never raises, and gives None while it is away."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes have the same circuits."""

    @property
    def clock(self) -> sharing.Clock:
        """The clock that the circuits' times are of."""

    def apply(self, service: str, operation: Operation, *, is_kept: bool, wait_s: float = WAIT_S) -> Altered | None:
        """Take a step.  *is_kept*: while it is away, later.  Nothing is waited for longer than *wait_s*."""

    def read(self, service: str) -> Circuit | None:
        """The circuit, None where there is none."""


def record_outcome(storage: Storage, service: str, policy: Policy, outcome: Outcome) -> Altered | None:
    """A call has ended."""
    chance = random.random()
    # How a trial ends is waited for: its permit holds up others.
    is_kept = outcome.permit is not None or outcome.result is Result.FAILURE
    return storage.apply(service, lambda circuit, now: record(circuit, policy, outcome, now, chance), is_kept=is_kept)


def acquire_permit(storage: Storage, service: str, policy: Policy) -> Altered | None:
    """A call asks to be let through."""
    permit_id = secrets.token_hex(8)
    return storage.apply(service, lambda circuit, now: acquire(circuit, policy, permit_id, now), is_kept=False)


def release_permit(storage: Storage, service: str, policy: Policy, permit: Permit) -> Altered | None:
    """A trial has ended, and says nothing."""
    return record_outcome(storage, service, policy, Outcome(Result.NEITHER, permit))


def give_order(storage: Storage, service: str, policy: Policy, what: str) -> Altered | None:
    """An operator wants it so."""
    return storage.apply(service, lambda circuit, now: order(circuit, policy, what, now), is_kept=True, wait_s=ORDER_WAIT_S)
