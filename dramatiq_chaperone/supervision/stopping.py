"""The one interrupter: every asynchronous exception that a job gets comes from here.

An interrupt is raised only under the lock of the job's slot, and only while the slot holds that job; the wrapper
takes the job out, and takes back an interrupt that has not arrived, before it leaves (:func:`settle`).  So none can
land outside the actor, where it would kill the worker thread or fail a job that has done all its work.
"""

from __future__ import annotations

import ctypes
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dramatiq.middleware import Shutdown, ShutdownNotifications, TimeLimit, TimeLimitExceeded
from dramatiq.threading import Interrupt, is_gevent_active, raise_thread_exception

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .jobs import Job
    from .slots import RunningJobs, Slot

logger = logging.getLogger("dramatiq_chaperone.stopping")

#: Interrupts that one run may get.
MOST_SENDS: Final = 2


def interrupt(slot: Slot, job: Job, exception: type[BaseException], *, again: bool = False) -> bool:
    """Raise *exception* in the thread of *slot* while it runs *job*, or in the job's own process, once.  Whether it was raised.

    Parameters:
      again: an earlier interrupt of another kind is no obstacle; two of all kinds are, for the wrapper expects no more.
    """
    with slot.lock:
        if slot.job is not job or slot.taken is not None:
            return False
        if slot.sent is not None and (not again or slot.sent is exception or slot.sends >= MOST_SENDS):
            return False
        slot.sent = exception
        slot.sends += 1
        if job.child is not None:
            job.child.interrupt(exception)
        elif slot.greenlet is None:
            raise_thread_exception(slot.ident, exception)
        else:
            _throw_later(slot, job, exception)
        return True


def _throw_later(slot: Slot, job: Job, exception: type[BaseException]) -> None:
    """Greenlets take turns by themselves: have the hub throw it, which sees the greenlet stand still."""
    import gevent

    def throw() -> None:
        if slot.job is job and slot.sent is exception:
            slot.greenlet.throw(exception)

    gevent.get_hub().loop.run_callback(throw)


def settle(slot: Slot) -> None:
    """Take the job out of its slot, with the interrupt that has not arrived yet.  After this none can."""
    while True:
        try:
            with slot.lock:
                taken = slot.taken
                if taken is None:
                    slot.job = None
                    slot.deadline = None
                    if slot.sent is not None:
                        slot.sent, slot.sends = None, 0
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(slot.ident), None)
                    return
            taken.wait()  # the process is being ended, and somebody else settles its message
        except Interrupt:
            # It was delivered right here, after the actor was done: it has nobody to stop any more.
            continue


class Stop(NamedTuple):
    """What is to become of a running job, and why."""

    #: ``'interrupt'``, or ``'kill'``: the process is ended where the interrupt is ignored.
    means: str
    #: ``'operator'``, ``'timeout'``, ``'memory'``, ``'cpu'`` or ``'stuck'``.
    reason: str
    #: What is raised in the job.
    exception: type[BaseException]
    #: Who asked, for the record.
    by: str = "chaperone"
    #: Whether it ends the job for good: cancelled and dead-lettered, no retry.
    is_final: bool = False
    #: Whether the operator takes it upon himself that the worker's other jobs are lost.
    force: bool = False
    #: Why, in the words of who asked.
    detail: str = ""

    @property
    def why(self) -> str:
        """For the record: the words of who asked, else the reason."""
        return self.detail or self.reason


class Child(Protocol):
    """The process of an isolated job, as long as it runs."""

    #: 0 until it runs.
    pid: int
    #: Whether it was ended on purpose.
    was_killed: bool

    def interrupt(self, exception: type[BaseException]) -> None:
        """Raise *exception* in the job."""

    def kill(self) -> None:
        """End the process."""

    def stack(self, timeout_s: float) -> list[str]:
        """Where the job is in its code, as lines of text, the innermost call last."""


