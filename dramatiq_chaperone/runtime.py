"""The only place that builds the services of a process and wires them together."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import multiprocessing
import os
import platform
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import host, records
from .control.runner import CommandRunner
from .errors import JournalError
from .events import WorkerStarted, WorkerStopped, finish_events
from .journal import Journal, JournalDirectory
from .service import Service, internal_error, unforkable
from .settings import Settings
from .supervision.execution import Execution
from .supervision.recorder import Recorder
from .supervision.sampler import Sampler
from .supervision.sending import Sender
from .supervision.slots import RunningJobs
from .supervision.stopping import Interrupter

if TYPE_CHECKING:
    from dramatiq import Broker, Worker

    from .store.turns import StoreTurns
    from .store.writer import WriteBehind

logger = logging.getLogger("dramatiq_chaperone")

#: How long a worker of the dramatiq command waits for a watcher before it writes to the store itself, in seconds.
WATCHER_GRACE_S: Final = 60.0
#: It does not wait any longer when so many segments of its journal wait.
WATCHER_GRACE_SEGMENTS: Final = 16
#: How long a producer leaves its journal to a watcher of the same host before it writes itself, in seconds.
PRODUCER_GRACE_S: Final = 2.0
#: After a journal that could not be made, the next try; seconds.
JOURNAL_RETRY_S: Final = 5.0
#: The last writes of a worker, and of a process that only sends, may take this long, in seconds; what is left stays in the journal.
DRAIN_S: Final = 10.0
PRODUCER_DRAIN_S: Final = 3.0


class Runtime:
    """What one process does for one broker.

    A process begins as a producer, with nothing but a journal that is made by its first message; a Worker makes it
    a worker.  After a fork nothing of the parent's is used.

    Attributes:
      enqueued: called with each message that has reached the broker; bound to whoever records it now, for each call counts.
      execution: the worker's part, None in a producer.
    """

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self._settings = settings
        self._broker = broker
        #: Reentrant, for a signal handler may send in the middle of a first message.
        self._lock = threading.RLock()
        self.enqueued: Callable[[Any], None] = self._first_enqueued
        self._sending: _Process | None = None
        self._working: _WorkerProcess | None = None
        self._try_again_at = 0.0
        self.execution: Execution | None = None
        _runtimes.add(self)

    def start_worker(self, worker: Worker, *, expects_watcher: bool) -> None:
        """Begin to supervise what *worker* runs."""
        with self._lock:
            if self._working is not None:
                return
            working = self._working = _WorkerProcess(self._settings, self._broker, worker, expects_watcher=expects_watcher)
            self.enqueued, self.execution = working.sender.enqueued, working.execution

    def worker_booted(self) -> None:
        """The worker's threads run."""
        if self._working is not None:
            self._working.booted()

    def stop_worker(self) -> None:
        """The worker has stopped: everything that it wrote goes to the store."""
        with self._lock:
            working, self._working = self._working, None
            if working is not None:
                self.enqueued = self._first_enqueued if self._sending is None else self._sending.sender.enqueued
                self.execution = None
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

    def _producer(self) -> _Process:
        if self._sending is None:
            if time.monotonic() < self._try_again_at:
                raise JournalError("There is no journal to write to; it is tried again in some seconds.")
            try:
                process = _Process(self._settings, self._broker)
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
        self._sending = self._working = self.execution = None
        self.enqueued = self._first_enqueued

    @staticmethod
    def announce(settings: Settings) -> None:
        """Leave the settings where the watcher of this process's master finds them: a fork gets no arguments."""
        master = multiprocessing.parent_process()
        if master is None or master.pid is None:
            raise RuntimeError("There is no master process.")
        path = _announcement(master.pid)
        _private(path.parent.parent)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            pid, _, started_at = old.stem.partition("-")
            if pid.isdigit() and not host.is_alive(int(pid), float(started_at)):
                old.unlink(missing_ok=True)
        settings.to_file(path)


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


class _Process:
    """A process that sends: its journal, and whoever brings that to the store."""

    role = "producer"
    grace_s = PRODUCER_GRACE_S
    drain_s = PRODUCER_DRAIN_S
    grace_segments = 1 << 30

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self.settings = settings
        master = multiprocessing.parent_process()
        pid = os.getpid()
        _private(settings.state_dir)
        self.journal = Journal(
            settings.journal_dir,
            records.Origin(
                worker_id=host.new_worker_id(),
                host=host.host_name(),
                host_identity=host.host_identity(),
                pid=pid,
                process_started_at=host.process_started_at(pid) or 0.0,
                role=self.role,
                master_pid=None if master is None else master.pid,
            ),
            max_segments=settings.journal_max_mb,
        )
        self.recorder = Recorder(settings, broker, self.journal)
        self.sender = Sender(self.recorder)
        self._writer: WriteBehind | None = None
        self._watch = _Turns(self.consider_writing)
        self._since = time.monotonic()
        self._had_writer = False

    def start(self) -> None:
        self._watch.start()

    def consider_writing(self, now: float) -> None:
        """Write the journal to the store from here, unless a watcher does, or may still come."""
        if self._writer is not None:
            return
        if self.journal.has_writer():
            self._had_writer = True
            return
        is_overdue = now - self._since >= self.grace_s or self.journal.waiting_segments() >= self.grace_segments
        if self._had_writer or is_overdue:
            self.start_writing()

    def start_writing(self) -> WriteBehind:
        """From now on this process writes its journal itself."""
        writer = self._write_here()
        writer.start()
        return writer

    def _write_here(self) -> WriteBehind:
        """The store is only imported where somebody has to write."""
        with unforkable:
            from .store.writer import SMALL_SLICE_BYTES, WriteBehind

        own, directory = self.journal.origin.worker_id, JournalDirectory(self.settings.journal_dir)
        self._writer = WriteBehind(
            directory,
            self.settings,
            takes=lambda name: name == own or directory.is_orphan(name),
            gentle=self.role == "producer",
            slice_bytes=SMALL_SLICE_BYTES,
        )
        return self._writer

    def stop(self) -> None:
        """End the journal, and see that it reaches the store: by a watcher that has it, else from here."""
        self._watch.stop()
        is_watched = self._writer is None and self.journal.has_writer()
        self.journal.retry()
        self.journal.close()
        if not is_watched:
            writer = self._writer or self._write_here()
            writer.stop(timeout_s=self.drain_s)
            writer.finish(timeout_s=self.drain_s)


