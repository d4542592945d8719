"""Every event as a frozen dataclass, and the table of them.

Times are aware datetimes in UTC, durations seconds, memory bytes, CPU percent of one core; a name that ends in ``_ms``
is milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Event:
    """Any event: ``on(Event)`` subscribes to all of them."""

    #: Second names of fields, which get the value of the first unless they are given.
    _second_names: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for second, first in self._second_names.items():
            if not getattr(self, second):
                value = getattr(self, first)
                object.__setattr__(self, second, value * 1000 if second.endswith("_ms") else value)


@dataclass(frozen=True, kw_only=True)
class JobEvent(Event):
    """Any event about a job.

    Attributes:
      job_id: the id of the Dramatiq message; ``supervision_id`` is the same.
      actor_name: ``job_class`` is the same.
    """

    _second_names: ClassVar[Mapping[str, str]] = {"supervision_id": "job_id", "job_class": "actor_name"}

    job_id: str
    actor_name: str = ""
    queue: str = ""
    worker_id: str | None = None
    supervision_id: str = ""
    job_class: str = ""


def _and(**names: str) -> dict[str, str]:
    return {**JobEvent._second_names, **names}


@dataclass(frozen=True, kw_only=True)
class JobSupervisionStarted(JobEvent):
    """A run begins."""

    started_at: datetime


@dataclass(frozen=True, kw_only=True)
class JobSupervisionEnded(JobEvent):
    """A run is over, whatever came of it."""

    completed_at: datetime
    duration: float
    outcome: str = ""


@dataclass(frozen=True, kw_only=True)
class HeartbeatReceived(JobEvent):
    """A job called heartbeat() or reported progress."""

    heartbeat_id: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HeartbeatMissed(JobEvent):
    """A job that has to send heartbeats is late."""

    _second_names: ClassVar[Mapping[str, str]] = _and(missed_duration_ms="missed_duration")

    last_heartbeat_at: datetime | None
    expected_at: datetime
    expected_interval: float
    missed_duration: float
    missed_count: int = 1
    missed_duration_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JobStuck(JobEvent):
    """A job has missed so many heartbeats that it counts as stuck."""

    _second_names: ClassVar[Mapping[str, str]] = _and(stuck_duration_ms="stuck_duration", last_heartbeat_at="last_heartbeat")

    stuck_duration: float
    last_heartbeat: datetime | None = None
    missed_heartbeats: int = 0
    stuck_duration_ms: float = 0.0
    last_heartbeat_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class JobTimeout(JobEvent):
    """A job runs longer than its timeout."""

    _second_names: ClassVar[Mapping[str, str]] = _and(timeout="timeout_seconds", duration="actual_duration")

    timeout_seconds: float
    actual_duration: float
    timeout: float = 0.0
    duration: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JobMemoryExceeded(JobEvent):
    """A job uses more memory than its limit; ``attribution`` says whether it is the job's alone (exact) or shared."""

    _second_names: ClassVar[Mapping[str, str]] = _and(limit="memory_limit", actual="memory_usage")

    memory_limit: int
    memory_usage: int
    attribution: str = "exact"
    limit: int = 0
    actual: int = 0


@dataclass(frozen=True, kw_only=True)
class JobCpuExceeded(JobEvent):
    """A job uses more CPU than its limit."""

    _second_names: ClassVar[Mapping[str, str]] = _and(limit="cpu_limit", actual="cpu_usage")

    cpu_limit: float
    cpu_usage: float
    attribution: str = "exact"
    limit: float = 0.0
    actual: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ResourceViolationDetected(JobEvent):
    """A limit is passed: memory (MB), cpu (percent), timeout (seconds), disk (MB) or file_descriptors."""

    _second_names: ClassVar[Mapping[str, str]] = _and(type="violation_type")

    violation_type: str
    limit: float
    actual: float
    exceeded_by: float = 0.0
    attribution: str = "exact"
    type: str = ""


@dataclass(frozen=True, kw_only=True)
class HealthStatusChanged(JobEvent):
    """The health of a job is another: healthy, degraded, unhealthy or unknown."""

    _second_names: ClassVar[Mapping[str, str]] = _and(status="new_status")

    new_status: str
    previous_status: str
    reason: str | None = None
    issues: tuple[str, ...] = ()
    status: str = ""


