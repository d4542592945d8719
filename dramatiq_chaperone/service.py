"""Service: the only owner of a thread; and the count of what went wrong inside Chaperone."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("dramatiq_chaperone")

#: A fork waits at most so long for a thread of ours, in seconds.
FORK_WAIT_S: Final = 2.0

#: Errors of Chaperone itself in this process, by component.
internal_errors: Counter[str] = Counter()
_seen: set[tuple[str, type[BaseException]]] = set()
_errors_lock = threading.Lock()
#: So many kinds of errors are logged in one process; more than that is noise.
_MAX_KINDS: Final = 200


def internal_error(component: str, exception: BaseException, *, job_id: str | None = None) -> None:
    """Count an error of Chaperone itself; log the first of each kind, with its traceback.  Never raises.

    Parameters:
      component: the part that failed, for example ``'sampler'``; a label of chaperone_internal_errors_total.
      job_id: the job in whose course it happened.
    """
    try:
        kind = (component, type(exception))
        with _errors_lock:
            internal_errors[component] += 1
            is_new = kind not in _seen and len(_seen) < _MAX_KINDS
            if is_new:
                _seen.add(kind)
        if is_new:
            logger.error(
                "Internal error in %s%s; jobs are not affected, and more of this kind are only counted.",
                component,
                f" (job {job_id})" if job_id else "",
                exc_info=exception,
            )
    except Exception:  # noqa: BLE001 - a broken log handler must not reach the job
        return


class _ForkGate:
    """``with unforkable:`` keeps a fork out while a thread is in the middle of what a child could never finish.

    A child gets each lock as it is in that moment, those of imports and of a database's library too, and not the
    thread that would let go of it: it would wait for it for ever, at its own exit at the latest.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    def __enter__(self) -> None:
        with self._changed:
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Before a fork: let nobody in, and wait for those who are inside, at most FORK_WAIT_S."""
        self._changed.acquire()
        self._changed.wait_for(lambda: not self._inside, timeout=FORK_WAIT_S)

    def open(self) -> None:
        """After it, in the parent."""
        self._changed.release()

    def renew(self) -> None:
        """After it, in the child: nobody is inside."""
        self.__init__()  # type: ignore[misc]  # whoever holds a reference keeps it


unforkable = _ForkGate()


class Service:
    """A loop in a background thread: one turn each *interval_s* seconds, the first at once.

    It may be started and stopped any number of times, from any thread.  An error ends its turn, not its loop.
    A forked child has it stopped, whatever it was doing in the parent.

    Attributes:
      name: its thread is called ``chaperone-<name>``, and its errors are counted under this name.
      interval_s: seconds between two turns; may be changed at any time.
    """

    name: str = "service"

    def __init__(self, *, interval_s: float) -> None:
        self.interval_s = interval_s
        self._lock = threading.Lock()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        _services.add(self)

    def run_once(self) -> None:
        """Take one turn.  Runs in the service's thread; tests call it directly."""
        raise NotImplementedError

    def drain(self) -> None:
        """Finish what is buffered.  Runs in the thread that stops the service, after its own thread has ended."""

    def forked(self) -> None:
        """Forget what belongs to the parent.  Runs in a forked child, where no other thread exists yet."""

    @property
    def is_running(self) -> bool:
        """Whether the thread lives, and nobody has asked it to stop."""
        thread = self._thread
        return thread is not None and thread.is_alive() and not self._stop.is_set()

    def start(self) -> bool:
        """Start the loop unless it runs.  Returns whether it runs now; False: its last turn before a stop still hangs."""
        if threading.current_thread() is self._thread:
            return not self._stop.is_set()
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return not self._stop.is_set()
            self._stop, self._wake = threading.Event(), threading.Event()
            self._thread = threading.Thread(target=self._run, name=f"chaperone-{self.name}", args=(self._stop, self._wake), daemon=True)
            try:
                self._thread.start()
            except RuntimeError as e:  # no more threads, or the interpreter ends
                self._thread = None
                internal_error(self.name, e)
                return False
            return True

    def wake(self) -> None:
        """Take the next turn now."""
        self._wake.set()

    def stop(self, *, timeout_s: float = 5.0) -> bool:
        """Stop the loop, wait at most *timeout_s*, then drain.

        Returns whether it has stopped; after False it may be called again.  The service's own thread only asks.
        """
        deadline = time.monotonic() + timeout_s
        self._ask()
        if threading.current_thread() is self._thread or not self._lock.acquire(timeout=max(0.0, timeout_s)):
            return False
        try:
            if self._thread is None:
                return True
            self._ask()  # again: a start may have come between
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                return False
            self._thread = None
            self._guarded(self.drain)  # only now: no other thread can take from what is buffered
            return True
        finally:
            self._lock.release()

    def _ask(self) -> None:
        self._stop.set()
        self._wake.set()

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        while not stop.is_set():
            self._guarded(self.run_once)
            wake.wait(self.interval_s)
            wake.clear()

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except BaseException as e:  # noqa: BLE001 - whatever it is, supervision goes on
            internal_error(self.name, e)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = None


_services: weakref.WeakSet[Service] = weakref.WeakSet()


def _after_fork() -> None:
    """Locks may be held by threads that do not exist in the child, so it gets new ones before anything else runs there."""
    global _errors_lock
    _errors_lock = threading.Lock()
    unforkable.renew()
    for service in list(_services):
        service._reset()
        service._guarded(service.forked)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=unforkable.close, after_in_parent=unforkable.open, after_in_child=_after_fork)
