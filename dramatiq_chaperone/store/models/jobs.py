"""Jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ...errors import CommandRefused
from .. import audit, commands
from ..queries import FINAL
from . import fields
from .binding import current
from .records import Record, Scope, in_status

if TYPE_CHECKING:
    from .workers import Worker


class SupervisedJob(Record):
    """A job: one row for each message."""

    job_id: Any = fields.unique("Dramatiq's message_id")
    created_at: Any = fields.time("when the job was first heard of")
    updated_at: Any = fields.time("the latest report")
    actor_name: Any = fields.text()
    queue: Any = fields.text()
    broker: Any = fields.text("class of the broker")
    priority: Any = fields.count("of the actor; lower runs first")
    enqueued_at: Any = fields.time("when the message was made")
    payload: Any = fields.data("args, kwargs, options; redacted")
    payload_complete: Any = fields.flag("whether the payload can be sent again")
    initiator_type: Any = fields.text()
    initiator_id: Any = fields.text()
    parent_job_id: Any = fields.text("job_id of the job that sent it")
    tenant: Any = fields.text()
    status: Any = fields.text("pending, running, stalled, lost, completed, failed, cancelled or skipped")
    attempt: Any = fields.count("runs, counted from 1", default=0)
    retries: Any = fields.count("retries that the message carries", default=0)
    deliveries: Any = fields.count("how often a worker got it", default=0)
    crashes: Any = fields.count("runs that were lost with their worker", default=0)
    completed_at: Any = fields.time("when it was completed, or skipped")
    failed_at: Any = fields.time("when it failed for good, or was cancelled")
    retry_at: Any = fields.time("when the next retry is due")
    eta: Any = fields.time("not before")
    waiting_for: Any = fields.text("what it waits for, in words, where it was put off")
    run_id: Any = fields.text("of the latest run")
    started_at: Any = fields.time("of the latest run")
    ended_at: Any = fields.time("of the latest run")
    timeout_at: Any = fields.time("of the latest run")
    heartbeat_interval: Any = fields.number("seconds")
    missed_heartbeats: Any = fields.count()
    last_heartbeat_at: Any = fields.time("the job's own: a heartbeat or progress, no sample")
    sampled_at: Any = fields.time("when the sampler last looked")
    limits: Any = fields.data("the limits that were set for it")
    worker_id: Any = fields.text("of the latest run")
    thread: Any = fields.text("of the latest run")
    memory_usage: Any = fields.count("bytes")
    memory_peak: Any = fields.count("bytes")
    memory_attribution: Any = fields.text("exact: the job's alone; shared: its process's")
    cpu_usage: Any = fields.number("percent of one core")
    cpu_seconds: Any = fields.number("seconds")
    progress: Any = fields.number("percent, 0 to 100")
    progress_current: Any = fields.number()
    progress_total: Any = fields.number()
    phase: Any = fields.text()
    health: Any = fields.text("healthy, degraded, unhealthy or unknown")
    metadata: Any = fields.data("of the last heartbeat")

    pending: Any = in_status("Jobs that wait, also for a retry.", "pending")
    running: Any = in_status("Jobs that run, stuck ones too.", "running", "stalled")
    completed: Any = in_status("Jobs that ended well.", "completed")
    failed: Any = in_status("Jobs that failed for good.", "failed")
    healthy: Any = Scope(
        "Running jobs that nothing speaks against.",
        lambda job: (job.status == "running") & (job.health.is_null() | job.health.not_in(("degraded", "unhealthy"))),
        lambda job: job.status == "running" and job.health not in {"degraded", "unhealthy"},
    )
    degraded: Any = Scope(
        "Running jobs that come near a limit.",
        lambda job: (job.status == "running") & (job.health == "degraded"),
        lambda job: job.status == "running" and job.health == "degraded",
    )
    unhealthy: Any = Scope(
        "Running jobs that are past a limit, or stuck.",
        lambda job: (job.status == "stalled") | ((job.status == "running") & (job.health == "unhealthy")),
        lambda job: job.status == "stalled" or (job.status == "running" and job.health == "unhealthy"),
    )

    @classmethod
    def with_status(cls, *statuses: str) -> Any:
        """Jobs in one of these states."""
        return cls.select().where(cls.status.in_(statuses))

    @classmethod
    def on_queue(cls, queue: str) -> Any:
        """Jobs of this queue."""
        return cls.select().where(cls.queue == queue)

    @classmethod
    def recent(cls, limit: int = 100) -> Any:
        """The newest jobs, newest first, at most *limit*."""
        return cls.select().order_by(cls.created_at.desc(), cls.id.desc()).limit(limit)

    @classmethod
    def today(cls, now: datetime | None = None) -> Any:
        """Jobs whose latest run started today (UTC)."""
        midnight = (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        # The index is on created_at, and a job that starts today was hardly sent more than a month ago.
        return cls.select().where((cls.created_at >= midnight - timedelta(days=30)) & (cls.started_at >= midnight))

    @property
    def job_class(self) -> str | None:
        """The actor's name."""
        return self.actor_name  # type: ignore[no-any-return]  # columns are Any

    @property
    def duration(self) -> float | None:
        """Seconds of the latest run, until now if it runs; None before it starts."""
        if self.started_at is None:
            return None
        end = self.ended_at or (datetime.now(UTC) if self.is_running() else self.completed_at or self.failed_at or self.updated_at)
        return max(0.0, float((end - self.started_at).total_seconds()))

    @property
    def queue_wait(self) -> float | None:
        """Seconds that the latest run waited since it was due; None before it starts."""
        due = max((at for at in (self.enqueued_at, self.eta) if at is not None), default=None)
        if self.started_at is None or due is None:
            return None
        return max(0.0, float((self.started_at - due).total_seconds()))

    @property
    def worker(self) -> Worker | None:
        """The worker of the latest run; None before it starts, and when the worker is not on record any more."""
        from .workers import Worker

        return None if self.worker_id is None else Worker.get_or_none(Worker.worker_id == self.worker_id)

    def get_duration(self) -> float | None:
        """:attr:`duration`."""
        return self.duration

    def get_job_class(self) -> str | None:
        """:attr:`job_class`."""
        return self.job_class

    def is_pending(self) -> bool:
        """Whether it waits, also for a retry."""
        return self.status == "pending"  # type: ignore[no-any-return]  # columns are Any

    def is_running(self) -> bool:
        """Whether it runs now, stuck or not."""
        return self.status in {"running", "stalled"}

    def is_completed(self) -> bool:
        """Whether it ended well."""
        return self.status == "completed"  # type: ignore[no-any-return]  # columns are Any

    def is_failed(self) -> bool:
        """Whether it failed for good."""
        return self.status == "failed"  # type: ignore[no-any-return]  # columns are Any

    def is_final(self) -> bool:
        """Whether it has ended for good."""
        return self.status in FINAL

    def is_healthy(self) -> bool:
        """Whether nothing speaks against it, in any state; :attr:`healthy` asks of running jobs only."""
        return self.health not in {"degraded", "unhealthy"} and self.status not in {"stalled", "lost", "failed"}

    def is_degraded(self) -> bool:
        """Whether it runs, and comes near a limit."""
        return bool(self.degraded())

    def is_unhealthy(self) -> bool:
        """Whether it runs, and is past a limit or stuck."""
        return bool(self.unhealthy())

    def is_stuck(self) -> bool:
        """Whether it runs, and does not move."""
        return self.status == "stalled"  # type: ignore[no-any-return]  # columns are Any

    def kill(self, *, issued_by: str = "models", reason: str = "", force: bool = False) -> str:
        """Ask the job's worker to end it for good: it is cancelled, dead-lettered, and not retried.

        The job is told, then interrupted; where it ignores that for ``kill_grace``, its worker process ends, if that can be
        replaced and runs nothing else.  Each step is an event of the job.  The command expires after a minute.  What becomes
        of it is its row in the table ``commands``; that somebody asked is in ``audit_log``.

        Parameters:
          issued_by: who asks, for the record.
          reason: why, in words, for the record.
          force: end the worker process also where other jobs run in it, which are lost and run again, or where nothing is
            known to start another.

        Returns the id of the command.

        Raises:
          CommandRefused: the job does not run, by this row.
          StoreUnavailable, SchemaError: the command could not be written.
        """
        if not self.is_running() or self.worker_id is None:
            raise CommandRefused(f"Job {self.job_id} is {self.status}; only a running one can be killed.")
        key = commands.kill(current(), self.job_id, self.worker_id, by=issued_by, reason=reason, force=force)
        audit.begin(current(), who=issued_by, what="kill", target=self.job_id, origin="models", result=f"command {key} is on its way")
        return key

    def retry(self, *, issued_by: str = "models") -> str:
        """Ask the fleet to send the job's message again, as a new job; once: its dead letter says as which.

        Any worker that has the actor carries it out, within an hour.

        Parameters:
          issued_by: who asks, for the record.

        Returns the id of the command.

        Raises:
          CommandRefused: the job has neither failed nor been cancelled, by this row.
          StoreUnavailable, SchemaError: the command could not be written.
        """
        if self.status not in {"failed", "cancelled"}:
            raise CommandRefused(f"Job {self.job_id} is {self.status}; only one that has failed or was cancelled can be sent again.")
        arguments = {"job_id": self.job_id, "queue": self.queue, "by": issued_by, "origin": "models"}
        return commands.issue(current(), commands.FLEET, "retry", arguments, issued_by=issued_by, seconds=commands.RETRY_S)
