"""The stop ladder: how a running job is ended, rung by rung, each of them on the job's timeline."""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import CommandRefused, JobCancelled
from ..events import JobEvent, JobStopDelivered, JobStopIgnored, JobStopRequested
from ..service import internal_error
from .stopping import Stop, interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .jobs import Job
    from .recorder import Recorder
    from .slots import RunningJobs, Slot

logger = logging.getLogger("dramatiq_chaperone.stopping")

#: A job that reports has so long to hear in a heartbeat that it is to stop, before it is interrupted; seconds.
ASK_S: Final = 2.0


class LastRung(Protocol):
    """Ends the worker process under a job."""

    def obstacle(self, *, force: bool) -> str | None:
        """Why it may not be done now, in words; None: it may.  Called while the job runs."""

    def begin(self, slot: Slot, job: Job, stop: Stop) -> str | None:
        """Begin with it, unless there is an obstacle, which is returned.

        From then on the job, whose rung is 'process' now, does not get out of its actor.
        """

    def go_on(self) -> None:
        """Do what can be done now of what was begun.  The last of it does not return."""


class _NoLastRung:
    """Where the process is nobody's to end."""

    def obstacle(self, *, force: bool) -> str | None:
        return "this process cannot be ended"

    def begin(self, slot: Slot, job: Job, stop: Stop) -> str | None:
        return self.obstacle(force=stop.force)

    def go_on(self) -> None:
        """Nothing was begun."""


class _Rung(Enum):
    """How far a stop has got."""

    ASKED = "asked"
    DELIVERED = "delivered"
    #: The ladder has ended, and the job runs on.
    IGNORED = "ignored"
    #: Its process is being ended.
    LAST = "last"


@dataclass(slots=True)
class _Climb:
    slot: Slot
    job: Job
    stop: Stop
    grace_s: float
    rung: _Rung
    #: When the next rung is due, monotonic seconds.
    due_at: float
    #: When it was delivered.
    since: float = 0.0