@dataclass(frozen=True, kw_only=True)
class JobMovedToDeadLetterQueue(JobEvent):
    """The broker dead-lettered a message; ``exception`` is a class name, None where no run failed."""

    exception: str | None
    failed_at: datetime
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class JobLost(JobEvent):
    """The worker process died while it ran the job; the broker delivers it again."""

    lost_at: datetime
    run_id: str = ""
    exit_code: int | None = None
    exit_cause: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRanTwice(JobEvent):
    """Two runs of one delivery were seen; both are kept."""

    run_id: str
    other_run_id: str


@dataclass(frozen=True, kw_only=True)
class JobPoisoned(JobEvent):
    """A message has ended its worker so often that it is dead-lettered instead of run."""

    crashes: int
    max_crashes: int


@dataclass(frozen=True, kw_only=True)
class JobCancelled(JobEvent):
    """A job was cancelled for good."""

    cancelled_at: datetime
    cancelled_by: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class JobKilled(JobEvent):
    """A job was ended by force; ``means`` says how far that had to go: interrupt or process."""

    killed_at: datetime
    means: str
    killed_by: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class JobDeferred(JobEvent):
    """A message was put off until ``eta``, for the service that it needs is down."""

    eta: datetime
    service: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerOpened(Event):
    """A breaker lets no calls through any more."""

    service: str
    failure_count: int
    opened_at: datetime


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerHalfOpened(Event):
    """A breaker lets trial calls through."""

    service: str
    half_opened_at: datetime


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerClosed(Event):
    """A breaker lets all calls through again."""

    service: str
    closed_at: datetime


@dataclass(frozen=True, kw_only=True)
class WorkerEvent(Event):
    """Any event about a worker process."""

    worker_id: str
    host: str = ""
    pid: int | None = None
    pool_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerStarted(WorkerEvent):
    """A worker process is ready."""

    started_at: datetime
    queues: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WorkerStopped(WorkerEvent):
    """A worker process ended on purpose."""

    stopped_at: datetime


@dataclass(frozen=True, kw_only=True)
class WorkerLost(WorkerEvent):
    """A worker process of another host is silent for longer than it may be."""

    lost_at: datetime
    last_heartbeat_at: datetime | None = None
    silent_for: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WorkerCrashed(WorkerEvent):
    """A worker process died; ``exit_code`` is negative for a signal."""

    crashed_at: datetime
    exit_code: int | None = None
    exit_cause: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerRestarted(WorkerEvent):
    """A pool replaced a worker process."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class DeploymentStarted(Event):
    """Queues are drained for a deployment."""

    queues: tuple[str, ...]
    started_at: datetime


@dataclass(frozen=True, kw_only=True)
class DeploymentCompleted(Event):
    """The queues were drained, and are served again."""

    queues: tuple[str, ...]
    completed_at: datetime
    cancelled_job_count: int = 0


@dataclass(frozen=True, kw_only=True)
class DeploymentTimedOut(Event):
    """Jobs were still running at the end of the time that a deployment waits."""

    queues: tuple[str, ...]
    timeout: float
    remaining_job_count: int


@dataclass(frozen=True, kw_only=True)
class NotificationSent(Event):
    """A channel took an alert."""

    channel: str
    notification: str
    notifiable: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NotificationFailed(NotificationSent):
    """A channel did not take an alert."""

    error: str = ""


#: Every event, and whether it is stored; those that are not are published when somebody subscribes.
EVENTS: Final[dict[type[Event], bool]] = {
    JobSupervisionStarted: False,
    JobSupervisionEnded: False,
    HeartbeatReceived: False,
    HeartbeatMissed: False,
    JobStuck: True,
    JobTimeout: True,
    JobMemoryExceeded: True,
    JobCpuExceeded: True,
    ResourceViolationDetected: True,
    HealthStatusChanged: True,
    JobMovedToDeadLetterQueue: True,
    JobLost: True,
    JobRanTwice: True,
    JobPoisoned: True,
    JobCancelled: True,
    JobKilled: True,
    JobDeferred: True,
    CircuitBreakerOpened: True,
    CircuitBreakerHalfOpened: True,
    CircuitBreakerClosed: True,
    WorkerStarted: True,
    WorkerStopped: True,
    WorkerLost: True,
    WorkerCrashed: True,
    WorkerRestarted: True,
    DeploymentStarted: True,
    DeploymentCompleted: True,
    DeploymentTimedOut: True,
    NotificationSent: True,
    NotificationFailed: True,
}


def is_stored(kind: type[Event]) -> bool:
    """Whether events of *kind* go into the store."""
    return EVENTS.get(kind, False)
