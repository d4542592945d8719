"""CircuitBreaker: pybreaker's class and names, and none of its locks around user code: a gate before, a record after."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Self

from . import lazy, permits, stopwatch
from .errors import BreakerOpen
from .face import Configuration
from .gate import FREELY, Admission, Gate
from .permits import Held
from .ways import NO_FALLBACK, Way


def block() -> None:
    """In place of the function that pybreaker's listeners hear of before a call: a ``with`` block is entered."""


class CircuitBreaker(Gate):
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
                self._settle(FREELY, error, took_s=monotonic() - began)
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

    # -- jobs, which are let through at the gate of their worker

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
            self._release(Admission(held, is_own=True))

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
            self._settle(Admission(held, is_own=True), error)
        elif self._end_job(held) and held.result is None:
            self._settle(FREELY, error)

    def _end_job(self, held: Held) -> bool:
        if not held.end():
            return False
        with self._lock:
            self._jobs = max(0, self._jobs - 1)
            self._refresh()
        return True

    # -- with, and what is passed on through the context

    def _enter(self, admission: Admission) -> None:
        self._hear("before_call", block)
        if admission.held is not None:
            permits.push(admission.held)

    def _leave(self) -> Admission:
        """How the innermost ``with`` of this breaker was let through: one without a permit left no trace."""
        if not self._trials:
            return FREELY
        held = permits.find(self._name)
        if held is None:
            return FREELY
        is_own = permits.depth(held) == 1
        permits.pop(held)
        return Admission(held, is_own)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}: {self._circuit.state}>"
