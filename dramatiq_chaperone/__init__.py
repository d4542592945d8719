"""Chaperone watches over every Dramatiq job: ``broker.add_middleware(Chaperone())``."""

from __future__ import annotations

from .events import on
from .middleware import Chaperone
from .supervision.actors import SupervisedActor
from .supervision.jobs import Job, JobLogFilter, current_job, heartbeat, report_progress, supervision_id, track
from .supervision.sending import initiated_by

__version__ = "0.1.0"

__all__ = [
    # The one line.
    "Chaperone",
    # Inside a job.
    "Job",
    "current_job",
    "heartbeat",
    "report_progress",
    "supervision_id",
    "track",
    "SupervisedActor",
    "JobLogFilter",
    # Where jobs are sent.
    "initiated_by",
    # Events.
    "on",
]
