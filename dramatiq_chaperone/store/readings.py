"""What an exporter reads at each scrape: totals and states of the whole fleet, and the workers that live."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from . import alerts, breakers, deliveries, leases, queries
from .leases import MONITOR_LEASE
from .queries import Row

if TYPE_CHECKING:
    from collections.abc import Collection

    from . import Store

#: Living workers that are read, at most.
MOST_WORKERS: Final = 10_000
#: The health of alerts is that of the last so many seconds.
ALERTS_S: Final = 3600.0
#: A host whose last loss is older is not among those with one.
LOSSES_SINCE: Final = timedelta(days=1)

Counters = list[tuple[str, dict[str, str], float]]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The whole fleet; rows are dictionaries by column name, times aware datetimes in UTC.

    Attributes:
      counters: (name, labels, value), histograms as one row a bucket.
      queues: what has not ended: queue to status to number.
      running: by queue and actor what runs: queue, actor_name, started_at (the oldest), memory_peak (bytes, the highest).
      oldest: queue to the time of its oldest job that waits and is due, where that is among the oldest 1,000 of all.
      depths: the rows of the table ``queues``: what the brokers said last.
      workers: status to number.
      breakers: (service, state, mode) of every circuit breaker.
      alerts: (type, severity, number) of those that fire.
      queue_workers: queue to the number of worker processes that fetch from it.
      losses: host to when a worker of it was lost last, in the last day.
      monitor: the worker_id of the holder of the monitor's lease, and when that runs out, Unix seconds; None: nobody holds it.
      waiting: what jobs wait for that were put off, in words, to their number.
    """

    counters: Counters = field(default_factory=list)
    queues: dict[str, dict[str, int]] = field(default_factory=dict)
    running: list[Row] = field(default_factory=list)
    oldest: dict[str, datetime] = field(default_factory=dict)
    depths: list[Row] = field(default_factory=list)
    workers: dict[str, int] = field(default_factory=dict)
    breakers: list[tuple[str, str, str]] = field(default_factory=list)
    alerts: list[tuple[str, str, int]] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    queue_workers: dict[str, int] = field(default_factory=dict)
    losses: dict[str, datetime] = field(default_factory=dict)
    monitor: tuple[str, float] | None = None


def read_totals(store: Store) -> Totals:
    """The fleet as it stands.  Raises StoreError."""
    now = datetime.now(UTC)
    return Totals(
        counters=queries.counters(store),
        queues=queries.open_jobs(store),
        running=queries.running_by_actor(store),
        oldest=queries.oldest_pending(store),
        depths=queries.list_queues(store),
        workers=queries.worker_counts(store),
        breakers=breakers.read_states(store),
        alerts=alerts.firing(store),
        waiting=queries.waiting_jobs(store, now),
        queue_workers=queries.queue_workers(store),
        losses=queries.last_losses(store, since=now - LOSSES_SINCE),
        monitor=leases.holder_of(store, MONITOR_LEASE),
    )


def read_alert_health(store: Store) -> dict[str, Any]:
    """How deliveries of alerts went in the last hour.  Raises StoreError."""
    return deliveries.health(deliveries.statistics(store, since=(now := time.time()) - ALERTS_S, now=now))


def read_workers(store: Store, among: Collection[str] | None) -> list[Row]:
    """The rows of the workers that live, by worker_id; of *among* only, None: of the whole fleet.  Raises StoreError."""
    rows = queries.list_workers(store, status="running", limit=MOST_WORKERS)
    return sorted((row for row in rows if among is None or row["worker_id"] in among), key=lambda row: str(row["worker_id"]))
