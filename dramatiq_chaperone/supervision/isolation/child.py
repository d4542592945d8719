"""The process of one isolated job: everything in it is as in a worker thread, and goes to the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from inspect import iscoroutinefunction
from time import monotonic
from traceback import FrameSummary
from types import FrameType
from typing import Any, Final, NamedTuple, Protocol

from dramatiq import Actor, Broker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage
from dramatiq.threading import Interrupt

from ... import records
from ...errors import SettingsError
from ..jobs import Job, entered, number
from ..recorder import Recorder
from ..sending import initiator
from .errors import pack
from .wire import Channel

#: Reports that were held back are sent after this long, in seconds.
PACE_S: Final = 0.25
#: Frames of a stack that are told, the innermost ones.
STACK_FRAMES: Final = 60
#: How often the progress is looked at for its rate, in seconds.
LOOK_S: Final = 1.0


class Request(NamedTuple):
    """What the worker asks of a child: one run of one job."""

    actor_name: str
    #: Of the actor's function; where it has to be declared.
    module: str
    #: As dramatiq decoded it.
    message: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    run_id: str
    queue: str
    retries: int
    thread: str
    #: Of the worker's journal, where everything goes.
    origin: records.Origin
    #: The worker's levels, of each logger that has one, and ``logging.disable``.
    levels: dict[str, int]
    disabled_level: int
    #: Bytes, None: no limit.
    address_space: int | None
    #: What the job holds of the circuit breakers that it needs; each has a ``result`` and an ``error`` to be noted.
    held: tuple[Any, ...] = ()


class Home(Protocol):
    """A broker of the app that has a Chaperone."""

    def actor(self, name: str) -> Actor[Any, Any] | None:
        """The actor of that name."""

    def isolated(self, sink: _Worker) -> tuple[Broker, Recorder]:
        """From now on record what this process sends in *sink*."""

    def carry(self, held: Sequence[Any]) -> None:
        """The job holds this of its circuit breakers, also in this process and context."""


class _Worker:
    """Stands where the journal stands in a worker: the entries go there."""

    def __init__(self, channel: Channel, origin: records.Origin) -> None:
        self._channel = channel
        self.origin = origin

    def append(self, entry: tuple[Any, ...]) -> None:
        self._channel.send(("entry", entry))


class IsolatedJob(Job):
    """The handle in the child; what it reports becomes a report of the worker's own handle.

    Attributes:
      is_told: whether it was asked to stop.  Reports do not raise for that: the worker sends an interrupt, and that does.
    """

    is_told = False

    def __init__(self, channel: Channel, recorder: Recorder, request: Request) -> None:
        message = request.message
        super().__init__(
            recorder,
            message.message_id,
            request.run_id,
            request.actor_name,
            request.queue,
            request.retries,
            request.thread,
            threading.get_ident(),
            is_async=False,
        )
        self._channel = channel
        self._pacer: threading.Thread | None = None

    def _write(self, heartbeat_id: str, *, keep: bool) -> None:
        self.is_dirty = False
        self._reports += 1
        metadata, self._metadata = self._metadata, None
        phase = None if self.phase is None else str(self.phase)[:255]
        frame = ("report", self._source, metadata, number(self.current), number(self.total), phase)
        try:
            self._channel.send(frame)
        except Exception:  # noqa: BLE001 - what cannot be pickled is told as text
            self._channel.send((*frame[:2], {str(key): repr(value) for key, value in (metadata or {}).items()}, *frame[3:]))
        if self._pacer is None:
            self._pacer = threading.Thread(target=self._pace, name="chaperone-reports", daemon=True)
            self._pacer.start()

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked this job to stop."""
        return self.is_told

    def _publish(self, heartbeat_id: str) -> None:
        """The worker does, once."""

    def _pace(self) -> None:
        """Send what was held back, and look at the progress."""
        looked = 0.0
        pause = threading.Event()
        while self.ended is None:
            now = monotonic()
            if now - looked >= LOOK_S * 0.999:
                looked = now
                self.look(now)
            if self.is_dirty:
                self._write("", keep=True)
            pause.wait(PACE_S)