class StopLadder:
    """Ends running jobs, one rung after the other: ask, interrupt, end the process.

    An operator's stop is asked for first: a job that reports hears it in its next heartbeat, where it can be told most
    gently; after ASK_S, or at once where it never reported, it is interrupted.  Limits interrupt at once.

    Parameters:
      recorder: where the rungs are told; None: nowhere.
      last_rung: ends the worker process.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        running: RunningJobs,
        recorder: Recorder | None = None,
        last_rung: LastRung | None = None,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._running, self._recorder, self._clock = running, recorder, clock
        self._last_rung = last_rung or _NoLastRung()
        self._climbs: dict[str, _Climb] = {}
        #: Commands may come from another thread than the sampler's.
        self._lock = threading.RLock()

    def stop(self, slot: Slot, job: Job, stop: Stop) -> bool:
        """Begin to end *job*, or go further with it than was begun; whether that is new.  Any thread may call it."""
        now = self._clock()
        with self._lock:
            earlier, climb = job.stop, self._climbs.get(job.run_id)
            merged = _merged(earlier, stop)
            if merged is None and stop.is_final and climb is not None and climb.rung is _Rung.IGNORED:
                merged = earlier  # what was in the way may be gone
            with slot.lock:
                if merged is None or slot.job is not job or slot.taken is not None:
                    return False
                job.stop = merged
                job.tell = functools.partial(self._tell, slot, job)
                job.is_cancelled = True
            self._emit(
                job,
                JobStopRequested,
                requested_at=datetime.now(UTC),
                means=stop.means,
                requested_by=stop.by,
                reason=stop.why,
                force=stop.force,
            )
            if climb is None or earlier is None or merged.exception is not earlier.exception:
                climb = self._climbs[job.run_id] = _Climb(slot, job, merged, self.grace_s(slot), _Rung.ASKED, now)
                if merged.is_final and job.child is None and job.has_reported:
                    climb.due_at = now + ASK_S
            else:
                climb.stop = merged
                if climb.rung is _Rung.IGNORED:
                    climb.due_at = now
            if climb.rung is _Rung.ASKED:  # the last rung waits for the next turn: a command has to be answered before its process ends
                self._climb(climb, now)
            return True

    def check(self, now: float) -> None:
        """Take the next rung with each job that is due for it.  *now* is monotonic."""
        if not self._climbs:
            return
        with self._lock:
            for run_id, climb in list(self._climbs.items()):
                if climb.slot.job is climb.job:
                    self._climb(climb, now)
                else:
                    del self._climbs[run_id]

    def kill(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The command ``kill``: an operator ends a job for good.

        Parameters:
          arguments: job_id; run_id, where that run alone is meant; by, reason (texts), force (see :class:`Stop`).

        Raises:
          CommandRefused: the job, or that run of it, does not run here.
        """
        job_id, run_id = arguments.get("job_id"), arguments.get("run_id")
        force = bool(arguments.get("force", False))
        for slot, job in self._running.running():
            if job.job_id == job_id and run_id in {None, job.run_id}:
                by, detail = str(arguments.get("by") or "operator")[:255], str(arguments.get("reason") or "")[:1000]
                stop = Stop("kill", "operator", JobCancelled, by=by, is_final=True, force=force, detail=detail)
                obstacle = None if job.child is not None else self._last_rung.obstacle(force=force)
                is_new = self.stop(slot, job, stop)
                return {"run_id": job.run_id, "is_new": is_new, "grace_s": self.grace_s(slot), "obstacle": obstacle}
        raise CommandRefused(f"job {job_id} does not run here" if run_id is None else f"run {run_id} of job {job_id} does not go on here")

    def _climb(self, climb: _Climb, now: float) -> None:
        if climb.rung is _Rung.LAST:
            self._last_rung.go_on()
            return
        if now < climb.due_at:
            return
        if climb.rung is _Rung.ASKED:
            self._deliver(climb, now)
        else:
            self._end(climb, now)

    def _deliver(self, climb: _Climb, now: float) -> None:
        job, stop, slot = climb.job, climb.stop, climb.slot
        climb.rung, climb.since, climb.due_at = _Rung.DELIVERED, now, now + climb.grace_s
        if job.child is not None and stop.means == "kill" and stop.reason == "memory":
            self._kill_child(climb)  # it may not have the memory that an exception takes
            return
        if not interrupt(slot, job, stop.exception, again=stop.reason == "operator"):
            return  # it was told in a heartbeat, or something else has interrupted it
        job.rung = "interrupt"
        self._delivered(job, stop, "interrupt")

    def _tell(self, slot: Slot, job: Job) -> bool:
        """Whether *job* is to be told now, in the thread that reports, that it has to stop."""
        with slot.lock:
            stop = job.stop
            if stop is None or slot.job is not job or slot.taken is not None or slot.sent is stop.exception or job.child is not None:
                return False
            is_own = threading.get_ident() == slot.ident or (job.is_async and slot.greenlet is None)
            if not is_own:
                return True  # a thread that the job has started: it learns of it, and the job is interrupted all the same
            slot.sent = stop.exception
            job.rung = "ask"
        self._delivered(job, stop, "ask")
        return True

    def _end(self, climb: _Climb, now: float) -> None:
        """The interrupt is ignored: the last rung, or the end of the ladder."""
        job, stop = climb.job, climb.stop
        climb.rung, climb.due_at = _Rung.IGNORED, inf
        if stop.means != "kill":
            self._ignored(climb, now, "none: it was to be interrupted, not killed")
        elif job.child is not None:
            self._ignored(climb, now, f"its process {job.child.pid} is killed")
            self._kill_child(climb)
        elif (obstacle := self._last_rung.begin(climb.slot, job, stop)) is not None:
            if climb.slot.job is job:  # else it has ended in this moment
                self._ignored(climb, now, f"none: {obstacle}")
        else:
            climb.rung = _Rung.LAST
            self._ignored(climb, now, "its worker process is ended")
            self._last_rung.go_on()

    @staticmethod
    def _kill_child(climb: _Climb) -> None:
        climb.rung, climb.due_at, climb.job.rung = _Rung.IGNORED, inf, "process"
        if climb.job.child is not None:
            climb.job.child.kill()

    def grace_s(self, slot: Slot) -> float:
        """``kill_grace`` of the message, else of its actor, else the setting."""
        options = {} if slot.proxy is None else slot.proxy.options
        found = options.get("kill_grace") if slot.policy is None else slot.policy.first("kill_grace", options)
        if found is None and self._recorder is not None:
            found = self._recorder.settings.kill_grace
        return 10.0 if found is None else float(found)

    def _delivered(self, job: Job, stop: Stop, means: str) -> None:
        self._emit(job, JobStopDelivered, delivered_at=datetime.now(UTC), means=means, requested_by=stop.by, reason=stop.why)

    def _ignored(self, climb: _Climb, now: float, consequence: str) -> None:
        job, stop = climb.job, climb.stop
        logger.warning(
            "The job %s of %s ignores its %s for %.0f s. What follows: %s.",
            job.job_id, job.actor_name, stop.exception.__name__, now - climb.since, consequence, extra={"job_id": job.job_id},
        )  # fmt: skip
        self._emit(
            job,
            JobStopIgnored,
            ignored_at=datetime.now(UTC),
            waited=round(now - climb.since, 3),
            consequence=consequence,
            requested_by=stop.by,
            reason=stop.why,
        )

    def _emit(self, job: Job, kind: type[JobEvent], **fields: Any) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.emit(kind(**job.about, **fields))
        except Exception as error:  # noqa: BLE001 - the stop is what matters
            internal_error("ladder", error, job_id=job.job_id)


def _merged(old: Stop | None, new: Stop) -> Stop | None:
    """What is to be done now that *new* was asked for too; None where that adds nothing.

    What is final stays so; an operator goes before a limit, and one who insists before one who does not.
    """
    if old is None:
        return new
    base = max(old, new, key=lambda stop: (stop.is_final, stop.reason == "operator", stop.force))
    means = "kill" if "kill" in {old.means, new.means} else base.means
    detail = base.detail or (old.detail if old.reason == base.reason else "")
    merged = base._replace(means=means, force=old.force or new.force, detail=detail)
    return None if merged == old else merged
