"""When the ``with`` blocks around here began: a breaker is one object for all that are inside of it at once."""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic

#: The innermost block: when it began, whose it is, and the one around it.
_Block = tuple[float, object, "_Block | None"]

_blocks: ContextVar[_Block | None] = ContextVar("dramatiq_chaperone_blocks", default=None)


def begin(owner: object) -> None:
    """A block of *owner* begins in this context."""
    _blocks.set((monotonic(), owner, _blocks.get()))


def end(owner: object) -> float | None:
    """The seconds that the innermost block of *owner* took; None where it began in another context."""
    block = _blocks.get()
    if block is not None and block[1] is owner:
        _blocks.set(block[2])
        return monotonic() - block[0]
    inner = []
    while block is not None and block[1] is not owner:  # a generator inside has one that goes on
        inner.append(block)
        block = block[2]
    if block is None:
        return None
    rest = block[2]
    for began, whose, _ in reversed(inner):
        rest = (began, whose, rest)
    _blocks.set(rest)
    return monotonic() - block[0]
