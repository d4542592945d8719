"""What the jobs of a worker need of the breakers; supervision gets it passed in."""

from __future__ import annotations

from collections.abc import Sequence

from ..circuits import FORCED_OPEN, OPEN
from . import permits
from .errors import BreakerOpen
from .permits import Held
from .registry import breaker, registry


def prepare(services: Sequence[str]) -> None:
    """Jobs of this process will need them: how they stand is known here from now on, if the store answers within 250 ms."""
    found = [breaker(service) for service in services]
    if any(each.policy and each.is_shared for each in found):  # its policy makes up each one's mind where it is kept
        registry().prepare()


def wait_s(service: str) -> float:
    """Seconds until a job may be let through, as far as is known without asking; 0: now, or it has to be asked for."""
    return breaker(service).wait_s()


def is_open(service: str) -> bool:
    """Whether no call is let through, not even a trial."""
    state = breaker(service).status
    return state.mode == FORCED_OPEN or (state.mode == "auto" and state.state == OPEN)


def admit(service: str) -> Held | float:
    """Let a job through, or say in how many seconds it may ask again.  At most one question to the storage, of 250 ms."""
    try:
        return breaker(service).admit_job()
    except BreakerOpen as error:
        return error.retry_after


def dismiss(held: Sequence[Held]) -> None:
    """The job did not run after all."""
    for each in held:
        breaker(each.service).dismiss(each)


def hold(held: Sequence[Held]) -> None:
    """The job begins, in this context."""
    for each in held:
        permits.push(each)


def carry(held: Sequence[Held]) -> None:
    """The job goes on in this process, in this context, with what it has brought along; :func:`hold` was called in another one."""
    for each in held:
        breaker(each.service).carry(each)
    hold(held)


def settle(held: Sequence[Held], error: BaseException | None) -> None:
    """It has ended, in the same context."""
    for each in held:
        permits.pop(each)
    for each in held:
        breaker(each.service).settle(each, error)
