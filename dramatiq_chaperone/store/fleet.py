"""Reads over the whole fleet that alerts are judged by.  Times are Unix seconds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from .times import stored_time, unix_time

if TYPE_CHECKING:
    from . import Store

#: A reading of a queue that is older than this says nothing of now, in seconds.
FRESH_S: Final = 60.0
DAY_S: Final = 86_400.0


def runs_since(store: Store, since: float, *, buckets: int) -> list[dict[str, Any]]:
    """What the runs of each actor in each queue did since then, from whole minutes; those that somebody stopped say nothing.

    Each has queue, actor, total, failed, duration_s and wait_s (sums), and buckets.
    """
    names = [f"bucket_{number:02}" for number in range(buckets)]
    sums = ", ".join(f"SUM({name})" for name in names)
    text = (
        "SELECT queue, actor_name, SUM(runs_succeeded), SUM(runs_failed + runs_lost), "
        f"SUM(duration_seconds), SUM(wait_seconds), {sums} FROM {{rollups}} WHERE minute_at >= ? GROUP BY queue, actor_name"
    )
    found = []
    for queue, actor, well, badly, duration_s, wait_s, *numbers in store.rows(text, (stored_time(store.kind, since - since % 60),)):
        found.append(
            {
                "queue": queue,
                "actor": actor,
                "total": int(well) + int(badly),
                "failed": int(badly),
                "duration_s": float(duration_s),
                "wait_s": float(wait_s),
                "buckets": tuple(int(number) for number in numbers),
            }
        )
    return found


def served_queues(store: Store) -> frozenset[str]:
    """The queues that the workers which live fetch from."""
    return _queues_of(store.rows("SELECT DISTINCT queues FROM {workers} WHERE status IN ('running', 'paused')"))


def used_queues(store: Store, now: float) -> frozenset[str]:
    """The queues that any worker has fetched from within a day."""
    return _queues_of(store.rows("SELECT DISTINCT queues FROM {workers} WHERE updated_at >= ?", (stored_time(store.kind, now - DAY_S),)))


def _queues_of(rows: list[tuple[Any, ...]]) -> frozenset[str]:
    return frozenset(name for (text,) in rows for name in json.loads(text or "[]"))


def waits_for(store: Store, now: float) -> dict[str, frozenset[str]]:
    """Queue to what its jobs wait for, in words, as it stands on them."""
    since = stored_time(store.kind, now - FRESH_S)
    put_off = "SELECT DISTINCT queue, waiting_for FROM {supervised_jobs} WHERE waiting_for IS NOT NULL AND status = 'pending' AND eta > ?"
    paused = "SELECT queue, paused_for FROM {queues} WHERE paused_for IS NOT NULL AND read_at > ?"
    found: dict[str, set[str]] = {}
    for queue, reason in (*store.rows(put_off, (since,)), *store.rows(paused, (since,))):
        found.setdefault(queue or "", set()).add(reason)
    return {queue: frozenset(reasons) for queue, reasons in found.items()}


def crashes_since(store: Store, since: float) -> dict[str, int]:
    """Host to the workers that both started and crashed there since then: a host that goes down once is no loop."""
    text = "SELECT host, COUNT(*) FROM {workers} WHERE status = 'lost' AND stopped_at >= ? AND started_at >= ? GROUP BY host"
    at = stored_time(store.kind, since)
    return {host or "": int(number) for host, number in store.rows(text, (at, at))}


def last_starts(store: Store) -> dict[str, float]:
    """Host to when the last of its living workers started."""
    text = "SELECT host, MAX(started_at) FROM {workers} WHERE status = 'running' GROUP BY host"
    return {host or "": unix_time(at) or 0.0 for host, at in store.rows(text)}
