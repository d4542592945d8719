"""The breakers of this process: one object for each name."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack

from ..circuits import Altered, Calls, Circuit, Policy
from ..errors import SettingsError
from ..settings import BREAKER_OPTIONS, Settings, checked_option
from .breaker import CircuitBreaker
from .face import Configuration
from .sharing import shared
from .states import BreakerState
from .storages.database import DatabaseStorage
from .storages.memory import MemoryStorage
from .verdicts import Rule, Verdicts, rules

if TYPE_CHECKING:
    from .storages import Storage

#: Characters of a service's name.
_WIDTH: Final = 191
_STORAGES: Final = ("store", "memory")
#: The thread that speaks to the store has so long to tell what it knows when the process ends, in seconds.
_CLOSE_S: Final = 3.0


class Registry:
    """All breakers of a process, what they were given, and where their circuits are kept."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._breakers: dict[str, CircuitBreaker] = {}
        self._given: dict[str, dict[str, Any]] = {}
        #: The options of the last call that gave some, unchecked.
        self._seen: dict[str, dict[str, Any]] = {}
        self._memory = MemoryStorage(self._took)
        self._database: DatabaseStorage | None = None
        self._loaded: Settings | None = None
        shared.adopt, shared.changed, shared.flush = self._adopt, self._reconfigure, self.close

    def find(self, service: str) -> CircuitBreaker | None:
        """The breaker of *service*, if anybody has asked for it before."""
        return self._breakers.get(service)

    def get(self, service: str, options: dict[str, Any]) -> CircuitBreaker:
        """The breaker of *service*, with these options beside those that it was given before."""
        found = self._breakers.get(service)
        if found is None:
            if not isinstance(service, str) or not 0 < len(service) <= _WIDTH or not service.isprintable():
                message = f"A service's name is a text of 1 to {_WIDTH} characters, not {service!r:.300}"
                raise SettingsError(message, field="service", value=service)
            with self._lock:
                if service not in self._breakers:
                    self._breakers[service] = CircuitBreaker(service, configure=self._configure, explicit=self._set)
                found = self._breakers[service]
        if options:
            self._set(found, options)
        return found

    def all(self) -> list[CircuitBreaker]:
        """By service."""
        return [breaker for _, breaker in sorted(self._breakers.items())]

    # -- options

    def _set(self, breaker: CircuitBreaker, options: dict[str, Any]) -> None:
        service = breaker.service
        if self._seen.get(service) == options:  # as at the last call of the same line
            return
        checked = {name: _checked(service, name, value) for name, value in options.items()}
        with self._lock:
            given = self._given.setdefault(service, {})
            for name, value in checked.items():
                if name in given and not _is_same(given[name], value):
                    message = f"The breaker {service!r} has {name}={given[name]!r} already; it cannot be {value!r} too"
                    raise SettingsError(message, field=f"breakers.{service}.{name}", value=value, origin="breaker()")
            is_news = not checked.keys() <= given.keys()
            self._given[service] = {**checked, **given}
            self._seen[service] = dict(options)
        if is_news:
            breaker.reconfigure()

    def _configure(self, breaker: CircuitBreaker) -> Configuration:
        settings = self.settings()
        given = self._given.get(breaker.service, {})
        numbers = numbers_of(settings, breaker.service, given)
        ignore = (*given.get("ignore_exceptions", ()), *breaker.added_exceptions)
        verdicts = Verdicts(ignore, given.get("record_exceptions"), given.get("record_result"))
        storage: Storage = self._memory if given.get("storage") == "memory" else self._shared(settings)
        return Configuration(Policy(**numbers), verdicts, storage, settings.circuit_breaker_enabled)

    def settings(self) -> Settings:
        """Those of ``Chaperone(...)``, else the environment's."""
        if shared.settings is not None:
            return shared.settings
        if self._loaded is None:
            self._loaded = Settings.load()
        return self._loaded

    def _shared(self, settings: Settings) -> DatabaseStorage:
        with self._lock:
            if self._database is None:
                self._database = DatabaseStorage(
                    settings, took=self._took, collect=self._collect, give_back=self._give_back, services=self._services
                )
            if settings.circuit_breaker_enabled:
                self._database.start()
            return self._database

    def prepare(self) -> None:
        """Be ready for a failure of a shared service, and know how all of them stand, if the store answers within 250 ms."""
        settings = self.settings()
        if settings.circuit_breaker_enabled:
            self._shared(settings).prepare()

    def _reconfigure(self) -> None:
        """Other settings: what worked by the old ones begins anew with its next call."""
        with self._lock:
            database, self._database = self._database, None
        if database is not None:
            database.stop(timeout_s=_CLOSE_S)
        for breaker in self.all():
            breaker.reconfigure()

    # -- what the storage tells and asks

    def _took(self, service: str, altered: Altered, is_said: bool) -> None:
        breaker = self._breakers.get(service)
        if breaker is not None:
            breaker.took(altered, is_said=is_said)

    def _adopt(self, service: str, circuit: Circuit) -> None:
        shared.keep(service, circuit)
        breaker = self._breakers.get(service)
        if breaker is not None and breaker.is_shared:
            breaker.adopt(circuit)

    def _services(self) -> list[str]:
        return [breaker.service for breaker in self.all() if breaker.is_shared]

    def _collect(self) -> list[Calls]:
        found = []
        for breaker in self.all():
            if breaker.is_shared:
                last_success_at = time.time() - (time.monotonic() - breaker.succeeded_at)
                numbers, successes, took = breaker.tally.take()
                if any(numbers) or successes:
                    found.append(Calls(breaker.service, *numbers, successes, last_success_at, breaker.policy.window, *took))
        return found

    def _give_back(self, calls: Iterable[Calls]) -> None:
        for each in calls:
            self._breakers[each.service].tally.give_back(each)

    # -- the end, and a fork

    def close(self) -> None:
        """Tell what was not told, and stop the thread.  The next call starts it again."""
        with self._lock:
            database = self._database
        if database is not None:
            database.stop(timeout_s=_CLOSE_S)
            for breaker in self.all():
                breaker.reconfigure()

    def renew(self) -> None:
        """Forget every circuit, and the settings; the breakers stay, closed, with what they were given: for a test of its own."""
        self.close()
        with self._lock:
            self._memory, self._database, self._loaded = MemoryStorage(self._took), None, None
        shared.circuits.clear()
        shared.settings = shared.link = None
        for breaker in self.all():
            breaker.forget(everything=True)

    def clear(self) -> None:
        """Forget the breakers too."""
        self.renew()
        with self._lock:
            self._breakers, self._given, self._seen = {}, {}, {}

    def forked(self) -> None:
        """Nothing of the parent's is used but what it knew."""
        self._lock = threading.RLock()
        self._memory.forked()
        for breaker in self._breakers.values():
            breaker.forget()


