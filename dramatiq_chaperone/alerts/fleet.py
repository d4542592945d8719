"""What thresholds are compared with: the fleet as its rows tell."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..records import BUCKETS
from ..store import breakers, queries
from ..store import fleet as rows
from .thresholds import Readings, Runs

if TYPE_CHECKING:
    from ..store import Store


def read(store: Store, now: float, *, window_s: float) -> tuple[Readings, Mapping[str, frozenset[str]]]:
    """The fleet, and queue to what its jobs wait for, in words."""
    at = datetime.fromtimestamp(now, UTC)
    queues: dict[str, int] = {}
    oldest: dict[str, float] = {}
    held: set[str] = set()
    for row in queries.list_queues(store):
        if row["read_at"] is None or (at - row["read_at"]).total_seconds() > rows.FRESH_S:
            continue
        queue = row["queue"]
        queues[queue] = queues.get(queue, 0) + int(row["ready"] or 0)
        if row["oldest_at"] is not None and row["ready"]:
            oldest[queue] = max(oldest.get(queue, 0.0), (at - row["oldest_at"]).total_seconds())
        if row["paused_for"]:
            held.add(queue)
    used = rows.used_queues(store, now)
    for queue, since in queries.oldest_pending(store).items():
        # RabbitMQ does not tell; nor does a queue that nobody serves any more.
        if queue not in oldest and queues.get(queue, queue in used):
            oldest[queue] = (at - since).total_seconds()
    waits_for = rows.waits_for(store, now)
    runs = [Runs(**each) for each in rows.runs_since(store, now - window_s, buckets=len(BUCKETS) + 1)]
    readings = Readings(
        window_s=window_s,
        queues=queues,
        oldest_s=oldest,
        served=rows.served_queues(store),
        runs=runs,
        dead_letters=queries.dead_letter_counts(store, since=datetime.fromtimestamp(now - 3600.0, UTC)),
        open_s=breakers.open_since(store, now),
        crashes=rows.crashes_since(store, now - window_s),
        held=frozenset(held),
    )
    return readings, waits_for


def replaced(store: Store, lost: Mapping[str, tuple[str, float]]) -> list[str]:
    """Alerts of lost workers on whose host others have started since: id to (host, when it was heard of last)."""
    if not lost:
        return []
    started = rows.last_starts(store)
    return [key for key, (host, at) in lost.items() if started.get(host, 0.0) > at]