class Interrupter:
    """Interrupts what is over its time, and stands in for the managers of TimeLimit and ShutdownNotifications.

    Their documented behaviour stays: the exception, its log line, the interval, the options.  What changes is that
    the clock starts with the actor instead of the middleware before it, and that a finished job is left alone.
    """

    def __init__(self, running: RunningJobs) -> None:
        self._running = running
        self._replaced: list[tuple[Any, Any]] = []
        #: Seconds between two looks at the deadlines.
        self.interval_s = 1.0
        #: What is done with a job that is past its deadline; called at each look until the job is over.
        self.overdue: Callable[[Slot, Job, float], None] = self._interrupt

    def check(self, now: float) -> None:
        """Look at each job whose deadline lies before *now* (monotonic seconds)."""
        for slot, job in self._running.running():
            deadline = slot.deadline
            if deadline is not None and now >= deadline:
                self.overdue(slot, job, now)

    def _interrupt(self, slot: Slot, job: Job, now: float) -> None:
        if interrupt(slot, job, TimeLimitExceeded):
            log_time_limit(slot, job)

    def adopt(self, middleware: Iterable[Any]) -> None:
        """Replace the managers of TimeLimit and ShutdownNotifications.  Not under gevent, whose own are exact."""
        if is_gevent_active():
            return
        for entry in middleware:
            manager: Any
            if isinstance(entry, TimeLimit):
                # Outside of the dramatiq command nobody starts its manager, and it limits nothing there.
                is_started = bool(getattr(entry.manager, "is_alive", bool)())
                manager = _TimeLimits(self._running, entry.manager, is_enforced=is_started)
                self.interval_s = min(self.interval_s, getattr(entry.manager, "interval", 1.0))
            elif isinstance(entry, ShutdownNotifications):
                manager = _ShutdownNotices(self._running, entry.manager)
            else:
                continue
            self._replaced.append((entry, entry.manager))
            entry.manager = manager

    def restore(self) -> None:
        """Give the middleware their own managers back."""
        for entry, manager in self._replaced:
            entry.manager = manager
        self._replaced.clear()


def log_time_limit(slot: Slot, job: Job) -> None:
    """Say what Dramatiq says when a time limit interrupts a job."""
    logger.warning("Time limit exceeded. Raising exception in worker thread %r.", slot.ident, extra={"job_id": job.job_id})


class _TimeLimits:
    """In the place of TimeLimit's manager, which goes on to serve the messages that are not supervised."""

    def __init__(self, running: RunningJobs, original: Any, *, is_enforced: bool) -> None:
        self._running, self._original = running, original
        self._is_enforced = is_enforced

    def start(self) -> None:
        self._original.start()
        self._is_enforced = True

    def add_timeout(self, thread_id: int, ttl: float) -> None:
        slot = self._running.slot()
        if slot.message is None:
            self._original.add_timeout(thread_id, ttl)
        elif self._is_enforced:
            slot.time_limit_ms = ttl

    def remove_timeout(self, thread_id: int) -> None:
        self._running.slot().time_limit_ms = None
        if self._original.deadlines.get(thread_id) is not None:
            self._original.remove_timeout(thread_id)


class _ShutdownNotices:
    """In the place of ShutdownNotifications' manager, which goes on to serve the messages that are not supervised."""

    def __init__(self, running: RunningJobs, original: Any) -> None:
        self._running, self._original = running, original

    def add_notification(self) -> None:
        slot = self._running.slot()
        if slot.message is None:
            self._original.add_notification()
        else:
            slot.notify_shutdown = True

    def remove_notification(self) -> None:
        self._running.slot().notify_shutdown = False
        self._original.remove_notification()

    def shutdown(self) -> None:
        for slot, job in self._running.running():
            if slot.notify_shutdown and interrupt(slot, job, Shutdown):
                logger.info(
                    "Worker shutdown notification. Raising exception in worker thread %r.", slot.ident, extra={"job_id": job.job_id}
                )
        self._original.shutdown()
