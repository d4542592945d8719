"""Servers that play the ones that alerts go to."""

from __future__ import annotations

import email
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.message import Message as Mail
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from aiosmtpd.controller import Controller


class Request(NamedTuple):
    """What a server got: *data* is what the JSON said, or the bytes."""

    path: str
    headers: dict[str, str]
    data: Any


class WebServer:
    """An HTTP server that answers as it is told, and keeps what it got.

    Attributes:
      answer: status and body of each answer.
      is_hanging: it answers nothing.
      on_request: called with each request before it is answered.
    """

    def __init__(self) -> None:
        self.got: list[Request] = []
        self.answer: tuple[int, bytes] = (200, b"ok")
        self.is_hanging = False
        self.on_request: Callable[[Request], None] = lambda request: None
        self._ends = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                try:
                    data = json.loads(body)
                except ValueError:
                    data = body
                request = Request(self.path, dict(self.headers), data)
                server.got.append(request)
                server.on_request(request)
                if server.is_hanging:
                    server._ends.wait(20)
                    return
                status, text = server.answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST  # noqa: N815 - as the base class has it

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

            def handle(self) -> None:
                """Who is killed while it waits for an answer is nobody's fault."""
                try:
                    super().handle()
                except ConnectionError:
                    return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        if self._ends.is_set():
            return
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Mailbox:
    """What an SMTP server was given: sender, recipients, mail."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], Mail]] = []
        self.port = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - as the library has it
        """Keep a mail."""
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, email.message_from_bytes(envelope.content)))
        return "250 OK"


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    """An SMTP server on a port that is free."""
    box = Mailbox()
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        box.port = free.getsockname()[1]
    controller = Controller(box, hostname="127.0.0.1", port=box.port)  # type: ignore[no-untyped-call]
    controller.start()  # type: ignore[no-untyped-call]
    try:
        yield box
    finally:
        controller.stop()  # type: ignore[no-untyped-call]
