"""A process that sends: its journal, and whoever brings that to the store."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import host, records
from ..journal import Journal, JournalDirectory
from ..service import Service, unforkable
from ..settings import Settings
from ..supervision.recorder import Recorder
from ..supervision.sending import Sender

if TYPE_CHECKING:
    from dramatiq import Broker

    from ..store.writer import WriteBehind

#: How long a producer leaves its journal to a watcher of the same host before it writes itself, in seconds.
GRACE_S: Final = 2.0
#: Its last writes may take this long, in seconds; what is left stays in the journal.
DRAIN_S: Final = 3.0


class Process:
    """A process that sends: its journal, and whoever brings that to the store."""

    role = "producer"
    grace_s = GRACE_S
    drain_s = DRAIN_S
    grace_segments = 1 << 30

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self.settings = settings
        master = multiprocessing.parent_process()
        pid = os.getpid()
        make_private(settings.state_dir)
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
        self._watch = Turns("producer", self.consider_writing)
        self._since = time.monotonic()
        self._had_writer = False

    def start(self) -> None:
        """Look from now on whether somebody writes the journal to the store."""
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
            from ..store.writer import SMALL_SLICE_BYTES, WriteBehind

        own, directory = self.journal.origin.worker_id, JournalDirectory(self.settings.journal_dir)
        self._writer = WriteBehind(
            directory,
            self.settings,
            takes=lambda name: name == own or directory.is_orphan(name),
            buried=self._buried,
            sent=self.journal.position if self.role == "producer" else None,
            slice_bytes=SMALL_SLICE_BYTES,
        )
        return self._writer

    def _buried(self) -> None:
        """A worker that is gone was recorded as such."""

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


def make_private(state_dir: Path) -> None:
    """Make the state directory, for this user alone; one that is there keeps the rights that it has."""
    with contextlib.suppress(OSError):  # the journal says what is wrong
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


class Turns(Service):
    """Calls *turn* with the monotonic time, by default once a second."""

    def __init__(self, name: str, turn: Callable[[float], None], interval_s: float = 1.0) -> None:
        super().__init__(interval_s=interval_s)
        self.name = name
        self._turn = turn

    def run_once(self) -> None:
        """One turn."""
        self._turn(time.monotonic())
