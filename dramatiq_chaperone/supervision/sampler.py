"""The worker's one background thread: it samples, keeps the time limits, and says that the process lives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from .. import host, records
from ..journal import Journal
from ..service import Service, internal_error, internal_errors
from . import resources
from .execution import Execution
from .jobs import Job, JobSample
from .ladder import StopLadder
from .recorder import to_json
from .slots import RunningJobs, Slot
from .stopping import Interrupter

#: The share of one core that sampling may take.
BUDGET: Final = 0.003
#: Sampling slows down from one sample a second to this, in seconds.
SLOWEST_S: Final = 10.0
#: A job's row is brought up to date at least this often, in seconds.
REFRESH_S: Final = 5.0


class Readings(NamedTuple):
    """What one look at the process gave."""

    #: Monotonic seconds, and the same moment in Unix seconds.
    now: float
    at: float
    #: Bytes, with children.
    memory: int
    #: Whether other jobs run beside each of them: then memory and open files are nobody's own.
    is_shared: bool
    open_files: int
    #: Bytes of the children alone, as of the last beat.
    children_memory: int = 0


class Judge(Protocol):
    """Looks at every running job after each sample, and does something about what it finds."""

    def look(self, running: Sequence[tuple[Slot, Job]], readings: Readings) -> None:
        """Judge; called also when nothing runs, so that what had begun can end."""


class Sampler(Service):
    """Looks at the process, its threads and its children.

    Parameters:
      beat_s: seconds between two heartbeats of the process.
      consumers: how many of the threads that fetch messages live, and how many there are.
      judges: asked after each sample, in their order; what goes wrong in one is counted and does not keep the next from its look.
      turns: called at the end of each turn with the monotonic time: what else has to be done once a second.
    """

    name = "sampler"

    def __init__(
        self,
        journal: Journal,
        running: RunningJobs,
        execution: Execution,
        interrupter: Interrupter,
        ladder: StopLadder,
        *,
        beat_s: float,
        consumers: Callable[[], tuple[int, int]],
        turns: Callable[[float], None],
        judges: Sequence[Judge] = (),
    ) -> None:
        super().__init__(interval_s=min(1.0, interrupter.interval_s))
        self._journal, self._running, self._execution, self._interrupter = journal, running, execution, interrupter
        self._ladder, self._judges = ladder, judges
        self._beat_s, self._consumers, self._turns = beat_s, consumers, turns
        #: Seconds between two samples; it grows while sampling costs more than its budget.
        self.sample_interval_s = 1.0
        #: CPU seconds that this thread has used.
        self.cpu_seconds = 0.0
        self._beat = 0
        self._had_running = False
        self._next_sample = self._next_beat = 0.0
        self._children = resources.Children(0, 0, 0.0)
        #: Memory of the zygote and its children: it belongs to the isolated jobs, the other children to those in threads.
        self._isolated_rss = 0
        self._open_files = 0
        self._process = (time.monotonic(), resources.process_cpu_s())

    def run_once(self) -> None:
        """One turn: deadlines each time, samples and beats when they are due."""
        began = time.thread_time()
        self._journal.control.beat()
        now = time.monotonic()
        if (gaps := self._execution.gaps) is not None:
            gaps.turn(now)
        self._interrupter.check(now)
        self._ladder.check(now)
        self._journal.retry()
        if now >= self._next_beat:
            self._next_beat = now + self._beat_s
            zygote = self._execution.zygote_pid
            self._children, self._open_files = resources.children(without=zygote), resources.open_files()
            isolated = None if zygote is None else resources.usage_of(zygote)
            self._isolated_rss = 0 if isolated is None else isolated.rss
            self._write_beat(now)
        if now >= self._next_sample:
            self._next_sample = now + self.sample_interval_s * 0.999
            self.sample(now)
            cost = time.thread_time() - began
            self._pace(cost)
        self._turns(now)
        self.cpu_seconds += time.thread_time() - began

    def drain(self) -> None:
        """It is stopped on purpose: nobody has to wonder."""
        self._journal.control.rest()

    def sample(self, now: float) -> None:
        """Take one sample of everything that runs.  *now* is monotonic."""
        running = self._running.running()
        if not running and not self._had_running:
            return
        self._had_running = bool(running)
        memory = host.rss_bytes() + self._children.rss
        is_shared = sum(job.child is None for _, job in running) > 1
        at = time.time()
        for slot, job in running:
            job.look(now)
            job.flush()
            self._sample_job(slot, job, memory, is_shared, now, at)
        readings = Readings(now, at, memory, is_shared, self._open_files, self._children.rss)
        for judge in self._judges:
            try:
                judge.look(running, readings)
            except Exception as error:  # noqa: BLE001 - one verdict that cannot be made must not keep the others away
                internal_error(type(judge).__name__, error)

    def _sample_job(self, slot: Slot, job: Job, memory: int, is_shared: bool, now: float, at: float) -> None:
        if job.child is not None:
            usage = resources.usage_of(job.child.pid) if job.child.pid else None
            if usage is None:  # it is about to begin, or to end
                return
            job.usage = usage
            memory, is_shared = usage.rss, False
        job.is_shared = job.is_shared or is_shared
        job.memory_peak = max(memory, job.memory_peak or 0)
        cpu_seconds = self._cpu_of(slot, job)
        sample = job.sample
        if sample is None:
            sample = job.sample = JobSample(job.started, 0.0, memory, memory, 0.0, 0.0, 0.0, 0.0)
        cpu = max(0.0, 100 * (cpu_seconds - sample.cpu_seconds) / max(now - sample.at, 1e-3))
        is_first = not sample.written_at
        sample.at, sample.cpu_seconds, sample.memory, sample.cpu = now, cpu_seconds, memory, cpu
        sample.memory_min, sample.memory_max = min(sample.memory_min, memory), max(sample.memory_max, memory)
        sample.cpu_min, sample.cpu_max = (cpu, cpu) if is_first else (min(sample.cpu_min, cpu), max(sample.cpu_max, cpu))
        keep = job.is_due(sample.kept_at, now)
        if not keep and now - sample.written_at < REFRESH_S * 0.999:
            return
        span = (sample.memory_min, sample.memory_max, sample.cpu_min, sample.cpu_max) if keep else None
        attribution = "shared" if is_shared else "exact"
        self._journal.append(
            (records.SAMPLED, at, job.job_id, job.run_id, memory, job.memory_peak, attribution, cpu, cpu_seconds, keep, span)
        )
        sample.written_at = now
        if keep:
            sample.kept_at = now
            sample.memory_min = sample.memory_max = memory
            sample.cpu_min = sample.cpu_max = cpu

    def _cpu_of(self, slot: Slot, job: Job) -> float:
        """CPU seconds of the run; of the process since it began where the job has no thread of its own."""
        if job.usage is not None:
            return job.usage.cpu_seconds
        if slot.clock_id is None or job.is_async:
            return resources.process_cpu_s() - job.process_cpu_started
        try:
            return max(0.0, time.clock_gettime(slot.clock_id) - job.cpu_started)
        except OSError:  # the thread has ended
            return 0.0

    def _write_beat(self, now: float) -> None:
        then, before = self._process
        cpu = resources.process_cpu_s()
        self._process = (now, cpu)
        cpu_percent = 100 * (cpu - before) / max(now - then, 1e-3)
        self._beat += 1
        consumers_alive, consumers = self._consumers()
        gauges = {
            "heartbeat_s": self._beat_s,
            "consumers": consumers,
            "consumers_alive": consumers_alive,
            "open_files": self._open_files,
            "children": self._children.processes,
            "children_rss": self._children.rss + self._isolated_rss,
            "children_cpu_seconds": round(self._children.cpu_seconds, 3),
            "sampler_cpu_seconds": round(self.cpu_seconds, 4),
            "sample_interval_s": self.sample_interval_s,
            "running": len(self._running.running()),
            "journal_segments": self._journal.waiting_segments(),
            "internal_errors": dict(internal_errors),
        }
        execution = self._execution
        self._journal.append(
            (
                records.BEAT,
                time.time(),
                self._beat,
                host.rss_bytes(),
                round(cpu_percent, 2),
                execution.jobs_processed,
                execution.jobs_failed,
                to_json(gauges),
            )
        )

    def _pace(self, cost: float) -> None:
        """Sample less often while one sample costs more than its share of the time between two."""
        if cost > BUDGET * self.sample_interval_s:
            self.sample_interval_s = min(SLOWEST_S, self.sample_interval_s * 2)
        elif cost < BUDGET * self.sample_interval_s / 4:
            self.sample_interval_s = max(1.0, self.sample_interval_s / 2)