class _Relay(logging.Handler):
    """Gives each record to the logger of the same name in the worker."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(record.__dict__)
        try:
            fields["msg"], fields["args"] = record.getMessage(), None
        except Exception:  # noqa: BLE001 - arguments that do not fit; the worker's handler would have said the same
            self.handleError(record)
            return
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = self._formatter.formatException(record.exc_info)
        fields["exc_info"] = None
        try:
            self._channel.send(("log", fields))
        except Exception:  # noqa: BLE001 - extra fields may be anything
            plain = {name: value if isinstance(value, (str, int, float, type(None))) else repr(value) for name, value in fields.items()}
            self._channel.send(("log", plain))


class _Interrupts:
    """What was asked of the job from outside, and when it may be told."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        channel.sent = self.deliver
        self.job: IsolatedJob | None = None
        #: Whether the main thread is in the actor's code.
        self.is_open = False
        #: Cancels the coroutine of an async actor.
        self.cancel: Callable[[], object] | None = None
        #: Gives the stack, where somebody has asked for it and could not be answered at once.
        self.asked: Callable[[], list[str]] | None = None
        self.task: asyncio.Task[Any] | None = None
        self.pending: type[BaseException] | None = None
        self.sent: type[BaseException] | None = None

    def hear(self, frame: FrameType | None = None) -> None:
        """Take what the worker has said.  Runs in the signal handler, which knows the *frame* that it interrupts."""
        for what, exception in self._channel.received():
            if what == "interrupt":
                self.pending = exception
            if what == "stack":
                self.asked = partial(_stack, frame, self.task)
            elif self.job is not None:
                self.job.is_told = True
        self.deliver()

    def deliver(self) -> None:
        """Answer, and interrupt the actor, if that was asked for and it runs."""
        if self._channel.is_sending:
            return
        if self.asked is not None:
            asked, self.asked = self.asked, None
            self._channel.send(("stack", asked()))
        if self.pending is None or not self.is_open:
            return
        self.sent, self.pending = self.pending, None
        if self.cancel is None:
            raise self.sent
        with contextlib.suppress(RuntimeError):  # the loop is closed: the coroutine was done before
            self.cancel()


_interrupts: _Interrupts | None = None


def on_signal(_: int, frame: FrameType | None) -> None:
    """The handler of SIGUSR1, in the zygote too, which has nothing to do about it."""
    if _interrupts is not None:
        _interrupts.hear(frame)


def _stack(frame: FrameType | None, task: asyncio.Task[Any] | None) -> list[str]:
    """Where the actor is, the innermost frame last."""
    coroutine: Any = None if task is None else task.get_coro()
    if coroutine is None or coroutine.cr_running:
        found = list(traceback.extract_stack(frame))
    else:
        found = []
        while (each := getattr(coroutine, "cr_frame", None)) is not None:
            found.append(FrameSummary(each.f_code.co_filename, each.f_lineno, each.f_code.co_name))
            coroutine = coroutine.cr_await
    ours = [number for number, each in enumerate(found) if each.filename == __file__ and each.name in {"_call", "main"}]
    found = found[ours[-1] + 1 :] if ours else found
    return [line.rstrip() for line in traceback.format_list(found[-STACK_FRAMES:])]


def run(data: Any, homes: Sequence[Home], failures: dict[str, str]) -> None:
    """Run one job and report its end.

    Parameters:
      data: the socket to the worker.
      failures: why modules of the app could not be imported.
    """
    global _interrupts
    channel = Channel(data)
    request: Request = channel.receive()
    interrupts = _Interrupts(channel)
    _relay_logs(channel, request)
    try:
        fn, broker, job = _prepare(channel, request, homes, failures)
    except Exception as error:  # noqa: BLE001 - it is the job's end, and has to be told
        channel.send(("error", pack(error)))
        return
    interrupts.job = job
    _interrupts = interrupts
    entered(job)
    for entry in broker.middleware:
        if isinstance(entry, CurrentMessage):
            entry.before_process_message(broker, request.message)
    if request.held:
        homes[0].carry(request.held)
    end = _end(lambda: _call(fn, request, interrupts), interrupts, request.actor_name)
    job.ended = monotonic()
    if job.is_dirty:
        job._write("", keep=True)
    if request.held:
        channel.send(("held", [(each.result, each.error) for each in request.held]))
    if not isinstance(broker, StubBroker):
        with contextlib.suppress(Exception):  # RabbitMQ may drop what it has not read of a connection that just ends
            broker.close()
    channel.send(end)


