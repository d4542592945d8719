"""The journal: the only way out of a worker.

A process writes each change of state into a row of memory-mapped segments; whoever holds the journal's lock brings
them into the store.  What is in the mapping survives SIGKILL, and appending costs no system call.

A journal is a folder named after its process::

    lock        JSON of the Origin; byte 0 is locked by the one who writes the journal to the store,
                byte 1 by its owner for as long as that lives, so that a death is known without asking for pids
    control     what the watcher tells the owner (ControlBlock)
    00000000    segments, numbered; the newest is mapped by the owner, one that is in the store is deleted

An entry is ``<length><crc32><marshalled tuple>``; its position is ``segment number * SEGMENT_BYTES + offset``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import marshal
import mmap
import os
import struct
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from . import records
from .errors import JournalError

logger = logging.getLogger("dramatiq_chaperone.journal")

SEGMENT_BYTES: Final = 1 << 20
#: What is kept in memory, at most, while the disk is full.
OVERFLOW_BYTES: Final = 64 << 20
#: How long a full disk is left alone before the next try, in seconds.
RETRY_S: Final = 1.0
#: Version 4 of the format, the same in every Python that is supported.
MARSHAL_VERSION: Final = 4

_HEAD = struct.Struct("<II")
_WRITER_BYTE, _OWNER_BYTE = 0, 1
#: Dropped first when there is no room.
_SAMPLES = frozenset({records.SAMPLED, records.BEAT, records.HEARTBEAT})


class _LockFile:
    """One descriptor of a lock file.

    Closing any descriptor of a file drops all POSIX locks that the process has on it; so a process opens each lock
    file once, here, and shares the descriptor.
    """

    _open: dict[Path, _LockFile] = {}
    _guard = threading.Lock()

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.uses = 1
        self.held: set[int] = set()

    @classmethod
    def open(cls, path: Path) -> _LockFile | None:
        with cls._guard:
            if (known := cls._open.get(path)) is not None:
                known.uses += 1
                return known
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            return cls._open.setdefault(path, cls(path, fd))

    @classmethod
    def create(cls, path: Path, content: bytes) -> _LockFile:
        """Create *path*, whole or not at all, with the owner's byte locked before anyone can see it."""
        draft = path.with_name(".lock")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, content)
        lock = cls(path, fd)
        lock.acquire(_OWNER_BYTE)
        os.rename(draft, path)
        with cls._guard:
            cls._open[path] = lock
        return lock

    def acquire(self, byte: int) -> bool:
        """Lock one byte without waiting.  False if another process, or this one, has it."""
        with self._guard:
            if byte in self.held:
                return False
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                raise
            self.held.add(byte)
            return True

    def release(self, byte: int) -> None:
        with self._guard:
            if byte in self.held:
                self.held.discard(byte)
                fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, byte)

    def is_free(self, byte: int) -> bool:
        """Whether nobody, this process included, holds the byte."""
        if not self.acquire(byte):
            return False
        self.release(byte)
        return True

    def content(self) -> bytes:
        return os.pread(self.fd, 1 << 16, 0)

    def is_linked(self) -> bool:
        return os.fstat(self.fd).st_nlink > 0

    def close(self) -> None:
        with self._guard:
            self.uses -= 1
            if self.uses == 0:
                self._open.pop(self.path, None)
                os.close(self.fd)

    @classmethod
    def forget(cls) -> None:
        """In a forked child: the locks are the parent's.  The descriptors close with the child, or by exec."""
        cls._guard = threading.Lock()
        cls._open = {}


os.register_at_fork(after_in_child=_LockFile.forget)


