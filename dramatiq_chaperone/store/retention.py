"""Retention: what is old goes, in small transactions, so that nobody waits for it.  Counters never go."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from .times import stored_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from . import Store

    #: Runs the work of one batch in a transaction.
    Within = Callable[[Callable[[], int]], int]
    _Rows = Callable[..., Iterator[tuple[str, int]]]

BATCH: Final = 500
DAY_S: Final = 86_400.0
#: Days that what belongs to the fleet rather than to a job is kept.
EVENTS_DAYS: Final = 30
ROLLUP_DAYS: Final = 30
WORKER_DAYS: Final = 7
QUEUE_DAYS: Final = 7
COMMAND_DAYS: Final = 7
#: A journal's position is of no use once the journal is gone; no outage lasts so long.
FLUSH_DAYS: Final = 30
#: A circuit breaker that nobody has used; never one that is open, or that somebody has set by hand.
BREAKER_DAYS: Final = 30
#: A worker whose row is older than this claims nothing any more.
_SILENT_S: Final = 900.0

_WELL: Final = ("completed", "skipped")
_BADLY: Final = ("failed", "cancelled")
_OPEN: Final = ("pending", "running", "stalled", "lost")


class RetentionSettings(Protocol):
    """Days that things are kept; 0: for ever."""

    @property
    def retention_completed(self) -> int: ...  # noqa: D102
    @property
    def retention_failed(self) -> int: ...  # noqa: D102
    @property
    def dlq_retention_days(self) -> int: ...  # noqa: D102


def prune(
    store: Store, settings: RetentionSettings, *, now: float | None = None, everything: bool = False, within: Within | None = None
) -> Iterator[tuple[str, int]]:
    """Delete what is older than it may be; yields (table, rows) after each batch, each of which is a transaction.

    Children go with their job.  A job that has not ended goes only when it is older than the limit of failed ones and no
    live worker claims it.

    Parameters:
      now: Unix seconds; ages are measured from it.
      everything: every job that has ended, whatever its age.
      within: runs each batch; by default in a transaction of its own.
    """
    rows = functools.partial(_rows, store, within or store.transact)
    now = time.time() if now is None else now
    for statuses, days in ((_WELL, settings.retention_completed), (_BADLY, settings.retention_failed)):
        if everything or days:
            yield from _ended_jobs(rows, store, statuses, now if everything else now - days * DAY_S)
    if settings.retention_failed:
        yield from _open_jobs(rows, store, now - settings.retention_failed * DAY_S, now - _SILENT_S)
    if settings.dlq_retention_days:
        yield from rows("dead_letter_jobs", "failed_at < ?", (_at(store, now - settings.dlq_retention_days * DAY_S),), "failed_at")
    for table, column, days in (
        ("events", "created_at", EVENTS_DAYS),
        ("open_runs", "created_at", EVENTS_DAYS),
        ("suspects", "created_at", EVENTS_DAYS),
        ("returns", "created_at", WORKER_DAYS),
        ("commands", "created_at", COMMAND_DAYS),
        ("rollups", "minute_at", ROLLUP_DAYS),
        ("hours", "hour_at", ROLLUP_DAYS),
        ("queues", "read_at", QUEUE_DAYS),
        ("flushes", "updated_at", FLUSH_DAYS),
        ("silences", "until", EVENTS_DAYS),
        ("audit_log", "created_at", 365),
    ):
        yield from rows(table, f"{column} < ?", (_at(store, now - days * DAY_S),), column)
    # What still fires stays; its deliveries go with an alert.
    yield from rows("alerts", "created_at < ? AND is_settled = 1", (_at(store, now - EVENTS_DAYS * DAY_S),))
    # Claims of runs, one for each message that was put off; the others are few, and stay.
    yield from rows("leases", "name LIKE 'run:%' AND expires_at < ?", (_at(store, now),), "name")
    old = _at(store, now - WORKER_DAYS * DAY_S)
    yield from rows("workers", "updated_at < ?", (old,), "updated_at")
    unseen = (_at(store, now - BREAKER_DAYS * DAY_S),)
    yield from rows("circuit_breakers", "updated_at < ? AND state = 'closed' AND mode = 'auto'", unseen, "updated_at")
    yield from rows("resource_violations", "created_at < ? AND supervised_job_id IS NULL", (_at(store, now - EVENTS_DAYS * DAY_S),))


def _at(store: Store, at: float) -> Any:
    return stored_time(store.kind, max(at, 0.0))


def _ended_jobs(rows: _Rows, store: Store, statuses: Sequence[str], before: float) -> Iterator[tuple[str, int]]:
    for status in statuses:
        # created_at is what the index has; the end is never before it but for clocks that differ.
        condition = "status = ? AND created_at < ? AND COALESCE(completed_at, failed_at) < ?"
        yield from rows("supervised_jobs", condition, (status, _at(store, before + DAY_S), _at(store, before)))


def _open_jobs(rows: _Rows, store: Store, before: float, heard_since: float) -> Iterator[tuple[str, int]]:
    claimed = "SELECT w.worker_id FROM {workers} w WHERE w.status = 'running' AND w.updated_at >= ?"
    for status in _OPEN:
        condition = f"status = ? AND created_at < ? AND updated_at < ? AND (worker_id IS NULL OR worker_id NOT IN ({claimed}))"
        values = (status, _at(store, before), _at(store, before), _at(store, heard_since))
        yield from rows("supervised_jobs", condition, values)


def _rows(
    store: Store, within: Within, table: str, condition: str, values: Sequence[Any], order: str = "created_at"
) -> Iterator[tuple[str, int]]:
    """Batch after batch until none is left; *order* is the column whose index leads to them."""
    while True:
        count = within(lambda: _batch(store, table, condition, values, order))
        if count:
            yield table, count
        if count < BATCH:
            return


def _batch(store: Store, table: str, condition: str, values: Sequence[Any], order: str) -> int:
    # By key and in order: writers lock rows by job, never a range.
    keys = [key for (key,) in store.rows(f"SELECT id FROM {{{table}}} WHERE {condition} ORDER BY {order} LIMIT {BATCH}", values)]
    if keys:
        marks = ", ".join("?" for _ in keys)
        store.execute(f"DELETE FROM {{{table}}} WHERE id IN ({marks}) AND {condition}", (*sorted(keys), *values))
    return len(keys)
