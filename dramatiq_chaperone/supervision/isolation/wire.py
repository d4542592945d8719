"""How a worker, its zygote and the process of an isolated job talk.

Worker and zygote: packets, for each fork a pair of sockets (data, status) goes over.  *data* carries frames between the
worker and the child; on *status* the zygote tells of the child's fork and end, and is told which signals to send it.
When the worker closes its end of *status*, the child is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from socket import MSG_DONTWAIT, socket
from typing import Any, Final, NamedTuple

_HEAD: Final = struct.Struct("!I")
_CHUNK: Final = 1 << 16

#: What the zygote is asked on *status*.
INTERRUPT: Final = b"I"
KILL: Final = b"K"


class Forked(NamedTuple):
    """The child runs."""

    pid: int


class Ended(NamedTuple):
    """The child has ended, and this is what it used."""

    #: As ``os.waitstatus_to_exitcode`` gives it.
    exit_code: int
    #: User and system seconds, with those descendants that it has waited for.
    cpu_seconds: float
    #: Bytes, at most at once.
    memory_peak: int
    #: Whether the system killed a process of this cgroup for want of memory while it ran.
    was_oom: bool


def encode(frame: Any) -> bytes:
    """*frame* as it goes over the wire.  Raises whatever pickle raises."""
    body = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(body)) + body


class Frames:
    """Puts frames together again from a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are whole now."""
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            end = _HEAD.size + _HEAD.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            yield body


class Channel:
    """The child's end of *data*.

    An interrupt must not tear a frame in two, and it comes in a signal handler: while the main thread sends, it has to wait.

    Attributes:
      is_sending: whether the main thread is in the middle of a frame.
      sent: called in the main thread after each frame: what had to wait may come now.
    """

    def __init__(self, data: socket) -> None:
        self._data = data
        self._frames = Frames()
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.is_sending = False
        self.sent: Callable[[], None] = lambda: None

    def send(self, frame: Any) -> None:
        """Send one frame; one that cannot be pickled raises.  A worker that is gone does not: this process goes with it."""
        encoded = encode(frame)
        if os.getpid() != self._pid:  # a process that the job forked: nothing of its parent's is used
            return
        if threading.current_thread() is not threading.main_thread():
            with self._lock:
                self._write(encoded)
            return
        self.is_sending = True
        try:
            with self._lock:
                self._write(encoded)
        finally:
            self.is_sending = False
        self.sent()

    def _write(self, encoded: bytes) -> None:
        try:
            self._data.sendall(encoded)
        except OSError:
            os.kill(self._pid, signal.SIGKILL)

    def receive(self) -> Any:
        """The next frame, waited for.  EOFError: the worker is gone."""
        while not self._waiting:
            chunk = self._data.recv(_CHUNK)
            if not chunk:
                raise EOFError
            self._waiting.extend(self._frames.feed(chunk))
        return pickle.loads(self._waiting.pop(0))  # noqa: S301 - our own worker wrote it

    def received(self) -> Iterator[Any]:
        """The frames that are there already."""
        with contextlib.suppress(BlockingIOError):
            while chunk := self._data.recv(_CHUNK, MSG_DONTWAIT):
                self._waiting.extend(self._frames.feed(chunk))
        while self._waiting:
            yield pickle.loads(self._waiting.pop(0))  # noqa: S301 - as above
