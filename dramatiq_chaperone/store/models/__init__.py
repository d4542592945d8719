"""The tables that users query, as peewee models.

Key type and table names come from the environment or chaperone.toml, once, when this package is first imported; the
database is opened with the first query.  A column's unit is in its ``help_text``; the tables themselves are made by
``migrations``.
"""

from __future__ import annotations

from .binding import bound, current, using
from .breakers import CircuitBreaker
from .deadletters import DeadLetterJob
from .evidence import Heartbeat, JobHealthCheck, ResourceViolation, SupervisedJobError
from .jobs import SupervisedJob
from .records import Record
from .workers import Worker

__all__ = [
    "CircuitBreaker",
    "DeadLetterJob",
    "Heartbeat",
    "JobHealthCheck",
    "Record",
    "ResourceViolation",
    "SupervisedJob",
    "SupervisedJobError",
    "Worker",
    "bound",
    "current",
    "using",
]
