"""The tables as peewee models, for queries of your own: ``SupervisedJob.failed().where(SupervisedJob.queue == "mail")``.

They read the store that the environment or chaperone.toml names, or inside of ``with using(url):`` another.  See
docs/querying.md.
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
    using,
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
    "using",
]
