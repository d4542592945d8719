"""What a watcher or the monitor saw of the jobs of a worker that cannot speak for itself."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Protocol

from . import counters
from .incidents import Incidents
from .rows import counter_upsert, mark_stuck, put, put_events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..events import JobEvent
    from . import Store


class Promises(Protocol):
    """The settings that say what heartbeats a job owes."""

    @property
    def heartbeat_interval(self) -> float:
        """Seconds."""

    @property
    def missed_heartbeats(self) -> int:
        """So many make a job stuck."""


def missed(job: Mapping[str, Any], silent_s: float, settings: Promises) -> tuple[int, int]:
    """How many heartbeats a job has missed in the silence of its process alone, and how many make it stuck; 0: it owes none.

    Parameters:
      job: a row of :func:`.queries.running_on`.
    """
    interval_s = job["heartbeat_interval"] or (settings.heartbeat_interval if job["last_heartbeat_at"] else 0)
    limits = job["limits"] if isinstance(job["limits"], dict) else {}
    threshold = limits.get("missed_heartbeats", settings.missed_heartbeats)
    return (int(silent_s / interval_s), int(threshold)) if interval_s else (0, 0)


def write(
    store: Store,
    events: Sequence[JobEvent],
    at: float,
    *,
    stuck: Sequence[tuple[str, str, int]] = (),
    moving: Sequence[tuple[str, str]] = (),
) -> None:
    """Write it down.  For the inside of a transaction.

    Parameters:
      at: when that was, Unix seconds.
      stuck: (job_id, run_id, missed heartbeats) of the runs to call stalled.
      moving: (job_id, run_id) of those that were called so and run again.
    """
    for job_id, run_id, number in sorted(stuck):
        mark_stuck(store, job_id, run_id, is_stuck=True, missed=number)
    for job_id, run_id in sorted(moving):
        mark_stuck(store, job_id, run_id, is_stuck=False, missed=0)
    rows = [[at, type(event).__name__, event.job_id, event.worker_id, None, _data(event)] for event in events]
    put_events(store, rows)
    incidents = Incidents()
    incidents.events(rows)
    put(store, counters.COUNTER, counters.counter_rows(incidents.increments()), counter_upsert(store))


def _data(event: JobEvent) -> str:
    return json.dumps(dataclasses.asdict(event), default=str, separators=(",", ":"))
