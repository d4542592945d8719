"""What a breaker shows: its state, and pybreaker's names and listeners."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import pybreaker

from ..circuits import CLOSED, DISABLED, HALF_OPEN, OPEN, Circuit, Policy, Result
from ..service import internal_error
from .counts import Tally
from .states import BreakerState, state_of
from .verdicts import Rule, Verdicts, rules

if TYPE_CHECKING:
    from .storages import Storage

_STATE_NAMES: Final = {CLOSED: pybreaker.STATE_CLOSED, OPEN: pybreaker.STATE_OPEN, HALF_OPEN: pybreaker.STATE_HALF_OPEN}


class Configuration(NamedTuple):
    """What a breaker works by, once it is first used."""

    policy: Policy
    verdicts: Verdicts
    storage: Storage
    is_enabled: bool


class _State(pybreaker.CircuitBreakerState):
    """A state as pybreaker's listeners get it."""

    def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call *func* through the breaker, which knows its state best."""
        return self._breaker.call(func, *args, **kwargs)


class Face(pybreaker.CircuitBreaker):
    """The part of a breaker that only shows, and takes orders."""

    _lock: threading.RLock
    _listeners: list[Any]
    _excluded_exceptions: list[Any]
    _name: str
    _circuit: Circuit
    _configuration: Configuration | None
    _explicit: Callable[[Any, dict[str, Any]], None]
    tally: Tally

    def _configured(self) -> Configuration:
        raise NotImplementedError

    def _refresh(self) -> None:
        raise NotImplementedError

    def _order(self, what: str) -> bool:
        raise NotImplementedError

    def reconfigure(self) -> None:
        """Options have changed."""
        raise NotImplementedError

    # -- pybreaker's listeners

    def _hear(self, what: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, what)(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - a listener's error is none of the guarded call
                internal_error("breakers", error)

    def _hear_of(self, result: Result, error: BaseException | None) -> None:
        if self._listeners and result is Result.FAILURE:
            self._hear("failure", error if error is not None else ValueError("the returned value"))
        elif self._listeners and result is Result.SUCCESS:
            self._hear("success")

    def _hear_of_change(self, before: Circuit) -> None:
        circuit = self._circuit
        if self._listeners and circuit.state != before.state:
            self._hear("state_change", self._state_object(before.state), self._state_object(circuit.state))

    def _state_object(self, state: str) -> pybreaker.CircuitBreakerState:
        return _State(self, _STATE_NAMES[state])

    def add_listener(self, listener: Any) -> None:
        """Register one of pybreaker's listeners for this breaker in this process."""
        with self._lock:
            self._listeners.append(listener)
            self._refresh()

    def remove_listener(self, listener: Any) -> None:
        """Unregister a listener."""
        with self._lock:
            self._listeners.remove(listener)
            self._refresh()

    # -- looking at it, and pybreaker's names

    @property
    def name(self) -> str:
        """The service; it cannot be changed."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        raise AttributeError("The name of a breaker says which circuit it shares with other processes; ask for another one by its name.")

    @property
    def service(self) -> str:
        """Its name."""
        return self._name

    @property
    def is_shared(self) -> bool:
        """Whether other processes have the same circuit."""
        configuration = self._configuration
        return configuration is not None and configuration.storage.is_shared

    @property
    def status(self) -> BreakerState:
        """All that this process knows of it, without asking anybody."""
        configuration = self._configured()
        clock = configuration.storage.clock
        counts = self.tally.numbers()._asdict()
        circuit = self._circuit
        found = state_of(self._name, circuit, configuration.policy, clock.now(), clock.ahead_s, **counts)
        if not configuration.is_enabled:
            found = state_of(self._name, Circuit(mode=DISABLED), configuration.policy, clock.now(), clock.ahead_s, **counts)
        return found

    @property
    def policy(self) -> Policy:
        """The options in effect."""
        return self._configured().policy

    @property
    def current_state(self) -> str:
        """'closed', 'open' or, in pybreaker's spelling, 'half-open'."""
        self._configured()
        return _STATE_NAMES[self._circuit.state]

    @property
    def state(self) -> Any:
        """The state as an object with a ``name``; setting it to a name is :meth:`open`, :meth:`half_open` or :meth:`close`."""
        self._configured()
        return self._state_object(self._circuit.state)

    @state.setter
    def state(self, state_str: str) -> None:
        self._order({"open": "open", "half-open": "half_open", "half_open": "half_open", "closed": "close"}[state_str])

    @property
    def fail_counter(self) -> int:
        """Failures in a row."""
        self._configured()
        return 0 if self._circuit.state == CLOSED and self.tally.has_succeeded() else self._circuit.failures

    @property
    def success_counter(self) -> int:
        """Successful trial calls since it is half open."""
        self._configured()
        return self._circuit.successes

    @property
    def fail_max(self) -> int:
        """The option ``failure_threshold``."""
        return self.policy.failure_threshold or 0

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._explicit(self, {"failure_threshold": number})

    @property
    def reset_timeout(self) -> float:
        """The option ``timeout``."""
        return self.policy.timeout

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        self._explicit(self, {"timeout": timeout})

    @property
    def success_threshold(self) -> int:
        """The option of that name."""
        return self.policy.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._explicit(self, {"success_threshold": threshold})

    def with_threshold(self, number: int) -> Self:
        """Set ``failure_threshold``; gives the breaker."""
        self._explicit(self, {"failure_threshold": number})
        return self

    def with_timeout(self, seconds: float) -> Self:
        """Set ``timeout``; gives the breaker."""
        self._explicit(self, {"timeout": seconds})
        return self

    def with_success_threshold(self, number: int) -> Self:
        """Set ``success_threshold``; gives the breaker."""
        self._explicit(self, {"success_threshold": number})
        return self

    def with_half_open_attempts(self, number: int) -> Self:
        """Set ``half_open_attempts``; gives the breaker."""
        self._explicit(self, {"half_open_attempts": number})
        return self

    @property
    def added_exceptions(self) -> tuple[Rule, ...]:
        """What :meth:`add_excluded_exception` has added."""
        return tuple(self._excluded_exceptions)

    @property
    def excluded_exceptions(self) -> tuple[Any, ...]:
        """What counts as neither success nor failure."""
        return self._configured().verdicts.ignore

    def add_excluded_exception(self, exception: Rule) -> None:
        """Have *exception*, a class or a function, count as neither success nor failure, in this process."""
        rules(exception)
        with self._lock:
            self._excluded_exceptions.append(exception)
        self.reconfigure()

    def remove_excluded_exception(self, exception: Rule) -> None:
        """The opposite."""
        with self._lock:
            self._excluded_exceptions.remove(exception)
        self.reconfigure()

    def is_system_error(self, exception: Any) -> bool:
        """Whether *exception* counts as a failure."""
        return self._configured().verdicts.of_error(exception) is Result.FAILURE

    # -- by hand

    def open(self) -> bool:
        """Open it now; after ``timeout`` it lets trial calls through."""
        return self._order("open")

    def half_open(self) -> None:
        """Let trial calls through now."""
        self._order("half_open")

    def close(self) -> None:
        """Let all calls through; the count of failures stays, :meth:`reset` clears it."""
        self._order("close")

    def reset(self) -> None:
        """Close it, and forget every failure."""
        self._order("reset")

    def force_open(self) -> None:
        """Let no call through, until :meth:`auto`."""
        self._order("force_open")

    def disable(self) -> None:
        """Let every call through and record nothing, until :meth:`auto`."""
        self._order("disable")

    def metrics_only(self) -> None:
        """Let every call through and only count, until :meth:`auto`."""
        self._order("metrics_only")

    def auto(self) -> None:
        """Have it decide by itself again, closed at first."""
        self._order("auto")
