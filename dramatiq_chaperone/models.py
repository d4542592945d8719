"""The tables as peewee models, for queries of your own: ``SupervisedJob.failed().where(SupervisedJob.queue == "mail")``.

They read the store that the environment or chaperone.toml names; see :mod:`.store.models`.
"""

from __future__ import annotations

from .store.models import (
    CircuitBreaker,
    DeadLetterJob,
    Heartbeat,
    JobHealthCheck,
    ResourceViolation,
    SupervisedJob,
    SupervisedJobError,
    Worker,
)

__all__ = [
    "CircuitBreaker",
    "DeadLetterJob",
    "Heartbeat",
    "JobHealthCheck",
    "ResourceViolation",
    "SupervisedJob",
    "SupervisedJobError",
    "Worker",
]
