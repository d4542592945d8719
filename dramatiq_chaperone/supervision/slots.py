"""The threads of this process that run jobs, and what each of them runs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from dramatiq.threading import is_gevent_active

if TYPE_CHECKING:
    from .jobs import Job
    from .policy import Policy


class Slot:
    """A thread that runs jobs, one at a time.

    Attributes:
      lock: held for every change of *job* and *sent*, and while an interrupt is raised; see stopping.py.
      message, policy: what was received and has not begun to run.
      job: the run that may be interrupted now.
      finished: the run whose verdict is awaited.
      sent: the interrupt on its way to *job*.
      deadline: when *job* is interrupted, monotonic seconds.
      time_limit_ms: what TimeLimit asked for.
      is_requeued: the message went back to the broker while its verdict was awaited: a retry.
      last_end: (job_id, error, reason) of the message that ended last, for the nack that follows.
    """

    __slots__ = (
        "clock_id",
        "deadline",
        "finished",
        "ident",
        "is_requeued",
        "job",
        "last_end",
        "lock",
        "message",
        "name",
        "notify_shutdown",
        "policy",
        "sent",
        "time_limit_ms",
    )

    def __init__(self, clock_id: int | None) -> None:
        self.ident = threading.get_ident()
        self.name = threading.current_thread().name
        self.clock_id = clock_id
        self.lock = threading.Lock()
        self.message: Any = None
        self.policy: Policy | None = None
        self.job: Job | None = None
        self.finished: Job | None = None
        self.sent: type[BaseException] | None = None
        self.deadline: float | None = None
        self.time_limit_ms: float | None = None
        self.notify_shutdown = False
        self.is_requeued = False
        self.last_end: tuple[str, tuple[str, str, str, str] | None, str] | None = None

    def awaits(self, message_id: str) -> bool:
        """Whether the verdict about this message is being made right now."""
        if self.finished is not None:
            return self.finished.job_id == message_id
        return self.message is not None and self.message.message_id == message_id


class RunningJobs:
    """Every slot of the process.  A thread makes its own when it first receives a message."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self._local = threading.local()

    def slot(self) -> Slot:
        """The slot of this thread."""
        try:
            return self._local.slot  # type: ignore[no-any-return]  # a threading.local has no types
        except AttributeError:
            slot = self._local.slot = Slot(_own_clock())
            self.slots[slot.ident] = slot
            return slot

    def find(self) -> Slot | None:
        """The slot of this thread, None if it has run no job yet."""
        return getattr(self._local, "slot", None)

    def running(self) -> list[tuple[Slot, Job]]:
        """What runs now."""
        return [(slot, job) for slot in list(self.slots.values()) if (job := slot.job) is not None]


def _own_clock() -> int | None:
    """The CPU clock of this thread.

    Only the thread itself may ask: for one that has ended, the call is a segmentation fault.  Greenlets have none.
    """
    if is_gevent_active() or not hasattr(time, "pthread_getcpuclockid"):
        return None
    return time.pthread_getcpuclockid(threading.get_ident())
