"""What the watcher tells one worker; and the pulse, by which it sees that the worker's sampler turns."""

from __future__ import annotations

import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from ..errors import JournalError
from .segments import new_mapping


class ControlBlock:
    """A numbered JSON object in shared memory, which its reader reads without a system call.

    One writes (the holder of the journal's lock), one reads (the journal's owner).  A message that is half written
    when it is read fails its checksum, which is over its number too, and is read again.

    The last eight bytes are the owner's: its pulse, a number that grows.
    """

    BYTES: Final = 1 << 16
    _HEAD = struct.Struct("<QII")
    _PULSE = struct.Struct("<Q")
    #: What a message may take.
    _ROOM = BYTES - _HEAD.size - _PULSE.size

    def __init__(self, path: Path) -> None:
        self._map: mmap.mmap | None = new_mapping(path, self.BYTES)
        self._seen = 0
        self._beats = 0

    def beat(self) -> None:
        """Let the pulse go on by one."""
        self._beats += 1
        self._write_pulse(self._beats)

    def rest(self) -> None:
        """Say that there is no pulse from now on, and that this is as it should be."""
        self._write_pulse(0)

    def _write_pulse(self, number: int) -> None:
        if self._map is not None:
            self._PULSE.pack_into(self._map, self.BYTES - self._PULSE.size, number)

    @classmethod
    def pulse(cls, path: Path) -> int:
        """The pulse in the block *path*; 0 where there is none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            found = os.pread(fd, cls._PULSE.size, cls.BYTES - cls._PULSE.size)
        finally:
            os.close(fd)
        return int(cls._PULSE.unpack(found)[0]) if len(found) == cls._PULSE.size else 0

    def read(self) -> dict[str, Any] | None:
        """The message, once; None if there is none that was not read before."""
        if self._map is None:
            return None
        number, length, checksum = self._HEAD.unpack_from(self._map)
        if number == self._seen or length > self._ROOM:
            return None
        body = self._map[self._HEAD.size : self._HEAD.size + length]
        if self._checksum(number, body) != checksum:
            return None
        self._seen = number
        message: dict[str, Any] = json.loads(body)
        return message

    @classmethod
    def write(cls, path: Path, message: dict[str, Any]) -> None:
        """Replace the message in *path*.

        Raises:
          JournalError: it is larger than the block, or the block is gone.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > cls._ROOM:
            raise JournalError(f"A message of {len(body)} bytes does not fit a control block of {cls.BYTES}.", path=path)
        try:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), cls.BYTES) as block:
                number = (cls._HEAD.unpack_from(block)[0] + 1) % (1 << 64)
                block[: cls._HEAD.size + len(body)] = cls._HEAD.pack(number, len(body), cls._checksum(number, body)) + body
        except FileNotFoundError as error:
            raise JournalError(f"The control block {path} is gone.", path=path) from error

    @staticmethod
    def _checksum(number: int, body: bytes) -> int:
        return crc32(body, number & 0xFFFFFFFF)

    def close(self) -> None:
        """End it: nothing is read any more."""
        if self._map is not None:
            self._map.close()
            self._map = None
