"""The one interrupter: every asynchronous exception that a job gets comes from here.

An interrupt is raised only under the lock of the job's slot, and only while the slot holds that job; the wrapper
takes the job out, and takes back an interrupt that has not arrived, before it leaves (:func:`settle`).  So none can
land outside the actor, where it would kill the worker thread or fail a job that has done all its work.
"""

from __future__ import annotations

import ctypes
import logging
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Shutdown, ShutdownNotifications, TimeLimit, TimeLimitExceeded
from dramatiq.threading import Interrupt, is_gevent_active, raise_thread_exception

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .jobs import Job
    from .slots import RunningJobs, Slot

logger = logging.getLogger("dramatiq_chaperone.stopping")


def interrupt(slot: Slot, job: Job, exception: type[BaseException]) -> bool:
    """Raise *exception* in the thread of *slot* while it runs *job*, once.  Whether it was raised."""
    with slot.lock:
        if slot.job is not job or slot.sent is not None:
            return False
        slot.sent = exception
        raise_thread_exception(slot.ident, exception)
        return True


def settle(slot: Slot) -> None:
    """Take the job out of its slot, with the interrupt that has not arrived yet.  After this none can."""
    while True:
        try:
            with slot.lock:
                slot.job = None
                slot.deadline = None
                if slot.sent is not None:
                    slot.sent = None
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(slot.ident), None)
            return
        except Interrupt:
            # It was delivered right here, after the actor was done: it has nobody to stop any more.
            continue


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

    def check(self, now: float) -> None:
        """Interrupt each job whose deadline lies before *now* (monotonic seconds)."""
        for slot, job in self._running.running():
            deadline = slot.deadline
            if deadline is not None and now >= deadline and interrupt(slot, job, TimeLimitExceeded):
                logger.warning("Time limit exceeded. Raising exception in worker thread %r.", slot.ident, extra={"job_id": job.job_id})

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
