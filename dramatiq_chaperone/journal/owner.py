"""The owner's side of a journal: append."""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import threading
import time
import weakref
from collections import deque
from marshal import dumps
from pathlib import Path
from typing import Any, ClassVar, Final
from zlib import crc32

from .. import records
from ..errors import JournalError
from . import folders, segments
from .locks import OWNER, WRITER
from .thinning import SAMPLES

logger = logging.getLogger("dramatiq_chaperone.journal")

#: What is kept in memory, at most, while the disk is full.
OVERFLOW_BYTES: Final = 64 << 20
#: How long append leaves a full disk alone before the next try, in seconds.
RETRY_S: Final = 1.0


class Journal:
    """What one process writes.

    Any thread may append, also from a signal handler or a finalizer that runs in the middle of another append, and an
    asynchronous exception may come at any moment: ``mmap.write`` moves the entry and the end of what is written in one
    step of the interpreter, so nobody can come in between and there is nothing to lock.  A mapping is closed for good
    before the file that follows it is made; the next one is made known when all that had to wait is in it.

    Attributes:
      path: its folder.
      dropped: entries that were thrown away and not reported yet, by kind of entry; the journal itself reports them,
        as DROPPED, when it has room again.

    Args:
      directory: the folder of all journals that go to one store (``Settings.journal_dir``); created if missing.
      origin: whose journal it is; ``origin.worker_id`` names it.
      max_segments: how many segments, of a megabyte each, may wait for the store; beyond that it is as if the disk were full.

    Raises:
      JournalError: the folder cannot be made, be it that the disk is full.
    """

    _journals: ClassVar[weakref.WeakSet[Journal]] = weakref.WeakSet()

    def __init__(self, directory: Path, origin: records.Origin, *, max_segments: int = 1024) -> None:
        self.origin = origin
        self.path = directory / origin.worker_id
        self.dropped: dict[str, int] = {}
        self._max_segments = max_segments
        #: Held to change anything but the newest mapping.  Reentrant, for a signal handler may append.
        self._mutex = threading.RLock()
        self._map = _closed_mapping()
        self._number = -1
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_spilling = False
        self._is_full = False
        self._is_closed = False
        self._retry_at = 0.0
        self._unsaid: tuple[int, str] | None = None
        try:
            folders.sweep(directory)
            self._lock_file, self.control = folders.make(self.path, json.dumps(origin).encode())
        except OSError as error:
            raise JournalError(f"The journal {self.path} cannot be made: {error}", path=self.path) from error
        self._journals.add(self)

    def append(self, entry: tuple[Any, ...]) -> None:
        """Write one entry (records.py has the shapes).  Any thread; no system call but for one in some thousand.

        Raises:
          JournalError: the entry is larger than a segment or holds something else than plain data, or the journal is
            closed, or belongs to the process that this one was forked from.
        """
        try:
            body = dumps(entry, segments.MARSHAL_VERSION)
            self._map.write(_pack(len(body), crc32(body)) + body)
        except ValueError:  # what does not fit goes into the next segment, and encode tells what is no entry
            self._append_slowly(entry[0], segments.encode(entry))

    def _append_slowly(self, kind: int, record: bytes) -> None:
        if len(record) > segments.SEGMENT_BYTES:
            raise JournalError(f"An entry of {len(record)} bytes is larger than a segment.") from None
        with self._mutex:
            if self._is_closed:
                raise JournalError(f"The journal {self.path} is closed, or belongs to the process that forked this one.") from None
            if self._is_full:
                self._spill()
            if not self._write(record):
                self._map.close()  # first: an interrupt may come with the return of what keeps it, and what follows must not go before it
                self._keep(kind, record)
                self._spill()
        self._say()

    def _write(self, record: bytes) -> bool:
        try:
            self._map.write(record)
        except ValueError:
            return False
        return True

    def _keep(self, kind: int, record: bytes) -> None:
        if self._waiting_bytes + len(record) > OVERFLOW_BYTES or (self._is_full and kind in SAMPLES):
            name = records.ENTRY_TYPES[kind].__name__
            self.dropped[name] = self.dropped.get(name, 0) + 1
        else:
            self._waiting_bytes += len(record)
            self._waiting.append(record)

    def _spill(self) -> None:
        """Move what waits in memory to the disk, in order.

        An append in the middle of it, by a signal handler, adds to what waits.  An interrupt in the middle of it
        leaves a segment that is not full, and the rest waiting.
        """
        if self._is_spilling or not self._waiting or time.monotonic() < self._retry_at:
            return
        self._is_spilling = True
        try:
            self._fill_segments()
        finally:
            self._is_spilling = False

    def _fill_segments(self) -> None:
        # On its own: from Python 3.12 on, an interrupt at the jump back of a loop is outside of a try around it.
        while self._waiting and (mapping := self._next_mapping()) is not None:
            self._fill(mapping)

    def _next_mapping(self) -> mmap.mmap | None:
        """Begin the next segment.  None while the disk is full."""
        # Numbers are used once: a reader may have seen the file of an attempt that failed, and gone on to it.
        self._number += 1
        try:
            if self.waiting_segments() >= self._max_segments:
                raise OSError(errno.EDQUOT, f"{self._max_segments} MB of it wait for the store")
            mapping = segments.new_mapping(segments.segment_path(self.path, self._number), segments.SEGMENT_BYTES)
        except OSError as error:
            if not self._is_full:
                self._unsaid = (logging.ERROR, f"cannot grow ({error}); entries are kept in memory until it can")
            self._is_full, self._retry_at = True, time.monotonic() + RETRY_S
            return None
        if self._is_full:
            self._unsaid = (logging.WARNING, "can grow again; what was kept in memory is in it")
            self._report_dropped()
            self._is_full = False
        return mapping

    def _report_dropped(self) -> None:
        for name in list(self.dropped):
            record = segments.encode((records.DROPPED, time.time(), name, self.dropped[name]))
            try:
                self._waiting.append(record)
            finally:  # an interrupt may come with the return of append
                del self.dropped[name]

    def _fill(self, mapping: mmap.mmap) -> None:
        waiting = self._waiting
        while waiting and len(waiting[0]) <= mapping.size() - mapping.tell():
            try:
                mapping.write(waiting[0])
            finally:  # an interrupt may come with the return of write: the entry is written
                waiting.popleft()
        # No call from here to the end: nothing can begin to wait before others see the mapping.
        if not waiting:
            self._waiting_bytes = 0
            self._map = mapping

    def _say(self) -> None:
        """Log outside of the lock: a handler of the user's may take a lock of its own, or send a message."""
        unsaid, self._unsaid = self._unsaid, None
        if unsaid is not None:
            logger.log(unsaid[0], "The journal %s %s.", self.path, unsaid[1])

    def retry(self) -> bool:
        """Move what is kept in memory to the disk, if it has room again.  Whether nothing is left in memory."""
        if not self._waiting:
            return True
        with self._mutex:
            self._retry_at = 0.0
            self._spill()
        self._say()
        return not self._waiting

    def waiting_segments(self) -> int:
        """How many segments are not in the store yet, the newest included."""
        return len(segments.numbers(self.path))

    def position(self) -> int:
        """Up to where it is written; only grows."""
        try:
            return self._number * segments.SEGMENT_BYTES + self._map.tell()
        except ValueError:  # between two segments, or closed
            return (self._number + 1) * segments.SEGMENT_BYTES

    def has_writer(self) -> bool:
        """Whether somebody, this process or a watcher, is bringing this journal into the store."""
        return not self._lock_file.is_free(WRITER)

    def close(self) -> None:
        """End the journal: nothing can be appended any more, and whoever reads it sees that the owner is gone."""
        with self._mutex:
            if self._is_closed:
                return
            self._retry_at = 0.0
            self._spill()
            self._is_closed = True
            self._map.close()
            lost = len(self._waiting) + sum(self.dropped.values())
            self._waiting.clear()
        self._journals.discard(self)
        self.control.close()
        self._lock_file.release(OWNER)
        self._lock_file.close()
        self._say()
        if lost:
            logger.error("The journal %s ends while the disk is full: %d entries are lost.", self.path, lost)

    @classmethod
    def disown(cls) -> None:
        """In a forked child: the mappings are shared with the parent, who goes on writing in them."""
        for journal in cls._journals:
            journal._mutex = threading.RLock()
            journal._is_closed = True
            journal._map.close()
            journal._waiting.clear()
            journal.dropped.clear()
            journal.control.close()
        cls._journals = weakref.WeakSet()


_pack = segments.HEAD.pack
os.register_at_fork(after_in_child=Journal.disown)


def _closed_mapping() -> mmap.mmap:
    mapping = mmap.mmap(-1, 1)
    mapping.close()
    return mapping