def _end(call: Callable[[], Any], interrupts: _Interrupts, actor_name: str) -> tuple[str, Any]:
    """The frame that says how it ended."""
    has_returned = False
    result = None
    try:
        try:
            interrupts.is_open = True
            interrupts.hear()  # what came before anybody could listen
            result = call()
            has_returned = True
        finally:
            interrupts.is_open = False
    except BaseException as error:  # noqa: BLE001 - whatever it is, the worker raises it
        if not (has_returned and isinstance(error, Interrupt)):
            return "error", pack(error)
    try:
        return "result", pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - classes of the user's may raise anything here
        return "error", pack(TypeError(f"What {actor_name} returned cannot be sent from its process: {error}"))


def _call(fn: Callable[..., Any], request: Request, interrupts: _Interrupts) -> Any:
    inner = getattr(fn, "__wrapped__", fn)
    if not iscoroutinefunction(inner):
        return fn(*request.args, **request.kwargs)

    async def main() -> Any:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        interrupts.task = task
        interrupts.cancel = partial(loop.call_soon_threadsafe, task.cancel)
        try:
            return await inner(*request.args, **request.kwargs)
        except asyncio.CancelledError:
            if interrupts.sent is not None:
                raise interrupts.sent from None
            raise

    return asyncio.run(main())


def _prepare(
    channel: Channel, request: Request, homes: Sequence[Home], failures: dict[str, str]
) -> tuple[Callable[..., Any], Broker, IsolatedJob]:
    """Find the actor, and put the worker in the place of everything that this process has none of."""
    if request.address_space is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (request.address_space, hard))
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed()  # as random does by itself after a fork: else every job draws the same numbers
    sink = _Worker(channel, request.origin)
    found: tuple[Callable[..., Any], Broker, IsolatedJob] | None = None
    for home in homes:
        broker, recorder = home.isolated(sink)
        if isinstance(broker, StubBroker):
            broker.enqueue = _enqueue_there(channel)  # type: ignore[method-assign]  # its queues are those of the worker's process
        actor = home.actor(request.actor_name)
        if actor is not None and (found is None or getattr(actor.fn, "__module__", None) == request.module):
            found = actor.fn, broker, IsolatedJob(channel, recorder, request)
    if found is None:
        raise _not_found(request, failures)
    return found


def _not_found(request: Request, failures: dict[str, str]) -> SettingsError:
    name, module = request.actor_name, request.module
    if (why := failures.get(module) or next(iter(failures.values()), None)) is not None:
        text = f"The actor {name} cannot be isolated: the app cannot be imported in a process of its own.\n{why}"
    else:
        text = (
            f"The actor {name} cannot be isolated: importing {module} does not declare it. "
            "An isolated actor is a function at the top level of a module, on a broker that has a Chaperone there."
        )
    return SettingsError(text, field="isolate", value=True, origin=f"options of actor {name}")


def _enqueue_there(channel: Channel) -> Callable[..., Any]:
    def enqueue(message: Any, *, delay: int | None = None) -> Any:
        channel.send(("enqueue", message, delay, initiator()))
        return message

    return enqueue


def _relay_logs(channel: Channel, request: Request) -> None:
    """The worker's handlers get everything, and nobody else."""
    root = logging.getLogger()
    for logger in (root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True
    root.addHandler(_Relay(channel))
    logging.disable(request.disabled_level)
    for name, level in request.levels.items():
        with contextlib.suppress(ValueError):
            logging.getLogger(name).setLevel(level)
