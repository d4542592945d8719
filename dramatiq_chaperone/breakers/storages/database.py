"""Circuits in the store, which all processes share.

One thread of the process has the connection: a guarded call hands its step over and waits for it, 250 ms at most, so
that no database, however it hangs, holds a call up any longer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from ... import records
from ...circuits import Altered, Calls, Circuit, Operation, Outcome, Policy, Result, Step, record
from ...errors import SchemaError, StoreError
from ...service import Service, internal_error, unforkable
from ..sharing import shared
from . import WAIT_S

if TYPE_CHECKING:
    from ...settings import Settings
    from ...store import Store

logger = logging.getLogger("dramatiq_chaperone.breakers")

#: Seconds between two looks at what others did: at the store, or into the control block, which the watcher writes.
READ_EVERY_S: Final = 0.9
LOOK_EVERY_S: Final = 0.2
#: Seconds between two tries while the store is away; without its tables the last at once.
BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0)
#: So long a server may take for a statement, in seconds: nobody waits for it.
_LIMIT_S: Final = 5.0
#: Steps that wait while the store is away, at most: more of them say nothing new.
_MOST_KEPT: Final = 1000
#: A connection that nobody has used for so long is closed where the watcher asks for us, in seconds.
_IDLE_S: Final = 30.0


class _Job:
    """A step that somebody waits for, or has waited for."""

    def __init__(self, service: str, operation: Operation, *, is_kept: bool) -> None:
        self.service, self.operation, self.is_kept = service, operation, is_kept
        self.at = time.monotonic()
        self.done = threading.Event()
        self.altered: Altered | None = None
        self.is_abandoned = self.is_told = False


class DatabaseStorage(Service):
    """Keeps circuits in the store of *settings*; see :class:`~.Storage`.

    Parameters:
      took: hears of each step that was taken for this process, and whether it had been taken here before (the store was away).
      collect: gives the calls since the last time; the next gives them back where they could not be told.
      services: those whose breakers this process has.
    """

    name = "breakers"
    is_shared = True

    def __init__(
        self,
        settings: Settings,
        *,
        took: Callable[[str, Altered, bool], None],
        collect: Callable[[], list[Calls]],
        give_back: Callable[[Iterable[Calls]], None],
        services: Callable[[], list[str]],
    ) -> None:
        super().__init__(interval_s=READ_EVERY_S)
        self.clock = shared.clock
        self._settings = settings
        self._took, self._collect, self._give_back, self._services = took, collect, give_back, services
        self._store: Store | None = None
        self._used_at = 0.0
        self._reset_state()

    def _reset_state(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._kept: deque[_Job] = deque(maxlen=_MOST_KEPT)
        #: The store did not answer; or has not answered yet.
        self.is_away = self._is_slow = False
        #: Steps were taken in the store that their callers, who had gone on by themselves, do not know the outcome of.
        self._is_behind = False
        self._guard = threading.Lock()
        self._failures = 0
        self._try_again_at = self._due_at = 0.0
        self._trouble: str | None = None
        self._is_expected = False
        #: Set when it was seen how the circuits stand, or that this cannot be seen.
        self._has_seen = threading.Event()

    def forked(self) -> None:
        """What waits is the parent's, and it tells it."""
        self._reset_state()

    # -- for guarded calls

    def apply(self, service: str, operation: Operation, *, is_kept: bool, wait_s: float = WAIT_S) -> Altered | None:
        """Take a step; None while the store does not answer."""
        job = _Job(service, operation, is_kept=is_kept)
        if self.is_away or self._is_slow or threading.current_thread() is self._thread or not self.start():
            if is_kept:
                self._kept.append(job)
            return None
        self._jobs.append(job)
        self.wake()
        if job.done.wait(wait_s):
            return job.altered
        with self._guard:
            if not job.is_told:
                job.is_abandoned = self._is_slow = True
                return None
        job.done.wait()  # it is being told this very moment
        return job.altered

    def read(self, service: str) -> Circuit | None:
        """As it was last seen here."""
        return shared.circuits.get(service)

    def prepare(self) -> None:
        """Be ready for the first failure, and see how the circuits stand; the store is waited for as a call waits for it."""
        with unforkable:
            from ...store import breakers  # noqa: F401 - here, for that alone takes longer than a call waits
        self._has_seen.clear()
        self._is_expected = True
        if self.start():
            self.wake()
            self._has_seen.wait(WAIT_S)

    # -- its own thread

    def run_once(self) -> None:
        """Take the steps that wait, and once a second see and tell what is new."""
        if self._is_expected:
            self._look()
        self._work()
        link = shared.link
        is_watched = link is not None and link.is_watched()
        if (self._kept or self._is_behind) and not self.is_away:
            self._due_at = 0.0
        self.interval_s = LOOK_EVERY_S if is_watched else READ_EVERY_S
        if is_watched and link is not None:
            link.look()
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + READ_EVERY_S * 0.98
        if is_watched and link is not None:
            self._write_down(link.append)
        if now >= self._try_again_at and (self.is_away or self._kept or self._is_behind or not is_watched):
            self._exchange(is_watched=is_watched)
            self._is_slow = False
        if is_watched and self._store is not None and now - self._used_at > _IDLE_S:
            self._close()

    def _look(self) -> None:
        """At once, whether there is a watcher or not, for that has yet to find this process."""
        self._is_expected = False
        self._used_at = time.monotonic()
        try:
            self._see()
        except StoreError as error:
            self._away(error)
        finally:
            self._has_seen.set()

    def drain(self) -> None:
        """At the end: what waits, and what was not told."""
        self._work()
        if shared.link is not None and shared.link.is_watched():
            self._write_down(shared.link.append)
        if not self.is_away:
            self._tell_the_rest()
        self._close()

    def _tell_the_rest(self) -> None:
        try:
            if self._kept or self._is_behind:
                self._catch_up()
            calls = self._collect()
            if calls:
                self._tell(calls)
        except StoreError as error:
            self._away(error)

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            self._close()  # the connection is this thread's

    def _work(self) -> None:
        while self._jobs:
            job = self._jobs.popleft()
            if self.is_away or (job.is_abandoned and not job.is_kept):
                self._finish(job)
            else:
                self._take(job)
        if not self._kept and not self._is_behind:
            self._is_slow = False

    def _take(self, job: _Job) -> None:
        from ...store import breakers

        try:
            altered = breakers.alter(self._opened(), job.service, job.operation, age_s=time.monotonic() - job.at)
        except StoreError as error:
            self._away(error)
            self._finish(job)
            return
        except BaseException as error:  # noqa: BLE001 - whoever waits must not wait in vain
            internal_error(self.name, error)
            job.is_kept = False
            self._finish(job)
            return
        self.clock.set(altered.now + time.monotonic() - job.at)
        if self._finish(job, lambda: self._took(job.service, altered, False), altered):
            return
        self._is_behind = True
        if altered.step.permit is not None:
            self._give_permit_back(job.service, altered)

    def _finish(self, job: _Job, tell: Callable[[], None] = lambda: None, altered: Altered | None = None) -> bool:
        """Whether somebody still waits for it, and was told."""
        with self._guard:
            is_late = job.is_abandoned
            if not is_late:
                job.is_told = True
        if not is_late:
            tell()
            job.altered = altered
        job.done.set()
        if altered is None and job.is_kept:
            self._kept.append(job)
        return not is_late

    def _give_permit_back(self, service: str, altered: Altered) -> None:
        outcome = Outcome(Result.NEITHER, altered.step.permit)
        self._take(_Job(service, lambda circuit, now: record(circuit, Policy(), outcome, now), is_kept=False))

    def _exchange(self, *, is_watched: bool) -> None:
        """Catch up, tell the calls, and see what others did."""
        try:
            if self.is_away or self._kept or self._is_behind:
                self._catch_up()
            calls = [] if is_watched else self._collect()
            if calls:
                self._tell(calls)
            if not is_watched:
                self._see()
        except StoreError as error:
            self._away(error)
        else:
            self._back()

    def _see(self) -> None:
        """What others did."""
        from ...store import breakers

        store = self._readable()
        if store is not None:
            found, now = breakers.read_told(store)
            self.clock.set(now)
            for service, circuit in found:
                shared.adopt(service, circuit)

    def _catch_up(self) -> None:
        """The steps that waited, as old as they are; when all are taken, and not before, the store knows best."""
        from ...store import breakers

        store = self._opened()
        while self._kept:
            job = self._kept[0]
            breakers.alter(store, job.service, job.operation, age_s=time.monotonic() - job.at)
            self._kept.popleft()
        self.is_away = False
        self._work()
        for service in self._services():
            circuit, now = breakers.read(store, service)
            self.clock.set(now)
            if circuit is not None:
                self._took(service, Altered(Step(circuit, circuit), now), True)
        self._is_behind = False

    def _tell(self, calls: list[Calls]) -> None:
        from ...store import breakers

        try:
            store = self._opened()
            altered = store.transact(lambda: breakers.flush(store, calls))
        except StoreError:
            self._give_back(calls)
            raise
        for service, each in altered:
            self._took(service, each, True)

    def _write_down(self, append: Callable[[tuple[Any, ...]], None]) -> None:
        for calls in self._collect():
            append((records.BREAKER_CALLS, time.time(), *calls))

    # -- the connection

    def _opened(self) -> Store:
        """For writing: SQLite's file and tables are made.  Where they were read before, they are there."""
        self._used_at = time.monotonic()
        if self._store is None:
            with unforkable:
                from ...store import open_store

            self._store = open_store(self._settings, create=True, limit_s=_LIMIT_S)
        return self._store

    def _readable(self) -> Store | None:
        """For reading, None where there is no store yet: that nobody has written says all."""
        if self._store is None:
            with unforkable:
                from ...store import open_store

            try:
                self._store = open_store(self._settings, create=False, limit_s=_LIMIT_S)
            except SchemaError:
                if not self._settings.database_url.startswith("sqlite"):  # a server is asked less often for what is not there
                    self._try_again_at = time.monotonic() + BACKOFF_S[-1]
                return None
        return self._store

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _away(self, error: StoreError) -> None:
        self._try_again_at = time.monotonic() + BACKOFF_S[-1 if isinstance(error, SchemaError) else min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        self.is_away = True
        self._close()
        trouble = type(error).__name__
        if trouble != self._trouble:
            self._trouble = trouble
            where = self._settings.safe_database_url
            logger.warning(
                "Circuit breakers go on without the store %s, each process by itself, in memory, until it is there: %s", where, error
            )

    def _back(self) -> None:
        self._failures, self.is_away = 0, False
        if self._trouble is not None:
            self._trouble = None
            logger.warning("Circuit breakers share the store %s again.", self._settings.safe_database_url)
