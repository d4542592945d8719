"""Gate: what lets a call through before it runs, and records how it ended; no lock is held while it does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from datetime import UTC, datetime
from time import monotonic
from typing import Final, NamedTuple, NoReturn

from ..circuits import (
    AUTO,
    DISABLED,
    OPEN,
    Circuit,
    Outcome,
    Result,
    acquire,
    record,
)
from . import permits
from .counts import Tally
from .errors import BreakerOpen
from .face import Configuration
from .knowledge import Knowledge
from .permits import Held
from .states import retry_after_s
from .storages import acquire_permit, record_outcome
from .verdicts import NO_VALUE, said

#: After a permit was refused, this process does not ask for another one for so long, in seconds.
ASK_AGAIN_S: Final = 0.2


class Admission(NamedTuple):
    """How a call was let through."""

    held: Held | None = None
    #: The permit is this call's; else it is that of a call or job around it.
    is_own: bool = False
    #: Nothing is recorded of it.
    is_off: bool = False


FREELY: Final = Admission()
_UNCOUNTED: Final = Admission(is_off=True)


class Gate(Knowledge):
    """The part of a breaker that each call passes, before and after."""

    def forget(self, *, everything: bool = False) -> None:
        """Begin anew in this process: after a fork, which knows what its parent knew, or with *everything* forgotten."""
        self._lock = threading.RLock()
        if everything:
            self._circuit = Circuit()
            #: Steps were taken here that the storage does not know.
            self._is_ahead = False
        self._configuration: Configuration | None = None
        #: Calls and jobs that hold a permit; calls that ask for one; jobs without one, which hear of the guards inside of them.
        self._trials = self._asking = self._jobs = 0
        self._ask_again_at = 0.0
        self.tally = Tally()
        #: When the last call succeeded, monotonic.
        self.succeeded_at = 0.0
        self._count_success = self.tally.succeeded.add
        self._observe = self.tally.durations.add
        #: The way of nearly every call: closed, counted, and nobody wants to hear of it.
        self._is_plain = False

    # -- before a call

    def _admit(self) -> Admission:
        """Let a call through, or raise BreakerOpen.  At most one question to the storage, of 250 ms at most."""
        if self._is_plain:
            return FREELY
        configuration = self._configured()
        circuit = self._circuit
        if not configuration.is_enabled or circuit.mode == DISABLED:
            return _UNCOUNTED
        if self._trials and (around := permits.find(self._name)) is not None:
            return Admission(around)
        if circuit.is_plain:
            return FREELY
        if circuit.mode != AUTO or self._is_waiting(circuit, configuration):
            self._refuse()
        return self._ask(configuration)

    async def _admit_async(self) -> Admission:
        """The same; the event loop does not wait for the storage."""
        if self._is_plain:
            return FREELY
        circuit = self._circuit
        configuration = self._configured()
        if circuit.is_plain or circuit.mode != AUTO or not configuration.is_enabled or self._is_waiting(circuit, configuration):
            return self._admit()
        asked = asyncio.ensure_future(asyncio.to_thread(self._admit))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(self._abandoned)
            raise

    def _abandoned(self, asked: asyncio.Future[Admission]) -> None:
        """Who asked was cancelled meanwhile, and makes no use of the permit."""
        if not asked.cancelled() and asked.exception() is None:
            asked.get_loop().run_in_executor(None, self._release, asked.result())

    def wait_s(self) -> float:
        """Seconds until a call may be let through, as far as is known without asking; 0: now, or it has to be asked for."""
        configuration = self._configured()
        circuit = self._circuit
        if circuit.is_plain or circuit.mode == DISABLED or not configuration.is_enabled:
            return 0.0
        if circuit.mode == AUTO and not self._is_waiting(circuit, configuration):
            return 0.0
        return self._retry_after_s(configuration)

    def _is_waiting(self, circuit: Circuit, configuration: Configuration) -> bool:
        """Whether it is known without asking that there is no permit."""
        now = configuration.storage.clock.now()
        if circuit.state == OPEN:
            return now < (circuit.reopens_at or 0.0)
        return now < self._ask_again_at or self._asking >= configuration.policy.half_open_attempts

    def _ask(self, configuration: Configuration) -> Admission:
        with self._lock:
            if self._asking >= configuration.policy.half_open_attempts:
                self._refuse()
            self._asking += 1
        try:
            altered = acquire_permit(configuration.storage, self._name, configuration.policy)
            if altered is None:
                altered = self._alone(lambda circuit, now: acquire(circuit, configuration.policy, f"{now}", now))
        finally:
            with self._lock:
                self._asking -= 1
        if not altered.step.is_admitted:
            self._ask_again_at = altered.now + ASK_AGAIN_S
            self._refuse()
        if altered.step.permit is None:
            return FREELY
        with self._lock:
            self._trials += 1
            self._is_plain = False
        return Admission(Held(self._name, altered.step.permit), is_own=True)

    def _refuse(self) -> NoReturn:
        self.tally.refused.add()
        circuit, configuration = self._circuit, self._configured()
        ahead_s = configuration.storage.clock.ahead_s
        since = None if circuit.mode != AUTO or circuit.opened_at is None else datetime.fromtimestamp(circuit.opened_at - ahead_s, UTC)
        raise BreakerOpen(self._name, since, self._retry_after_s(configuration))

    def _retry_after_s(self, configuration: Configuration) -> float:
        return retry_after_s(self._circuit, configuration.policy, configuration.storage.clock.now()) or ASK_AGAIN_S

    @staticmethod
    def _around(admission: Admission) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if admission.held is None else permits.holding(admission.held)

    # -- after it

    def _settle(self, admission: Admission, error: BaseException | None, value: object = NO_VALUE, *, took_s: float | None = None) -> bool:
        """A call has ended.  Whether it counts as a failure."""
        configuration = self._configured()
        if admission.is_off or not self._counts(configuration):
            self._release(admission)
            return False
        if took_s is not None:
            self._observe(took_s)
        verdicts = configuration.verdicts
        result = verdicts.of_value(value) if error is None else verdicts.of_error(error)
        text = None if result is not Result.FAILURE else said(error) if error is not None else "the returned value"
        self._hear_of(result, error)
        held = admission.held
        if self._jobs:
            permits.tell(self._name, result, text)
        if held is not None and not admission.is_own:
            held.note(result, text)
            self._count(result)
            return result is Result.FAILURE
        if held is not None:
            self._end_trial(held, result, text, configuration)
        elif result is Result.FAILURE:
            successes, has_succeeded = self.tally.take_successes()
            age_s = monotonic() - self.succeeded_at if has_succeeded else None
            self._record(Outcome(result, None, successes, age_s, text), configuration)
        self._count(result)
        return result is Result.FAILURE

    async def _settle_async(
        self, admission: Admission, error: BaseException | None, value: object = NO_VALUE, *, took_s: float | None = None
    ) -> bool:
        """The same; the event loop does not wait for the storage."""
        needs_storage = error is not None or admission.is_own or (value is not NO_VALUE and not self._is_plain)
        if not needs_storage:
            return self._settle(admission, error, value, took_s=took_s)
        try:
            return await asyncio.shield(asyncio.to_thread(self._settle, admission, error, value, took_s=took_s))
        except RuntimeError:  # the loop, or its threads, are at their end
            return self._settle(admission, error, value, took_s=took_s)

    def _counts(self, configuration: Configuration) -> bool:
        return configuration.is_enabled and self._circuit.mode != DISABLED

    def _count(self, result: Result) -> None:
        if result is Result.SUCCESS:
            self._succeeded()
        else:
            (self.tally.failed if result is Result.FAILURE else self.tally.ignored).add()

    def _succeeded(self, took_s: float | None = None) -> None:
        """On the way of nearly every call."""
        self._count_success()
        self.succeeded_at = monotonic()
        if took_s is not None:
            self._observe(took_s)

    def _end_trial(self, held: Held, result: Result, error: str | None, configuration: Configuration) -> None:
        if held.result is not None:  # the guards inside have seen the service itself
            result, error = held.result, held.error
        if held.end():
            try:
                self._record(Outcome(result, held.permit, error=error), configuration)
            finally:
                self._end_of_trial()

    def _end_of_trial(self) -> None:
        with self._lock:
            self._trials = max(0, self._trials - 1)
            self._ask_again_at = 0.0
            self._refresh()

    def _release(self, admission: Admission) -> None:
        if admission.is_own and admission.held is not None and admission.held.end():
            self._record(Outcome(Result.NEITHER, admission.held.permit), self._configured())
            self._end_of_trial()

    def _record(self, outcome: Outcome, configuration: Configuration) -> None:
        altered = record_outcome(configuration.storage, self._name, configuration.policy, outcome)
        if altered is None:
            self._alone(lambda circuit, now: record(circuit, configuration.policy, outcome, now))
