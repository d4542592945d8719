"""What is on record beside the job's own row."""

from __future__ import annotations

from typing import Any

from . import fields
from .jobs import SupervisedJob
from .records import Record


def of_job(backref: str) -> Any:
    """The job of a row; the job has its rows as *backref*."""
    return fields.JobField(SupervisedJob, column_name="supervised_job_id", backref=backref, null=True)


class SupervisedJobError(Record):
    """A run that did not complete."""

    job: Any = of_job("errors")
    created_at: Any = fields.time()
    run_id: Any = fields.text()
    attempt: Any = fields.count("which of the job's runs, from 1")
    outcome: Any = fields.text("failed, interrupted, killed or lost")
    worker_id: Any = fields.text()
    thread: Any = fields.text()
    started_at: Any = fields.time()
    ended_at: Any = fields.time()
    exit_cause: Any = fields.text("how its worker ended")
    memory_peak: Any = fields.count("bytes")
    cpu_seconds: Any = fields.number("seconds")
    exception: Any = fields.text("class of the exception")
    message: Any = fields.long_text()
    trace: Any = fields.long_text()
    context: Any = fields.data("file, line, code")


class Heartbeat(Record):
    """A heartbeat that was kept; the latest of all is on the job's row."""

    job: Any = of_job("heartbeats")
    created_at: Any = fields.time()
    run_id: Any = fields.text()
    heartbeat_id: Any = fields.text()
    kind: Any = fields.text("manual, progress or sample")
    memory_usage: Any = fields.count("bytes")
    cpu_usage: Any = fields.number("percent of one core")
    progress_current: Any = fields.number()
    progress_total: Any = fields.number()
    metadata: Any = fields.data()


class ResourceViolation(Record):
    """A limit that was passed, by a job, or by a worker where its jobs cannot be told apart."""

    job: Any = of_job("resource_violations")
    worker_id: Any = fields.text()
    created_at: Any = fields.time()
    run_id: Any = fields.text()
    type: Any = fields.text("memory (bytes), cpu (percent), timeout (seconds), disk (bytes), file_descriptors")
    limit: Any = fields.number("in the unit of its type")
    actual: Any = fields.number("in the unit of its type")
    attribution: Any = fields.text("exact or shared")
    metadata: Any = fields.data()


class JobHealthCheck(Record):
    """What a health check found."""

    job: Any = of_job("health_checks")
    created_at: Any = fields.time()
    run_id: Any = fields.text()
    status: Any = fields.text("healthy, degraded, unhealthy or unknown")
    reason: Any = fields.long_text()
    metadata: Any = fields.data()
