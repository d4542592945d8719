"""What a worker prepares for the moment when it cannot say anything any more, because C code holds its GIL."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import threading
from pathlib import Path

from .. import host
from ..diagnosis import DUMP_SIGNAL, SAMPLER, STACKS_FILE, THREADS_FILE
from .slots import RunningJobs, Slot

logger = logging.getLogger("dramatiq_chaperone")


class StackDumps:
    """Lets the watcher have the stacks of this process, by a signal whose handler needs no GIL.

    Once registered it stays so for the life of the process: the signal's own way is to end it.

    Parameters:
      folder: of the journal.
    """

    _is_ours = False

    def __init__(self, folder: Path, running: RunningJobs) -> None:
        self._folder, self._running = folder, running
        self._threads = -1
        self._sampler = 0

    def register(self) -> bool:
        """Be ready for the signal.  Whether that is so: not where something else in this process takes it."""
        if DUMP_SIGNAL is None or not hasattr(faulthandler, "register"):
            return False
        if not StackDumps._is_ours and host.catches(os.getpid(), DUMP_SIGNAL):
            logger.warning("Signal %d is taken by other code: stacks cannot be had while C code holds the GIL.", DUMP_SIGNAL)
            return False
        stacks = self._open(STACKS_FILE)
        faulthandler.register(DUMP_SIGNAL, file=stacks, all_threads=True)
        StackDumps._is_ours = True
        self._threads = self._open(THREADS_FILE)
        self._running.on_new = self._note
        for slot in list(self._running.slots.values()):
            self._note(slot)
        return True

    def _open(self, name: str) -> int:
        return os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note_sampler(self) -> None:
        """Write this thread down as the one whose pulse is watched, unless that was done."""
        if self._threads >= 0 and threading.get_native_id() != self._sampler:
            self._sampler = threading.get_native_id()
            self._write(self._sampler, SAMPLER)

    def _note(self, slot: Slot) -> None:
        self._write(slot.native_id, slot.name)

    def _write(self, native_id: int, name: str) -> None:
        """In one write, for threads come at once."""
        with contextlib.suppress(OSError):  # a full disk; a name is missing then
            os.write(self._threads, f"{native_id} {name}\n".encode())
