"""The tables that users query, as peewee models.

Key type and table names come from the environment or chaperone.toml, once, when this module is first imported; the
database is opened with the first query.  A column's unit is in its ``help_text``; the tables themselves are made by
``migrations``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import peewee

from ..settings import Settings
from . import Store, open_store
from .queries import FINAL, aware

if TYPE_CHECKING:
    from uuid import UUID

_settings: Final = Settings.load()


_store: Store | None = None


def _opened() -> Store:
    global _store
    if _store is None:
        _store = open_store(_settings, create=False)
    return _store


class _StoreProxy(peewee.DatabaseProxy):
    """The database of the store, in whatever process this is; opened when first used."""

    __slots__ = ()

    def __init__(self) -> None:
        object.__setattr__(self, "_callbacks", [])  # peewee's own also sets obj, which is a property here

    @property
    def obj(self) -> peewee.Database:
        """What peewee passes everything on to."""
        return _opened().database


_proxy: Final = _StoreProxy()


def bind(store: Store) -> None:
    """Let the models read this store instead of the one of the environment; its key type must be the same."""
    global _store
    _store = store
    for model in _Record.__subclasses__():
        model._meta.set_table_name(store.names[_TABLES[model.__name__]])


_TABLES: Final = {
    "SupervisedJob": "supervised_jobs",
    "SupervisedJobError": "supervised_job_errors",
    "Heartbeat": "heartbeats",
    "ResourceViolation": "resource_violations",
    "JobHealthCheck": "job_health_checks",
    "CircuitBreaker": "circuit_breakers",
    "DeadLetterJob": "dead_letter_jobs",
    "Worker": "workers",
}


class TimeField(peewee.Field):
    """A time: an aware datetime in UTC."""

    field_type = "DATETIME"

    def db_value(self, value: Any) -> Any:
        """What stands in the column.  A naive datetime is taken as UTC."""
        moment = aware(value)
        if moment is None:
            return None
        kind = _opened().kind
        if kind == "sqlite":
            return moment.strftime("%Y-%m-%d %H:%M:%S.%f+00:00")
        return moment if kind == "postgres" else moment.replace(tzinfo=None)

    def python_value(self, value: Any) -> datetime | None:
        """What Python sees."""
        return aware(value)


class JSONField(peewee.Field):
    """A JSON column: Python values."""

    field_type = "TEXT"

    def db_value(self, value: Any) -> str | None:
        """What stands in the column."""
        return None if value is None else json.dumps(value)

    def python_value(self, value: Any) -> Any:
        """What Python sees."""
        return json.loads(value) if isinstance(value, str) else value


class KeyField(peewee.CharField):
    """A ULID or UUID key, as text."""

    def python_value(self, value: str | UUID | None) -> str | None:
        """What Python sees."""
        return None if value is None else str(value)


def _time(help_: str = "") -> Any:
    return TimeField(null=True, help_text=help_)


def _text(help_: str = "") -> Any:
    return peewee.CharField(null=True, help_text=help_)


def _count(help_: str = "") -> Any:
    return peewee.BigIntegerField(null=True, help_text=help_)


def _number(help_: str = "") -> Any:
    return peewee.DoubleField(null=True, help_text=help_)


def _json(help_: str = "") -> Any:
    return JSONField(null=True, help_text=help_)


def _table_name(model: type[peewee.Model]) -> str:
    return _settings.table_names[_TABLES[model.__name__]] if model.__name__ in _TABLES else "none"


class _Record(peewee.Model):
    id: Any = peewee.BigAutoField() if _settings.primary_key_type == "id" else KeyField(primary_key=True)

    class Meta:
        database = _proxy
        table_function = _table_name


class SupervisedJob(_Record):
    """A job: one row for each message."""

    job_id: Any = peewee.CharField(unique=True, help_text="Dramatiq's message_id")
    created_at: Any = _time("when the job was first heard of")
    updated_at: Any = _time("the latest report")
    actor_name: Any = _text()
    queue: Any = _text()
    broker: Any = _text("class of the broker")
    priority: Any = _count("of the actor; lower runs first")
    enqueued_at: Any = _time("when the message was made")
    payload: Any = _json("args, kwargs, options; redacted")
    payload_complete: Any = peewee.BooleanField(null=True, help_text="whether the payload can be sent again")
    initiator_type: Any = _text()
    initiator_id: Any = _text()
    parent_job_id: Any = _text("job_id of the job that sent it")
    tenant: Any = _text()
    status: Any = peewee.CharField(help_text="pending, running, stalled, lost, completed, failed, cancelled or skipped")
    attempt: Any = peewee.BigIntegerField(default=0, help_text="runs, counted from 1")
    retries: Any = peewee.BigIntegerField(default=0, help_text="retries that the message carries")
    deliveries: Any = peewee.BigIntegerField(default=0, help_text="how often a worker got it")
    crashes: Any = peewee.BigIntegerField(default=0, help_text="runs that were lost with their worker")
    completed_at: Any = _time("when it was completed, or skipped")
    failed_at: Any = _time("when it failed for good, or was cancelled")
    retry_at: Any = _time("when the next retry is due")
    eta: Any = _time("not before")
    run_id: Any = _text("of the latest run")
    started_at: Any = _time("of the latest run")
    ended_at: Any = _time("of the latest run")
    timeout_at: Any = _time("of the latest run")
    heartbeat_interval: Any = _number("seconds")
    missed_heartbeats: Any = _count()
    last_heartbeat_at: Any = _time("the job's own: a heartbeat or progress, no sample")
    sampled_at: Any = _time("when the sampler last looked")
    limits: Any = _json("the limits that were set for it")
    worker_id: Any = _text("of the latest run")
    thread: Any = _text("of the latest run")
    memory_usage: Any = _count("bytes")
    memory_peak: Any = _count("bytes")
    memory_attribution: Any = _text("exact: the job's alone; shared: its process's")
    cpu_usage: Any = _number("percent of one core")
    cpu_seconds: Any = _number("seconds")
    progress: Any = _number("percent, 0 to 100")
    progress_current: Any = _number()
    progress_total: Any = _number()
    phase: Any = _text()
    health: Any = _text("healthy, degraded, unhealthy or unknown")
    metadata: Any = _json("of the last heartbeat")

    @classmethod
    def in_status(cls, *statuses: str) -> Any:
        """Jobs in one of these states."""
        return cls.select().where(cls.status.in_(statuses))

    @classmethod
    def pending(cls) -> Any:
        """Jobs that wait, also for a retry."""
        return cls.in_status("pending")

    @classmethod
    def running(cls) -> Any:
        """Jobs that run, stuck ones too."""
        return cls.in_status("running", "stalled")

    @classmethod
    def completed(cls) -> Any:
        """Jobs that ended well."""
        return cls.in_status("completed")

    @classmethod
    def failed(cls) -> Any:
        """Jobs that failed for good."""
        return cls.in_status("failed")

    @classmethod
    def today(cls, now: datetime | None = None) -> Any:
        """Jobs whose latest run started today (UTC)."""
        midnight = (now or datetime.now(UTC)).replace(hour=0, minute=0, second=0, microsecond=0)
        # The index is on created_at, and a job that starts today was hardly sent more than a month ago.
        return cls.select().where((cls.created_at >= midnight - timedelta(days=30)) & (cls.started_at >= midnight))

    @classmethod
    def healthy(cls) -> Any:
        """Running jobs that nothing speaks against."""
        return cls.running().where(cls.health == "healthy")

    @classmethod
    def degraded(cls) -> Any:
        """Running jobs that come near a limit."""
        return cls.running().where(cls.health == "degraded")

    @classmethod
    def unhealthy(cls) -> Any:
        """Running jobs that are past a limit, or stuck."""
        return cls.running().where(cls.health == "unhealthy")

    @property
    def job_class(self) -> str | None:
        """The actor's name."""
        return self.actor_name  # type: ignore[no-any-return]

    @property
    def duration(self) -> float | None:
        """Seconds of the latest run, until now if it runs; None before it starts."""
        if self.started_at is None:
            return None
        end = self.ended_at or (datetime.now(UTC) if self.is_running else self.completed_at or self.failed_at or self.updated_at)
        return max(0.0, float((end - self.started_at).total_seconds()))

    @property
    def queue_wait(self) -> float | None:
        """Seconds that the latest run waited since it was due; None before it starts."""
        due = max((at for at in (self.enqueued_at, self.eta) if at is not None), default=None)
        if self.started_at is None or due is None:
            return None
        return max(0.0, float((self.started_at - due).total_seconds()))

    @property
    def is_running(self) -> bool:
        """Whether it runs now."""
        return self.status in {"running", "stalled"}

    @property
    def is_healthy(self) -> bool:
        """Whether nothing speaks against it."""
        return self.health not in {"degraded", "unhealthy"} and self.status not in {"stalled", "lost", "failed"}

    @property
    def is_final(self) -> bool:
        """Whether it has ended for good."""
        return self.status in FINAL

    @property
    def is_completed(self) -> bool:
        """Whether it ended well."""
        return self.status == "completed"  # type: ignore[no-any-return]

    @property
    def is_failed(self) -> bool:
        """Whether it failed for good."""
        return self.status == "failed"  # type: ignore[no-any-return]


