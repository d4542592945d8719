"""Who wants to hear of an event inside this process, and the thread that tells them."""

from __future__ import annotations

import atexit
import importlib
import inspect
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload

from dramatiq_chaperone.service import Service, internal_error

from .kinds import EVENTS, Event

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

E = TypeVar("E", bound=Event)
H = TypeVar("H", bound="Callable[[Any], Any]")

#: Events that wait for their handlers, at most; more are dropped and counted.
CAPACITY: Final = 10_000


class _Handler(NamedTuple):
    function: Callable[[Any], Any]
    #: Where a process that does not have it yet can import it from.
    module: str
    is_async: bool
    name: str


class _Events(Service):
    """The thread on which handlers run."""

    name = "events"

    def __init__(self) -> None:
        super().__init__(interval_s=60.0)
        self.waiting: deque[Event] = deque()
        self.dropped = 0
        self._runner: asyncio.Runner | None = None
        self._abandoned: list[asyncio.Runner] = []

    def put(self, event: Event) -> None:
        if len(self.waiting) >= CAPACITY:
            self.dropped += 1
            return
        self.waiting.append(event)
        if not self.is_running:
            self.start()
        self.wake()

    def run_once(self) -> None:
        while self.waiting:
            event = self.waiting.popleft()
            self._import(type(event).__name__)
            for handler in _handlers.get(type(event), ()):
                self._tell(handler, event)

    def drain(self) -> None:
        self.run_once()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            runner.close()

    def forked(self) -> None:
        self.waiting.clear()
        self.dropped = 0
        if self._runner is not None:  # closing it would take the parent's sockets out of the poll that both share
            self._abandoned.append(self._runner)
            self._runner = None

    def _import(self, name: str) -> None:
        for module in _elsewhere.get(name, ()):
            try:
                importlib.import_module(module)
            except BaseException as e:  # noqa: BLE001 - the handlers of other modules are told
                internal_error(f"import of {module} for its handlers", e)
        _elsewhere.pop(name, None)  # only now: what is published meanwhile is for these handlers too

    def _tell(self, handler: _Handler, event: Event) -> None:
        try:
            result = handler.function(event)
            if handler.is_async or inspect.isawaitable(result):
                self._wait_for(result)
        except BaseException as e:  # noqa: BLE001 - a handler's error, a SystemExit too, stops nothing
            internal_error(f"handler {handler.name}", e, job_id=getattr(event, "job_id", None))

    def _wait_for(self, awaitable: Any) -> None:
        import asyncio

        if self._runner is None:
            self._runner = asyncio.Runner()

        async def wait() -> None:
            await awaitable

        self._runner.run(wait())


_handlers: dict[type[Event], tuple[_Handler, ...]] = {}
#: Events that are handled by functions of modules which this process has not imported yet, by name.
_elsewhere: dict[str, list[str]] = {}
_lock = threading.Lock()
_events = _Events()
atexit.register(_events.stop)


@overload
def on(kind: type[E], handler: Callable[[E], Any]) -> Callable[[], None]: ...
@overload
def on(kind: type[E]) -> Callable[[H], H]: ...


def on(kind: type[Event], handler: Callable[[Any], Any] | None = None) -> Any:
    """Call *handler*, a function or coroutine function, with each event of *kind* that this process publishes.

    ``@on(JobStuck)`` decorates a function; ``on(JobStuck, handler)`` gives a function that ends the subscription.
    ``on(Event)`` is for all kinds, ``on(JobEvent)`` for all about jobs.  Handlers run one after the other on the
    thread ``chaperone-events``; what one raises is logged and counted.

    Raises:
      TypeError: *kind* is not an event, or *handler* cannot be called.
    """
    kinds = _kinds(kind)
    if handler is None:

        def decorate(function: H) -> H:
            on(kind, function)
            return function

        return decorate
    if not callable(handler):
        raise TypeError(f"{handler!r} cannot be called")
    it = _described(handler)
    with _lock:
        for each in kinds:
            _handlers[each] = (*_handlers.get(each, ()), it)
    return lambda: off(kind, handler)


def off(kind: type[Event], handler: Callable[[Any], Any]) -> None:
    """End the subscription of *handler* to *kind*; nothing happens if there is none."""
    with _lock:
        for each in _kinds(kind):
            left = tuple(it for it in _handlers.get(each, ()) if it.function != handler)
            if left:
                _handlers[each] = left
            else:
                _handlers.pop(each, None)


def has_subscribers(kind: type[Event]) -> bool:
    """Whether anybody in this process hears of *kind*: ask before making an event on the way of each message."""
    return kind in _handlers or kind.__name__ in _elsewhere


def import_when_needed(modules: Mapping[str, Sequence[str]]) -> None:
    """Have handlers that another process has: event to the modules to import when this process first publishes one.

    Parameters:
      modules: what :func:`handler_modules` gave there; a script has no module that could be imported.
    """
    _elsewhere.update({name: [each for each in found if each != "__main__"] for name, found in modules.items()})


def publish(event: Event) -> None:
    """Pass *event* on to its handlers, who run later, elsewhere.  Never waits and never raises."""
    if has_subscribers(type(event)):
        try:
            _events.put(event)
        except Exception as e:  # noqa: BLE001 - supervision may fail, the job must not notice
            internal_error("events", e)


def handler_modules() -> dict[str, list[str]]:
    """For each event that is heard of, by name: the modules that a process must import to handle it as this one does."""
    return {kind.__name__: sorted({it.module for it in handlers}) for kind, handlers in list(_handlers.items())}


def dropped_events() -> int:
    """Events of this process that were dropped because handlers were too slow."""
    return _events.dropped


def finish_events(*, timeout_s: float = 5.0) -> bool:
    """Let the handlers have all that was published, and stop their thread; the next event starts it again.

    Returns whether they were done within *timeout_s*.
    """
    return _events.stop(timeout_s=timeout_s)


def _kinds(kind: type[Event]) -> list[type[Event]]:
    kinds = [each for each in EVENTS if isinstance(kind, type) and issubclass(each, kind) and issubclass(kind, Event)]
    if not kinds:
        raise TypeError(f"{kind!r} is not an event of dramatiq_chaperone.events")
    # NotificationFailed is made from NotificationSent, but is another event
    return [kind] if kind in EVENTS else kinds


def _described(handler: Callable[[Any], Any]) -> _Handler:
    function = inspect.unwrap(handler)
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(function, "__module__", None) or type(function).__module__
    return _Handler(handler, module, inspect.iscoroutinefunction(handler), f"{module}.{named.__qualname__}")
