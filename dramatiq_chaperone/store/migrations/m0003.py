"""The third version: what a dead worker held.  Frozen, as the others are, and written in the same way."""

from __future__ import annotations

from typing import Final

TABLES: Final[dict[str, str]] = {
    #: Messages that a worker held when it died, and starts of such messages, written down before they ran.
    "suspects": """
        job_id key !
        worker_id key !
        created_at time !
        started_at time
        unseen int =0
    """,
    #: Dead workers whose messages have to go back to their queues.
    "returns": """
        worker_id key !
        created_at time !
        broker word
        broker_id key
        queues text
        certain int =0
        done_at time
    """,
}

INDEXES: Final[dict[str, tuple[str, ...]]] = {
    "suspects": ("unique job_id, worker_id", "created_at"),
    "returns": ("unique worker_id", "created_at"),
}
