"""CircuitBreaker: pybreaker's class and names, and none of its locks around user code: a gate before, a record after."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, NamedTuple, NoReturn, Self

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
from . import lazy, permits, stopwatch
from .counts import Tally
from .errors import BreakerOpen
from .face import Configuration
from .knowledge import Knowledge
from .permits import Held
from .states import retry_after_s
from .storages import acquire_permit, record_outcome
from .verdicts import NO_VALUE, said
from .ways import NO_FALLBACK, Way

#: After a permit was refused, this process does not ask for another one for so long, in seconds.
ASK_AGAIN_S: Final = 0.2


def block() -> None:
    """In place of the function that pybreaker's listeners hear of before a call: a ``with`` block is entered."""


class _Admission(NamedTuple):
    """How a call was let through."""

    held: Held | None = None
    #: The permit is this call's; else it is that of a call or job around it.
    is_own: bool = False
    #: Nothing is recorded of it.
    is_off: bool = False


_FREELY: Final = _Admission()
_UNCOUNTED: Final = _Admission(is_off=True)


class CircuitBreaker(Knowledge):
    """The circuit breaker of one service, in this process; ``breaker(name)`` gives it.

    Use it as ``with breaker("svc"):``, ``async with``, as a decorator of functions, coroutine functions and generators, or
    by :meth:`call`.  Guarded calls run side by side.  A call that is not let through raises :class:`BreakerOpen`.

    Parameters:
      name: the service.
      configure: gives what it works by; asked at its first use, and again when settings have changed.
      explicit: sets options that were given; raises SettingsError where they differ from those given before.
    """

    def __init__(
        self, name: str, *, configure: Callable[[CircuitBreaker], Configuration], explicit: Callable[[CircuitBreaker, dict[str, Any]], None]
    ) -> None:
        # Not pybreaker's own: that asks its storage, and shares state objects that reset counts in other processes.
        self._lock = threading.RLock()
        self._listeners: list[Any] = []
        self._excluded_exceptions: list[Any] = []
        self._name: str = name
        self._configure, self._explicit = configure, explicit
        self.forget(everything=True)

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

    # -- using it

    def __enter__(self) -> Self:
        if not self._is_plain:
            self._enter(self._admit())
        stopwatch.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        took_s = stopwatch.end(self)
        if kind is None and self._is_plain:
            self._succeeded(took_s)
        else:
            self._settle(self._leave(), error, took_s=took_s)

    async def __aenter__(self) -> Self:
        if not self._is_plain:
            self._enter(await self._admit_async())
        stopwatch.begin(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        took_s = stopwatch.end(self)
        if kind is None and self._is_plain:
            self._succeeded(took_s)
        else:
            await self._settle_async(self._leave(), error, took_s=took_s)

    def call(  # type: ignore[override]  # the fallback is ours
        self, function: Callable[..., Any], /, *args: Any, fallback: Any = NO_FALLBACK, fallback_on_failure: bool = False, **kwargs: Any
    ) -> Any:
        """Call *function* with these arguments, if the breaker lets it.

        What gives a coroutine or a generator is guarded while that runs.

        Parameters:
          fallback: where the call is not let through: a function that is called with the same arguments, or a value.  For a
            generator it gives what is iterated instead.
          fallback_on_failure: it is for a failing call too, whose exception is then not raised.  Not for a generator, which
            has given something before it fails.

        Raises:
          BreakerOpen: the call was not let through, and there is no fallback.
          TypeError: *fallback_on_failure* for a generator; or, when it is iterated, a fallback that is not iterable.
        """
        if self._is_plain and fallback is NO_FALLBACK:
            began = monotonic()
            try:
                value = function(*args, **kwargs)
            except BaseException as error:
                self._settle(_FREELY, error, took_s=monotonic() - began)
                raise
            if type(value) in lazy.LAZY:
                return lazy.guarded(self, value, Way(on_failure=fallback_on_failure))
            self._succeeded(monotonic() - began)
            return value
        return self._call(function, Way(fallback, args, kwargs, fallback_on_failure))

    execute = call

    def __call__(  # type: ignore[override]  # as above
        self, function: Callable[..., Any] | None = None, /, *, fallback: Any = NO_FALLBACK, fallback_on_failure: bool = False
    ) -> Any:
        """Decorate *function*; without one, give a decorator: ``@breaker("svc")(fallback=cached)``.

        Parameters and errors as for :meth:`call`; a *fallback_on_failure* for a generator function is refused at once.
        """
        if function is None:
            return functools.partial(self.__call__, fallback=fallback, fallback_on_failure=fallback_on_failure)
        if lazy.is_lazy(function):
            return lazy.decorated(self, function, Way(fallback, on_failure=fallback_on_failure))
        if fallback is not NO_FALLBACK:

            @functools.wraps(function)
            def with_fallback(*args: Any, **kwargs: Any) -> Any:
                return self._call(function, Way(fallback, args, kwargs, fallback_on_failure))

            return with_fallback

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self.call(function, *args, **kwargs)

        return guarded

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Guard a ``with`` block; the breaker itself does too."""
        admission = self._admit()
        self._hear("before_call", block)
        began = monotonic()
        with self._around(admission):
            try:
                yield
            except BaseException as error:
                self._settle(admission, error, took_s=monotonic() - began)
                raise
        self._settle(admission, None, took_s=monotonic() - began)

    def call_async(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """pybreaker's is for Tornado alone; :meth:`call` takes coroutine functions."""
        return self.call(func, *args, **kwargs)

    def _call(self, function: Callable[..., Any], way: Way) -> Any:
        if lazy.is_lazy(function):
            return lazy.decorated(self, function, way)(*way.args, **way.kwargs)
        try:
            admission = self._admit()
        except BreakerOpen as error:
            return way.instead(error)
        self._hear("before_call", function, *way.args, **way.kwargs)
        began = monotonic()
        with self._around(admission):
            try:
                value = function(*way.args, **way.kwargs)
            except BaseException as error:  # noqa: BLE001 - it is judged, and raised there
                return way.after(error, is_failure=self._settle(admission, error, took_s=monotonic() - began))
        if type(value) in lazy.LAZY:  # it has not run yet
            self._release(admission)
            return lazy.guarded(self, value, way)
        is_failure = self._settle(admission, None, value, took_s=monotonic() - began)
        return way.fallback_value() if is_failure and way.covers_failure else value

    # -- the gate

    def _admit(self) -> _Admission:
        """Let a call through, or raise BreakerOpen.  At most one question to the storage, of 250 ms at most."""
        if self._is_plain:
            return _FREELY
        configuration = self._configured()
        circuit = self._circuit
        if not configuration.is_enabled or circuit.mode == DISABLED:
            return _UNCOUNTED
        if self._trials and (around := permits.find(self._name)) is not None:
            return _Admission(around)
        if circuit.is_plain:
            return _FREELY
        if circuit.mode != AUTO or self._is_waiting(circuit, configuration):
            self._refuse()
        return self._ask(configuration)

    async def _admit_async(self) -> _Admission:
        """The same; the event loop does not wait for the storage."""
        if self._is_plain:
            return _FREELY
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

    def _abandoned(self, asked: asyncio.Future[_Admission]) -> None:
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

    def admit_job(self) -> Held:
        """Let a job through, which then is :meth:`settled <settle>`, whether it has a permit or needs none.

        Raises:
          BreakerOpen: it has to wait.
        """
        held = self.try_acquire()
        if held is None:
            held = Held(self._name, None)
            with self._lock:
                self._jobs += 1
                self._is_plain = False
        return held

    def carry(self, held: Held) -> None:
        """*held* came from another process with its job, and is settled there."""
        self._configured()
        with self._lock:
            if held.permit is None:
                self._jobs += 1
            else:
                self._trials += 1
            self._is_plain = False

    def dismiss(self, held: Held) -> None:
        """The job that was admitted with *held* did not run."""
        if held.permit is None:
            self._end_job(held)
        else:
            self._release(_Admission(held, is_own=True))

    def try_acquire(self) -> Held | None:
        """A trial permit, for a job that is to be admitted; None: none is needed.  It has to be settled.

        Raises:
          BreakerOpen: there is none.
        """
        return self._admit().held

    def settle(self, held: Held, error: BaseException | None) -> None:
        """The job that was admitted with *held* has ended; what guards inside of it saw goes before its own end."""
        configuration = self._configured()
        if held.permit is not None and held.result is not None and self._counts(configuration):  # the guards inside have counted it
            self._end_trial(held, held.result, held.error, configuration)
        elif held.permit is not None:
            self._settle(_Admission(held, is_own=True), error)
        elif self._end_job(held) and held.result is None:
            self._settle(_FREELY, error)

    def _end_job(self, held: Held) -> bool:
        if not held.end():
            return False
        with self._lock:
            self._jobs = max(0, self._jobs - 1)
            self._refresh()
        return True

    def _is_waiting(self, circuit: Circuit, configuration: Configuration) -> bool:
        """Whether it is known without asking that there is no permit."""
        now = configuration.storage.clock.now()
        if circuit.state == OPEN:
            return now < (circuit.reopens_at or 0.0)
        return now < self._ask_again_at or self._asking >= configuration.policy.half_open_attempts

    def _ask(self, configuration: Configuration) -> _Admission:
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
            return _FREELY
        with self._lock:
            self._trials += 1
            self._is_plain = False
        return _Admission(Held(self._name, altered.step.permit), is_own=True)

    def _refuse(self) -> NoReturn:
        self.tally.refused.add()
        circuit, configuration = self._circuit, self._configured()
        ahead_s = configuration.storage.clock.ahead_s
        since = None if circuit.mode != AUTO or circuit.opened_at is None else datetime.fromtimestamp(circuit.opened_at - ahead_s, UTC)
        raise BreakerOpen(self._name, since, self._retry_after_s(configuration))

    def _retry_after_s(self, configuration: Configuration) -> float:
        return retry_after_s(self._circuit, configuration.policy, configuration.storage.clock.now()) or ASK_AGAIN_S

    # -- with, and what is passed on through the context

    def _enter(self, admission: _Admission) -> None:
        self._hear("before_call", block)
        if admission.held is not None:
            permits.push(admission.held)

    def _leave(self) -> _Admission:
        """How the innermost ``with`` of this breaker was let through: one without a permit left no trace."""
        if not self._trials:
            return _FREELY
        held = permits.find(self._name)
        if held is None:
            return _FREELY
        is_own = permits.depth(held) == 1
        permits.pop(held)
        return _Admission(held, is_own)

    @staticmethod
    def _around(admission: _Admission) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if admission.held is None else permits.holding(admission.held)

    # -- the record

    def _settle(self, admission: _Admission, error: BaseException | None, value: object = NO_VALUE, *, took_s: float | None = None) -> bool:
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
        self, admission: _Admission, error: BaseException | None, value: object = NO_VALUE, *, took_s: float | None = None
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

    def _release(self, admission: _Admission) -> None:
        if admission.is_own and admission.held is not None and admission.held.end():
            self._record(Outcome(Result.NEITHER, admission.held.permit), self._configured())
            self._end_of_trial()

    def _record(self, outcome: Outcome, configuration: Configuration) -> None:
        altered = record_outcome(configuration.storage, self._name, configuration.policy, outcome)
        if altered is None:
            self._alone(lambda circuit, now: record(circuit, configuration.policy, outcome, now))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}: {self._circuit.state}>"
