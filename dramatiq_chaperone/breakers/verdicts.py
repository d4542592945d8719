"""What an exception, or a returned value, says about the service."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import pybreaker
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import SkipMessage

from ..circuits import ERROR_WIDTH, Result
from ..service import internal_error

#: A class of exceptions (an ABC too), or a function that says whether it is meant.
Rule = type[Any] | Callable[[Any], object]

#: Of a block, or a generator: nothing is returned that could be judged.
NO_VALUE: Final = object()
#: They speak of the job, or of another breaker.  Interrupts, KeyboardInterrupt, SystemExit, GeneratorExit and
#: asyncio's CancelledError are no Exceptions, and none of them counts either.
_NOT_OF_THE_SERVICE: Final = (Retry, RateLimitExceeded, SkipMessage, pybreaker.CircuitBreakerError)


class Verdicts(NamedTuple):
    """The rules of one breaker.

    Attributes:
      ignore: what is neither success nor failure; it goes before *record*.
      record: what is a failure; None: every Exception.  With it, any other Exception is a success.
      record_result: says whether a returned value is a failure.
    """

    ignore: tuple[Rule, ...] = ()
    record: tuple[Rule, ...] | None = None
    record_result: Callable[[Any], object] | None = None

    def of_error(self, error: BaseException) -> Result:
        """What *error* says."""
        if any(_is_meant(rule, error) for rule in self.ignore):
            return Result.NEITHER
        is_of_the_service = isinstance(error, Exception) and not isinstance(error, _NOT_OF_THE_SERVICE)
        # A function that leaves out what it knows would take a deploy for a failure; a class is meant as it stands.
        asked = [rule for rule in self.record or () if is_of_the_service or isinstance(rule, type)]
        if any(_is_meant(rule, error) for rule in asked):
            return Result.FAILURE
        if not is_of_the_service:
            return Result.NEITHER
        return Result.FAILURE if self.record is None else Result.SUCCESS

    def of_value(self, value: object) -> Result:
        """What a returned value says."""
        if self.record_result is None or value is NO_VALUE:
            return Result.SUCCESS
        try:
            return Result.FAILURE if self.record_result(value) else Result.SUCCESS
        except Exception as error:  # noqa: BLE001 - the call went well, whatever the judge did
            internal_error("breakers", error)
            return Result.SUCCESS


def rules(given: Iterable[Rule] | Rule) -> tuple[Rule, ...]:
    """One rule, or several.  Raises TypeError."""
    found = (given,) if isinstance(given, type) or callable(given) else tuple(given)
    for rule in found:
        if not (isinstance(rule, ABCMeta) or issubclass(rule, BaseException) if isinstance(rule, type) else callable(rule)):
            raise TypeError(f"{rule!r} is neither a class of exceptions nor a function that is asked about one")
    return found


def said(error: BaseException) -> str:
    """Class and message."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - whatever __str__ of a user's class raises
        text = ""
    return f"{type(error).__name__}: {text}"[:ERROR_WIDTH] if text else type(error).__name__


def _is_meant(rule: Rule, error: BaseException) -> bool:
    if isinstance(rule, type):
        return isinstance(error, rule)
    try:
        return bool(rule(error))
    except Exception as problem:  # noqa: BLE001 - the guarded call's own error is what the caller must see
        internal_error("breakers", problem)
        return False
