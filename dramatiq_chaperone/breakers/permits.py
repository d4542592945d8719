"""What a call or job holds of a breaker, passed on through the context: a guard inside does not take another permit."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..circuits import Permit, Result


class Held:
    """A permit, in the hands of one call or job.

    Attributes:
      permit: None for a job that was let through freely; it only hears what the guards inside of it see.
      result, error: what the guards inside of it saw, None while there was none; a failure stays.
    """

    __slots__ = ("_is_over", "_lock", "_pid", "error", "permit", "result", "service")

    def __init__(self, service: str, permit: Permit | None) -> None:
        self.service, self.permit = service, permit
        self.result: Result | None = None
        self.error: str | None = None
        self._pid = os.getpid()
        self._is_over = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Held], tuple[str, Permit | None]]:
        """Sent on to another process, it is held there too, until that ends; what guards see of it there has to be told."""
        return type(self), (self.service, self.permit)

    def end(self) -> bool:
        """Whether it is up to the caller to tell of its end: once, and not in a fork."""
        with self._lock:
            is_over, self._is_over = self._is_over, True
        return not is_over and self.is_ours

    @property
    def is_ours(self) -> bool:
        """Whether it is of this process, not of one that has forked it."""
        return self._pid == os.getpid()

    def note(self, result: Result, error: str | None) -> None:
        """A guard inside has ended so."""
        if result is not Result.NEITHER and self.result is not Result.FAILURE:
            self.result, self.error = result, error


_held: ContextVar[tuple[Held, ...]] = ContextVar("dramatiq_chaperone_permits", default=())


def find(service: str) -> Held | None:
    """The permit for *service* that is held around here."""
    for held in reversed(_held.get()):
        if held.service == service and held.permit is not None and held.is_ours:
            return held
    return None


def tell(service: str, result: Result, error: str | None) -> None:
    """A guard of *service* has ended so: the job around it, if it needs the service and has no permit, hears of it."""
    for held in _held.get():
        if held.service == service and held.permit is None:
            held.note(result, error)


def depth(held: Held) -> int:
    """How many hold it, one inside of the other."""
    return sum(each is held for each in _held.get())


def push(held: Held) -> None:
    """From here on it is held, in this context, until :func:`pop`."""
    _held.set((*_held.get(), held))


def pop(held: Held) -> None:
    """The last one of it is held no longer."""
    stack = _held.get()
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is held:
            _held.set(stack[:place] + stack[place + 1 :])
            return


@contextmanager
def holding(held: Held) -> Iterator[Held]:
    """Hold it inside of a ``with`` block."""
    push(held)
    try:
        yield held
    finally:
        pop(held)
