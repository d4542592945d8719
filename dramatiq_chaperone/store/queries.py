"""Every read.  Rows are dictionaries by column name, times aware datetimes in UTC, JSON columns Python values.

None of them reads a whole large table: each has its index, and a test has PostgreSQL explain it.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..records import STATUS_RANK
from .applying import stored_time
from .counters import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from . import Store

Row = dict[str, Any]

LIVE: Final = ("pending", "running", "stalled", "lost")
FINAL: Final = ("completed", "failed", "cancelled", "skipped")
JSON_COLUMNS: Final = frozenset({"payload", "metadata", "limits", "context", "data", "labels", "arguments"})
FLAGS: Final = frozenset({"payload_complete", "paused"})
#: Bookkeeping of the writer.
HIDDEN: Final = frozenset(
    {
        "level",
        "run_retries",
        "flush",
        "ended_by",
        "twice_by",
        "other_run_id",
        "other_worker_id",
        "other_started_at",
        "other_run_retries",
        "other_by",
        "decided",
    }
)
#: Rows of one kind that the detail of a job brings.
DETAIL_ROWS: Final = 500


def aware(value: Any) -> datetime | None:
    """A time as the database gave it, as an aware datetime in UTC."""
    if value is None:
        return None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    moment: datetime = value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _value(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.endswith("_at") or name in {"eta", "until"}:
        return aware(value)
    if name in JSON_COLUMNS and isinstance(value, str):
        return json.loads(value)
    if name in FLAGS:
        return bool(value)
    return value


def _select(store: Store, text: str, values: Sequence[Any] = ()) -> list[Row]:
    with store.translated():
        cursor = store.execute(text, values)
        names = [column[0] for column in cursor.description]
        return [
            {name: _value(name, value) for name, value in zip(names, row, strict=True) if name not in HIDDEN} for row in cursor.fetchall()
        ]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" for _ in values)


def _moment(store: Store, at: datetime) -> Any:
    return stored_time(store.kind, at.timestamp())


def status_summary(store: Store) -> Row:
    """How the fleet stands.

    Returns ``{"jobs": {status: number}, "workers": {status: number}, "queues": {queue: {status: number}}}``; every status
    of a job is there, the queues with what has not ended.
    """
    jobs = dict.fromkeys(STATUS_RANK, 0)
    queues: dict[str, dict[str, int]] = {}
    text = f"SELECT queue, status, COUNT(*) FROM {{supervised_jobs}} WHERE status IN ({_marks(LIVE)}) GROUP BY queue, status"
    for queue, status, count in store.rows(text, LIVE):
        jobs[status] += count
        queues.setdefault(queue or "", {})[status] = count
    for status in FINAL:
        # In order, so that the narrow index is read and not the wide table.
        ordered = "SELECT created_at FROM {supervised_jobs} WHERE status = ? ORDER BY created_at"
        jobs[status] = store.rows(f"SELECT COUNT(*) FROM ({ordered}) AS ended", (status,))[0][0]
    workers = dict(store.rows("SELECT status, COUNT(*) FROM {workers} GROUP BY status"))
    return {"jobs": jobs, "workers": workers, "queues": dict(sorted(queues.items()))}


def list_jobs(
    store: Store,
    *,
    status: str | Iterable[str] | None = None,
    queue: str | None = None,
    actor: str | None = None,
    worker: str | None = None,
    since: datetime | None = None,
    search: str | None = None,
    limit: int = 50,
    after: str | None = None,
) -> tuple[list[Row], str | None]:
    """Jobs, newest first, at most *limit*, and what to pass as *after* for the next page (None: that was the last).

    Parameters:
      status: one status, or several.
      search: the beginning of a job's id, or a part of its actor's name.
      since: only what was first heard of since then.

    Raises:
      ValueError: *after* is not from here.
    """
    conditions: list[str] = []
    values: list[Any] = []

    def where(condition: str, *more: Any) -> None:
        conditions.append(condition)
        values.extend(more)

    statuses = (status,) if isinstance(status, str) else tuple(status or ())
    if statuses:
        where(f"status IN ({_marks(statuses)})", *statuses)
    for column, value in (("queue", queue), ("actor_name", actor), ("worker_id", worker)):
        if value is not None:
            where(f"{column} = ?", value)
    if since is not None:
        where("created_at >= ?", _moment(store, since))
    if search:
        actors = [name for name in names(store, "actor_name") if search.lower() in name.lower()]
        among = f" OR actor_name IN ({_marks(actors)})" if actors else ""
        where(f"((job_id >= ? AND job_id < ?){among})", search, search + "\U0010fffd", *actors)
    if after is not None:
        at, key = _decode(after)
        at_ = stored_time(store.kind, at)
        where("created_at <= ? AND (created_at < ? OR id < ?)", at_, at_, key)
    clause = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    text = f"SELECT * FROM {{supervised_jobs}}{clause} ORDER BY created_at DESC, id DESC LIMIT {int(limit) + 1}"
    rows = _select(store, text, values)
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], _encode(rows[limit - 1]) if limit else None


def _encode(row: Row) -> str:
    position = json.dumps([row["created_at"].isoformat(), str(row["id"])])
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def _decode(text: str) -> tuple[float, str]:
    try:
        at, key = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return datetime.fromisoformat(at).timestamp(), str(key)
    except (ValueError, TypeError, binascii.Error) as e:
        raise ValueError("This is not the end of a page.") from e


def names(store: Store, column: str) -> list[str]:
    """All actors (``actor_name``) or queues (``queue``) that jobs are known of, sorted; hops through the index."""
    if column not in {"actor_name", "queue"}:
        raise ValueError(column)
    first = f"SELECT MIN({column}) FROM {{supervised_jobs}}"
    following = (
        f"SELECT (SELECT MIN(j.{column}) FROM {{supervised_jobs}} j WHERE j.{column} > found.name) FROM found WHERE found.name IS NOT NULL"
    )
    text = f"WITH RECURSIVE found(name) AS ({first} UNION ALL {following}) SELECT name FROM found WHERE name IS NOT NULL"
    return [name for (name,) in store.rows(text)]


def job_detail(store: Store, job_id: str) -> Row | None:
    """A job and all that belongs to it; None if it is not known.

    Beside its columns: ``errors`` (runs that did not complete, oldest first), ``heartbeats``, ``violations``,
    ``health_checks`` and ``events`` (the newest 500 of each, oldest first), ``dead_letters``, ``children`` (ids of jobs it sent).
    """
    found = _select(store, "SELECT * FROM {supervised_jobs} WHERE job_id = ?", (job_id,))
    if not found:
        return None
    job = found[0]
    for name, table in (
        ("errors", "supervised_job_errors"),
        ("heartbeats", "heartbeats"),
        ("violations", "resource_violations"),
        ("health_checks", "job_health_checks"),
        ("dead_letters", "dead_letter_jobs"),
    ):
        text = f"SELECT * FROM {{{table}}} WHERE supervised_job_id = ? ORDER BY created_at DESC, id DESC LIMIT {DETAIL_ROWS}"
        job[name] = _select(store, text, (job["id"],))[::-1]
    text = f"SELECT * FROM {{events}} WHERE job_id = ? ORDER BY created_at DESC, id DESC LIMIT {DETAIL_ROWS}"
    job["events"] = _select(store, text, (job_id,))[::-1]
    text = f"SELECT job_id FROM {{supervised_jobs}} WHERE parent_job_id = ? ORDER BY job_id LIMIT {DETAIL_ROWS}"
    job["children"] = [child for (child,) in store.rows(text, (job_id,))]
    return job


def list_workers(store: Store, *, status: str | None = None, limit: int = 1000) -> list[Row]:
    """Workers, those heard of last first."""
    where, values = ("WHERE status = ? ", (status,)) if status else ("", ())
    return _select(store, f"SELECT * FROM {{workers}} {where}ORDER BY updated_at DESC LIMIT {int(limit)}", values)


def list_dead_letters(store: Store, *, limit: int = 50) -> list[Row]:
    """Dead letters, newest first."""
    return _select(store, f"SELECT * FROM {{dead_letter_jobs}} ORDER BY failed_at DESC LIMIT {int(limit)}")


def list_events(store: Store, *, since: datetime | None = None, limit: int = 100) -> list[Row]:
    """Stored events, newest first."""
    where, values = ("WHERE created_at >= ? ", (_moment(store, since),)) if since else ("", ())
    return _select(store, f"SELECT * FROM {{events}} {where}ORDER BY created_at DESC LIMIT {int(limit)}", values)


def actor_summary(store: Store, *, since: datetime) -> list[Row]:
    """What each actor did since then, by queue and actor: runs by outcome, retries, and sums of seconds.

    It is read from the minute rollups, so it begins at the full minute.
    """
    sums = ("runs_succeeded", "runs_failed", "runs_interrupted", "runs_killed", "runs_lost", "retries")
    seconds = ("duration_seconds", "wait_seconds", "cpu_seconds")
    picked = ", ".join(f"SUM({name}) AS {name}" for name in (*sums, *seconds, *(f"bucket_{n:02}" for n in range(len(BOUNDS)))))
    text = f"SELECT queue, actor_name, {picked} FROM {{rollups}} WHERE minute_at >= ? GROUP BY queue, actor_name ORDER BY queue, actor_name"
    rows = _select(store, text, (_moment(store, since.replace(second=0, microsecond=0)),))
    for row in rows:
        row.update({name: int(row[name]) for name in sums})
        row["buckets"] = {bound: int(row.pop(f"bucket_{n:02}")) for n, bound in enumerate(BOUNDS)}
    return rows


def rollup_minutes(store: Store, *, since: datetime) -> list[Row]:
    """The whole fleet minute by minute since then, oldest first: runs by outcome."""
    picked = ", ".join(
        f"SUM({name}) AS {name}" for name in ("runs_succeeded", "runs_failed", "runs_interrupted", "runs_killed", "runs_lost")
    )
    text = f"SELECT minute_at, {picked} FROM {{rollups}} WHERE minute_at >= ? GROUP BY minute_at ORDER BY minute_at"
    return [
        {name: value if name == "minute_at" else int(value) for name, value in row.items()}
        for row in _select(store, text, (_moment(store, since),))
    ]


def counters(store: Store, *, name: str | None = None) -> list[tuple[str, dict[str, str], float]]:
    """Every counter as (name, labels, value); one row a bucket, each observation in one bucket only."""
    where, values = (" WHERE name = ?", (name,)) if name else ("", ())
    rows = _select(store, f"SELECT name, labels, value FROM {{counters}}{where} ORDER BY name", values)
    return [(row["name"], row["labels"], float(row["value"])) for row in rows]