class Journal:
    """The owner's side: append.

    Args:
      directory: the folder of all journals that go to one store (``Settings.journal_dir``); created if missing.
      origin: whose journal it is; ``origin.worker_id`` names it.

    Raises:
      JournalError: the folder or the first segment cannot be made for another reason than a full disk.
    """

    def __init__(self, directory: Path, origin: records.Origin) -> None:
        self.origin = origin
        self.path = directory / origin.worker_id
        #: Entries that were thrown away, by kind of entry; the owner reports and clears it.
        self.dropped: dict[str, int] = {}
        self._mutex = threading.Lock()
        self._number = -1
        self._at = SEGMENT_BYTES
        self._map: mmap.mmap | None = None
        self._overflow: deque[bytes] = deque()
        self._overflow_bytes = 0
        self._retry_at = 0.0
        self._is_closed = False
        try:
            self.path.mkdir(mode=0o700, parents=True)
            self._lock_file = _LockFile.create(self.path / "lock", json.dumps(origin).encode())
            self.control = ControlBlock(self.path / "control")
        except OSError as error:
            raise JournalError(f"The journal {self.path} cannot be made: {error}", path=self.path) from error

    def append(self, entry: tuple[Any, ...]) -> None:
        """Write one entry (records.py has the shapes).  Any thread; no system call but for one in some thousand.

        Raises:
          JournalError: the entry is larger than a segment.
        """
        body = marshal.dumps(entry, MARSHAL_VERSION)
        record = _HEAD.pack(len(body), crc32(body)) + body
        size = len(record)
        with self._mutex:
            start = self._at
            end = start + size
            if end <= SEGMENT_BYTES and self._map is not None:
                self._map[start:end] = record
                self._at = end
                return
            self._append_slowly(entry[0], record)

    def _append_slowly(self, kind: int, record: bytes) -> None:
        if len(record) > SEGMENT_BYTES:
            raise JournalError(f"An entry of {len(record)} bytes is larger than a segment.")
        if self._is_closed:
            raise JournalError("The journal is closed.")
        if self._overflow:
            self._spill()
        if not self._overflow and self._place(record):
            return
        if kind in _SAMPLES or self._overflow_bytes + len(record) > OVERFLOW_BYTES:
            name = records.ENTRY_TYPES[kind].__name__
            self.dropped[name] = self.dropped.get(name, 0) + 1
        else:
            self._overflow.append(record)
            self._overflow_bytes += len(record)

    def _place(self, record: bytes) -> bool:
        end = self._at + len(record)
        if end > SEGMENT_BYTES or self._map is None:
            if not self._roll():
                return False
            end = len(record)
        assert self._map is not None
        self._map[self._at : end] = record
        self._at = end
        return True

    def _roll(self) -> bool:
        """Begin the next segment.  False while the disk is full."""
        now = time.monotonic()
        if now < self._retry_at:
            return False
        path = self.path / f"{self._number + 1:08d}"
        try:
            mapping = _new_mapping(path, SEGMENT_BYTES)
        except OSError as error:
            if not self._overflow:
                logger.error("The journal %s cannot grow (%s); entries are kept in memory until it can.", self.path, error)
            self._retry_at = now + RETRY_S
            return False
        if self._map is not None:
            self._map.close()
        self._map, self._number, self._at = mapping, self._number + 1, 0
        return True

    def _spill(self) -> None:
        while self._overflow and self._place(self._overflow[0]):
            self._overflow_bytes -= len(self._overflow.popleft())
        if not self._overflow:
            logger.warning("The journal %s can grow again; what was kept in memory is in it.", self.path)

    def retry(self) -> bool:
        """Move what is kept in memory to the disk, if it has room again.  Whether nothing is left in memory."""
        if not self._overflow:
            return True
        with self._mutex:
            if self._overflow:
                self._spill()
            return not self._overflow

    def waiting_segments(self) -> int:
        """How many segments are not in the store yet, the newest included."""
        return sum(1 for name in os.listdir(self.path) if name.isdigit())

    def has_writer(self) -> bool:
        """Whether somebody, this process or a watcher, is bringing this journal into the store."""
        return not self._lock_file.is_free(_WRITER_BYTE)

    def close(self) -> None:
        """End the journal: nothing can be appended any more, and whoever reads it sees that the owner is gone."""
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
            if self._map is not None:
                self._map.close()
                self._map = None
        self.control.close()
        self._lock_file.release(_OWNER_BYTE)
        self._lock_file.close()


class JournalDirectory:
    """All journals of this host that go to one store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """The journals that are there, oldest process first by name only; empty if the folder is missing."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir())
        except FileNotFoundError:
            return []

    def take(self, name: str) -> JournalReader | None:
        """Lock a journal and read it from now on; None if another has it, or it is gone."""
        lock_file = _LockFile.open(self.path / name / "lock")
        if lock_file is None:
            return None
        if lock_file.acquire(_WRITER_BYTE):
            if lock_file.is_linked():
                return JournalReader(self.path / name, lock_file)
            lock_file.release(_WRITER_BYTE)
        lock_file.close()
        return None

    def is_orphan(self, name: str) -> bool:
        """Whether the process that wrote this journal is gone."""
        lock_file = _LockFile.open(self.path / name / "lock")
        if lock_file is None:
            return False
        try:
            return lock_file.is_free(_OWNER_BYTE)
        finally:
            lock_file.close()


