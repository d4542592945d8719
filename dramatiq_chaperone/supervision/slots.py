"""The threads of this process that run jobs, and what each of them runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dramatiq.threading import is_gevent_active

if TYPE_CHECKING:
    from collections.abc import Callable

    from .jobs import Job
    from .policy import Policy


class Slot:
    """A thread that runs jobs, one at a time.

    Attributes:
      lock: held for every change of *job* and *sent*, and while an interrupt is raised; see stopping.py.
      message, policy: what was received and has not begun to run.
      proxy: the same as the broker gave it, until the next one comes: what is acknowledged or rejected.
      job: the run that may be interrupted now.
      finished: the run whose verdict is awaited.
      sent: the interrupt on its way to *job*, or that has reached it.
      sends: how many interrupts *job* got.
      taken: set while *job* is being ended with its process: whoever it is, it does not get out of the actor before this is set.
      deadline: when *job* has run for as long as it may, monotonic seconds.
      time_limit_ms: what TimeLimit asked for.
      is_redelivered: the broker has delivered the message before.
      is_requeued: the message went back to the broker while its verdict was awaited: a retry.
      suspect: id of the last message that may have ended a worker, and that may run; None once it does.
      held: what the message that was received holds of the circuit breakers that it needs, None if it needs none.
      putting_off: id of the message that is being put off: its enqueue is no new one.
      last_end: (job_id, error, reason) of the message that ended last, for the nack that follows; without a reason that is no news.
    """

    __slots__ = (
        "clock_id",
        "deadline",
        "finished",
        "greenlet",
        "held",
        "ident",
        "is_redelivered",
        "is_requeued",
        "job",
        "last_end",
        "lock",
        "message",
        "name",
        "native_id",
        "notify_shutdown",
        "policy",
        "proxy",
        "putting_off",
        "sends",
        "sent",
        "suspect",
        "taken",
        "time_limit_ms",
    )

    def __init__(self, clock_id: int | None) -> None:
        self.ident = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.name = threading.current_thread().name
        self.clock_id = clock_id
        #: The thread is one of gevent's: no asynchronous exception reaches it.
        self.greenlet = _own_greenlet()
        self.lock = threading.Lock()
        self.message: Any = None
        self.proxy: Any = None
        self.policy: Policy | None = None
        self.job: Job | None = None
        self.finished: Job | None = None
        self.sent: type[BaseException] | None = None
        self.sends = 0
        self.taken: threading.Event | None = None
        self.deadline: float | None = None
        self.time_limit_ms: float | None = None
        self.notify_shutdown = False
        self.is_redelivered = False
        self.is_requeued = False
        self.suspect: str | None = None
        self.held: tuple[Any, ...] | None = None
        self.putting_off: str | None = None
        self.last_end: tuple[str, tuple[str, str, str, str] | None, str | None] | None = None

    def awaits(self, message_id: str) -> bool:
        """Whether the verdict about this message is being made right now."""
        if self.finished is not None:
            return self.finished.job_id == message_id
        return self.message is not None and self.message.message_id == message_id


class RunningJobs:
    """Every slot of the process.  A thread makes its own when it first receives a message.

    Attributes:
      on_new: told of each slot that is made, in its thread.
    """

    def __init__(self) -> None:
        self.on_new: Callable[[Slot], None] = lambda slot: None
        self.slots: dict[int, Slot] = {}
        self._local = threading.local()

    def slot(self) -> Slot:
        """The slot of this thread."""
        try:
            return self._local.slot  # type: ignore[no-any-return]  # a threading.local has no types
        except AttributeError:
            slot = self._local.slot = Slot(_own_clock())
            self.slots[slot.ident] = slot
            self.on_new(slot)
            return slot

    def find(self) -> Slot | None:
        """The slot of this thread, None if it has run no job yet."""
        return getattr(self._local, "slot", None)

    @contextmanager
    def standing_in(self, slot: Slot) -> Iterator[None]:
        """Let this thread do what is left to do for a message of the thread of *slot*, which cannot: hooks find that slot."""
        own = self.find()
        self._local.slot = slot
        try:
            yield
        finally:
            self._local.slot = own
            if own is None:
                del self._local.slot

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


def _own_greenlet() -> Any:
    if not is_gevent_active():
        return None
    import gevent

    return gevent.getcurrent()
