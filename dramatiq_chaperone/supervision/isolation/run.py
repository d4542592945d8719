"""One run of an isolated job, as the worker thread that waits for it sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from dramatiq import Actor
from dramatiq.middleware import TimeLimitExceeded
from dramatiq.threading import Interrupt

from ... import host
from ...errors import JobCancelled, JobProcessDied, MemoryLimitExceeded, TimeoutExceeded
from ...limits import MB
from ...service import internal_error
from .. import resources
from ..sending import initiated_by
from ..stopping import interrupt
from . import wire
from .child import Request
from .errors import unpack
from .limits import limits_of

if TYPE_CHECKING:
    from ..jobs import Job
    from ..recorder import Recorder
    from ..slots import Slot

#: How often a run looks after its child, in seconds, and how often where it has a memory limit.
LOOK_S: Final = 1.0
MEMORY_LOOK_S: Final = 0.2
_CHUNK: Final = 1 << 18

Fork = Callable[[str, tuple[socket.socket, socket.socket]], None]

#: Told of a job that is past its memory_limit, as often as that is seen: what it uses, and the limit, in bytes.
MemoryExceeded = Callable[["Slot", "Job", int, int], None]


class Run:
    """The child of one job: ``job.child``, a :class:`~dramatiq_chaperone.supervision.stopping.Child`.

    Attributes:
      pid: 0 until the child runs.
      was_killed: whether it was ended from here.
    """

    def __init__(
        self, recorder: Recorder, slot: Slot, actor: Actor[Any, Any], message: Any, memory_exceeded: MemoryExceeded | None = None
    ) -> None:
        self.pid = 0
        self.was_killed = False
        self._recorder, self._slot, self._actor, self._message = recorder, slot, actor, message
        self._memory_exceeded = memory_exceeded
        assert slot.job is not None
        assert slot.policy is not None
        self._job: Job = slot.job
        self._limits = limits_of(slot.job.limits, slot.policy, message.options, recorder.settings)
        #: To the child, and to the zygote; None until they are made.
        self._data: socket.socket | None = None
        self._status: socket.socket | None = None
        #: Held to tell the child something, and to make and close the sockets.
        self._lock = threading.Lock()
        self._frames = wire.Frames()
        self._is_over = False
        self._ended: wire.Ended | None = None
        self._end: tuple[str, Any] | None = None
        self._interrupted_by: type[BaseException] | None = None
        #: What was to be told before the child had been told its job; None: it has been.
        self._early: list[bytes] | None = []
        self._has_told_cancelled = False
        self._stack: list[str] = []
        self._stack_told = threading.Event()

    # What others may call: stopping.Child.

    def interrupt(self, exception: type[BaseException]) -> None:
        """Raise *exception* in the job."""
        if exception is TimeLimitExceeded:
            exception = TimeoutExceeded
        self._interrupted_by = exception
        self._tell("interrupt", exception)

    def kill(self) -> None:
        """End the process, in the middle of whatever it does."""
        self.was_killed = True
        with self._lock, contextlib.suppress(OSError):  # it is over
            if self._status is not None and self._data is not None:
                self._status.send(wire.KILL, socket.MSG_DONTWAIT)
                if not self.pid:  # a large argument may be on its way to a child that is not there yet
                    self._data.shutdown(socket.SHUT_RDWR)

    def stack(self, timeout_s: float) -> list[str]:
        """Where the job is in its code, the innermost call last; it has to come by its interpreter to answer."""
        self._stack_told.clear()
        self._tell("stack", None)
        if self._stack_told.wait(timeout_s):
            return self._stack
        return [f"The process of the job (pid {self.pid}) does not answer: it is in C code, or has just ended."]

    # What the worker thread does.

    def start(self, fork: Fork, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Run until it is over.  False: it never began, for the zygote died."""
        with self._slot.lock:  # from here on an interrupt goes to the child; one that was raised before arrives here, before the try
            is_second = self._job.child is not None
            self._job.child = self
            if is_second and self._slot.sent is not None:
                self.interrupt(self._slot.sent)
        try:
            data, status = self._open(fork, module)
            if not self.was_killed:
                self._ask(data, self._encoded(self._request(module, args, kwargs)))
                self._watch(data, status)
        finally:
            with self._lock:
                for end in (self._data, self._status):
                    if end is not None:
                        end.close()
        return self.pid != 0 or self.was_killed

    def result(self) -> Any:
        """What the job returned; what it raised is raised."""
        if self._ended is not None:
            self._job.cpu_exact = self._ended.cpu_seconds
            self._job.memory_peak = max(self._ended.memory_peak, self._job.memory_peak or 0)
        if self._end is None:
            raise self._died()
        what, value = self._end
        if what == "error":
            raise unpack(value)
        return pickle.loads(value)  # noqa: S301 - our own child wrote it

    def _request(self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        job, root = self._job, logging.getLogger()
        named = ((name, each) for name, each in list(root.manager.loggerDict.items()) if isinstance(each, logging.Logger))
        return Request(
            job.actor_name,
            module,
            self._message,
            args,
            kwargs,
            job.run_id,
            job.queue,
            job.retries,
            job.thread,
            self._recorder.origin,
            {"": root.level, **{name: each.level for name, each in named if each.level}},
            root.manager.disable,
            self._limits.address_space,
            self._slot.held or (),
        )

    def _open(self, fork: Fork, module: str) -> tuple[socket.socket, socket.socket]:
        """Make the sockets, and have the child forked."""
        with self._lock:
            self._data, childs_data = socket.socketpair()
            self._status, zygotes_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with childs_data, zygotes_status:
            fork(module, (childs_data, zygotes_status))
        return self._data, self._status

    @staticmethod
    def _encoded(request: Request) -> bytes:
        try:
            return wire.encode(request)
        except Exception:  # noqa: BLE001 - a middleware may have put anything into the message's options; it stays here
            message = request.message
            plain = {name: value for name, value in message.options.items() if _can_travel(value)}
            return wire.encode(request._replace(message=dataclasses.replace(message, options=plain)))

    def _ask(self, data: socket.socket, request: bytes) -> None:
        """Tell the child its job.  It may not be there yet, so this can take its time, and nothing may come in between."""
        rest, poller = memoryview(request), select.poll()
        poller.register(data, select.POLLOUT)
        with contextlib.suppress(OSError):  # the child is dead; its end is on its way
            while rest and not self._is_over:
                if poller.poll(1000 * LOOK_S):
                    rest = rest[data.send(rest, socket.MSG_DONTWAIT) :]
                else:
                    self._look(monotonic())
        with self._lock, contextlib.suppress(OSError):
            early, self._early = self._early, None
            for frame in early or ():
                data.send(frame, socket.MSG_DONTWAIT)
            if early and self._status is not None:  # the child may have begun, and looked, before they were there
                self._status.send(wire.INTERRUPT, socket.MSG_DONTWAIT)

    def _watch(self, data: socket.socket, status: socket.socket) -> None:
        poller = select.poll()
        poller.register(data, select.POLLIN)
        poller.register(status, select.POLLIN)
        pause_s = LOOK_S if self._limits.memory is None else MEMORY_LOOK_S
        look_at = monotonic() + pause_s
        while not self._is_over:
            ready = [fd for fd, _ in poller.poll(1000 * max(0.0, look_at - monotonic()))]
            if data.fileno() in ready and not self._receive(data):
                poller.unregister(data)
            if status.fileno() in ready:
                self._hear(status)
            if not self._is_over and (now := monotonic()) >= look_at:
                look_at = now + pause_s
                self._look(now)
        while self._receive(data):  # what it said before its end
            pass

    def _hear(self, status: socket.socket) -> None:
        try:
            said = status.recv(4096)
        except OSError:
            said = b""
        news = pickle.loads(said) if said else None  # noqa: S301 - our own zygote wrote it
        if isinstance(news, wire.Forked):
            self.pid = news.pid
        else:  # without news the zygote is dead, and the child with it
            self._ended = news
            self._is_over = True

    def _look(self, now: float) -> None:
        """Whatever has to be done from time to time."""
        if self._job.is_cancelled and not self._has_told_cancelled:
            self._has_told_cancelled = True
            self._tell("cancel", None)
        limit = self._limits.memory
        if limit is not None and self.pid and (usage := resources.usage_of(self.pid)) is not None and usage.rss > limit:
            self._job.memory_peak = max(usage.rss, self._job.memory_peak or 0)
            if self._memory_exceeded is not None:
                self._memory_exceeded(self._slot, self._job, usage.rss, limit)
        if self.was_killed and not self.pid:  # the zygote hangs, while it imports the app or in a fork
            self._is_over = True

    def _receive(self, data: socket.socket) -> bool:
        """Take what is there; False: nothing more will come."""
        try:
            chunk = data.recv(_CHUNK, socket.MSG_DONTWAIT)
        except OSError:
            return False
        for body in self._frames.feed(chunk):
            try:
                self._take(*pickle.loads(body))  # noqa: S301 - our own child wrote it
            except Exception as error:  # noqa: BLE001 - one report that cannot be taken must not cost the job
                internal_error("isolation", error, job_id=self._job.job_id)
        return bool(chunk)

    def _take(self, what: str, *said: Any) -> None:
        if what == "report":
            self._report(*said)
        elif what == "log":
            record = logging.makeLogRecord(said[0])
            logging.getLogger(record.name).handle(record)
        elif what == "entry":
            self._recorder.append(said[0])
        elif what == "stack":
            self._stack = said[0]
            self._stack_told.set()
        elif what == "held":
            for each, (result, error) in zip(self._slot.held or (), said[0], strict=True):
                if result is not None:
                    each.note(result, error)
        elif what == "enqueue":
            message, delay, initiator = said
            with initiated_by(*initiator) if initiator[0] is not None else contextlib.nullcontext():
                self._actor.broker.enqueue(message, delay=delay)
        else:
            self._end = (what, said[0])

    def _report(self, source: str, metadata: Any, current: float | None, total: float | None, phase: str | None) -> None:
        job = self._job
        try:
            if source == "progress" and current is not None:
                job.report_progress(current, total or 0, metadata, phase=phase)
            else:
                job.current, job.total, job.phase = current, total, phase
                job.heartbeat(metadata)
        except JobCancelled:  # in the child it has to be raised
            interrupt(self._slot, job, JobCancelled)

    def _tell(self, what: str, exception: type[BaseException] | None) -> None:
        """Say it to the child, and wake it up: a signal, whose handler reads."""
        frame = wire.encode((what, exception))
        with self._lock, contextlib.suppress(OSError):  # it is over
            if self._early is not None:
                self._early.append(frame)
                return
            assert self._data is not None
            assert self._status is not None
            self._data.send(frame, socket.MSG_DONTWAIT)
            self._status.send(wire.INTERRUPT, socket.MSG_DONTWAIT)

    def _how_killed(self, why: type[BaseException]) -> str:
        limit = self._limits.memory
        if issubclass(why, MemoryLimitExceeded) and limit is not None:
            used = (self._job.memory_peak or 0) / MB
            return f"The job used {used:.0f} MB, more than its memory_limit of {limit / MB:.0f} MB; its process was killed."
        if self._interrupted_by is not None:
            return f"The job ignored its interrupt; its process was killed after {self._job.elapsed_s:.1f} seconds."
        return "Its process was killed."

    def _died(self) -> BaseException:
        """Why there is no result."""
        exit_code = None if self._ended is None else self._ended.exit_code
        stop = self._job.stop
        why = self._interrupted_by or (None if stop is None else stop.exception)
        if self.was_killed and why is not None:
            return why(self._how_killed(why)) if issubclass(why, Interrupt) else why()
        cause = host.exit_cause(exit_code, was_oom=self._ended is not None and self._ended.was_oom)
        if self._ended is None and self.was_killed:
            cause = "killed before it began"
        elif self._ended is None:
            cause = "the process that forked it is gone" if self.pid else "the process that forks it cannot start"
        return JobProcessDied(f"The process of the job ended before it could report: {cause}.", exit_code=exit_code, exit_cause=cause)


def _can_travel(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - classes of the user's may raise anything here
        return False
    return True