def _job(backref: str) -> Any:
    return peewee.ForeignKeyField(SupervisedJob, column_name="supervised_job_id", backref=backref, null=True)


class SupervisedJobError(_Record):
    """A run that did not complete."""

    job: Any = _job("errors")
    created_at: Any = _time()
    run_id: Any = _text()
    attempt: Any = _count("which of the job's runs, from 1")
    outcome: Any = _text("failed, interrupted, killed or lost")
    worker_id: Any = _text()
    thread: Any = _text()
    started_at: Any = _time()
    ended_at: Any = _time()
    exit_cause: Any = _text("how its worker ended")
    memory_peak: Any = _count("bytes")
    cpu_seconds: Any = _number("seconds")
    exception: Any = _text("class of the exception")
    message: Any = peewee.TextField(null=True)
    trace: Any = peewee.TextField(null=True)
    context: Any = _json("file, line, code")


class Heartbeat(_Record):
    """A heartbeat that was kept; the latest of all is on the job's row."""

    job: Any = _job("heartbeats")
    created_at: Any = _time()
    run_id: Any = _text()
    heartbeat_id: Any = _text()
    kind: Any = _text("manual, progress or sample")
    memory_usage: Any = _count("bytes")
    cpu_usage: Any = _number("percent of one core")
    progress_current: Any = _number()
    progress_total: Any = _number()
    metadata: Any = _json()


