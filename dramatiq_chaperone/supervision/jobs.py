"""The jobs that run in this process, and the handle that actor code holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar, Token
from dataclasses import dataclass
from time import monotonic, process_time, thread_time, time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar
from uuid import uuid4

from .. import records
from ..errors import JobCancelled
from ..events import HeartbeatReceived, has_subscribers, publish
from ..service import internal_error

if TYPE_CHECKING:
    from ..limits import JobLimits
    from .recorder import Recorder
    from .resources import Usage
    from .stopping import Child, Stop

T = TypeVar("T")

#: Reports of one job that reach the journal at once; later ones are thinned.
FREE_REPORTS: Final = 20
#: Reports and samples each keep a row after each 1/25 of the job's age: 230 rows each for a day, 280 for a week.
THINNING: Final = 25
#: The rate of progress is taken over so many looks of the sampler, at least a second apart.
RATE_LOOKS: Final = 30

#: The job that code runs in; for whom the call of :func:`current_job` is too much.
CURRENT: Final[ContextVar[Job | None]] = ContextVar("chaperone_job", default=None)


@dataclass(slots=True)
class JobSample:
    """What the sampler knows of a job: its last reading, and the extremes since the row that was kept before."""

    at: float
    cpu_seconds: float
    memory_min: int
    memory_max: int
    cpu_min: float
    cpu_max: float
    kept_at: float
    written_at: float
    #: Bytes, and percent of one core since the reading before.
    memory: int = 0
    cpu: float = 0.0


class About(TypedDict):
    """What every event of a job says."""

    job_id: str
    actor_name: str
    queue: str
    worker_id: str


class Job:
    """A running job, as its own code sees it: ``current_job()``.

    Any thread may use it.  When the run is over it does nothing any more.

    Attributes:
      job_id: the id of the message, the same in every run of it.
      run_id: unique for this run.
      actor_name, queue, retries: of the message; retries counts failed runs before this one.
      started_at: Unix seconds.
      phase: what was last reported as such.
    """

    # What most runs never change stands here: a job is made for each message, and each assignment counts.
    ended: float | None = None
    cpu_exact: float | None = None
    #: What it runs, None in a test.
    message: Any = None
    #: Whether its message is sent once more if this run does not return; and what ended it then.
    is_to_rerun = False
    rerun_for: BaseException | None = None
    process_cpu_started: float = 0.0
    is_cancelled = False
    is_shared = False
    is_dirty = False
    memory_peak: int | None = None
    sample: JobSample | None = None
    #: What it may use; set where the run begins.
    limits: JobLimits
    #: What the process used when it began, in bytes without children; None where nobody set a memory limit for it.
    memory_before: int | None = None
    #: What it reported last with heartbeat() or report_progress().
    reported: Mapping[str, Any] = MappingProxyType({})
    #: Heartbeats that it promised and did not send, in a row; and whether that makes it stuck.
    missed_heartbeats = 0
    is_stuck = False
    #: How it is being ended; how far that has gone: 'ask', 'interrupt' or 'process'.
    stop: Stop | None = None
    rung: str | None = None
    #: Called where its own code could be told that it has to stop; whether it is to be told, which is once for each stop.
    tell: Callable[[], bool] | None = None
    #: Another worker has the message; and what this run raised, if it did.
    is_taken = False
    exception: BaseException | None = None
    #: Its process, where it is isolated.
    child: Child | None = None
    #: What that process and its descendants used when the sampler looked last.
    usage: Usage | None = None
    current: float | None = None
    total: float | None = None
    phase: str | None = None
    _metadata: dict[str, Any] | None = None
    _source = "manual"
    _reports = 0
    _kept_at = 0.0
    _looks: tuple[tuple[float, float], ...] = ()

    def __init__(
        self,
        recorder: Recorder,
        job_id: str,
        run_id: str,
        actor_name: str,
        queue: str,
        retries: int,
        thread: str,
        ident: int,
        is_async: bool,
    ) -> None:
        self._recorder = recorder
        self.job_id = job_id
        self.run_id = run_id
        self.actor_name = actor_name
        self.queue = queue
        self.retries = retries
        self.thread = thread
        self.ident = ident
        self.is_async = is_async
        self.started_at = time()
        self.started = monotonic()
        self.cpu_started = thread_time()
        if is_async:
            self.process_cpu_started = process_time()

    def heartbeat(self, metadata: dict[str, Any] | None = None, /, **more: Any) -> None:
        """Say that the job is alive and well, with anything that helps to judge that.

        Parameters:
          metadata: free data, redacted and size-capped; the latest is on the job's row.

        Raises:
          JobCancelled: somebody has asked this job to stop; once, so that it can clean up.
        """
        if self.ended is not None:
            return
        self.reported = self._metadata = {**(metadata or {}), **more}
        self._source = "manual"
        self._report()

    def report_progress(
        self, current: float, total: float, metadata: dict[str, Any] | None = None, /, *, phase: str | None = None, **more: Any
    ) -> None:
        """Say how far the job is.  It counts as a heartbeat, and may be called in a tight loop: once a second it is written down.

        Parameters:
          current, total: any unit; the percentage is clamped to 0–100, and 0 where *total* is not positive.
          phase: the part of the job that it is in.

        Raises:
          JobCancelled: somebody has asked this job to stop; once, so that it can clean up.
        """
        if self.ended is not None:
            return
        self.current = current
        self.total = total
        if phase is not None:
            self.phase = phase
        if metadata or more:
            self.reported = self._metadata = {**(metadata or {}), **more}
        self._source = "progress"
        if self._reports == 0 or self.is_cancelled or has_subscribers(HeartbeatReceived):
            self._report()
        else:
            self.is_dirty = True

    def track(self, rows: Iterable[T], *, total: int | None = None, phase: str | None = None) -> Iterator[T]:
        """Go through *rows* and report the progress of it.

        Parameters:
          total: how many there are; taken from ``len(rows)`` where that is known.

        Raises:
          JobCancelled: somebody has asked this job to stop; once, so that it can clean up.
        """
        if total is None and isinstance(rows, Sized):
            total = len(rows)
        for done, row in enumerate(rows):
            self.report_progress(done, total or 0, phase=phase)
            yield row
            self.report_progress(done + 1, total or 0, phase=phase)

    @property
    def cancelled(self) -> bool:
        """Whether this job has been asked to stop: the next ``heartbeat()``, ``report_progress()`` or ``track()`` raises then."""
        return self.is_cancelled

    @property
    def has_reported(self) -> bool:
        """Whether it has sent a heartbeat, or reported progress."""
        return self._reports > 0

    @property
    def progress(self) -> int | None:
        """Percent, 0–100; None before the first report."""
        return None if self.current is None else percent(self.current, self.total or 0)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the job is done at its recent rate; None while there is no rate."""
        if len(self._looks) < 2 or self.current is None or not self.total:
            return None
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        return None if after <= before else max(0.0, (self.total - self.current) * (now - then) / (after - before))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return (self.ended or monotonic()) - self.started

    @property
    def reports(self) -> int:
        """How often something that it reported was written down; it grows by the sampler's next turn after each report."""
        return self._reports

    def is_due(self, kept_at: float, now: float) -> bool:
        """Whether a history whose last row is of *kept_at* may have another at *now*, both monotonic."""
        return now - kept_at >= max(1.0, (now - self.started) / THINNING) * 0.999

    def look(self, now: float) -> None:
        """Note the progress for the rate.  Called by the sampler, about once a second."""
        if self.current is not None:
            self._looks = (*self._looks[1 - RATE_LOOKS :], (now, self.current))

    def flush(self) -> None:
        """Write down what was reported since the last time.  Called by the sampler, and at the end of the run."""
        if self.is_dirty:
            self._write(uuid4().hex, keep=self.ended is not None or self.is_due(self._kept_at, monotonic()))

    def _report(self) -> None:
        heartbeat_id = uuid4().hex
        if has_subscribers(HeartbeatReceived):
            self._publish(heartbeat_id)
        if self._reports < FREE_REPORTS:
            self._write(heartbeat_id, keep=True)
        else:  # only then: what is dirty the sampler may write at any moment, and its metadata would be told twice, or not
            self.is_dirty = True
        if self.is_cancelled and (self.tell is None or self.tell()):
            if self.stop is None or self.stop.exception is JobCancelled:
                raise JobCancelled(f"Job {self.job_id} was cancelled.")
            raise self.stop.exception

    def _write(self, heartbeat_id: str, *, keep: bool) -> None:
        self.is_dirty = False
        self._reports += 1
        if keep:
            self._kept_at = monotonic()
        metadata, self._metadata = self._metadata, None
        try:
            self._recorder.append(
                (
                    records.HEARTBEAT,
                    time(),
                    self.job_id,
                    self.run_id,
                    heartbeat_id,
                    self._source,
                    self._recorder.encode_metadata(metadata) if metadata else None,
                    number(self.current),
                    number(self.total),
                    None if self.phase is None else str(self.phase)[:255],
                    keep,
                )
            )
        except Exception as error:  # noqa: BLE001 - a heartbeat must never fail its job
            internal_error("heartbeat", error, job_id=self.job_id)

    @property
    def about(self) -> About:
        """What every event of it says."""
        return About(job_id=self.job_id, actor_name=self.actor_name, queue=self.queue, worker_id=self._recorder.origin.worker_id)

    def _publish(self, heartbeat_id: str) -> None:
        try:
            publish(HeartbeatReceived(**self.about, heartbeat_id=heartbeat_id, metadata=self._metadata or {}))
        except Exception as error:  # noqa: BLE001 - as above
            internal_error("heartbeat", error, job_id=self.job_id)


