"""The watcher: a fork of the ``dramatiq`` master that brings its siblings' journals into the store.

It takes the database, its driver and their cost out of the workers, and sees a worker die without that worker's help.
It outlives its siblings: when the master stops, it stays until the last of them has ended and is written down.
"""

from __future__ import annotations

import logging
import signal
import time
from multiprocessing.process import BaseProcess
from typing import Any, Final

from . import host
from .control.courier import Courier
from .errors import JournalError
from .journal import JournalDirectory
from .monitor import Monitor
from .records import Command
from .settings import Settings
from .store.turns import StoreTurns
from .store.writer import WriteBehind

logger = logging.getLogger("dramatiq_chaperone.watcher")

TURN_S: Final = 0.25
#: A worker looks into its control block at least this often, in seconds; so long a command stays in it.
KEEP_COMMANDS_S: Final = 20.0
#: After the last sibling has ended, the rest of the journals may take this long, in seconds.
DRAIN_S: Final = 10.0
#: How long it waits for a sibling that is asked to stop and does not, in seconds: Dramatiq's own limit for that is 10 minutes.
PATIENCE_S: Final = 660.0


class Watcher:
    """The watcher of one master."""

    def __init__(self, settings: Settings, master: BaseProcess) -> None:
        self._master = master
        self._directory = JournalDirectory(settings.journal_dir)
        self._writer = WriteBehind(self._directory, settings, takes=lambda name: True)
        self._duties = StoreTurns(settings, [Courier(self._workers, self._deliver), Monitor(settings, host.new_worker_id())])
        self._told: list[tuple[float, Command]] = []
        self._is_asked_to_stop = False

    def run(self) -> int:
        """Watch until the siblings, or the master, are gone.  Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)
        self._writer.start()
        self._duties.start()
        asked_at: float | None = None
        while self._master.is_alive():
            if self._is_asked_to_stop:
                asked_at = asked_at or time.monotonic()
                if not self._siblings() or time.monotonic() - asked_at > PATIENCE_S:
                    break
            time.sleep(TURN_S)
        self._duties.stop()
        self._writer.stop(timeout_s=DRAIN_S)
        self._writer.finish(timeout_s=DRAIN_S)
        return 0

    def _ask(self, number: int, frame: Any) -> None:
        """A signal handler does nothing but take note."""
        self._is_asked_to_stop = True

    def _workers(self) -> list[str]:
        """The workers whose journals are held here, whoever their master is: they can be reached through these."""
        return [name for name, reader in self._writer.held().items() if reader.origin.role == "worker"]

    def _deliver(self, command: Command) -> None:
        """Put a command into its worker's control block, beside those of the last seconds: the worker knows what it has seen."""
        reader = self._writer.held().get(command.target)
        if reader is None:
            return
        now = time.monotonic()
        self._told = [(at, each) for at, each in self._told if now - at < KEEP_COMMANDS_S] + [(now, command)]
        recent = [each._asdict() for _, each in self._told if each.target == command.target]
        while recent:
            try:
                reader.tell({"commands": recent})
            except JournalError:  # more than the block holds: the oldest have been seen
                recent = recent[1:]
            else:
                return
        logger.error("The command %s for %s is too large for its control block.", command.name, command.target)

    def _siblings(self) -> list[str]:
        """The workers of this master that still live."""
        return [
            name
            for name, reader in self._writer.held().items()
            if reader.origin.master_pid == self._master.pid and reader.origin.role == "worker" and reader.owner_alive()
        ]