class ResourceViolation(_Record):
    """A limit that was passed, by a job, or by a worker where its jobs cannot be told apart."""

    job: Any = _job("resource_violations")
    worker_id: Any = _text()
    created_at: Any = _time()
    run_id: Any = _text()
    type: Any = _text("memory (bytes), cpu (percent), timeout (seconds), disk (bytes), file_descriptors")
    limit: Any = _number("in the unit of its type")
    actual: Any = _number("in the unit of its type")
    attribution: Any = _text("exact or shared")
    metadata: Any = _json()


class JobHealthCheck(_Record):
    """What a health check found."""

    job: Any = _job("health_checks")
    created_at: Any = _time()
    run_id: Any = _text()
    status: Any = _text("healthy, degraded, unhealthy or unknown")
    reason: Any = peewee.TextField(null=True)
    metadata: Any = _json()


class CircuitBreaker(_Record):
    """The state of a service's circuit breaker."""

    service: Any = peewee.CharField(unique=True)
    created_at: Any = _time()
    updated_at: Any = _time()
    state: Any = _text("closed, open or half_open")
    mode: Any = _text("auto, forced_open, disabled or metrics_only")
    failure_count: Any = peewee.BigIntegerField(default=0)
    success_count: Any = peewee.BigIntegerField(default=0)
    last_failure_at: Any = _time()
    last_success_at: Any = _time()
    opened_at: Any = _time()
    permits: Any = peewee.BigIntegerField(default=0)
    version: Any = peewee.BigIntegerField(default=0)


class DeadLetterJob(_Record):
    """A message that was dead-lettered."""

    job: Any = _job("dead_letters")
    job_id: Any = _text("Dramatiq's message_id; it outlives the job's row")
    created_at: Any = _time()
    actor_name: Any = _text()
    queue: Any = _text()
    reason: Any = _text("retries exhausted, rejected, poison, unknown actor or age")
    exception: Any = _text("class of the exception")
    message: Any = peewee.TextField(null=True)
    trace: Any = peewee.TextField(null=True)
    payload: Any = _json("args, kwargs, options; redacted")
    payload_complete: Any = peewee.BooleanField(null=True)
    failed_at: Any = _time()
    retried_at: Any = _time()
    retried_as: Any = _text("job_id of the retry")

    @classmethod
    def all(cls) -> Any:
        """Every dead letter, newest first."""
        return cls.select().order_by(cls.failed_at.desc())

    @classmethod
    def find(cls, key: Any) -> DeadLetterJob | None:
        """The dead letter with this key, None if there is none."""
        return cls.get_or_none(cls.id == key)


class Worker(_Record):
    """A worker process."""

    worker_id: Any = peewee.CharField(unique=True)
    created_at: Any = _time()
    updated_at: Any = _time()
    host: Any = _text()
    host_identity: Any = _text("boot id and pid namespace")
    pid: Any = _count()
    process_started_at: Any = _time()
    pool: Any = _text()
    supervisor: Any = _text()
    broker: Any = _text()
    broker_id: Any = _text()
    queues: Any = peewee.TextField(null=True, help_text="JSON list")
    threads: Any = _count()
    status: Any = _text("running, stopped or lost")
    started_at: Any = _time()
    beat: Any = peewee.BigIntegerField(default=0, help_text="grows with each of its own heartbeats")
    last_heartbeat_at: Any = _time("of the process, not of its jobs")
    stopped_at: Any = _time()
    rss: Any = _count("bytes")
    cpu: Any = _number("percent of one core")
    jobs_processed: Any = peewee.BigIntegerField(default=0)
    jobs_failed: Any = peewee.BigIntegerField(default=0)
    exit_code: Any = _count()
    exit_cause: Any = _text()
    gauges: Any = _json("The process's other readings: open files, children, what sampling costs, errors of Chaperone itself.")
    versions: Any = peewee.TextField(null=True, help_text="JSON object")

    @classmethod
    def running(cls) -> Any:
        """Workers that have neither stopped nor been lost."""
        return cls.select().where(cls.status == "running")

    @property
    def jobs(self) -> Any:
        """The jobs whose latest run is, or was, here."""
        return SupervisedJob.select().where(SupervisedJob.worker_id == self.worker_id)
