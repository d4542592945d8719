"""The last rung of the stop ladder: the end of the worker process, under a job that nothing else stops.

Before it ends nothing may be left that would run the job again, and nothing that somebody else could run now: the
job's message is settled with the broker as its thread would have done it, what was fetched and has not begun goes
back, and the journal says what happened.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from dramatiq import Broker, Worker

from .. import records
from ..events import WorkerStopped
from ..service import internal_error
from .execution import Execution
from .recorder import Recorder
from .slots import RunningJobs, Slot

if TYPE_CHECKING:
    from .jobs import Job
    from .stopping import Stop

logger = logging.getLogger("dramatiq_chaperone.stopping")

#: Frames of the stack of a job that is ended, the innermost ones.
STACK_FRAMES: Final = 30
#: What other threads are about to acknowledge may take so long, in seconds.
FINISH_S: Final = 1.0


class Messages(Protocol):
    """What this process holds of its broker's messages."""

    def has_arrived(self, queue: str) -> bool:
        """Whether what was acknowledged or rejected in *queue* is known to the broker, and cannot get lost any more with this process."""

    def give_back(self, kept: Collection[str]) -> int:
        """Fetch no more, and give back all that is held; how many.

        Parameters:
          kept: ids, in the broker's own kind, of those that are not given back: they run.
        """


@dataclass(slots=True)
class _Doomed:
    """A job that is settled here, for its thread does not come back."""

    slot: Slot
    job: Job
    stop: Stop
    is_decided: bool = False