def _private(state_dir: Path) -> None:
    """Make the state directory, for this user alone; one that is there keeps the rights that it has."""
    with contextlib.suppress(OSError):  # the journal says what is wrong
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


class _WorkerProcess(_Process):
    """A process that runs jobs: beside its journal, everything that watches over them."""

    role = "worker"
    grace_s = WATCHER_GRACE_S
    drain_s = DRAIN_S
    grace_segments = WATCHER_GRACE_SEGMENTS

    def __init__(self, settings: Settings, broker: Broker, worker: Worker, *, expects_watcher: bool) -> None:
        super().__init__(settings, broker)
        if not expects_watcher:
            self.grace_s = 0.0
        self._broker, self._worker = broker, worker
        self.running = RunningJobs()
        self.execution = Execution(self.recorder, self.running)
        self.sender = Sender(self.recorder, self.running)
        self.interrupter = Interrupter(self.running)
        self.interrupter.adopt(broker.middleware)
        for actor in list(broker.actors.values()):
            self.execution.wrap(actor)
        self._duties: StoreTurns | None = None
        self._answered: deque[str] = deque(maxlen=1000)
        self.commands = CommandRunner(lambda: [(job.job_id, slot.ident) for slot, job in self.running.running()])
        self.sampler = Sampler(
            self.journal, self.running, self.execution, self.interrupter, beat_s=settings.worker_heartbeat, turns=self._turn
        )

    def booted(self) -> None:
        """Start to sample, for the time limits hang on that, and announce the worker."""
        self.sampler.start()
        broker, worker = self._broker, self._worker
        queues = sorted(worker.consumer_whitelist or broker.get_declared_queues())
        versions = {"python": platform.python_version(), "dramatiq": version("dramatiq"), "chaperone": version("dramatiq-chaperone")}
        self.recorder.append(
            (
                records.WORKER,
                time.time(),
                type(broker).__name__,
                getattr(broker, "broker_id", None),
                json.dumps(queues),
                worker.worker_threads,
                None,
                json.dumps(versions),
            )
        )
        origin = self.journal.origin
        self.recorder.emit(
            WorkerStarted(worker_id=origin.worker_id, host=origin.host, pid=origin.pid, started_at=datetime.now(UTC), queues=tuple(queues))
        )

    def _turn(self, now: float) -> None:
        message = self.journal.control.read()
        for fields in (message or {}).get("commands", ()):
            self.run_command(records.Command(**fields))
        self.consider_writing(now)

    def start_writing(self) -> WriteBehind:
        """Where there is no watcher, this process has its duties too."""
        with unforkable:
            from .control.courier import Courier
            from .monitor import Monitor
            from .store.turns import StoreTurns

        own = self.journal.origin.worker_id
        self._duties = StoreTurns(self.settings, [Courier(lambda: [own], self.run_command), Monitor(self.settings, own)])
        self._duties.start()
        return super().start_writing()

    def run_command(self, command: records.Command) -> None:
        """Carry a command out, once; the answer goes the way of everything else."""
        if command.command_id in self._answered:
            return
        self._answered.append(command.command_id)
        outcome, detail = self.commands.run(command)
        self.recorder.append((records.COMMAND_DONE, time.time(), command.command_id, outcome, detail))

    def stop(self) -> None:
        """Stop in the reverse order, and say that it was on purpose."""
        self.sampler.stop()
        if self._duties is not None:
            self._duties.stop()
        self.execution.unwrap(self._broker)
        self.interrupter.restore()
        origin = self.journal.origin
        if not self.running.running():  # else it ends with jobs in its hands, and they are lost
            self.recorder.append((records.WORKER_STOPPED, time.time()))
            self.recorder.emit(WorkerStopped(worker_id=origin.worker_id, host=origin.host, pid=origin.pid, stopped_at=datetime.now(UTC)))
        super().stop()


class _Turns(Service):
    """A turn a second."""

    name = "producer"

    def __init__(self, turn: Callable[[float], None]) -> None:
        super().__init__(interval_s=1.0)
        self._turn = turn

    def run_once(self) -> None:
        self._turn(time.monotonic())


def _announcement(master_pid: int) -> Path:
    """Where the settings for the watcher of a master lie; found from the environment alone."""
    started_at = host.process_started_at(master_pid) or 0.0
    return Settings.load().state_dir / "forks" / f"{master_pid}-{started_at:.6f}.json"


def watch() -> int:
    """The watcher: a fork of the ``dramatiq`` master.  Returns its exit code."""
    from .watcher import Watcher

    master = multiprocessing.parent_process()
    if master is None or master.pid is None:
        logger.error("The watcher has no master process; it runs as a fork of the dramatiq command only.")
        return 1
    try:
        settings = Settings.from_file(_announcement(master.pid))
    except (OSError, ValueError) as error:
        internal_error("watcher", error)
        return 1
    return Watcher(settings, master).run()