def _is_same(first: Any, second: Any) -> bool:
    """A function that is made anew each time that its line is run is the same one."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_is_same, first, second))
    if first == second:
        return True
    code = getattr(first, "__code__", None)
    return code is not None and code is getattr(second, "__code__", None) and _bound(first) == _bound(second)


def _bound(function: Any) -> tuple[Any, ...]:
    """What a function that was made has from where it was made."""
    cells = function.__closure__ or ()
    return function.__defaults__, function.__kwdefaults__, [cell.cell_contents for cell in cells]


def _checked(service: str, name: str, value: object) -> Any:
    if name in {"ignore_exceptions", "record_exceptions"}:
        try:
            return rules(value)  # type: ignore[arg-type]  # it says what is wrong
        except TypeError as error:
            raise SettingsError(f"{name}: {error}", field=f"breakers.{service}.{name}", value=value, origin="breaker()") from error
    if name == "record_result" and callable(value):
        return value
    if name == "storage" and value in _STORAGES:
        return value
    if name in {"record_result", "storage"}:
        wanted = "a function" if name == "record_result" else " or ".join(map(repr, _STORAGES))
        message = f"{name} of the breaker {service!r} must be {wanted}, not {value!r:.200}"
        raise SettingsError(message, field=f"breakers.{service}.{name}", value=value, origin="breaker()")
    return checked_option(service, name, value, "breaker()")


def numbers_of(settings: Settings, service: str, given: dict[str, Any]) -> dict[str, Any]:
    """What was given goes before chaperone.toml's own table, that before the settings for all."""
    table = {**settings.breakers.get(service, {}), **{name: value for name, value in given.items() if name in BREAKER_OPTIONS}}
    found = {}
    for name, option in BREAKER_OPTIONS.items():
        default = option.default if option.setting is None else getattr(settings, option.setting)
        found[name] = table.get(name, default)
    if found["failure_rate_threshold"] is not None and "failure_threshold" not in table:
        found["failure_threshold"] = None
    return found


_registry: Final = Registry()
atexit.register(_registry.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_registry.forked)


def registry() -> Registry:
    """Of this process."""
    return _registry


class Options(TypedDict, total=False):
    """What :func:`breaker` takes; None is the same as not given."""

    failure_threshold: int | None
    success_threshold: int | None
    timeout: float | None
    half_open_attempts: int | None
    max_wait_duration_in_half_open_state: float | None
    failure_rate_threshold: float | None
    sliding_window_size: int | None
    minimum_number_of_calls: int | None
    exponential_backoff_multiplier: float | None
    exponential_max_wait_duration_in_open_state: float | None
    randomized_wait_factor: float | None
    ignore_exceptions: Iterable[Rule] | Rule | None
    record_exceptions: Iterable[Rule] | Rule | None
    record_result: Callable[[Any], object] | None
    storage: Literal["store", "memory"] | None


def breaker(service: str, /, **options: Unpack[Options]) -> CircuitBreaker:
    """The circuit breaker of *service*: the same object wherever it is asked for in a process.

    Options may be given anywhere, once; what nobody gives is as chaperone.toml's ``[breakers.<service>]`` has it, else as
    the settings ``circuit_breaker_…`` say.  None is the same as not given.

    Parameters:
      failure_threshold: failures in a row that open it (5).
      success_threshold: trial calls that must succeed to close it (2).
      timeout: seconds that it stays open before a trial call (300).
      half_open_attempts: trial calls at once, over all processes (3).
      max_wait_duration_in_half_open_state: after so many seconds a trial that was not heard of gives its permit back (60).
      failure_rate_threshold: percent of the last calls that failed, which opens it, in place of failures in a row unless both are given.
      sliding_window_size, minimum_number_of_calls: how many calls those are, and how many there must be (100, 100).
      exponential_backoff_multiplier: the timeout is multiplied by it each time that a trial fails (1).
      exponential_max_wait_duration_in_open_state: seconds that the timeout then grows to, at most (3600).
      randomized_wait_factor: share of the timeout by which it is made shorter or longer at random (0).
      ignore_exceptions: classes, or functions of an exception: neither success nor failure.
      record_exceptions: likewise; they alone are failures, any other Exception is a success.
      record_result: says whether a returned value is a failure.
      storage: 'memory' keeps it to this process; 'store' is the default.

    Raises:
      SettingsError: an option is not valid, or was given before with another value.
    """
    if not options and (found := _registry.find(service)) is not None:
        return found
    return _registry.get(service, {name: value for name, value in options.items() if value is not None})


def breakers() -> list[BreakerState]:
    """The state of every breaker of this process, by service."""
    return [each.status for each in _registry.all()]
