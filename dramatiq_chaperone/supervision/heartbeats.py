"""Heartbeats that were promised and do not come: counted in intervals, told at the threshold, with a diagnosis.

A job is under the contract once its actor or its message sets ``heartbeat_interval``, or it has reported anything of
itself.  Every other one is judged by evidence and its timeout: silence alone says nothing about it.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from .. import records
from ..diagnosis import Diagnosis, Look, deaf, diagnose, parse_stack
from ..errors import HeartbeatsMissed
from ..events import HeartbeatMissed, JobDiagnosed, JobRecovered, JobStuck, has_subscribers, publish
from ..service import internal_error
from .jobs import Job
from .ladder import StopLadder
from .policy import Promise
from .recorder import Recorder
from .resources import starved_s
from .sampler import REFRESH_S, Readings
from .slots import Slot
from .stacks import coroutine_stack, lock_chain, stack_of
from .stopping import Stop

#: Looks at a thread that are kept while its job is quiet, the last ones.
LOOKS: Final = 20
#: How long the process of an isolated job has to tell where it is, in seconds; everything else waits for it.
CHILD_STACK_S: Final = 0.3
#: A job that still runs so long after its interrupt, in seconds, ignores it.
IGNORED_S: Final = 3.0
#: HeartbeatMissed is published for so many intervals of one look at most.
_MISSED_EVENTS: Final = 100


class Silence(NamedTuple):
    """What the time without a heartbeat amounts to."""

    #: Whole intervals.
    missed: int
    is_stuck: bool


def silence(heard_at: float, now: float, interval_s: float, threshold: int) -> Silence:
    """Judge a job by when it was last heard of, or began.

    Parameters:
      heard_at, now: seconds of one clock.
      interval_s: above 0.
      threshold: 0: it is never stuck.
    """
    missed = int(max(0.0, now - heard_at) / interval_s)
    return Silence(missed, is_stuck=0 < threshold <= missed)


def is_gap(elapsed_s: float, expected_s: float, interval_s: float) -> bool:
    """Whether the observer itself was away: what it did not see in that time it holds against nobody."""
    return elapsed_s > 1.25 * expected_s + min(interval_s / 4, 2.0)


@dataclass(slots=True)
class _Watch:
    """What is known of one running job.  Times are monotonic."""

    promise: Promise
    #: When it was last heard of, or began; moved on by a gap of the observer's.
    heard_at: float
    looked_at: float
    reports: int = 0
    #: Unix seconds; None before the first report.
    reported_at: float | None = None
    stuck_at: float | None = None
    written_at: float = 0.0
    interrupted_at: float | None = None
    is_told: bool = False
    looks: deque[Look] = field(default_factory=lambda: deque(maxlen=LOOKS))
    gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    def interval_s(self) -> float:
        """0: it owes none."""
        return self.promise.interval_s if self.promise.is_made or self.reports else 0.0


class HeartbeatJudge:
    """Asked by the sampler after each sample; see :class:`~.sampler.Judge`.

    Parameters:
      expected_s: gives the seconds between two samples.
    """

    def __init__(self, recorder: Recorder, ladder: StopLadder, *, expected_s: Callable[[], float]) -> None:
        self._recorder, self._ladder, self._expected_s = recorder, ladder, expected_s
        self._watches: dict[Job, _Watch] = {}
        self._running: Sequence[tuple[Slot, Job]] = ()

    def look(self, running: Sequence[tuple[Slot, Job]], readings: Readings) -> None:
        """Judge every running job."""
        before, self._watches, self._running = self._watches, {}, running
        for slot, job in running:
            try:
                watch = before.get(job)
                if watch is None:
                    watch = _Watch(self._promise(job), job.started, job.started)
                self._watches[job] = watch
                self._look_at(slot, job, watch, readings)
            except Exception as error:  # noqa: BLE001 - the other jobs have to be looked at too
                internal_error("heartbeats", error, job_id=job.job_id)

    def diagnosis(self, job_id: str) -> Diagnosis | None:
        """Why a running job is where it is, as far as a look right now can tell; None where it does not run here."""
        for slot, job in self._running:
            if job.job_id == job_id and job.ended is None and (watch := self._watches.get(job)) is not None:
                now = time.monotonic()
                return self._diagnose(slot, job, watch, now, [*watch.looks, *self._looks_now(slot, job, now)])
        return None

    def _promise(self, job: Job) -> Promise:
        return self._recorder.policy(job.actor_name, job.queue).promise(getattr(job.message, "options", {}), self._recorder.settings)

    def _look_at(self, slot: Slot, job: Job, watch: _Watch, readings: Readings) -> None:
        now = readings.now
        elapsed_s, watch.looked_at = now - watch.looked_at, now
        if job.reports != watch.reports:
            watch.reports, watch.heard_at, watch.reported_at = job.reports, now, readings.at
            if job.missed_heartbeats:
                self._recover(job, watch, readings)
        interval_s = watch.interval_s()
        if interval_s and is_gap(elapsed_s, self._expected_s(), interval_s):
            watch.gaps_s.append(elapsed_s)
            watch.heard_at = max(watch.heard_at, now - job.missed_heartbeats * interval_s)
        self._follow(slot, job, watch, now, is_quiet=bool(interval_s) and now - watch.heard_at >= interval_s / 2)
        if interval_s:
            self._count(slot, job, watch, readings, interval_s)

    def _follow(self, slot: Slot, job: Job, watch: _Watch, now: float, *, is_quiet: bool) -> None:
        """Look at the thread of a job that is quiet, or was interrupted."""
        if slot.sent is None:
            watch.interrupted_at = None
            if not is_quiet:
                watch.looks.clear()
                return
        elif watch.interrupted_at is None:
            watch.interrupted_at = now
        watch.looks.append(_look(slot, job, now, None if job.sample is None else job.sample.cpu_seconds))
        if watch.interrupted_at is not None and now - watch.interrupted_at >= IGNORED_S and not watch.is_told:
            watch.is_told = True
            self._tell_ignored(slot, job, watch, now)

    def _count(self, slot: Slot, job: Job, watch: _Watch, readings: Readings, interval_s: float) -> None:
        found = silence(watch.heard_at, readings.now, interval_s, watch.promise.threshold)
        if found.missed <= job.missed_heartbeats:
            return
        if has_subscribers(HeartbeatMissed):
            self._publish_missed(job, watch, readings, interval_s, found.missed)
        job.missed_heartbeats = found.missed
        is_new = found.is_stuck and not job.is_stuck
        job.is_stuck = job.is_stuck or found.is_stuck
        if is_new or not job.is_stuck or readings.now - watch.written_at >= REFRESH_S * 0.999:
            watch.written_at = readings.now
            self._append(job, readings)
        if is_new:
            watch.stuck_at = readings.now
            self._tell_stuck(slot, job, watch, readings)

    def _append(self, job: Job, readings: Readings) -> None:
        self._recorder.append((records.STUCK, readings.at, job.job_id, job.run_id, job.missed_heartbeats, job.is_stuck))

    def _publish_missed(self, job: Job, watch: _Watch, readings: Readings, interval_s: float, missed: int) -> None:
        heard_at = readings.at - (readings.now - watch.heard_at)
        for number in range(max(job.missed_heartbeats, missed - _MISSED_EVENTS) + 1, missed + 1):
            publish(
                HeartbeatMissed(
                    **job.about,
                    last_heartbeat_at=_moment(watch.reported_at),
                    expected_at=datetime.fromtimestamp(heard_at + number * interval_s, UTC),
                    expected_interval=interval_s,
                    missed_duration=readings.now - watch.heard_at,
                    missed_count=number,
                )
            )

    def _recover(self, job: Job, watch: _Watch, readings: Readings) -> None:
        missed, was_stuck = job.missed_heartbeats, job.is_stuck
        job.missed_heartbeats, job.is_stuck = 0, False
        self._append(job, readings)
        if was_stuck:
            self._recorder.emit(
                JobRecovered(
                    **job.about,
                    run_id=job.run_id,
                    recovered_at=datetime.fromtimestamp(readings.at, UTC),
                    stuck_duration=readings.now - (watch.stuck_at or readings.now),
                    missed_heartbeats=missed,
                )
            )

    def _tell_stuck(self, slot: Slot, job: Job, watch: _Watch, readings: Readings) -> None:
        found = self._diagnose(slot, job, watch, readings.now, list(watch.looks))
        self._recorder.emit(
            JobStuck(
                **job.about,
                run_id=job.run_id,
                stuck_duration=readings.now - watch.heard_at,
                last_heartbeat=_moment(watch.reported_at),
                missed_heartbeats=job.missed_heartbeats,
                diagnosis=found.text,
                cause=found.cause,
                evidence=found.evidence,
            )
        )
        means = watch.promise.on_stuck
        if means in {"interrupt", "kill"}:
            self._ladder.stop(slot, job, Stop(means, "stuck", HeartbeatsMissed))

    def _tell_ignored(self, slot: Slot, job: Job, watch: _Watch, now: float) -> None:
        found = self._diagnose(slot, job, watch, now, list(watch.looks))
        sent = slot.sent
        if sent is None:  # it has ended meanwhile
            return
        self._recorder.emit(
            JobDiagnosed(
                **job.about,
                run_id=job.run_id,
                diagnosis=f"goes on after {sent.__name__}: {found.text}",
                cause=found.cause,
                evidence=found.evidence,
            )
        )

    def _diagnose(self, slot: Slot, job: Job, watch: _Watch, now: float, looks: Sequence[Look]) -> Diagnosis:
        quiet_s = now - watch.heard_at if watch.interval_s() else None
        if job.child is not None:
            stack = parse_stack(job.child.stack(CHILD_STACK_S))
            if not stack:
                return deaf(looks, quiet_s=quiet_s)
            return diagnose([look._replace(stack=stack) for look in looks], quiet_s=quiet_s, gaps_s=tuple(watch.gaps_s))
        if job.is_async and not any(look.stack for look in looks):
            text = "alive, no progress: it shares its thread with other jobs, and has no stack of its own"
            return Diagnosis("idle", text, {"quiet_s": quiet_s})
        links = [] if job.is_async else lock_chain(slot.ident, {each.ident: (each.name, other.job_id) for each, other in self._running})
        return diagnose(looks, links=links, quiet_s=quiet_s, gaps_s=tuple(watch.gaps_s))

    @staticmethod
    def _looks_now(slot: Slot, job: Job, now: float) -> list[Look]:
        """The last sample's CPU, and the job as it is now."""
        sample = job.sample
        looks = [] if sample is None or now - sample.at < 0.05 else [Look(sample.at, sample.cpu_seconds, ())]
        try:
            if job.child is not None:
                cpu_s = 0.0 if job.usage is None else job.usage.cpu_seconds
            elif job.is_async or slot.clock_id is None:
                cpu_s = time.process_time() - job.process_cpu_started
            else:
                cpu_s = max(0.0, time.clock_gettime(slot.clock_id) - job.cpu_started)
        except OSError:  # the thread has ended
            return []
        look = _look(slot, job, now, cpu_s)
        return [look] if look.cpu_s is None else [*looks, look]


def _look(slot: Slot, job: Job, now: float, cpu_s: float | None) -> Look:
    """The thread of a job, or its coroutine: what that uses is known only where it runs, for its event loop runs nothing else then."""
    if job.child is not None:  # it is asked where it is once somebody wants to know
        return Look(now, cpu_s, ())
    if not job.is_async:
        return Look(now, cpu_s, stack_of(sys._current_frames().get(slot.ident)), starved_s(slot.native_id))
    stack, is_running = coroutine_stack(slot.ident)
    return Look(now, cpu_s if is_running else None, stack)


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
