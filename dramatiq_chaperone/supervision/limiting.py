"""Holds running jobs to their limits: what passes one is put on record with its evidence, and stopped where that was asked for.

What the readings say of a job alone is exact: the CPU of its thread, its running time, and the memory and open files of
a process in which nothing else has run since it began.  All else is shared: then the violation is the worker's, once,
and no job is stopped for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from dramatiq.middleware import TimeLimitExceeded
from dramatiq.threading import Interrupt

from .. import host, limits
from ..errors import CpuLimitExceeded, MemoryLimitExceeded, TimeoutExceeded
from ..limits import CLEAR, CPU, FILES, MEMORY, OVER, TIMEOUT, JobLimits, Limit, Point, Standing
from . import resources
from .jobs import Job
from .ladder import StopLadder
from .recorder import Recorder
from .sampler import Readings
from .slots import Slot
from .stopping import Stop, log_time_limit
from .violations import Violations


class _Watch:
    """What is remembered of one run."""

    __slots__ = (
        "cpu",
        "files",
        "files_before",
        "history",
        "is_alone",
        "is_overdue",
        "is_timed_out",
        "memory",
        "memory_before",
        "processed",
        "stopped",
        "timeout",
    )

    def __init__(self, memory_before: int, files_before: int, processed: int) -> None:
        self.history: tuple[Point, ...] = ()
        self.memory = self.cpu = self.files = self.timeout = Standing()
        #: Whether its timeout is on record, and whether that is one that is kept to.
        self.is_timed_out = self.is_overdue = False
        #: Kinds of limits for which it was told to stop.
        self.stopped: set[str] = set()
        #: Whether nothing else has run in the process since it began.
        self.is_alone = True
        #: What the process used just before it began, bytes and files.
        self.memory_before, self.files_before = memory_before, files_before
        #: How many runs had ended here when it was first seen.
        self.processed = processed


class LimitJudge:
    """Asked by the sampler after each sample, and by the interrupter about a job that is past its deadline.

    Parameters:
      processed: how many runs have ended in this process.

    Attributes:
      cpu_window_s: the time over which CPU is taken, in seconds.
    """

    def __init__(self, recorder: Recorder, ladder: StopLadder, processed: Callable[[], int]) -> None:
        self.cpu_window_s = limits.CPU_WINDOW_S
        self._violations = Violations(recorder)
        self._ladder, self._processed = ladder, processed
        self._watches: dict[str, _Watch] = {}
        #: Of the process, where its jobs cannot be told apart: how it stands, and to which limit.
        self._shared: dict[str, tuple[Standing, Limit | None]] = {}
        self._process_cpu: tuple[Point, ...] = ()
        self._last = (host.rss_bytes(), 0, processed())

    def look(self, running: Sequence[tuple[Slot, Job]], readings: Readings) -> None:
        """Judge every running job, and the process."""
        processed = self._processed()
        runs = {job.run_id for _, job in running}
        for gone in [run_id for run_id in list(self._watches) if run_id not in runs]:
            del self._watches[gone]
        for slot, job in running:
            self._look_at(slot, job, readings, processed)
        self._look_at_process([job for _, job in running], readings)
        self._last = (readings.memory, readings.open_files, processed)

    def zones(self, job: Job) -> dict[str, str]:
        """How *job* stands to the limits that somebody set for it: kind to 'near' or 'over'; no entry where all is well."""
        watch = self._watches.get(job.run_id)
        if watch is None:
            return {}
        found = (
            (MEMORY, watch.memory, job.limits.memory),
            (CPU, watch.cpu, job.limits.cpu),
            (FILES, watch.files, job.limits.files),
            (TIMEOUT, watch.timeout, job.limits.timeout),
        )
        zones = {kind: each.zone for kind, each, limit in found if each.zone != CLEAR and limit is not None and not limit.is_default}
        return {**zones, TIMEOUT: OVER} if watch.is_overdue else zones

    def overdue(self, slot: Slot, job: Job, now: float) -> None:
        """*job* is past its deadline: called until it is over.  *now* is monotonic."""
        age, own, asked = now - job.started, job.limits.timeout_s, slot.time_limit_ms
        if slot.job is not job:  # it has returned meanwhile
            return
        if own is not None and age >= own:
            self._time_out(job, Limit(own), age, "timeout")
            if self._stop(slot, job, TIMEOUT, TimeoutExceeded):
                log_time_limit(slot, job)
            if _means(job, TIMEOUT) != "record":
                return
        if (own is None or _means(job, TIMEOUT) == "record") and asked is not None and age >= asked / 1000:
            self._time_out(job, Limit(asked / 1000, is_default=not job.limits.has_time_limit), age, TIME_LIMIT)
            if self._stop(slot, job, TIME_LIMIT, TimeLimitExceeded):
                log_time_limit(slot, job)

    def memory_exceeded(self, slot: Slot, job: Job, used: int, limit: int) -> None:
        """An isolated job is past its memory limit, as the thread that waits for it sees, oftener than the sampler; in bytes."""
        watch = self._watches.get(job.run_id)
        if watch is None:
            watch = self._watches[job.run_id] = _Watch(*self._last)
        if watch.memory.zone != OVER:
            watch.memory = Standing(OVER)
            evidence = {"history": limits.memory_evidence(watch.history)}
            self._violations.add(job, MEMORY, Limit(limit), used, attribution="exact", evidence=evidence)
            self._stop(slot, job, MEMORY, MemoryLimitExceeded)

    def _watch(self, job: Job, readings: Readings, processed: int) -> _Watch:
        watch = self._watches.get(job.run_id)
        if watch is None:
            memory, files, before = self._last
            if before != processed:  # a run has ended meanwhile: what it left behind is not this one's
                memory, files = readings.memory, readings.open_files
            if job.memory_before is not None:
                memory = job.memory_before + readings.children_memory
            watch = self._watches[job.run_id] = _Watch(memory, files, processed)
        watch.is_alone = watch.is_alone and not readings.is_shared and processed == watch.processed
        return watch

    def _look_at(self, slot: Slot, job: Job, readings: Readings, processed: int) -> None:
        watch, sample, now = self._watch(job, readings, processed), job.sample, readings.now
        if sample is None:
            return
        watch.history = limits.remember(watch.history, Point(now, sample.memory, sample.cpu_seconds), self.cpu_window_s)
        of_job = job.limits
        is_isolated = job.child is not None
        is_exact = is_isolated or (watch.is_alone and _is_its_own(sample.memory, watch.memory_before, of_job.memory))
        watch.memory, is_new = _step(watch.memory, of_job.memory, sample.memory, now, is_exact=is_exact)
        if is_new:
            evidence = {"before": watch.memory_before, "history": limits.memory_evidence(watch.history)}
            self._passed(slot, job, MEMORY, of_job.memory, sample.memory, evidence)
        files = readings.open_files
        if is_isolated:
            files = 0 if job.usage is None else job.usage.open_files
        is_exact = is_isolated or (watch.is_alone and _is_its_own(files, watch.files_before, of_job.files))
        watch.files, is_new = _step(watch.files, of_job.files, files, now, is_exact=is_exact)
        if is_new:
            self._passed(slot, job, FILES, of_job.files, files, {} if is_isolated else {"before": watch.files_before})
        if is_isolated or not job.is_async:
            self._look_at_cpu(slot, job, watch, now)
        self._look_at_time(job, watch, now, slot.time_limit_ms)

    def _look_at_cpu(self, slot: Slot, job: Job, watch: _Watch, now: float) -> None:
        usage = limits.cpu_percent(watch.history, self.cpu_window_s)
        if usage is None:
            return
        watch.cpu, is_new = limits.judge(watch.cpu, job.limits.cpu, usage, now)
        if is_new:
            evidence = {"window_s": self.cpu_window_s, "history": limits.cpu_evidence(watch.history)}
            self._passed(slot, job, CPU, job.limits.cpu, usage, evidence)

    def _look_at_time(self, job: Job, watch: _Watch, now: float, time_limit_ms: float | None) -> None:
        """Its deadline is the interrupter's affair; here are the soft zone, and the default that only goes on record."""
        limit, age = job.limits.timeout, now - job.started
        watch.timeout, is_new = limits.judge(watch.timeout, limit, age, now)
        if is_new and limit is not None and limit.is_default and time_limit_ms is None:
            self._time_out(job, limit, age, "default")

    def _passed(self, slot: Slot, job: Job, kind: str, limit: Limit | None, actual: float, evidence: dict[str, Any]) -> None:
        assert limit is not None
        self._violations.add(job, kind, limit, actual, attribution="exact", evidence=evidence)
        exception = _EXCEPTIONS.get(kind)
        if exception is not None and not limit.is_default:
            job_watch = self._watches[job.run_id]
            job_watch.stopped.discard(kind)  # a new episode
            self._stop(slot, job, kind, exception)

    def _time_out(self, job: Job, limit: Limit, age: float, source: str) -> None:
        """Once in a run."""
        watch = self._watches.get(job.run_id)
        if watch is None:
            watch = self._watches[job.run_id] = _Watch(*self._last)
        if not watch.is_timed_out:
            watch.is_timed_out, watch.is_overdue = True, source != "default"
            evidence = {"source": source, "history": limits.cpu_evidence(watch.history) if watch.history else []}
            self._violations.add(job, TIMEOUT, limit, age, attribution="exact", evidence=evidence)

    def _stop(self, slot: Slot, job: Job, kind: str, exception: type[Interrupt]) -> bool:
        """Begin to stop the job, where that was asked for; whether that was begun just now."""
        watch = self._watches[job.run_id]
        means = _means(job, kind)
        if means == "record" or kind in watch.stopped:
            return False
        reason = "timeout" if kind == TIME_LIMIT else kind
        has_begun = self._ladder.stop(slot, job, Stop(means, reason, exception))
        if has_begun:
            watch.stopped.add(kind)
        return has_begun

    # -- the process

    def _look_at_process(self, running: Sequence[Job], readings: Readings) -> None:
        jobs = [job for job in running if job.child is None]
        apart = [self._watches[job.run_id] for job in jobs]
        is_shared = any(not watch.is_alone or _is_beyond(job, watch) for job, watch in zip(jobs, apart, strict=True))
        # What is known to be a job's doing is not told of the worker too.
        has_memory = is_shared and all(watch.memory.zone != OVER for watch in apart)
        has_files = is_shared and all(watch.files.zone != OVER for watch in apart)
        self._look_at_shared(MEMORY, jobs if has_memory else [], readings.memory, readings.now)
        self._look_at_shared(FILES, jobs if has_files else [], readings.open_files, readings.now)
        coroutines = [job for job in jobs if job.is_async]
        if coroutines or CPU in self._shared:
            point = Point(readings.now, readings.memory, resources.process_cpu_s())
            self._process_cpu = limits.remember(self._process_cpu, point, self.cpu_window_s)
            usage = limits.cpu_percent(self._process_cpu, self.cpu_window_s)
            if usage is not None:
                self._look_at_shared(CPU, coroutines, usage, readings.now)
        else:
            self._process_cpu = ()

    def _look_at_shared(self, kind: str, jobs: Sequence[Job], actual: float, now: float) -> None:
        """Hold the process to the lowest limit of these jobs; without one let go on what has begun, until it ends."""
        standing, limit = self._shared.get(kind, (Standing(), None))
        lowest = _lowest(getattr(job.limits, _FIELDS[kind]) for job in jobs)
        limit = lowest or limit
        standing, is_new = _step(standing, limit, actual, now, is_exact=lowest is not None)
        if standing.zone == CLEAR:
            self._shared.pop(kind, None)
        else:
            self._shared[kind] = (standing, limit)
        if is_new and limit is not None:
            evidence = {"jobs": [{"job_id": job.job_id, "actor": job.actor_name} for job in jobs]}
            self._violations.add(None, kind, limit, actual, attribution="shared", evidence=evidence)


