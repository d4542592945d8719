"""Poison: a message that has ended its worker so often that it is dead-lettered instead of run, or that was cancelled.

Only a suspect costs anything: a message that a dead worker held, or that an operator has cancelled, as the control block
says; or that RabbitMQ delivers again.  What it has done is asked of the store, and its start is written there, before it runs.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..errors import JobCancelled, StoreError
from ..events import JobPoisoned
from ..journal.suspects import code_of
from .admission import Refused, Verdict
from .stopping import Stop

if TYPE_CHECKING:
    from ..store import Store
    from ..store.crashes import Cancelled, Crash
    from .desk import StoreDesk
    from .jobs import Job
    from .policy import Policy
    from .recorder import Recorder
    from .slots import RunningJobs, Slot

logger = logging.getLogger("dramatiq_chaperone")

#: A broker may deliver a message again before the death of its worker is on record.  Where that decides, it is waited for
#: so long, in seconds.
DEATH_S: Final = 3.0
#: The same for the deaths of this machine's processes, whose journals somebody has to find first; once for each.
RECORD_S: Final = 5.0
_LOOK_S: Final = 0.2
#: Between its admission and its first line a message stands nowhere; that takes no longer, in seconds.
_BEGIN_S: Final = 1.0
#: A message that may end a worker once more is run while no other such message runs in this process; so long it waits for that.
ALONE_S: Final = 30.0


class Suspicion:
    """Judges suspects: a check of :class:`.Admission`.

    Parameters:
      tells_redelivery: whether the broker says of a message that it was delivered before: then that makes it a suspect too.
      unrecorded: the processes of this machine that are dead and whose journals are not in the store yet, by name.

    Attributes:
      suspects: codes of the messages that a dead worker held, or that were cancelled.
      stop: ends a running job; see :meth:`.ladder.StopLadder.stop`.
    """

    def __init__(
        self,
        running: RunningJobs,
        recorder: Recorder,
        desk: StoreDesk,
        *,
        tells_redelivery: bool = False,
        unrecorded: Callable[[], set[str]] = set,
    ) -> None:
        self._running, self._recorder, self._desk = running, recorder, desk
        self._tells_redelivery, self._unrecorded = tells_redelivery, unrecorded
        self._given_up: set[str] = set()
        self.stop: Callable[[Slot, Job, Stop], object] = lambda slot, job, stop: None
        self.suspects: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._alone: tuple[Slot, str, float] | None = None

    def tell(self, suspects: frozenset[int]) -> None:
        """From now on these are the suspects."""
        new, self.suspects = suspects - self.suspects, suspects
        if suspects:
            self._desk.open()
        if new:
            for slot, job in self._running.running():
                if code_of(job.job_id) in new:
                    self._desk.put(functools.partial(self._end_cancelled, slot, job))

    def _end_cancelled(self, slot: Slot, job: Job, store: Store) -> None:
        """Where it was cancelled in a process that had lost it to this one."""
        found = _cancelled(store, job.job_id)
        if found is not None:
            self.stop(slot, job, Stop("kill", "operator", JobCancelled, by=found.by, is_final=True, detail=found.reason))

    def add(self, job_ids: Iterable[str]) -> None:
        """These are suspects too."""
        self.tell(self.suspects | {code_of(job_id) for job_id in job_ids})

    def limit_of(self, policy: Policy, options: Mapping[str, Any]) -> int:
        """The max_crashes of a message with these *options*; 0: it is never refused."""
        found = policy.first("max_crashes", options)
        return self._recorder.settings.max_crashes if found is None else int(found)

    def check(self, message: Any, policy: Policy) -> Verdict:
        """Whether a message may run.  A suspect that may is in the slot, for :meth:`begin`."""
        suspects = self.suspects
        if not suspects and not self._tells_redelivery:
            return None
        slot = self._running.slot()
        if not slot.is_redelivered and (not suspects or code_of(message.message_id) not in suspects):
            return None
        try:
            return self._judge(slot, message, self.limit_of(policy, message.options))
        except StoreError as error:  # its crashes may be counted by its worker's journal all the same
            logger.warning("The store cannot tell whether message %s, which a dead worker held, may run; it runs: %s", message, error)
            return None

    def _judge(self, slot: Slot, message: Any, limit: int) -> Verdict:
        job_id = message.message_id
        self._wait_for_records()
        cancelled = self._desk.ask(lambda store: _cancelled(store, job_id))
        if cancelled is not None:
            logger.warning("Message %s comes again although it was cancelled; it does not run.", message, extra={"job_id": job_id})
            return Refused(None if cancelled.has_letter else "cancelled", f"{cancelled.by} has cancelled it: {cancelled.reason}")
        if not limit:
            return None
        crashes = self._crashes(job_id)
        if slot.is_redelivered and len(crashes) == limit - 1:
            until = time.monotonic() + DEATH_S
            while len(crashes) < limit and time.monotonic() < until:
                time.sleep(_LOOK_S)
                crashes = self._crashes(job_id)
        if len(crashes) >= limit:
            return self._refuse(message, crashes, limit)
        if crashes and len(crashes) == limit - 1:
            self._wait_alone(slot, job_id)
        slot.suspect = job_id
        return None

    def begin(self, slot: Slot) -> None:
        """The suspect of *slot* runs now: one whose start is on record, and that has no end, has ended its worker."""
        job_id, slot.suspect, own = slot.suspect, None, self._recorder.origin.worker_id
        if job_id is None or slot.message is None or slot.message.message_id != job_id:
            return  # another one before it, which had to wait for something else
        try:
            self._desk.ask(lambda store: _begin(store, job_id, own))
        except StoreError as error:  # as above
            logger.warning("The store cannot be told that message %s, which a dead worker held, runs: %s", job_id, error)
        finally:
            alone = self._alone
            if alone is not None and alone[:2] == (slot, job_id):
                self._alone = (slot, job_id, time.monotonic())

    def _wait_for_records(self) -> None:
        """After a restart the message may be here before the watcher has written down who died of it."""
        until = time.monotonic() + RECORD_S
        while left := self._unrecorded() - self._given_up:
            if time.monotonic() >= until:
                self._given_up |= left
                return
            time.sleep(_LOOK_S)

    def _crashes(self, job_id: str) -> list[Crash]:
        return self._desk.ask(lambda store: _crashes(store, job_id))

    def _refuse(self, message: Any, crashes: list[Crash], limit: int) -> Refused:
        self._recorder.emit(
            JobPoisoned(
                job_id=message.message_id,
                actor_name=message.actor_name,
                queue=message.queue_name,
                worker_id=self._recorder.origin.worker_id,
                crashes=len(crashes),
                max_crashes=limit,
            )
        )
        return Refused("poison", "\n".join([f"It ended {len(crashes)} workers (max_crashes is {limit}):", *map(_line, crashes)]))

    def _wait_alone(self, slot: Slot, job_id: str) -> None:
        """The innocent, who only ran beside it, must not be counted with it again."""
        until = time.monotonic() + ALONE_S
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= until or self._alone is None or not _goes_on(*self._alone, now):
                    self._alone = (slot, job_id, now)
                    return
            time.sleep(_LOOK_S / 4)


def _goes_on(slot: Slot, job_id: str, admitted_at: float, now: float) -> bool:
    """Whether a message that was admitted is still on its way, or runs."""
    message, job = slot.message, slot.job
    if (message is not None and message.message_id == job_id) or (job is not None and job.job_id == job_id):
        return True
    return message is None and job is None and now - admitted_at < _BEGIN_S


def _line(crash: Crash) -> str:
    at = "at an unknown time" if crash.at is None else datetime.fromtimestamp(crash.at, UTC).isoformat(" ", "seconds")
    return f"{crash.worker_id} {at}: {crash.cause or 'cause unknown'}"


def _cancelled(store: Store, job_id: str) -> Cancelled | None:
    from ..store import crashes

    return crashes.cancelled(store, job_id)


def _crashes(store: Store, job_id: str) -> list[Crash]:
    from ..store import crashes

    return crashes.crashes(store, job_id)


def _begin(store: Store, job_id: str, worker_id: str) -> None:
    from ..store import crashes

    crashes.begin(store, job_id, worker_id, at=time.time())
