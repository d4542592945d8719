"""The only place that builds the services of a process and wires them together."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .. import host
from ..breakers.sharing import shared
from ..errors import JournalError
from ..events import finish_events, handler_modules, import_when_needed
from ..service import internal_error, unforkable
from ..settings import Settings
from ..supervision.recorder import Recorder, Sink
from ..supervision.sending import Sender
from .process import Process, Turns, make_private

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Worker

    from ..supervision.admission import Admission
    from ..supervision.execution import Execution
    from .worker import WorkerProcess

logger = logging.getLogger("dramatiq_chaperone")

#: After a journal that could not be made, the next try; seconds.
JOURNAL_RETRY_S: Final = 5.0


class Runtime:
    """What one process does for one broker.

    A process begins as a producer, with nothing but a journal that is made by its first message; a Worker makes it
    a worker.  After a fork nothing of the parent's is used.

    Attributes:
      enqueued: called with each message that has reached the broker; bound to whoever records it now, for each call counts.
      execution, admission: the worker's part, None in a producer.
    """

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self._settings = settings
        shared.use(settings)
        self._broker = broker
        #: Reentrant, for a signal handler may send in the middle of a first message.
        self._lock = threading.RLock()
        self.enqueued: Callable[[Any], None] = self._first_enqueued
        self._sending: Process | None = None
        self._working: WorkerProcess | None = None
        #: Tries to begin with a worker that could not have a journal at its boot.
        self._late: Turns | None = None
        self._try_again_at = 0.0
        self.execution: Execution | None = None
        self.admission: Admission | None = None
        _runtimes.add(self)

    def actor(self, name: str) -> Actor[Any, Any] | None:
        """The broker's actor of that name."""
        return self._broker.actors.get(name)

    def isolated(self, sink: Sink) -> tuple[Broker, Recorder]:
        """In the process of an isolated job: what it sends is recorded by its worker, to whom *sink* leads."""
        recorder = Recorder(self._settings, self._broker, sink)
        self.enqueued = Sender(recorder).enqueued
        return self._broker, recorder

    def carry(self, held: Sequence[Any]) -> None:
        """There too: it holds what its worker got of its circuit breakers."""
        from ..breakers.needs import carry

        carry(held)

    def start_worker(self, worker: Worker, *, expects_watcher: bool) -> None:
        """Begin to supervise what *worker* runs; where no journal can be made, as on a full disk, as soon as one can."""
        with self._lock:
            if self._working is not None:
                return
            with unforkable:  # here, for a process that only sends needs nothing of it
                from .worker import WorkerProcess
            try:
                working = WorkerProcess(self._settings, self._broker, worker, expects_watcher=expects_watcher)
            except JournalError:
                self._late = Turns("boot", lambda now: self._start_late(worker, expects_watcher=expects_watcher), JOURNAL_RETRY_S)
                raise
            self._work(working)
        working.gate.needs.prepare()  # not under the lock: it may wait for the store, and no send() must wait for that

    def _work(self, working: WorkerProcess) -> None:
        self._working = working
        self.enqueued, self.execution, self.admission = working.sender.enqueued, working.execution, working.gate.admission

    def _start_late(self, worker: Worker, *, expects_watcher: bool) -> None:
        """Jobs run already: their time limits stay with Dramatiq's own timers, which would else go off in a later job."""
        with self._lock:
            if self._working is not None or self._late is None:
                return
            from .worker import WorkerProcess

            with contextlib.suppress(JournalError):  # it was said at the boot, and is tried again
                working = WorkerProcess(self._settings, self._broker, worker, expects_watcher=expects_watcher, adopts_timers=False)
                working.booted()
                self._work(working)
                logger.warning("The journal can be made now: the jobs of this worker are supervised from here on.")

    def worker_booted(self) -> None:
        """The worker's threads run."""
        if self._working is not None:
            self._working.booted()
        elif self._late is not None:
            self._late.start()

    def stop_worker(self) -> None:
        """The worker has stopped: everything that it wrote goes to the store."""
        with self._lock:
            late, self._late = self._late, None
            working, self._working = self._working, None
            if working is not None:
                self.enqueued = self._first_enqueued if self._sending is None else self._sending.sender.enqueued
                self.execution = self.admission = None
        if late is not None:
            late.stop()
        if working is not None:  # not under the lock: this takes its time, and nobody's send() must wait for it
            working.stop()
            finish_events()

    def _first_enqueued(self, message: Any) -> None:
        """The first message makes a producer of the process."""
        with self._lock:
            if self._working is not None:
                sender = self._working.sender
            else:
                sender = self._producer().sender
                self.enqueued = sender.enqueued
        sender.enqueued(message)

    def _producer(self) -> Process:
        if self._sending is None:
            if time.monotonic() < self._try_again_at:
                raise JournalError("There is no journal to write to; it is tried again in some seconds.")
            try:
                process = Process(self._settings, self._broker)
            except JournalError:
                self._try_again_at = time.monotonic() + JOURNAL_RETRY_S
                raise
            if self._sending is not None:  # a signal handler has sent meanwhile
                process.stop()
                return self._sending
            self._sending = process
            process.start()
            _close_in_children()
        return self._sending

    def close(self) -> None:
        """Stop whatever runs, and bring what was written to the store.  The next message begins anew."""
        self.stop_worker()
        with self._lock:
            sending, self._sending = self._sending, None
            self.enqueued = self._first_enqueued
        if sending is not None:
            sending.stop()

    def forked(self) -> None:
        """Forget everything: it is the parent's."""
        self._lock = threading.RLock()
        self._sending = self._working = self._late = self.execution = self.admission = None
        self.enqueued = self._first_enqueued

    @staticmethod
    def announce(settings: Settings) -> None:
        """Leave the settings where the watcher of this process's master finds them: a fork gets no arguments."""
        master = multiprocessing.parent_process()
        if master is None or master.pid is None:
            raise RuntimeError("There is no master process.")
        path = _announcement(master.pid)
        make_private(path.parent.parent)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            pid, _, started_at = old.stem.partition("-")
            if pid.isdigit() and not host.is_alive(int(pid), float(started_at)):
                old.unlink(missing_ok=True)
        settings.to_file(path, handlers=handler_modules(), alerts=_alert_modules())