class ProcessEnd:
    """Ends this worker process under a job.

    Parameters:
      replaceable: something starts another worker when this one ends.
      siblings: how many worker processes its dramatiq master has; None where that is not known.
      last_words: brings the journal to the store, where nobody else does that soon.
      end: ends the process.
    """

    def __init__(
        self,
        broker: Broker,
        worker: Worker,
        running: RunningJobs,
        execution: Execution,
        recorder: Recorder,
        messages: Messages,
        *,
        replaceable: bool,
        siblings: int | None = None,
        last_words: Callable[[], None] = lambda: None,
        end: Callable[[], None] | None = None,
    ) -> None:
        self._broker, self._worker, self._running = broker, worker, running
        self._execution, self._recorder, self._messages = execution, recorder, messages
        self._replaceable, self._siblings = replaceable, siblings
        self._last_words, self._end = last_words, end or _end
        self._doomed: list[_Doomed] = []
        self._steps: deque[Callable[[], bool]] = deque()

    def obstacle(self, *, force: bool) -> str | None:
        """See :class:`.ladder.LastRung`."""
        if force:
            return None
        if not self._replaceable:
            return "nothing is known to start another worker process (see the setting replaceable)"
        if self._siblings is not None and self._siblings > 1:
            return f"its dramatiq master has {self._siblings} worker processes, and stops them all when one ends"
        with self._worker.work_queue.mutex:
            others = self._others()
        return f"{others} other {'job runs' if others == 1 else 'jobs run'} in this worker process" if others else None

    def _others(self) -> int:
        """Messages beside one that threads of this process have in hand, supervised or not."""
        queue = self._worker.work_queue
        return max(0, queue.unfinished_tasks - len(queue.queue) - 1)

    def begin(self, slot: Slot, job: Job, stop: Stop) -> str | None:
        """See :class:`.ladder.LastRung`."""
        if self._is_doomed(job):
            return None
        is_first = not self._doomed
        if is_first and (obstacle := self._freeze(force=stop.force)) is not None:
            return obstacle
        if not self._take(slot, job, stop):
            if is_first:
                self._thaw()
            return "it has just ended"
        if is_first:
            # What somebody has killed beside it must not come back either when the process takes it along.
            for other_slot, other in self._running.running():
                if other.stop is not None and other.stop.is_final and not self._is_doomed(other):
                    self._take(other_slot, other, other.stop)
            self._steps.extend([self._let_others_finish, self._record, self._give_back])
        return None

    def _is_doomed(self, job: Job) -> bool:
        return any(each.job is job for each in self._doomed)

    def _take(self, slot: Slot, job: Job, stop: Stop) -> bool:
        """From here on the thread of *job* does not get out of its actor: its message is settled here.  Whether it was still in it."""
        with slot.lock:
            if slot.job is not job or slot.taken is not None:
                return False
            slot.taken = threading.Event()
        job.rung = "process"
        doomed = _Doomed(slot, job, stop)
        self._doomed.append(doomed)
        for step in (self._has_arrived, self._settle, self._decide):
            self._steps.appendleft(functools.partial(step, doomed))
        return True

    def _freeze(self, *, force: bool) -> str | None:
        """Let no thread begin with a message that waits in this process, unless there is an obstacle, which is returned.

        The consumers go on: they keep the leases of what is held, and take acknowledgements to the broker.
        """
        obstacle = self.obstacle(force=force)
        if obstacle is not None:
            return obstacle
        queue: Any = self._worker.work_queue
        with queue.mutex:
            if not force and self._others():  # it began between the two looks
                return "another job runs in this worker process"
            queue._qsize = _nothing
        return None

    def _thaw(self) -> None:
        queue: Any = self._worker.work_queue
        with queue.mutex:
            vars(queue).pop("_qsize", None)
            queue.not_empty.notify_all()

    def go_on(self) -> None:
        """Take the steps that are left, one by one; one that fails, as when the broker is away, is taken again at the next call."""
        while self._steps:
            try:
                if not self._steps[0]():
                    return
            except Exception as error:  # noqa: BLE001 - the next turn tries again
                internal_error("process end", error)
                return
            self._steps.popleft()
        logger.warning("The worker %s ends its process.", self._recorder.origin.worker_id)
        try:
            self._last_words()
        except Exception as error:  # noqa: BLE001 - the journal stays on disk
            internal_error("process end", error)
        self._end()

    def _decide(self, doomed: _Doomed) -> bool:
        """What the job's thread would have done when its actor raised: hooks, a verdict, perhaps a retry."""
        if doomed.is_decided:  # whatever happened: no hook is called twice
            return True
        doomed.is_decided = True
        slot, job, stop = doomed.slot, doomed.job, doomed.stop
        job.ended = time.monotonic()
        job.cpu_exact = _cpu_s(slot, job)
        proxy, slot.finished = slot.proxy, job
        try:
            raise _standing(slot, stop)
        except BaseException as error:  # noqa: BLE001 - for those hooks that ask for the exception that is being handled
            with self._running.standing_in(slot):
                if stop.is_final:
                    proxy.stuff_exception(self._execution.cancelled(slot, job, error))
                    self._broker.emit_after("skip_message", proxy)
                else:
                    proxy.stuff_exception(error)
                    self._broker.emit_after("process_message", proxy, exception=error)
                self._broker.emit_before("nack" if proxy.failed else "ack", proxy)
        return True

    def _settle(self, doomed: _Doomed) -> bool:
        """Acknowledge or reject its message, as the verdict has it."""
        proxy = doomed.slot.proxy
        consumer: Any = self._worker.consumers[proxy.queue_name].consumer
        (consumer.nack if proxy.failed else consumer.ack)(proxy)
        with self._running.standing_in(doomed.slot):
            self._broker.emit_after("nack" if proxy.failed else "ack", proxy)
        return True

    def _has_arrived(self, doomed: _Doomed) -> bool:
        return self._messages.has_arrived(doomed.slot.proxy.queue_name)

    def _let_others_finish(self) -> bool:
        """Where other jobs run, which is only if it is forced: those that are out of their actor get to their acknowledgement."""
        slots = {id(each.slot) for each in self._doomed}
        deadline = time.monotonic() + FINISH_S
        while any(slot.finished is not None for slot in list(self._running.slots.values()) if id(slot) not in slots):
            if time.monotonic() > deadline:
                break
            time.sleep(FINISH_S / 100)
        return True

    def _record(self) -> bool:
        """Say that it ends on purpose; with other jobs in its hands it does not, and whoever sees it die says that they are lost."""
        if any(not self._is_doomed(each) for _, each in self._running.running()):
            return True
        first = self._doomed[0]
        job, stop, origin, recorder = first.job, first.stop, self._recorder.origin, self._recorder
        reason = f"ended to stop job {job.job_id} of {job.actor_name}, for {stop.by}: {stop.why}"
        recorder.append((records.WORKER_STOPPED, time.time()))
        recorder.emit(
            WorkerStopped(worker_id=origin.worker_id, host=origin.host, pid=origin.pid, stopped_at=datetime.now(UTC), reason=reason)
        )
        return True

    def _give_back(self) -> bool:
        kept = {str(slot.proxy.options.get("redis_message_id")) for slot in list(self._running.slots.values()) if slot.proxy is not None}
        try:
            self._messages.give_back(kept)
        except Exception as error:  # noqa: BLE001 - the broker gives back by itself what a dead process held, only later
            internal_error("process end", error)
        return True


def _nothing() -> int:
    """The size of a queue from which nobody is to take anything."""
    return 0


def _standing(slot: Slot, stop: Stop) -> BaseException:
    """The exception of *stop*, with the place at which the thread stands: it has no traceback to tell that."""
    error = stop.exception()
    frame = sys._current_frames().get(slot.ident)
    if frame is not None:
        error.add_note("".join(["It was ended here:\n", *traceback.format_stack(frame, STACK_FRAMES)]))
    return error


def _cpu_s(slot: Slot, job: Job) -> float | None:
    if slot.clock_id is None or job.is_async:
        return None
    try:
        return max(0.0, time.clock_gettime(slot.clock_id) - job.cpu_started)
    except OSError:  # the thread has ended
        return None


def _end() -> None:
    """No handler, no cleanup: a thread in C code would hold up any other end."""
    os.kill(os.getpid(), signal.SIGKILL)
