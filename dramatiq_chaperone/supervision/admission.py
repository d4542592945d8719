"""Whether a message may run now: what the gate asks, after every other middleware has had its say."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dramatiq.common import q_name
from dramatiq.middleware import SkipMessage

from .. import records
from ..events import JobDeferred, publish
from ..service import internal_error
from .line import Line
from .policy import Policy
from .recorder import Recorder
from .slots import RunningJobs, Slot

if TYPE_CHECKING:
    from .gaps import Gaps

logger = logging.getLogger("dramatiq_chaperone.gate")

#: Messages that wait for one thing come due so many a second, in each process.
RAMP_PER_S: Final = 50.0
#: A broker that does not take a put-off message is asked again, each time after so many seconds; then the message runs.
RETRY_AFTER_S: Final = (0.05, 0.2, 0.5, 1.0, 2.0)


#: Dramatiq warns there of each message that is skipped.
SKIPS: Final = "dramatiq.worker.WorkerThread"
_MARK: Final = "is_put_off"


def is_news(record: logging.LogRecord) -> bool:
    """A filter for that logger: a message that waits is not worth a line each time, on a full disk least of all."""
    return not (isinstance(record.args, tuple) and record.args and getattr(record.args[0], _MARK, False))


class PutOff(NamedTuple):
    """It waits, without using a retry."""

    #: Unix seconds.  Others that wait for the same come after it in line.
    until: float
    #: For the timeline, in words: ``'less than 1024 MB are free on /var'``.
    reason: str
    #: The service whose breaker is open, where it is that.
    service: str = ""


class Refused(NamedTuple):
    """It is dead-lettered instead of run."""

    #: A reason of a dead letter: ``'poison'``; None: it is on record as one already.
    reason: str | None
    #: In words.
    detail: str


class GiveBack(NamedTuple):
    """It goes back to its queue, which is paused from now on: everything in it waits.  Nothing is recorded of it."""

    #: In words.
    reason: str
    #: Who pauses it, and resumes it when the wait is over.
    by: str
    #: What becomes of it where it cannot be given back; None: that is for the next check to say.
    otherwise: PutOff | None = None


Verdict = PutOff | Refused | GiveBack | None

#: Looks at a message and its policy before it runs; None lets it through.  On the hot path of every message.
Check = Callable[[Any, Policy], Verdict]


class PutsOff(Protocol):
    """A broker's way to put a message off: :class:`dramatiq_chaperone.brokers.Deferrer`."""

    leaves_doubt: bool

    def contender(self, proxy: Any) -> str | None:
        """The name by which this message has to claim its run; None: there is no other copy of it."""

    def put_off(self, proxy: Any, eta_ms: int, number: int) -> bool:
        """Put a copy of the message into its delay queue; False where the message is not this worker's any more."""


class Claims(Protocol):
    """Decides which of several copies of a message runs: :class:`.claims.RunClaims`."""

    def prepare(self) -> None:
        """A copy will come back."""

    def claim(self, job_id: str, retries: int, holder: str) -> bool:
        """Whether *holder* may run this retry of the message."""


class Pauses(Protocol):
    """The means to pause queues of this worker: :class:`dramatiq_chaperone.brokers.Pausing`.  Who pauses a queue resumes it."""

    def pause(self, *queues: str, by: str) -> None:
        """Fetch nothing from them any more."""

    def give_back(self, message: Any) -> bool:
        """Give back a message that was taken; False where that cannot be done."""