def _alert_modules() -> list[str]:
    """The modules in which rules and channels of alerts were registered in this process."""
    if f"{__package__.rpartition('.')[0]}.alerts" not in sys.modules:
        return []
    from ..alerts.channels import channel_modules
    from ..alerts.rules import rule_modules

    return sorted({*channel_modules(), *rule_modules()})


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _close_all() -> None:
    for runtime in list(_runtimes):
        try:
            runtime.close()
        except Exception as error:  # noqa: BLE001 - the others have to be closed too
            internal_error("runtime", error)


_finalized: set[int] = set()


def _close_in_children() -> None:
    """multiprocessing ends its children without the handlers of atexit; it has a list of its own."""
    if multiprocessing.parent_process() is not None and os.getpid() not in _finalized:
        _finalized.add(os.getpid())
        Finalize(None, _close_all, exitpriority=10)


def _forget_all() -> None:
    for runtime in list(_runtimes):
        runtime.forked()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _announcement(master_pid: int) -> Path:
    """Where the settings for the watcher of a master lie; found from the environment alone."""
    started_at = host.process_started_at(master_pid) or 0.0
    return Settings.load().state_dir / "forks" / f"{master_pid}-{started_at:.6f}.json"


def watch() -> int:
    """The watcher: a fork of the ``dramatiq`` master.  Returns its exit code."""
    from ..watcher import Watcher

    master = multiprocessing.parent_process()
    if master is None or master.pid is None:
        logger.error("The watcher has no master process; it runs as a fork of the dramatiq command only.")
        return 1
    try:
        path = _announcement(master.pid)
        settings, more = Settings.from_file(path), Settings.more_of(path)
    except (OSError, ValueError) as error:
        internal_error("watcher", error)
        return 1
    import_when_needed(more.get("handlers", {}))
    return Watcher(settings, master, modules=more.get("alerts", ())).run()


def isolate(boot: dict[str, Any]) -> None:
    """Be the zygote of a worker, until that ends."""
    from ..supervision.isolation.zygote import serve

    serve(boot, lambda: list(_runtimes))
