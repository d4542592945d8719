"""The lock file of a journal: who owns it, who writes it to the store.

POSIX locks, for a child that user code forks does not inherit them: it cannot keep the journal of a dead owner locked.
Their trap is that closing *any* descriptor of a file drops all locks that the process has on it; so a process opens
each lock file once, here, and shares the descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import ClassVar, Final

WRITER: Final = 0
OWNER: Final = 1


class LockFile:
    """One open lock file of this process, which its users share: each one closes it."""

    #: By device and inode, as a file can be reached by many paths.
    _open: ClassVar[dict[tuple[int, int], LockFile]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._uses = 1
        self._held: set[int] = set()
        status = os.fstat(fd)
        self._key = (status.st_dev, status.st_ino)

    @classmethod
    def open(cls, path: Path) -> LockFile | None:
        """The lock file in *path*; None if there is none, or it belongs to another user."""
        with cls._guard:
            try:
                status = os.stat(path)
                if (known := cls._open.get((status.st_dev, status.st_ino))) is not None:
                    known._uses += 1
                    return known
                if status.st_uid != os.geteuid():
                    return None
                lock = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                return None
            cls._open[lock._key] = lock
            return lock

    @classmethod
    def create(cls, path: Path, content: bytes) -> LockFile:
        """Make a lock file whose owner is this process.

        Raises:
          FileNotFoundError: somebody took it for the remains of a dead process and deleted it.
        """
        with cls._guard:
            lock = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            try:
                os.write(lock._fd, content)
                if not lock._lock(OWNER, fcntl.LOCK_EX) or not os.fstat(lock._fd).st_nlink:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            except OSError:
                os.close(lock._fd)
                raise
            lock._held.add(OWNER)
            cls._open[lock._key] = lock
            return lock

    def acquire(self, byte: int) -> bool:
        """Lock one byte without waiting.  False if another process, or this one, has it."""
        with self._guard:
            if byte in self._held or not self._lock(byte, fcntl.LOCK_EX):
                return False
            self._held.add(byte)
            return True

    def release(self, byte: int) -> None:
        """Unlock the byte, if it is locked."""
        with self._guard:
            if byte in self._held:
                self._held.discard(byte)
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)

    def is_free(self, byte: int) -> bool:
        """Whether nobody, this process included, holds the byte.  Those who only ask do not disturb each other."""
        with self._guard:
            if byte in self._held or not self._lock(byte, fcntl.LOCK_SH):
                return False
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)
            return True

    def _lock(self, byte: int, how: int) -> bool:
        if self._fd < 0:  # closed, or the parent's
            return False
        try:
            fcntl.lockf(self._fd, how | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def content(self) -> bytes:
        """What the owner wrote into it."""
        return os.pread(self._fd, 1 << 16, 0)

    def is_at(self, path: Path) -> bool:
        """Whether it is the file that lies in *path* now."""
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (status.st_dev, status.st_ino) == self._key

    def close(self) -> None:
        """One user less."""
        with self._guard:
            self._uses -= 1
            if self._uses == 0 and self._fd >= 0:
                del self._open[self._key]
                os.close(self._fd)
                self._fd = -1

    @classmethod
    def forget(cls) -> None:
        """In a forked child: the locks are the parent's, and stay so."""
        cls._guard = threading.Lock()
        for lock in cls._open.values():
            os.close(lock._fd)
            lock._fd = -1
            lock._held = set()
        cls._open = {}


os.register_at_fork(after_in_child=LockFile.forget)
