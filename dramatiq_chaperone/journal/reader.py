"""The side of those who bring journals into the store."""

from __future__ import annotations

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .. import records
from ..errors import JournalError
from . import folders, segments
from .control import ControlBlock
from .locks import OWNER, WRITER, LockFile

logger = logging.getLogger("dramatiq_chaperone.journal")

#: A segment is rewritten for no less than this share of it.
WORTHWHILE: Final = 1 / 64

Entries = list[tuple[Any, ...]]


class JournalDirectory:
    """All journals of this host that go to one store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """The journals that are there, sorted by name; empty if the folder is missing."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if not entry.name.startswith(".") and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def take(self, name: str) -> JournalReader | None:
        """Lock a journal and read it from now on; None if another has it, it is gone, or it belongs to another user."""
        path = self.path / name / folders.LOCK
        lock_file = LockFile.open(path)
        if lock_file is None:
            return None
        if lock_file.acquire(WRITER):
            # The one who had it before may have deleted it in the meantime.
            if lock_file.is_at(path):
                return JournalReader(self.path / name, lock_file)
            lock_file.release(WRITER)
        lock_file.close()
        return None

    def is_orphan(self, name: str) -> bool:
        """Whether the process that wrote this journal is gone; False if the journal is."""
        lock_file = LockFile.open(self.path / name / folders.LOCK)
        if lock_file is None:
            return False
        try:
            return lock_file.is_free(OWNER)
        finally:
            lock_file.close()

    def orphans(self) -> list[str]:
        """The journals whose processes are gone, sorted by name."""
        return [name for name in self.names() if self.is_orphan(name)]


class JournalReader:
    """One journal, held by its lock to be written to the store.  Used by one thread at a time.

    Attributes:
      origin: whose journal it is.
    """

    def __init__(self, path: Path, lock_file: LockFile) -> None:
        self.path = path
        self.name = path.name
        self._lock_file = lock_file
        self._is_released = False
        self.origin = _origin(path.name, lock_file.content())

    def owner_alive(self) -> bool:
        """Whether the owner lives, as the system's locks tell: no pid can deceive it."""
        return not self._lock_file.is_free(OWNER)

    def read(self, position: int, *, max_bytes: int = 4 << 20) -> tuple[Entries, int]:
        """The entries from *position* on, oldest first, at most about *max_bytes*, and the position after them.

        A torn entry, which only the death of its writer leaves behind, ends its segment.
        """
        entries: Entries = []
        budget = max_bytes
        # Asked before anything is read.  Once a segment has one after it, the owner writes nothing more into it.
        numbers = segments.numbers(self.path)
        while budget > 0:
            number, offset = divmod(position, segments.SEGMENT_BYTES)
            more, used = segments.decode(segments.read(segments.segment_path(self.path, number), offset), max_bytes=budget)
            entries += more
            position += used
            budget -= used
            if budget > 0:
                following = bisect_right(numbers, number)
                if following == len(numbers):
                    break
                position = numbers[following] * segments.SEGMENT_BYTES
        return entries, position

    def free(self, position: int) -> None:
        """Delete the segments that lie wholly before *position*."""
        for number in segments.numbers(self.path):
            if number < position // segments.SEGMENT_BYTES:
                segments.segment_path(self.path, number).unlink(missing_ok=True)

    def compact(self, position: int, fold: Callable[[Entries], Entries]) -> int:
        """Make the segments smaller that are to be read after the one of *position*; the number of bytes that are gained.

        Each is replaced, in one step, by what *fold* makes of its entries, and begins at the same position as before.  The
        newest is left alone, as the owner writes into it, and the one of *position*, as that lies between two entries.
        Where the disk has no room for the smaller segment, the larger one stays.
        """
        gained = 0
        for number in segments.numbers(self.path)[:-1]:
            if number > position // segments.SEGMENT_BYTES:
                gained += self._compact(segments.segment_path(self.path, number), fold)
        return gained

    def _compact(self, path: Path, fold: Callable[[Entries], Entries]) -> int:
        entries, _ = segments.decode(segments.read(path, 0), max_bytes=segments.SEGMENT_BYTES)
        content = b"".join(map(segments.encode, fold(entries)))
        draft = path.with_name(".draft")
        try:
            gain = path.stat().st_size - len(content)
            if gain < WORTHWHILE * segments.SEGMENT_BYTES:
                return 0
            draft.write_bytes(content)
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            logger.warning("The segment %s cannot be compacted: %s", path, error)
            return 0
        return gain

    def backlog_bytes(self, position: int) -> int:
        """How much lies after *position*, the unused end of the newest segment included."""
        paths = [segments.segment_path(self.path, n) for n in segments.numbers(self.path) if n >= position // segments.SEGMENT_BYTES]
        return sum(path.stat().st_size for path in paths if path.exists())

    def tell(self, message: dict[str, Any]) -> None:
        """Put *message* into the owner's control block, in the place of the one before.

        Raises:
          JournalError: it is too large, or the journal is gone.
        """
        ControlBlock.write(self.path / folders.CONTROL, message)

    def pulse(self) -> int:
        """How often the owner's sampler has turned; 0 where it does not, and need not."""
        return ControlBlock.pulse(self.path / folders.CONTROL)

    def release(self) -> None:
        """Give the lock up; another may go on where the store says that this one stopped."""
        if not self._is_released:
            self._is_released = True
            self._lock_file.release(WRITER)
            self._lock_file.close()

    def remove(self) -> None:
        """Delete the journal of an owner that is gone, and give the lock up.  Everything in it must be in the store.

        Raises:
          JournalError: the owner lives.
        """
        if self.owner_alive():
            raise JournalError(f"The owner of the journal {self.path} lives.", path=self.path)
        folders.remove(self.path)
        self.release()


def _origin(name: str, content: bytes) -> records.Origin:
    """Whose journal it is.  After a crash of the machine the file may be empty; then its name has to do."""
    try:
        return records.Origin(*json.loads(content))
    except (ValueError, TypeError):
        logger.error("The lock file of the journal %s cannot be read; its entries are written without their process.", name)
        return records.Origin(worker_id=name, host=name.rsplit("-", 2)[0], host_identity="", pid=0, process_started_at=0.0, role="producer")
