"""A web app that sends: one message for each request, and one at its import where SEND_AT_IMPORT is set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from tests.e2e.fleet_app import work

if os.environ.get("SEND_AT_IMPORT"):
    work.send()


def application(environ: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with the pid of the process."""
    work.send()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