class Admission:
    """Asks each of *checks* about each message that is supervised.

    Parameters:
      deferrer: None for a broker that cannot put messages off: there they run.
      recorder: where it is written down; None: nowhere.
      claims: asked where the deferrer may leave more than one copy of a message.

    Attributes:
      checks: in their order; the first that has something against it decides.  What a check takes, others may wait for: the
        one that takes something comes last.
      gaps: knows which of the fetched messages are not ours any more.
      tells_redelivery: whether the broker says of a message that it was delivered before.
      pauses: how a queue is paused, None where that cannot be done.
      begin: told of a slot whose message is a suspect, and runs now: nothing can put it off any more.
      dismiss: told of a slot whose message a check has let through with something in its hands, and that does not run.
      is_in_use: whether messages of this worker can be put off at all; asked about those that were delivered again.
    """

    def __init__(
        self,
        running: RunningJobs,
        recorder: Recorder | None = None,
        deferrer: PutsOff | None = None,
        claims: Claims | None = None,
        *,
        gaps: Gaps | None = None,
        tells_redelivery: bool = False,
    ) -> None:
        self._running, self._recorder, self._deferrer = running, recorder, deferrer
        self._claims = claims if deferrer is not None and deferrer.leaves_doubt else None
        self._lines: dict[str, Line] = {}
        self.gaps = gaps
        self.tells_redelivery = tells_redelivery
        self.checks: tuple[Check, ...] = ()
        self.pauses: Pauses | None = None
        self.is_in_use: Callable[[], bool] = lambda: True
        self.begin: Callable[[Slot], None] = lambda slot: None
        self.dismiss: Callable[[Slot], None] = lambda slot: None

    def admit(self, proxy: Any) -> None:
        """Let the message through, or raise SkipMessage.  What goes wrong in a check lets it through."""
        slot = self._running.find()
        if slot is None or slot.message is None or slot.policy is None:
            return
        if slot.held is not None:
            self.dismiss(slot)
        try:
            self._ask(slot, proxy, slot.policy)
        except SkipMessage:
            if slot.held is not None:
                self.dismiss(slot)
            raise

    def _ask(self, slot: Slot, proxy: Any, policy: Policy) -> None:
        gaps = self.gaps
        if gaps is not None and (gaps.doubtful or monotonic() > gaps.due_at) and gaps.has_lost_unbegun(slot.message):
            self._drop(slot, proxy, is_certain=gaps.is_certain)
        if self.tells_redelivery:
            slot.is_redelivered = getattr(proxy, "redelivered", False)
        in_doubt = False
        for check in self.checks:
            try:
                verdict = check(slot.message, policy)
            except Exception as error:  # noqa: BLE001 - supervision may fail, the job must not notice
                internal_error("gate", error, job_id=slot.message.message_id)
                continue
            if verdict is None:
                continue
            if isinstance(verdict, Refused):
                self._refuse(slot, proxy, verdict)
            elif isinstance(verdict, GiveBack):
                self._give_back(slot, proxy, verdict)
                verdict = verdict.otherwise
            if isinstance(verdict, PutOff) and self._deferrer is not None:
                self._put_off(slot, proxy, verdict, self._deferrer)
                in_doubt = True  # the broker did not answer, and may have the copy all the same
                break
        if self._claims is not None:
            self._claim(slot, proxy, self._claims, in_doubt=in_doubt)
        if slot.suspect is not None:
            try:
                self.begin(slot)
            except Exception as error:  # noqa: BLE001 - as above
                internal_error("gate", error, job_id=slot.message.message_id)

    def _claim(self, slot: Slot, proxy: Any, claims: Claims, *, in_doubt: bool) -> None:
        """Let the message through unless another copy of it has run, or runs."""
        assert self._deferrer is not None
        name = self._deferrer.contender(proxy) or ("original" if in_doubt else None)
        if name is None or ("deferrals" not in slot.message.options and not self.is_in_use()):
            return
        try:
            if claims.claim(proxy.message_id, proxy.options.get("retries", 0), name):
                return
        except Exception as error:  # noqa: BLE001 - as above
            internal_error("claims", error, job_id=proxy.message_id)
            return
        logger.info("A copy of message %s is dropped: another one has run, or runs.", proxy.message_id, extra={"job_id": proxy.message_id})
        self._leave_out(slot, proxy)
        raise SkipMessage("another copy of it has run, or runs")

    def _drop(self, slot: Slot, proxy: Any, *, is_certain: bool) -> None:
        """Another worker has the message: nothing is said of it here.

        Where that is not certain, this may be a later delivery of it, as of a retry, or after the death of that worker.
        Acknowledged, it would be lost; given back, it comes again if it is ours.
        """
        if not is_certain and not self._is_given_back(proxy):
            return
        slot.message = None
        proxy.options["store_results"] = False
        raise SkipMessage("This process was stopped for so long that another worker has the message.")

    def _is_given_back(self, proxy: Any) -> bool:
        try:
            return self.pauses is not None and self.pauses.give_back(proxy)
        except Exception as error:  # noqa: BLE001 - as above
            internal_error("gate", error, job_id=proxy.message_id)
            return False

    @staticmethod
    def _refuse(slot: Slot, proxy: Any, verdict: Refused) -> None:
        slot.last_end = (proxy.message_id, ("", verdict.detail, "", "{}"), verdict.reason)
        proxy.fail()
        raise SkipMessage(verdict.detail)

    def _give_back(self, slot: Slot, proxy: Any, verdict: GiveBack) -> None:
        """Returns where it cannot be given back."""
        if self.pauses is None:
            return
        self.pauses.pause(proxy.queue_name, by=verdict.by)
        if not self._is_given_back(proxy):
            return
        self._leave_out(slot, proxy)
        raise SkipMessage(verdict.reason)

    def _put_off(self, slot: Slot, proxy: Any, verdict: PutOff, deferrer: PutsOff) -> None:
        line = self._lines.get(verdict.service) or self._lines.setdefault(verdict.service, Line(per_s=RAMP_PER_S))
        eta = line.place(verdict.until)
        is_put = self._put(slot, proxy, eta, deferrer)
        if is_put is None:
            return
        message = self._leave_out(slot, proxy)
        if is_put:
            try:
                if self._claims is not None:
                    self._claims.prepare()
                self._record(message, eta, verdict)
            except Exception as error:  # noqa: BLE001 - as above
                internal_error("gate", error, job_id=message.message_id)
        raise SkipMessage(verdict.reason)

    @staticmethod
    def _leave_out(slot: Slot, proxy: Any) -> Any:
        """It does not run: Results must not store a None for it, and it is no skipped job.  Returns the message."""
        proxy.options["store_results"] = False
        setattr(proxy, _MARK, True)
        message, slot.message = slot.message, None
        return message

    def _put(self, slot: Slot, proxy: Any, eta: float, deferrer: PutsOff) -> bool | None:
        """Whether it was put off; None where that cannot be done, and the message has to run."""
        slot.putting_off = proxy.message_id
        try:
            for pause_s in (*RETRY_AFTER_S, None):
                try:
                    return deferrer.put_off(proxy, int(eta * 1000), proxy.options.get("deferrals", 0) + 1)
                except Exception as error:  # noqa: BLE001 - as above
                    internal_error("deferral", error, job_id=proxy.message_id)
                    if pause_s is not None:
                        time.sleep(pause_s)
            return None
        finally:
            slot.putting_off = None

    def _record(self, message: Any, eta: float, verdict: PutOff) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        options, now = message.options, time.time()
        queue, sent_at = q_name(message.queue_name), message.message_timestamp / 1000
        retries = options.get("retries", 0)
        recorder.append((records.DEFERRED, now, message.message_id, retries, message.actor_name, queue, sent_at, eta, verdict.reason))
        event = JobDeferred(
            job_id=message.message_id,
            actor_name=message.actor_name,
            queue=queue,
            worker_id=recorder.origin.worker_id,
            eta=datetime.fromtimestamp(eta, UTC),
            service=verdict.service,
            reason=verdict.reason,
        )
        number = options.get("deferrals", 0) + 1
        # The first time, the second, the fourth: a message that waits for days does not fill the timeline.
        if number & (number - 1) == 0:
            recorder.emit(event)
        else:
            publish(event)