def percent(current: float, total: float) -> int:
    """*current* of *total* in percent, clamped to 0–100; 0 where *total* is not positive."""
    try:
        return max(0, min(100, int(current * 100 / total))) if total > 0 else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def number(value: Any) -> float | None:
    """*value* as a finite float, None where it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) < 1e300 else None


def entered(job: Job) -> Token[Job | None]:
    """*job* begins in this context."""
    return CURRENT.set(job)


def left(token: Token[Job | None]) -> None:
    """The job of *token* is over."""
    CURRENT.reset(token)


def current_job() -> Job | None:
    """The job that this code runs in; None outside of one.

    It is known in the actor, in what it calls, in its coroutines, and in threads that were started with a copied context.
    """
    return CURRENT.get()


def heartbeat(metadata: dict[str, Any] | None = None, /, **more: Any) -> None:
    """:meth:`Job.heartbeat` of the current job; outside of a job it does nothing."""
    if (job := CURRENT.get()) is not None:
        job.heartbeat(metadata, **more)


def report_progress(
    current: float, total: float, metadata: dict[str, Any] | None = None, /, *, phase: str | None = None, **more: Any
) -> None:
    """:meth:`Job.report_progress` of the current job; outside of a job it does nothing."""
    if (job := CURRENT.get()) is not None:
        job.report_progress(current, total, metadata, phase=phase, **more)


def track(rows: Iterable[T], *, total: int | None = None, phase: str | None = None) -> Iterable[T]:
    """:meth:`Job.track` of the current job; outside of a job, or of one that is not supervised, just *rows*."""
    job = CURRENT.get()
    return rows if job is None else job.track(rows, total=total, phase=phase)


def supervision_id() -> str | None:
    """The id of the current job, which is the id of its message; None outside of a job."""
    job = CURRENT.get()
    return None if job is None else job.job_id


class JobLogFilter(logging.Filter):
    """Gives each log record ``job_id``, ``actor`` and ``queue`` of the job it was made in, ``'-'`` outside of one.

    Add it to a handler: ``handler.addFilter(JobLogFilter())``, and use ``%(job_id)s`` in its format.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        job = CURRENT.get()
        record.job_id, record.actor, record.queue = ("-", "-", "-") if job is None else (job.job_id, job.actor_name, job.queue)
        return True