#: Dramatiq's own time limit, which no action of ours is about.
TIME_LIMIT: Final = "time_limit"
_EXCEPTIONS: Final[dict[str, type[Interrupt]]] = {MEMORY: MemoryLimitExceeded, CPU: CpuLimitExceeded}
_FIELDS: Final = {MEMORY: "memory", CPU: "cpu", FILES: "files"}


def _means(job: Job, kind: str) -> str:
    """What is done at a limit."""
    asked: str | None = getattr(job.limits, f"on_{kind}", None)
    if asked is not None:
        return asked
    if job.child is not None and kind in {MEMORY, TIMEOUT, TIME_LIMIT}:
        return "kill"
    return "interrupt" if kind in {TIMEOUT, TIME_LIMIT} else "record"


def _step(before: Standing, limit: Limit | None, actual: float, now: float, *, is_exact: bool) -> tuple[Standing, bool]:
    """The next standing.  A reading that is not known to be this one's can end what has begun, and begin nothing."""
    if not is_exact and before.zone == CLEAR:
        return before, False
    after, is_new = limits.judge(before, limit, actual, now)
    return (before, False) if is_new and not is_exact else (after, is_new)


def _is_its_own(actual: int, before: int, limit: Limit | None) -> bool:
    """Whether a reading of the process is the job's doing: it was not past the limit before, or has grown by more than that since."""
    return limit is None or before <= limit.value or actual - before > limit.value


def _is_beyond(job: Job, watch: _Watch) -> bool:
    """Whether the process was past a limit of the job before that began."""
    of_job: JobLimits = job.limits
    memory, files = of_job.memory, of_job.files
    return (memory is not None and watch.memory_before > memory.value) or (files is not None and watch.files_before > files.value)


def _lowest(found: Iterable[Limit | None]) -> Limit | None:
    """The lowest of the limits that somebody set, else of the others."""
    known = [limit for limit in found if limit is not None]
    return min(known, key=lambda limit: (limit.is_default, limit.value), default=None)
