"""Every event as a frozen dataclass, and the table of them.

Times are aware datetimes in UTC, durations seconds, memory bytes, CPU percent of one core; a name that ends in ``_ms``
is milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    """A job has missed so many heartbeats that it counts as stuck; ``diagnosis`` says why it does not move, ``cause`` in one word."""

    _second_names: ClassVar[Mapping[str, str]] = _and(stuck_duration_ms="stuck_duration", last_heartbeat_at="last_heartbeat")

    stuck_duration: float
    last_heartbeat: datetime | None = None
    missed_heartbeats: int = 0
    run_id: str = ""
    diagnosis: str = ""
    cause: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    stuck_duration_ms: float = 0.0
    last_heartbeat_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class JobRecovered(JobEvent):
    """A job that was stuck moves again."""

    recovered_at: datetime
    stuck_duration: float
    missed_heartbeats: int = 0
    run_id: str = ""


@dataclass(frozen=True, kw_only=True)
class JobDiagnosed(JobEvent):
    """Why a job does not move: one that goes on after it was interrupted, or runs in a worker that is not heard of.  It is no verdict."""

    diagnosis: str
    cause: str
    run_id: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JobTimeout(JobEvent):
    """A job runs longer than its timeout."""

    _second_names: ClassVar[Mapping[str, str]] = _and(timeout="timeout_seconds", duration="actual_duration")

    timeout_seconds: float
    actual_duration: float
    is_default: bool = False
    timeout: float = 0.0
    duration: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JobMemoryExceeded(JobEvent):
    """A job uses more memory than its limit; ``attribution`` says whether it is the job's alone (exact) or shared."""

    _second_names: ClassVar[Mapping[str, str]] = _and(limit="memory_limit", actual="memory_usage")

    memory_limit: int
    memory_usage: int
    attribution: str = "exact"
    is_default: bool = False
    limit: int = 0
    actual: int = 0


@dataclass(frozen=True, kw_only=True)
class JobCpuExceeded(JobEvent):
    """A job uses more CPU than its limit."""

    _second_names: ClassVar[Mapping[str, str]] = _and(limit="cpu_limit", actual="cpu_usage")

    cpu_limit: float
    cpu_usage: float
    attribution: str = "exact"
    is_default: bool = False
    limit: float = 0.0
    actual: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ResourceViolationDetected(JobEvent):
    """A limit is passed: memory (MB), cpu (percent), timeout (s), disk (MB) or file_descriptors; by the worker where job_id is empty."""

    _second_names: ClassVar[Mapping[str, str]] = _and(type="violation_type")

    violation_type: str
    limit: float
    actual: float
    exceeded_by: float = 0.0
    attribution: str = "exact"
    is_default: bool = False
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
    """Two runs of one delivery were seen; both are kept.  ``other_run_id`` is None where it is not on record any more."""

    run_id: str
    other_run_id: str | None = None


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
class JobStopRequested(JobEvent):
    """A running job is to be stopped: by an operator, or at a limit; with ``means`` kill its process may be ended for it."""

    requested_at: datetime
    means: str
    requested_by: str = ""
    reason: str = ""
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class JobStopDelivered(JobEvent):
    """The stop was told to the job; ``means`` is how: ask (in a heartbeat) or interrupt (in its thread, as soon as that runs Python)."""

    delivered_at: datetime
    means: str
    requested_by: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class JobStopIgnored(JobEvent):
    """A job runs on after its stop was delivered and ``kill_grace`` has passed; ``consequence`` says what follows, or why nothing does."""

    ignored_at: datetime
    waited: float
    consequence: str
    requested_by: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class JobKilled(JobEvent):
    """A job was stopped; ``means`` says how far that had to go: ask, interrupt, or process."""

    killed_at: datetime
    means: str
    killed_by: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class JobDeferred(JobEvent):
    """A message was put off until ``eta``, without using a retry; of its many times the 1st, 2nd, 4th, 8th … are stored."""

    eta: datetime
    service: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerOpened(Event):
    """A breaker lets no calls through any more."""

    service: str
    failure_count: int
    opened_at: datetime
    last_error: str | None = None


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
class CircuitBreakerModeChanged(Event):
    """Somebody forced a breaker open, disabled it, had it only count, or gave it back to itself."""

    service: str
    mode: str
    previous_mode: str
    changed_at: datetime


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
    """A worker process ended on purpose; ``reason`` is empty where it was simply told to."""

    stopped_at: datetime
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerLost(WorkerEvent):
    """A worker process of another host is silent for longer than it may be."""

    lost_at: datetime
    last_heartbeat_at: datetime | None = None
    silent_for: float = 0.0
    jobs: tuple[str, ...] = ()
    suspects: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class WorkerCrashed(WorkerEvent):
    """A worker process died; ``exit_code`` is negative for a signal.  ``suspects``: what may have ended it, the most suspect first."""

    crashed_at: datetime
    exit_code: int | None = None
    exit_cause: str | None = None
    jobs: tuple[str, ...] = ()
    suspects: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class WorkerReturned(WorkerEvent):
    """A worker process that was called lost is heard of again: its jobs run on."""

    returned_at: datetime
    lost_for: float = 0.0
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DiskSpaceLow(WorkerEvent):
    """Less space is free (MB) than a threshold; ``jobs_wait`` says whether jobs are put off for it."""

    path: str
    threshold: float
    free: float
    jobs_wait: bool
    began_at: datetime


@dataclass(frozen=True, kw_only=True)
class DiskSpaceRecovered(WorkerEvent):
    """There is space enough again (MB)."""

    path: str
    threshold: float
    free: float
    recovered_at: datetime


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
    JobRecovered: True,
    JobDiagnosed: True,
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
    JobStopRequested: True,
    JobStopDelivered: True,
    JobStopIgnored: True,
    JobKilled: True,
    JobDeferred: True,
    CircuitBreakerOpened: True,
    CircuitBreakerHalfOpened: True,
    CircuitBreakerClosed: True,
    CircuitBreakerModeChanged: True,
    WorkerStarted: True,
    WorkerStopped: True,
    WorkerLost: True,
    WorkerCrashed: True,
    WorkerReturned: True,
    WorkerRestarted: True,
    DiskSpaceLow: True,
    DiskSpaceRecovered: True,
    DeploymentStarted: True,
    DeploymentCompleted: True,
    DeploymentTimedOut: True,
    NotificationSent: True,
    NotificationFailed: True,
}


def is_stored(kind: type[Event]) -> bool:
    """Whether events of *kind* go into the store."""
    return EVENTS.get(kind, False)


_BY_NAME: Final = {kind.__name__: kind for kind in EVENTS}


def from_stored(name: str, data: Mapping[str, Any]) -> Event | None:
    """The event that was stored under *name* with *data*; None where this release has no such event, or cannot read it."""
    kind = _BY_NAME.get(name)
    if kind is None:
        return None
    given = {each.name: _restored(str(each.type), data[each.name]) for each in fields(kind) if each.name in data}
    try:
        return kind(**given)
    except TypeError:
        return None


def _restored(type_: str, value: Any) -> Any:
    """A value as it was before JSON had it."""
    if isinstance(value, str) and "datetime" in type_:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return tuple(value) if isinstance(value, list) and type_.startswith("tuple") else value
