"""What crosses layers: the states of a job, and the shapes of what a process writes into its journal.

Journal entries are flat tuples, for the hot path makes three of them a message and a plain tuple costs a tenth of
an object.  The NamedTuples below give each position its name; the reader rebuilds them with ``ENTRY_TYPES``.
Times are Unix seconds (UTC, float), durations seconds, memory bytes, CPU percent of one core.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, NamedTuple


class JobStatus(StrEnum):
    """The states of a job.  Waiting for a retry is PENDING with ``retry_at``, put off it is PENDING with ``eta``."""

    PENDING = "pending"
    RUNNING = "running"
    #: Running, but stuck.
    STALLED = "stalled"
    #: Its worker died; the broker has yet to deliver the message again.
    LOST = "lost"
    COMPLETED = "completed"
    #: For good: no retry follows.
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


#: Of two reports with the same number of retries the one with the higher rank tells the state.  Every final state
#: outranks every other one, so that a late report never takes a job back.
STATUS_RANK: Final[dict[str, int]] = {
    "pending": 0,
    "running": 1,
    "stalled": 2,
    "lost": 3,
    "skipped": 8,
    "cancelled": 9,
    "failed": 10,
    "completed": 11,
}
FINAL_RANK: Final = 8

#: Upper bounds of the buckets of every duration, in seconds; beyond the last there is one more.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

#: How a run can end.  A job is completed, a run has succeeded.
RUN_OUTCOMES: Final = ("succeeded", "failed", "interrupted", "killed", "lost")

ENQUEUED: Final = 1
STARTED: Final = 2
ENDED: Final = 3
SKIPPED: Final = 4
SAMPLED: Final = 5
HEARTBEAT: Final = 6
DEAD: Final = 7
EVENT: Final = 8
WORKER: Final = 9
BEAT: Final = 10
WORKER_STOPPED: Final = 11
DROPPED: Final = 12
COMMAND_DONE: Final = 13
COUNTED: Final = 14
QUEUE_READ: Final = 15
VIOLATED: Final = 16
HEALTH_CHECKED: Final = 17
STUCK: Final = 18
DEFERRED: Final = 20
BREAKER_CALLS: Final = 23


#: Of a message: JSON text {"args": [...], "kwargs": {...}, "options": {...}}, redacted and capped by the sender; or, where
#: there is nothing else and nothing to hide, its few small positional arguments as they are, for the writer has more time
#: than the sender.  None: not recorded.
Payload = str | tuple[str | int | None, ...] | None


class Enqueued(NamedTuple):
    """A message was sent, or is on its way again (a retry, a delay)."""

    kind: int
    at: float
    job_id: str
    actor: str
    queue: str
    retries: int
    priority: int
    enqueued_at: float
    eta: float | None
    retry_at: float | None
    payload: Payload
    payload_complete: bool
    initiator_type: str | None
    initiator_id: str | None
    parent_job_id: str | None
    tenant: str | None


class Started(NamedTuple):
    """A run has begun in a worker."""

    kind: int
    at: float
    job_id: str
    #: Unique for each run.
    run_id: str
    retries: int
    actor: str
    queue: str
    thread: str
    priority: int
    enqueued_at: float
    #: Seconds that the message waited since it was due.
    waited_s: float
    timeout_at: float | None
    heartbeat_interval: float | None
    #: JSON text of the limits that were set for this job, None where none was.
    limits: str | None


class Ended(NamedTuple):
    """A run is over."""

    kind: int
    at: float
    job_id: str
    run_id: str
    retries: int
    actor: str
    queue: str
    #: One of RUN_OUTCOMES.
    outcome: str
    #: What it makes of the job: a final JobStatus; None when a retry follows; LOST where another worker has the message.
    status: str | None
    duration_s: float
    cpu_seconds: float | None
    memory_peak: int | None
    #: 'exact' or 'shared', None with memory_peak.
    memory_attribution: str | None
    #: (exception class, message, traceback text, context JSON text) of a run that did not succeed.
    error: tuple[str, str, str, str] | None
    started_at: float
    thread: str


class Skipped(NamedTuple):
    """A middleware raised SkipMessage: the message is gone and did not run."""

    kind: int
    at: float
    job_id: str
    retries: int
    actor: str
    queue: str
    enqueued_at: float


class Sampled(NamedTuple):
    """The sampler looked at a running job.  This is no heartbeat of the job."""

    kind: int
    at: float
    job_id: str
    run_id: str
    memory_usage: int
    memory_peak: int
    memory_attribution: str
    cpu_usage: float
    cpu_seconds: float
    #: Whether this sample also goes into the history.
    keep: bool
    #: Minimum and maximum since the sample kept before: (memory min, max, cpu min, max); None unless ``keep``.
    span: tuple[int, int, float, float] | None


class Beat(NamedTuple):
    """The process lives."""

    kind: int
    at: float
    beat: int
    rss: int
    cpu: float
    jobs_processed: int
    jobs_failed: int
    #: JSON text of the process's other readings: open files, children, the sampler's own cost, internal errors.
    gauges: str | None


class HeartbeatMade(NamedTuple):
    """The job itself reported: a heartbeat, or progress."""

    kind: int
    at: float
    job_id: str
    run_id: str
    heartbeat_id: str
    #: 'manual' or 'progress'.
    source: str
    metadata: str | None
    progress_current: float | None
    progress_total: float | None
    phase: str | None
    #: Whether it also goes into the history.
    keep: bool


class Dead(NamedTuple):
    """The broker dead-lettered the message."""

    kind: int
    at: float
    job_id: str
    retries: int
    actor: str
    queue: str
    enqueued_at: float
    #: 'retries exhausted', 'rejected', 'cancelled', 'poison', 'unknown actor' or 'age'.
    reason: str
    exception: str | None
    message: str | None
    trace: str | None
    payload: str | None
    payload_complete: bool


class StoredEvent(NamedTuple):
    """An event of the kind that is stored (events.py says which)."""

    kind: int
    at: float
    name: str
    job_id: str | None
    worker_id: str | None
    service: str | None
    data: str


class WorkerBooted(NamedTuple):
    """A worker process is ready; the identity is in the head of its journal."""

    kind: int
    at: float
    broker: str
    broker_id: str | None
    queues: str
    threads: int
    pool: str | None
    versions: str


class WorkerStopped(NamedTuple):
    """A worker process stopped cleanly."""

    kind: int
    at: float


class Dropped(NamedTuple):
    """Entries that could not be kept, counted."""

    kind: int
    at: float
    #: The name of the entry's shape.
    what: str
    number: int


#: The outcome of a command for the fleet that this worker cannot carry out, and another perhaps can.
PASSED: Final = "passed"


class CommandDone(NamedTuple):
    """A worker answers a command."""

    kind: int
    at: float
    command_id: str
    #: 'done', 'refused', 'failed' or PASSED.
    outcome: str
    detail: str | None


class Counted(NamedTuple):
    """Jobs whose entries were dropped while the store was away: sent, run once and ended in the same way."""

    kind: int
    #: The end of the last of them.
    at: float
    queue: str
    actor: str
    #: As in Ended.
    outcome: str
    status: str | None
    number: int
    duration_sum_s: float


class QueueRead(NamedTuple):
    """What a broker said of one of its queues."""

    kind: int
    at: float
    #: The class of the broker.
    broker: str
    queue: str
    #: Messages, as in brokers.QueueReading.
    ready: int
    delayed: int
    dead: int
    #: When the message that is next was made; None where nothing is ready, or the broker cannot tell.
    oldest_at: float | None
    #: Whether the worker that read it fetches nothing from it; and what everything in it waits for then, where that is known.
    paused: bool = False
    paused_for: str | None = None


class Violated(NamedTuple):
    """A limit was passed: one entry an episode."""

    kind: int
    at: float
    #: None: it is the worker's, whose jobs cannot be told apart.
    job_id: str | None
    run_id: str | None
    #: 'memory' (bytes), 'cpu' (percent of one core), 'timeout' (seconds), 'disk' (bytes) or 'file_descriptors'.
    type: str
    limit: float
    actual: float
    #: 'exact' or 'shared'.
    attribution: str
    #: JSON text: the evidence.
    metadata: str | None
    actor: str = ""
    queue: str = ""
    #: Whether nobody set the limit: then it is not counted.
    is_default: bool = False


class HealthChecked(NamedTuple):
    """The health of a running job."""

    kind: int
    at: float
    job_id: str
    run_id: str
    #: 'healthy', 'degraded', 'unhealthy' or 'unknown'.
    status: str
    reason: str | None
    #: JSON text: the findings.
    metadata: str | None
    #: Whether it is another than before; else it is the periodic record.
    is_change: bool


class Deferred(NamedTuple):
    """A worker put the message off: it did not run, and comes back without using a retry."""

    kind: int
    at: float
    job_id: str
    retries: int
    actor: str
    queue: str
    enqueued_at: float
    eta: float
    #: What it waits for, in words.
    reason: str | None = None


class StuckSeen(NamedTuple):
    """A running job has missed heartbeats, or moves again: then it has missed none."""

    kind: int
    at: float
    job_id: str
    run_id: str
    #: In a row, by now.
    missed_heartbeats: int
    #: Whether that makes it stuck.
    is_stuck: bool


class BreakerCalls(NamedTuple):
    """Guarded calls of a process, by service, since its last entry: circuits.Calls."""

    kind: int
    at: float
    service: str
    succeeded: int
    failed: int
    refused: int
    ignored: int
    successes: int
    last_success_at: float
    window_size: int
    seconds: float = 0.0
    buckets: tuple[int, ...] = ()


ENTRY_TYPES: Final[dict[int, Any]] = {
    ENQUEUED: Enqueued,
    STARTED: Started,
    ENDED: Ended,
    SKIPPED: Skipped,
    SAMPLED: Sampled,
    HEARTBEAT: HeartbeatMade,
    DEAD: Dead,
    EVENT: StoredEvent,
    WORKER: WorkerBooted,
    BEAT: Beat,
    WORKER_STOPPED: WorkerStopped,
    DROPPED: Dropped,
    COMMAND_DONE: CommandDone,
    COUNTED: Counted,
    QUEUE_READ: QueueRead,
    VIOLATED: Violated,
    HEALTH_CHECKED: HealthChecked,
    DEFERRED: Deferred,
    STUCK: StuckSeen,
    BREAKER_CALLS: BreakerCalls,
}


class Origin(NamedTuple):
    """Whose journal it is."""

    #: Unique for each process and start: ``<host>-<pid>-<8 hex digits>``; the name of the journal, and of a worker its id.
    worker_id: str
    host: str
    #: Boot id and pid namespace: only inside it does a pid say anything.
    host_identity: str
    pid: int
    #: Unix seconds at which the process started, as the system tells.
    process_started_at: float
    #: 'worker' or 'producer'.
    role: str
    #: The pid of the ``dramatiq`` master, None outside of its command.
    master_pid: int | None = None


class Command(NamedTuple):
    """What somebody asks of one worker process."""

    command_id: str
    #: The worker_id it is for.
    target: str
    name: str
    arguments: dict[str, Any]
