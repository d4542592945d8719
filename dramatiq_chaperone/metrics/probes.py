"""What the probes say: pure, from a reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from ..store.queries import Row
    from .collector import Reading

#: A beat may be late by so many intervals, and by so many seconds for the way to the store.
LATE_BEATS: Final = 3
LATE_S: Final = 5.0
#: A loop that has not turned for so long, in seconds, is stuck.
STUCK_S: Final = 30.0


def unready(reading: Reading, now: datetime, *, beat_s: float, trouble: str | None) -> list[str]:
    """Why the workers of a reading are not all at work; empty: they are.

    Parameters:
      beat_s: seconds between two beats of a worker.
      trouble: what the store said, if it did not answer.
    """
    if not reading.is_up:
        return [f"the store does not answer: {trouble}" if trouble else "the store does not answer in time"]
    return [reason for row in reading.workers for reason in _of_worker(row, now, LATE_BEATS * beat_s + LATE_S)]


def _of_worker(row: Row, now: datetime, limit_s: float) -> list[str]:
    name = f"worker {row['worker_id']}"
    last = row["last_heartbeat_at"]
    if last is None:
        last = row["started_at"] or row["created_at"]
    silent_s = (now - last).total_seconds()
    if silent_s > limit_s:
        return [f"{name}: no heartbeat for {silent_s:.0f} s"]
    gauges = row["gauges"] or {}
    alive, wanted = gauges.get("consumers_alive"), gauges.get("consumers")
    if alive is not None and wanted is not None and alive < wanted:
        return [f"{name}: {wanted - alive} of {wanted} consumers are dead"]
    return []
