"""The format of a segment: entries one after the other, each ``<length><crc32><marshalled tuple>``.

The position of an entry is ``segment number * SEGMENT_BYTES + offset``: it only grows, also over missing numbers.
"""

from __future__ import annotations

import errno
import marshal
import mmap
import os
import struct
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from ..errors import JournalError

SEGMENT_BYTES: Final = 1 << 20
#: Version 4 of the format, the same in every Python that is supported.
MARSHAL_VERSION: Final = 4
HEAD: Final = struct.Struct("<II")


def encode(entry: tuple[Any, ...]) -> bytes:
    """The bytes of one entry.

    Raises:
      JournalError: it holds something else than plain data.
    """
    try:
        body = marshal.dumps(entry, MARSHAL_VERSION)
    except ValueError as error:
        raise JournalError(f"An entry holds something else than plain data: {entry!r:.200}") from error
    return HEAD.pack(len(body), crc32(body)) + body


def decode(data: bytes, *, max_bytes: int) -> tuple[list[tuple[Any, ...]], int]:
    """The entries at the beginning of *data*, and how many bytes they take; at least one if there is one.

    It ends at the first entry that is not whole: the owner is writing it, or died doing so.
    """
    entries: list[tuple[Any, ...]] = []
    at, size, head, append, loads = 0, len(data), HEAD.unpack_from, entries.append, marshal.loads
    while at + HEAD.size <= size and at < max_bytes:
        length, checksum = head(data, at)
        body = data[at + HEAD.size : at + HEAD.size + length]
        if not length or len(body) < length or crc32(body) != checksum:
            break
        append(loads(body))
        at += HEAD.size + length
    return entries, at


def numbers(folder: Path) -> list[int]:
    """The numbers of the segments that are there, in order; none if the folder is gone."""
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except FileNotFoundError:
        return []


def segment_path(folder: Path, number: int) -> Path:
    """Where a segment lies."""
    return folder / f"{number:08d}"


def read(path: Path, offset: int) -> bytes:
    """What a segment has from *offset* on; nothing if nothing is written there, or the segment is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        # Mostly there is nothing new, and a megabyte of zeros need not be copied to know it.
        if not any(os.pread(fd, HEAD.size, offset)):
            return b""
        return os.pread(fd, SEGMENT_BYTES - offset, offset)
    finally:
        os.close(fd)


def new_mapping(path: Path, size: int) -> mmap.mmap:
    """Map a new file of *size* bytes, allocated for good: a sparse one would be a SIGBUS on a full disk."""
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
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # musl does not emulate it where the file system cannot
                raise
        else:
            return
    written = 0
    while written < size:
        written += os.pwrite(fd, bytes(size - written), written)
