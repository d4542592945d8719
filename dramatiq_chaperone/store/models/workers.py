"""Worker processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from . import fields
from .jobs import SupervisedJob
from .records import Record, in_status

#: Neither stopped nor lost.
_LIVE: Final = ("running", "paused")


class Worker(Record):
    """A worker process."""

    worker_id: Any = fields.unique()
    created_at: Any = fields.time()
    updated_at: Any = fields.time()
    host: Any = fields.text()
    host_identity: Any = fields.text("boot id and pid namespace")
    pid: Any = fields.count()
    process_started_at: Any = fields.time()
    pool: Any = fields.text()
    supervisor: Any = fields.text()
    broker: Any = fields.text()
    broker_id: Any = fields.text()
    queues: Any = fields.long_text("JSON list")
    threads: Any = fields.count()
    status: Any = fields.text("running, paused, stopped or lost")
    started_at: Any = fields.time()
    beat: Any = fields.count("grows with each of its own heartbeats", default=0)
    last_heartbeat_at: Any = fields.time("of the process, not of its jobs")
    stopped_at: Any = fields.time()
    rss: Any = fields.count("bytes")
    cpu: Any = fields.number("percent of one core")
    jobs_processed: Any = fields.count(default=0)
    jobs_failed: Any = fields.count(default=0)
    exit_code: Any = fields.count()
    exit_cause: Any = fields.text()
    gauges: Any = fields.data("The process's other readings: open files, children, what sampling costs, errors of Chaperone itself.")
    versions: Any = fields.long_text("JSON object")

    running: Any = in_status("Workers that have neither stopped nor been lost.", *_LIVE)

    @classmethod
    def with_status(cls, *statuses: str) -> Any:
        """Workers in one of these states."""
        return cls.select().where(cls.status.in_(statuses))

    @classmethod
    def for_supervisor(cls, supervisor: str) -> Any:
        """Workers of this supervisor."""
        return cls.select().where(cls.supervisor == supervisor)

    @classmethod
    def stale(cls, seconds: float = 30) -> Any:
        """Workers that should run and have been silent for longer than *seconds*, by this machine's clock."""
        due = datetime.now(UTC) - timedelta(seconds=seconds)
        return cls.running().where(cls.last_heartbeat_at.is_null() | (cls.last_heartbeat_at < due))

    @property
    def jobs(self) -> Any:
        """The jobs whose latest run is, or was, here."""
        return SupervisedJob.select().where(SupervisedJob.worker_id == self.worker_id)

    def is_running(self) -> bool:
        """Whether it takes jobs."""
        return self.status == "running"  # type: ignore[no-any-return]  # columns are Any

    def is_paused(self) -> bool:
        """Whether it lives and takes no jobs."""
        return self.status == "paused"  # type: ignore[no-any-return]  # columns are Any

    def is_stopped(self) -> bool:
        """Whether it is gone, by a stop or by its death."""
        return self.status in {"stopped", "lost"}

    def is_healthy(self, seconds: float = 30) -> bool:
        """Whether it should run, and was heard of in the last *seconds*, by this machine's clock."""
        if self.status not in _LIVE or self.last_heartbeat_at is None:
            return False
        return bool(self.last_heartbeat_at >= datetime.now(UTC) - timedelta(seconds=seconds))

    def get_uptime(self) -> float | None:
        """Seconds since it started, until it stopped or was last heard of where it is gone; None before it starts."""
        if self.started_at is None:
            return None
        end = datetime.now(UTC) if self.status in _LIVE else self.stopped_at or self.last_heartbeat_at or self.updated_at
        return max(0.0, float((end - self.started_at).total_seconds()))

    def get_jobs_processed_count(self) -> int:
        """Runs that have ended here."""
        return int(self.jobs_processed or 0)

    def get_jobs_failed_count(self) -> int:
        """Those of them that did not succeed."""
        return int(self.jobs_failed or 0)
