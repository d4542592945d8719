"""Every error that Chaperone raises, above one root.

The first sentence of a class's docstring is its default message; what a caller may want to act on travels as attributes.
Some stand elsewhere on purpose: ``BreakerOpen`` is a pybreaker class; :class:`JobCancelled` and what ends a job at a limit
are Interrupts, for ``except Exception`` in an actor must not swallow them.
"""

from __future__ import annotations

from typing import Any

from dramatiq.middleware import MiddlewareError, TimeLimitExceeded
from dramatiq.threading import Interrupt


class ChaperoneError(Exception):
    """Chaperone could not do what it was asked to."""

    def __init__(self, message: str | None = None, **data: Any) -> None:
        super().__init__(message or " ".join((self.__doc__ or "").partition("\n\n")[0].split()))
        self.__dict__.update(data)


class SettingsError(ChaperoneError, MiddlewareError):
    """A setting is not valid.

    It is a dramatiq MiddlewareError too: anything else that a hook raises is logged and swallowed there.

    Attributes:
      field: the name of the setting, as an argument of ``Chaperone(...)``; None where no single one is to blame.
      value: the value that was refused, ``'***'`` where it is a secret.
      origin: where the value came from, for example ``'environment CHAPERONE_TIMEOUT'``.
    """

    field: str | None = None
    value: object = None
    origin: str | None = None


class StoreError(ChaperoneError):
    """The store could not be read or written."""


class StoreUnavailable(StoreError):
    """The store cannot be reached now; what waits in the journal is written when it is back."""


class SchemaError(StoreError):
    """The tables of the store are missing or of another version; run `chaperone db upgrade`.

    Attributes:
      found: the version of the tables, None if there are none.
      wanted: the version that this release needs.
    """

    found: int | None = None
    wanted: int | None = None


class JournalError(ChaperoneError):
    """The journal cannot be written or read."""


class CommandRefused(ChaperoneError):
    """The worker does not know this command, or cannot carry it out."""


class JobProcessDied(ChaperoneError):
    """The process of an isolated job died before it could report.

    Attributes:
      exit_code: negative for a signal, None where it is not known.
      exit_cause: in words, for example ``'SIGKILL (out of memory)'``; ``'unknown'`` where it is not known.
    """

    exit_code: int | None = None
    exit_cause: str = "unknown"


class JobCancelled(Interrupt):
    """The job was cancelled: an operator has ended it, and it is not retried."""


class JobRequeued(Interrupt):
    """The run was ended by an operator, for its message to run again."""


class LimitExceeded(Interrupt):
    """The job is past a limit that ends it; Retries decides whether it runs again."""


class MemoryLimitExceeded(LimitExceeded):
    """The job uses more memory than its memory_limit."""


class CpuLimitExceeded(LimitExceeded):
    """The job uses more CPU than its cpu_limit."""


class HeartbeatsMissed(LimitExceeded):
    """The job is stuck: it has missed the heartbeats that it promised."""


class TimeoutExceeded(TimeLimitExceeded):
    """The job runs longer than its timeout."""