class JournalReader:
    """The side of the one who writes the journal to the store, and holds its lock for that."""

    def __init__(self, path: Path, lock_file: _LockFile) -> None:
        self.path = path
        self.name = path.name
        self._lock_file = lock_file
        self.origin = records.Origin(*json.loads(lock_file.content()))

    def owner_alive(self) -> bool:
        """Whether the owner lives, as the system's locks tell: no pid can deceive it."""
        return not self._lock_file.is_free(_OWNER_BYTE)

    def read(self, position: int, *, max_bytes: int = 4 << 20) -> tuple[list[tuple[Any, ...]], int]:
        """The entries from *position* on, oldest first, at most about *max_bytes*, and the position after them.

        A torn entry, which only the death of its writer leaves behind, ends its segment.
        """
        entries: list[tuple[Any, ...]] = []
        budget = max_bytes
        while budget > 0:
            number, offset = divmod(position, SEGMENT_BYTES)
            # Asked before the segment is read: what comes in between is for the next call.
            is_closed = self._following(number) is not None or not self.owner_alive()
            used = self._read_segment(number, offset, budget, entries)
            budget -= used
            position += used
            if budget > 0:
                if not is_closed or (following := self._following(number)) is None:
                    break
                position = following * SEGMENT_BYTES
        return entries, position

    def _read_segment(self, number: int, offset: int, budget: int, entries: list[tuple[Any, ...]]) -> int:
        try:
            fd = os.open(self._segment(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            if not any(os.pread(fd, 4, offset)):
                return 0
            data = os.pread(fd, SEGMENT_BYTES - offset, offset)
        finally:
            os.close(fd)
        at, size, head, append, loads = 0, len(data), _HEAD.unpack_from, entries.append, marshal.loads
        while at + 8 <= size and at < budget:
            length, checksum = head(data, at)
            body = data[at + 8 : at + 8 + length]
            if not length or len(body) < length or crc32(body) != checksum:
                break
            append(loads(body))
            at += 8 + length
        return at

    def _following(self, number: int) -> int | None:
        return min((n for n in self._numbers() if n > number), default=None)

    def _numbers(self) -> list[int]:
        return [int(name) for name in os.listdir(self.path) if name.isdigit()]

    def _segment(self, number: int) -> Path:
        return self.path / f"{number:08d}"

    def free(self, position: int) -> None:
        """Delete the segments that lie wholly before *position*."""
        for number in self._numbers():
            if number < position // SEGMENT_BYTES:
                self._segment(number).unlink(missing_ok=True)

    def backlog_bytes(self, position: int) -> int:
        """How much lies after *position*, the unused end of the newest segment included."""
        return sum(self._segment(n).stat().st_size for n in self._numbers() if n >= position // SEGMENT_BYTES)

    def tell(self, message: dict[str, Any]) -> None:
        """Put *message* into the owner's control block, in the place of the one before."""
        ControlBlock.write(self.path / "control", message)

    def release(self) -> None:
        """Give the lock up; another may go on where the store says that this one stopped."""
        self._lock_file.release(_WRITER_BYTE)
        self._lock_file.close()

    def remove(self) -> None:
        """Delete the journal of an owner that is gone.  Everything in it must be in the store."""
        for name in os.listdir(self.path):
            if name != "lock":
                (self.path / name).unlink(missing_ok=True)
        (self.path / "lock").unlink(missing_ok=True)
        self.path.rmdir()
        self.release()


class ControlBlock:
    """What the watcher tells one worker: a numbered JSON object in shared memory, read without a system call.

    One writes (the holder of the journal's lock), one reads (its owner); a message that is half written when it is
    read fails its checksum and is read again.
    """

    BYTES: Final = 1 << 16
    _HEAD = struct.Struct("<QII")

    def __init__(self, path: Path) -> None:
        self._map: mmap.mmap | None = _new_mapping(path, self.BYTES)
        self._seen = 0

    def read(self) -> dict[str, Any] | None:
        """The message, once; None if there is none that was not read before."""
        if self._map is None:
            return None
        number, length, checksum = self._HEAD.unpack_from(self._map)
        if number == self._seen or length > self.BYTES - self._HEAD.size:
            return None
        body = self._map[self._HEAD.size : self._HEAD.size + length]
        if crc32(body) != checksum:
            return None
        self._seen = number
        message: dict[str, Any] = json.loads(body)
        return message

    @classmethod
    def write(cls, path: Path, message: dict[str, Any]) -> None:
        """Replace the message in *path*.

        Raises:
          JournalError: it is larger than the block.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > cls.BYTES - cls._HEAD.size:
            raise JournalError(f"A message of {len(body)} bytes does not fit a control block of {cls.BYTES}.")
        with path.open("r+b") as file, mmap.mmap(file.fileno(), cls.BYTES) as block:
            number = cls._HEAD.unpack_from(block)[0]
            block[: cls._HEAD.size + len(body)] = cls._HEAD.pack(number + 1, len(body), crc32(body)) + body

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None


def _new_mapping(path: Path, size: int) -> mmap.mmap:
    """A new file of *size* bytes, allocated for good: a sparse one would be a SIGBUS on a full disk."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _allocate(fd, size)
            return mmap.mmap(fd, size)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    finally:
        os.close(fd)


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:  # macOS
        os.pwrite(fd, bytes(size), 0)
