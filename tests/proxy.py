"""A TCP proxy in front of a server that the tests must not stop, which can go away in its place."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65_536


class Proxy:
    """Forwards connections to ``host:port``; cut() is a server that went away, freeze() one that hangs.

    A thread of the tests' own does the forwarding, one direction at a time: enough for a few connections.

    Attributes:
      forwarded: how often something came and was sent on, in either direction.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._running.set()
        self._closed = False
        self.forwarded = 0
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Close every connection; from now on new ones are refused."""
        with self._lock:
            self._listener.close()
            self._drop_all()

    def restore(self) -> None:
        """Listen again, on the same port, after cut()."""
        with self._lock:
            self._listener = socket.create_server(("127.0.0.1", self.port))

    def freeze(self) -> None:
        """Forward nothing: connections are accepted and stay open without an answer."""
        self._running.clear()

    def thaw(self) -> None:
        """Forward again, what waited included."""
        self._running.set()

    def close(self) -> None:
        """End it for good."""
        self._closed = True
        self._running.set()
        self._thread.join()
        with self._lock:
            self._listener.close()
            self._drop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed:
            self._running.wait()
            with self._lock:
                self._turn()

    def _turn(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in [self._listener, *self._peers]:
                if each.fileno() >= 0:
                    selector.register(each, selectors.EVENT_READ)
            for key, _ in selector.select(timeout=0.02):
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._peers:
                    self._forward(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        self._peers |= {client: server, server: client}

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(CHUNK_BYTES)
            if data:
                self._peers[source].sendall(data)
                self.forwarded += 1
                return
        except OSError:
            pass  # a reset is an end like any other
        self._drop(source)

    def _drop(self, one: socket.socket) -> None:
        other = self._peers.pop(one)
        del self._peers[other]
        one.close()
        other.close()

    def _drop_all(self) -> None:
        while self._peers:
            self._drop(next(iter(self._peers)))
