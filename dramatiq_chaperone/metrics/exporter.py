"""Exporter: a small HTTP server with the metrics and the probes.

=============== ==========================================================================
/metrics        the series, as text or OpenMetrics, whichever the Accept header asks for
/livez          200 while this process turns
/readyz         200 while the store answers and every worker is heard of and consumes
/healthz        200 while both hold
/healthz/alerts 200 unless deliveries of alerts fail: ``healthy``, ``stats``, ``failure_rate``
=============== ==========================================================================

The probes answer 503 otherwise, and always with a JSON object; those of workers with ``ok`` and ``reasons``, a list of sentences.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from .. import host
from ..service import Service, internal_error
from .collector import Reading, StoreCollector
from .leadership import Leadership
from .probes import STUCK_S, unready
from .reader import Reader

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection
    from typing import Protocol

    class _Settings(Protocol):
        @property
        def exporter_host(self) -> str: ...
        @property
        def exporter_port(self) -> int: ...
        @property
        def worker_heartbeat(self) -> float: ...


logger = logging.getLogger("dramatiq_chaperone.metrics")

#: A scrape waits so long for the store, in seconds; Prometheus gives up after ten.
SCRAPE_S: Final = 3.0
#: Seconds between two tries to listen on a port that is taken.
BIND_RETRY_S: Final = 5.0
#: How long the loop waits for a request before it looks whether it has to stop, in seconds.
_TURN_S: Final = 0.25
#: Somebody who connects and says nothing is cut off after so many seconds.
_IDLE_S: Final = 5.0


class Answer(NamedTuple):
    """What a request gets."""

    status: int
    content_type: str
    body: bytes


class Exporter(Service):
    """Listens on ``exporter_host`` and ``exporter_port``; while the port is taken, it says so once and tries again.

    Parameters:
      holder: unique for this process and start.
      wake: has the turns of :attr:`reader` taken at once.
      has_precedence: it serves the totals rather than a watcher.
      among: the worker_ids of the workers that are served; None: the whole fleet's.
      turned_at: when the process's own loop turned last, in monotonic seconds.
      reasons: what the process itself knows against being ready.
      backlog_bytes: what its writer has yet to write; None: it has none.

    Attributes:
      reader: a duty that has to be among those of the process's StoreTurns.
    """

    name = "exporter"

    def __init__(
        self,
        settings: _Settings,
        holder: str,
        *,
        wake: Callable[[], None],
        has_precedence: bool = False,
        among: Callable[[], Collection[str]] | None = None,
        turned_at: Callable[[], float] = time.monotonic,
        reasons: Callable[[], list[str]] = list,
        backlog_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        super().__init__(interval_s=0.0)
        self._settings, self._turned_at, self._reasons = settings, turned_at, reasons
        self._server: _Server | None = None
        self._is_refused = False
        leadership = Leadership(holder, has_precedence=has_precedence)
        self.reader = Reader(leadership, may_lead=lambda: self._server is not None, wake=wake, among=among)
        self._registry = CollectorRegistry(auto_describe=False)
        self._backlog_bytes = backlog_bytes
        self._registry.register(StoreCollector(self._reading))

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None while it does not."""
        server = self._server
        return None if server is None else (str(server.server_address[0]), int(server.server_address[1]))

    def run_once(self) -> None:
        """Answer the next request, or listen again; at most a quarter of a second."""
        if self._server is None:
            self._listen()
        if self._server is not None:
            self._server.handle_request()

    def _reading(self) -> Reading:
        return replace(
            self.reader.read(SCRAPE_S),
            memory_bytes=host.rss_bytes(),
            cpu_seconds=time.process_time(),
            writer_backlog_bytes=self._backlog_bytes(),
        )

    def forked(self) -> None:
        """The parent listens, not the child."""
        self._close()

    def answer(self, path: str, accept: str) -> Answer | None:
        """What a GET of *path* gets; None: there is nothing."""
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return Answer(200, content_type, encode(self._registry))
        if path == "/livez":
            return _verdict(self._unlive())
        if path == "/readyz":
            return _verdict(self._unready())
        if path == "/healthz":
            return _verdict([*self._unlive(), *self._unready()])
        if path == "/healthz/alerts":
            return self._alerts()
        return None

    def _alerts(self) -> Answer:
        """503 where deliveries fail, or nothing can be known; none sent is unknown, and no fault."""
        reading = self.reader.read(SCRAPE_S)
        if not reading.is_up or reading.alert_health is None:
            return Answer(503, "application/json", json.dumps({"healthy": None, "reasons": ["the store does not answer"]}).encode())
        status = 503 if reading.alert_health["healthy"] is False else 200
        return Answer(status, "application/json", json.dumps(reading.alert_health).encode())

    def _unlive(self) -> list[str]:
        still_s = time.monotonic() - self._turned_at()
        return [f"this process has not turned for {still_s:.0f} s"] if still_s > STUCK_S else []

    def _unready(self) -> list[str]:
        reading = self.reader.read(SCRAPE_S)
        found = unready(reading, datetime.now(UTC), beat_s=self._settings.worker_heartbeat, trouble=self.reader.trouble)
        return [*found, *self._reasons()]

    def _listen(self) -> None:
        host, port = self._settings.exporter_host, self._settings.exporter_port
        try:
            server = _Server((host, port), self)
        except (OSError, OverflowError) as error:
            if not self._is_refused:
                self._is_refused = True
                logger.warning("Metrics are not served: %s:%d cannot be listened on (%s); it is tried again.", host, port, error)
            self.interval_s = BIND_RETRY_S
            return
        self.interval_s, self._is_refused, self._server = 0.0, False, server
        logger.info("Metrics are served on http://%s:%d/metrics", *server.server_address[:2])

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            self._close()

    def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.server_close()


class _Server(ThreadingHTTPServer):
    """A thread for each request, for one that waits for the store must not keep a probe waiting."""

    timeout = _TURN_S
    daemon_threads = True
    block_on_close = False
    #: On Linux it lets a successor listen at once, and nobody listen where another does.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        self.exporter = exporter
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without a look-up of the host's full name, which may take seconds and is of no use here."""
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone away, or something is wrong here."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            internal_error("exporter", error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _IDLE_S
    server_version = "chaperone"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        answer = self.server.exporter.answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
        if answer is None:
            answer = Answer(404, "text/plain; charset=utf-8", b"There are /metrics, /healthz, /livez and /readyz.\n")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape each few seconds is not worth a line."""


def _verdict(reasons: list[str]) -> Answer:
    body = json.dumps({"ok": not reasons, "reasons": reasons}) + "\n"
    return Answer(503 if reasons else 200, "application/json", body.encode())
