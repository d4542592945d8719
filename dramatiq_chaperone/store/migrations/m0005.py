"""The fifth version: what a job that was put off waits for, and a queue that is paused.  Frozen, as the others."""

from __future__ import annotations

from typing import Final

COLUMNS: Final[dict[str, str]] = {"supervised_jobs": "waiting_for name", "queues": "paused_for name"}

INDEXES: Final[dict[str, tuple[str, ...]]] = {"supervised_jobs": ("waiting_for where waiting_for is not null",)}
