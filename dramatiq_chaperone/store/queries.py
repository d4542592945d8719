"""Every read.  Rows are dictionaries by column name, times aware datetimes in UTC, JSON columns Python values.

None of them reads a whole large table: each has its index, and a test has PostgreSQL explain it.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ..health import UNSEEN_BEATS, UNSEEN_S
from ..records import RUN_OUTCOMES, STATUS_RANK
from .counters import BOUNDS
from .silence import live_workers
from .times import aware, stored_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from . import Store
    from .deadletters import Picked

Row = dict[str, Any]

LIVE: Final = ("pending", "running", "stalled", "lost")
FINAL: Final = ("completed", "failed", "cancelled", "skipped")
JSON_COLUMNS: Final = frozenset(
    {"evidence", "matcher", "alerts", "gauges", "payload", "metadata", "limits", "context", "data", "labels", "arguments"}
)
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
        "to_judge",
    }
)
#: Rows of one kind that the detail of a job brings.
DETAIL_ROWS: Final = 500
#: Events that one page looks through for a name, which has no index.
EVENTS_SEARCHED: Final = 100_000
#: Keys in one statement.
_KEYS: Final = 500
#: The last of all code points that a text of a database may hold.
_LAST: Final = "\U0010fffd"


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


def select(store: Store, text: str, values: Sequence[Any] = ()) -> list[Row]:
    """Run a query; rows as they are described above."""
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
    queues = open_jobs(store)
    for counts in queues.values():
        for status, count in counts.items():
            jobs[status] += count
    for status in FINAL:
        # In order, so that the narrow index is read and not the wide table.
        ordered = "SELECT created_at FROM {supervised_jobs} WHERE status = ? ORDER BY created_at"
        jobs[status] = store.rows(f"SELECT COUNT(*) FROM ({ordered}) AS ended", (status,))[0][0]
    return {"jobs": jobs, "workers": worker_counts(store), "queues": dict(sorted(queues.items()))}


class _Picked:
    """Conditions, all of which a row must meet, and their values."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.values: list[Any] = []

    def where(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition)
        self.values.extend(values)

    @property
    def clause(self) -> str:
        return f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


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
    picked = _Picked()
    statuses = (status,) if isinstance(status, str) else tuple(status or ())
    if statuses:
        picked.where(f"status IN ({_marks(statuses)})", *statuses)
    for column, value in (("queue", queue), ("actor_name", actor), ("worker_id", worker)):
        if value is not None:
            picked.where(f"{column} = ?", value)
    if since is not None:
        picked.where("created_at >= ?", _moment(store, since))
    if search:
        actors = [name for name in names(store, "actor_name") if search.lower() in name.lower()]
        among = f" OR actor_name IN ({_marks(actors)})" if actors else ""
        picked.where(f"((job_id >= ? AND job_id < ?){among})", search, search + _LAST, *actors)
    if after is not None:
        picked.where(*_older(store, after))
    text = f"SELECT * FROM {{supervised_jobs}}{picked.clause} ORDER BY created_at DESC, id DESC LIMIT {int(limit) + 1}"
    return _page(select(store, text, picked.values), limit)


def _older(store: Store, after: str, order: str = "created_at") -> tuple[Any, ...]:
    """The condition that a row stands behind the page that ended with *after*, and its values."""
    at, key = _decode(after)
    at_ = stored_time(store.kind, at)
    return f"{order} <= ? AND ({order} < ? OR id < ?)", at_, at_, key


def _page(rows: list[Row], limit: int, order: str = "created_at") -> tuple[list[Row], str | None]:
    """A page out of one row more than it has room for."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], _encode(rows[limit - 1], order) if limit else None


def _encode(row: Row, order: str = "created_at") -> str:
    position = json.dumps([row[order].isoformat(), str(row["id"])])
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


def ids_like(store: Store, beginning: str, *, limit: int = 10) -> list[str]:
    """The job of this id, else the first *limit* of those whose ids begin like that, in order."""
    text = "SELECT job_id FROM {supervised_jobs} WHERE job_id >= ? AND job_id < ? ORDER BY job_id LIMIT ?"
    found = [each for (each,) in store.rows(text, (beginning, beginning + _LAST, limit))]
    return [beginning] if beginning in found else found


def job_row(store: Store, job_id: str) -> Row | None:
    """A job alone; None if it is not known."""
    found = select(store, "SELECT * FROM {supervised_jobs} WHERE job_id = ?", (job_id,))
    return found[0] if found else None


def job_detail(store: Store, job_id: str) -> Row | None:
    """A job and all that belongs to it; None if it is not known.

    Beside its columns: ``errors`` (runs that did not complete, oldest first), ``heartbeats``, ``violations``,
    ``health_checks`` and ``events`` (the newest 500 of each, oldest first), ``dead_letters``, ``children`` (ids of jobs it sent);
    and ``queue_paused_for``: what everything in its queue waits for, None where that is not paused.
    """
    job = job_row(store, job_id)
    if job is None:
        return None
    for name, table in (
        ("errors", "supervised_job_errors"),
        ("heartbeats", "heartbeats"),
        ("violations", "resource_violations"),
        ("health_checks", "job_health_checks"),
        ("dead_letters", "dead_letter_jobs"),
    ):
        text = f"SELECT * FROM {{{table}}} WHERE supervised_job_id = ? ORDER BY created_at DESC, id DESC LIMIT {DETAIL_ROWS}"
        job[name] = select(store, text, (job["id"],))[::-1]
    text = f"SELECT * FROM {{events}} WHERE job_id = ? ORDER BY created_at DESC, id DESC LIMIT {DETAIL_ROWS}"
    job["events"] = select(store, text, (job_id,))[::-1]
    text = "SELECT paused_for FROM {queues} WHERE queue = ? AND paused_for IS NOT NULL ORDER BY read_at DESC LIMIT 1"
    job["queue_paused_for"] = next((reason for (reason,) in store.rows(text, (job["queue"],))), None)
    text = f"SELECT job_id FROM {{supervised_jobs}} WHERE parent_job_id = ? ORDER BY job_id LIMIT {DETAIL_ROWS}"
    job["children"] = [child for (child,) in store.rows(text, (job_id,))]
    return job


def waiting_jobs(store: Store, now: datetime) -> dict[str, int]:
    """What jobs wait for that were put off, or whose queue is paused: ``{reason: number}``, the most frequent first.

    Parameters:
      now: those are counted whose eta lies not more than a minute before it, and queues that were read since then.
    """
    text = (
        "SELECT waiting_for, COUNT(*) FROM {supervised_jobs} WHERE waiting_for IS NOT NULL AND status = 'pending' AND eta > ? "
        "GROUP BY waiting_for"
    )
    since = _moment(store, now - timedelta(minutes=1))
    found: dict[str, int] = {}
    paused = "SELECT paused_for, ready FROM {queues} WHERE paused_for IS NOT NULL AND read_at > ?"
    for reason, count in (*store.rows(text, (since,)), *store.rows(paused, (since,))):
        found[reason] = found.get(reason, 0) + int(count)
    return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))


def list_workers(store: Store, *, status: str | None = None, limit: int = 1000) -> list[Row]:
    """Workers, those heard of last first."""
    where, values = ("WHERE status = ? ", (status,)) if status else ("", ())
    return select(store, f"SELECT * FROM {{workers}} {where}ORDER BY updated_at DESC LIMIT {int(limit)}", values)


def worker_page(store: Store, *, statuses: Sequence[str] = (), limit: int = 50, after: str | None = None) -> tuple[list[Row], str | None]:
    """Workers in these states, or all; those that came last first, at most *limit*, and what to pass as *after* for the next page.

    Raises:
      ValueError: *after* is not from here.
    """
    picked = _Picked()
    if statuses:
        picked.where(f"status IN ({_marks(statuses)})", *statuses)
    if after is not None:
        picked.where(*_older(store, after))
    text = f"SELECT * FROM {{workers}}{picked.clause} ORDER BY created_at DESC, id DESC LIMIT {int(limit) + 1}"
    return _page(select(store, text, picked.values), limit)


def worker_of(store: Store, worker_id: str) -> Row | None:
    """A worker; None if it is not known."""
    found = select(store, "SELECT * FROM {workers} WHERE worker_id = ?", (worker_id,))
    return found[0] if found else None


def list_dead_letters(store: Store, *, limit: int = 50) -> list[Row]:
    """Dead letters, newest first."""
    return select(store, f"SELECT * FROM {{dead_letter_jobs}} ORDER BY failed_at DESC LIMIT {int(limit)}")


def dead_letter_page(store: Store, picked: Picked, *, limit: int = 50, after: str | None = None) -> tuple[list[Row], str | None]:
    """Dead letters like that, the last to fail first, at most *limit*, and what to pass as *after* for the next page.

    Raises:
      ValueError: *after* is not from here.
    """
    conditions, values = picked.conditions(store)
    where = _Picked()
    for condition in conditions:
        where.where(condition)
    where.values = values
    if after is not None:
        where.where(*_older(store, after, "failed_at"))
    text = f"SELECT * FROM {{dead_letter_jobs}}{where.clause} ORDER BY failed_at DESC, id DESC LIMIT {int(limit) + 1}"
    return _page(select(store, text, where.values), limit, "failed_at")


def dead_letters_to_retry(store: Store, picked: Picked, *, limit: int) -> list[Row]:
    """The oldest dead letters like that, at most *limit*: only id, job_id, actor_name and queue."""
    conditions, values = picked.conditions(store)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    text = f"SELECT id, job_id, actor_name, queue FROM {{dead_letter_jobs}}{where} ORDER BY failed_at, id LIMIT {int(limit)}"
    return select(store, text, values)


def dead_letters_like(store: Store, beginning: str, *, limit: int = 10) -> list[Row]:
    """The dead letters of the job of this id, else of those whose ids begin like that, the last to fail of each job first.

    Beside its columns each has ``retried_status``: that of the job that it was retried as, None where that is not on record.
    """
    text = (
        "SELECT d.*, j.status AS retried_status FROM {dead_letter_jobs} d LEFT JOIN {supervised_jobs} j ON j.job_id = d.retried_as "
        "WHERE d.job_id >= ? AND d.job_id < ? ORDER BY d.job_id, d.failed_at DESC, d.id DESC LIMIT ?"
    )
    found = select(store, text, (beginning, beginning + _LAST, limit))
    return [row for row in found if row["job_id"] == beginning] or found


def dead_letters_of(store: Store, job_ids: Sequence[str]) -> set[str]:
    """Those of these jobs that dead letters are on record of."""
    known: set[str] = set()
    for first in range(0, len(job_ids), _KEYS):
        chunk = job_ids[first : first + _KEYS]
        text = f"SELECT DISTINCT job_id FROM {{dead_letter_jobs}} WHERE job_id IN ({_marks(chunk)})"
        known.update(job_id for (job_id,) in store.rows(text, chunk))
    return known


def dead_letter_counts(store: Store, *, since: datetime) -> dict[str, int]:
    """Queue to the number of its dead letters since then."""
    text = "SELECT queue, COUNT(*) FROM {dead_letter_jobs} WHERE failed_at >= ? GROUP BY queue"
    return {queue or "": int(count) for queue, count in store.rows(text, (_moment(store, since),))}


def worker_end(store: Store, worker_id: str) -> Row | None:
    """What was said at the end of a worker: the data of its last WorkerCrashed or WorkerLost, with its ``name``; None without one."""
    text = (
        "SELECT name, created_at, data FROM {events} WHERE worker_id = ? AND name IN ('WorkerCrashed', 'WorkerLost') "
        "ORDER BY created_at DESC, id DESC LIMIT 1"
    )
    found = select(store, text, (worker_id,))
    return {**(found[0]["data"] or {}), "name": found[0]["name"], "at": found[0]["created_at"]} if found else None


def workers_like(store: Store, beginning: str, *, limit: int = 10) -> list[str]:
    """The worker of this id, else the first *limit* of those whose ids begin like that, in order."""
    text = "SELECT worker_id FROM {workers} WHERE worker_id >= ? AND worker_id < ? ORDER BY worker_id LIMIT ?"
    found = [each for (each,) in store.rows(text, (beginning, beginning + _LAST, limit))]
    return [beginning] if beginning in found else found


def lost_runs(store: Store, worker_id: str) -> list[Row]:
    """The runs that were lost with a worker, with ``job_id`` and ``actor_name`` of their jobs, the most suspect first."""
    text = (
        "SELECT e.*, j.job_id, j.actor_name FROM {supervised_job_errors} e JOIN {supervised_jobs} j ON j.id = e.supervised_job_id "
        f"WHERE e.worker_id = ? AND e.outcome = 'lost' ORDER BY j.job_id LIMIT {DETAIL_ROWS}"
    )
    return sorted(select(store, text, (worker_id,)), key=lambda row: ((row["context"] or {}).get("suspicion") or {}).get("place", 0))


def list_events(store: Store, *, since: datetime | None = None, limit: int = 100) -> list[Row]:
    """Stored events, newest first."""
    where, values = ("WHERE created_at >= ? ", (_moment(store, since),)) if since else ("", ())
    return select(store, f"SELECT * FROM {{events}} {where}ORDER BY created_at DESC LIMIT {int(limit)}", values)


def service_events(store: Store, service: str, *, limit: int = 100) -> list[Row]:
    """Stored events about a service, newest first."""
    text = f"SELECT * FROM {{events}} WHERE service = ? ORDER BY created_at DESC, id DESC LIMIT {int(limit)}"
    return select(store, text, (service,))


def event_page(
    store: Store,
    *,
    job: str | None = None,
    name: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
    after: str | None = None,
) -> tuple[list[Row], str | None]:
    """Stored events, newest first, at most *limit*, and what to pass as *after* for the next page (None: that was the last).

    With a *name* a page may be short, and still have a next one: it looks through 100,000 events.

    Parameters:
      job: only those about the job of this id.
      name: only those of this class, ``'JobLost'``.

    Raises:
      ValueError: *after* is not from here.
    """
    picked = _Picked()
    if job is not None:
        picked.where("job_id = ?", job)
    if since is not None:
        picked.where("created_at >= ?", _moment(store, since))
    if after is not None:
        picked.where(*_older(store, after))
    newest = f"FROM {{events}}{picked.clause} ORDER BY created_at DESC, id DESC"
    if name is None:
        return _page(select(store, f"SELECT * {newest} LIMIT {int(limit) + 1}", picked.values), limit)
    searched = f"SELECT * {newest} LIMIT {EVENTS_SEARCHED}"
    text = f"SELECT * FROM ({searched}) AS e WHERE name = ? ORDER BY created_at DESC, id DESC LIMIT {int(limit) + 1}"
    found, following = _page(select(store, text, [*picked.values, name]), limit)
    if following is None:
        last = select(store, f"SELECT id, created_at {newest} LIMIT 1 OFFSET {EVENTS_SEARCHED - 1}", picked.values)
        following = _encode(last[0]) if last else None
    return found, following


def list_violations(store: Store, *, since: datetime, limit: int = 50) -> tuple[list[Row], int]:
    """Limits that were passed since then, newest first, at most *limit*, and how many there are in all.

    Beside its columns each has the ``job_id`` of its job; None where only the worker is known.
    """
    values = (_moment(store, since),)
    text = (
        "SELECT v.*, j.job_id FROM {resource_violations} v LEFT JOIN {supervised_jobs} j ON j.id = v.supervised_job_id "
        f"WHERE v.created_at >= ? ORDER BY v.created_at DESC, v.id DESC LIMIT {int(limit)}"
    )
    total = store.rows("SELECT COUNT(*) FROM {resource_violations} WHERE created_at >= ?", values)[0][0]
    return select(store, text, values), int(total)


#: How a running job is, but for those of which nothing was heard; as the scopes of the models.
_HEALTH: Final = (
    "CASE WHEN j.status = 'stalled' THEN 'unhealthy' WHEN j.health IN ('degraded', 'unhealthy') THEN j.health "
    "WHEN {unseen} THEN 'unknown' ELSE COALESCE(j.health, 'healthy') END"
)
_WORKER_HEARD: Final = "(SELECT w.last_heartbeat_at FROM {workers} w WHERE w.worker_id = j.worker_id)"


class _Unseen:
    """The condition that nothing was heard of a job, nor of its worker, for too long; *j* is the job.

    The worker's word is enough: it may look seldom at a job that is well, and then has nothing to report of it.
    """

    def __init__(self, store: Store, now: datetime) -> None:
        since = _moment(store, now - timedelta(seconds=UNSEEN_S))
        slow = _slow_workers(store, now)
        heard = "EXISTS (SELECT 1 FROM {workers} w WHERE w.worker_id = j.worker_id AND w.last_heartbeat_at >= ?)"
        is_slow = f" AND COALESCE(j.worker_id, '') NOT IN ({_marks(slow)})" if slow else ""
        self.text = f"(j.updated_at < ? AND NOT {heard}{is_slow})"
        self.values = (since, since, *slow)
        self.health = _HEALTH.replace("{unseen}", self.text)


def _slow_workers(store: Store, now: datetime) -> list[str]:
    """Workers that were not heard of lately, and need not have been: their heartbeats are far apart."""
    since = _moment(store, now - timedelta(seconds=UNSEEN_S))
    return [
        heard.origin.worker_id
        for heard in live_workers(store, silent_since=since)
        if now.timestamp() - (heard.heard_at or 0.0) <= UNSEEN_BEATS * (heard.interval_s or 0.0)
    ]


def running_health(store: Store, *, now: datetime, among: Sequence[str] = (), limit: int = 50) -> list[Row]:
    """Running jobs in these states of health, or in all; newest first, at most *limit*.

    Beside its columns each has ``check``: the last record of its health, None while there is none; ``is_unseen``: whether
    nothing was heard of it for too long; and ``heard_at``, when something was.  A job that is stuck is unhealthy, one that is
    unseen is unknown, unless it was worse before; and one that nobody has looked at yet is healthy.
    """
    unseen = _Unseen(store, now)
    picked = f" AND {unseen.health} IN ({_marks(among)})" if among else ""
    text = f"{_seen(unseen)} WHERE j.status IN ('running', 'stalled'){picked} ORDER BY j.created_at DESC, j.id DESC LIMIT {int(limit)}"
    rows = select(store, text, (*unseen.values, *(unseen.values if among else ()), *among))
    checks = {str(each["supervised_job_id"]): each for each in _last_checks(store, [row["id"] for row in rows])}
    for row in rows:
        check = checks.get(str(row["id"]))
        row["check"] = check if check is not None and check["run_id"] == row["run_id"] else None
        _add_heard(row)
    return rows


def _seen(unseen: _Unseen) -> str:
    return (
        f"SELECT j.*, {_WORKER_HEARD} AS worker_heard_at, CASE WHEN {unseen.text} THEN 1 ELSE 0 END AS is_unseen FROM {{supervised_jobs}} j"
    )


def _add_heard(row: Row) -> None:
    worker_heard_at = row.pop("worker_heard_at")
    row["is_unseen"] = bool(row["is_unseen"]) and row["status"] in {"running", "stalled"}
    row["heard_at"] = max(row["updated_at"], worker_heard_at or row["updated_at"])


def heard_of(store: Store, job_id: str, *, now: datetime) -> Row:
    """``is_unseen`` and ``heard_at`` of a job, as in :func:`running_health`; nothing if it is not known."""
    unseen = _Unseen(store, now)
    found = select(store, f"{_seen(unseen)} WHERE j.job_id = ?", (*unseen.values, job_id))
    for row in found:
        _add_heard(row)
    return {name: found[0][name] for name in ("is_unseen", "heard_at")} if found else {}


def _last_checks(store: Store, jobs: Sequence[Any]) -> list[Row]:
    if not jobs:
        return []
    last = "SELECT l.id FROM {job_health_checks} l WHERE l.supervised_job_id = c.supervised_job_id "
    last += "ORDER BY l.created_at DESC, l.id DESC LIMIT 1"
    text = f"SELECT c.* FROM {{job_health_checks}} c WHERE c.supervised_job_id IN ({_marks(jobs)}) AND c.id = ({last})"
    return select(store, text, jobs)


def health_counts(store: Store, *, now: datetime) -> dict[str, int]:
    """How many running jobs are in each state of health."""
    unseen = _Unseen(store, now)
    text = f"SELECT {unseen.health} AS found, COUNT(*) FROM {{supervised_jobs}} j WHERE j.status IN ('running', 'stalled') GROUP BY found"
    return {"healthy": 0, "degraded": 0, "unhealthy": 0, "unknown": 0, **dict(store.rows(text, unseen.values))}


def list_breakers(store: Store, *, limit: int = 1000) -> list[Row]:
    """Circuit breakers, by the name of their service."""
    rows = select(store, f"SELECT * FROM {{circuit_breakers}} ORDER BY service LIMIT {int(limit)}")
    for row in rows:
        row.pop("details", None)  # the machine's own notes; what people want of them is in the columns
    return rows


def job_counts(store: Store, statuses: Sequence[str]) -> dict[str, int]:
    """How many jobs are in each of these states; fast for those in which few are."""
    text = f"SELECT status, COUNT(*) FROM {{supervised_jobs}} WHERE status IN ({_marks(statuses)}) GROUP BY status"
    return {**dict.fromkeys(statuses, 0), **dict(store.rows(text, statuses))}


def actor_summary(store: Store, *, since: datetime) -> list[Row]:
    """What each actor did since then, by queue and actor: runs by outcome, retries, and sums of seconds.

    It is read from the minute rollups, so it begins at the full minute.
    """
    sums = ("runs_succeeded", "runs_failed", "runs_interrupted", "runs_killed", "runs_lost", "retries")
    seconds = ("duration_seconds", "wait_seconds", "cpu_seconds")
    picked = ", ".join(f"SUM({name}) AS {name}" for name in (*sums, *seconds, *(f"bucket_{n:02}" for n in range(len(BOUNDS)))))
    text = f"SELECT queue, actor_name, {picked} FROM {{rollups}} WHERE minute_at >= ? GROUP BY queue, actor_name ORDER BY queue, actor_name"
    rows = select(store, text, (_moment(store, since.replace(second=0, microsecond=0)),))
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
        for row in select(store, text, (_moment(store, since),))
    ]


def list_queues(store: Store) -> list[Row]:
    """The last reading of each queue of each broker, by name; ``read_at`` says how old it is.  Lengths are messages."""
    picked = ", ".join(
        store.quote(name) for name in ("queue", "broker", "ready", "delayed", "dead", "oldest_at", "paused", "paused_for", "read_at")
    )
    return select(store, f"SELECT {picked} FROM {{queues}} ORDER BY queue, broker")


def queue_rates(store: Store, *, since: datetime) -> dict[str, dict[str, int]]:
    """What went into each queue and came out of it since then: ``{queue: {"jobs_in": number, "runs_out": number}}``.

    In are jobs first heard of; a retry is none.  Out are runs that ended, in whatever way, from the full minute on.
    """
    found = {queue: {"jobs_in": 0, "runs_out": 0} for queue in names(store, "queue")}
    at = _moment(store, since)
    for queue, numbers in found.items():
        text = "SELECT COUNT(*) FROM {supervised_jobs} WHERE queue = ? AND created_at >= ?"
        numbers["jobs_in"] = int(store.rows(text, (queue, at))[0][0])
    runs = " + ".join(f"runs_{outcome}" for outcome in RUN_OUTCOMES)
    text = f"SELECT queue, SUM({runs}) FROM {{rollups}} WHERE minute_at >= ? GROUP BY queue"
    for queue, count in store.rows(text, (_moment(store, since.replace(second=0, microsecond=0)),)):
        found.setdefault(queue, {"jobs_in": 0, "runs_out": 0})["runs_out"] = int(count)
    return found


def counters(store: Store, *, name: str | None = None) -> list[tuple[str, dict[str, str], float]]:
    """Every counter as (name, labels, value); one row a bucket, each observation in one bucket only."""
    where, values = (" WHERE name = ?", (name,)) if name else ("", ())
    rows = select(store, f"SELECT name, labels, value FROM {{counters}}{where} ORDER BY name", values)
    return [(row["name"], row["labels"], float(row["value"])) for row in rows]


def open_jobs(store: Store) -> dict[str, dict[str, int]]:
    """What has not ended: queue to status to number."""
    found: dict[str, dict[str, int]] = {}
    text = f"SELECT queue, status, COUNT(*) FROM {{supervised_jobs}} WHERE status IN ({_marks(LIVE)}) GROUP BY queue, status"
    for queue, status, count in store.rows(text, LIVE):
        found.setdefault(queue or "", {})[status] = count
    return found


def running_by_actor(store: Store) -> list[Row]:
    """What runs, by queue, actor and limits: queue, actor_name, limits, started_at of the oldest, memory_peak, the highest, and
    memory_exact, the highest that is used now by one of those whose memory is told apart.
    """
    text = (
        "SELECT queue, actor_name, limits, MIN(started_at) AS started_at, MAX(memory_peak) AS memory_peak, "
        "MAX(CASE WHEN memory_attribution = 'exact' THEN memory_usage END) AS memory_exact FROM {supervised_jobs} "
        "WHERE status IN ('running', 'stalled') GROUP BY queue, actor_name, limits ORDER BY queue, actor_name"
    )
    return select(store, text)


def oldest_pending(store: Store, *, among: int = 1000) -> dict[str, datetime]:
    """Queue to the time of its oldest job that waits and is due, where that is *among* the oldest that wait at all."""
    text = (
        "SELECT queue, created_at, enqueued_at, eta, retry_at FROM {supervised_jobs} "
        f"WHERE status = 'pending' ORDER BY created_at LIMIT {int(among)}"
    )
    oldest: dict[str, datetime] = {}
    for row in select(store, text):
        if row["eta"] is None and row["retry_at"] is None:
            oldest.setdefault(row["queue"] or "", row["enqueued_at"] or row["created_at"])
    return oldest


def worker_counts(store: Store) -> dict[str, int]:
    """Workers on record: status to number."""
    return dict(store.rows("SELECT status, COUNT(*) FROM {workers} GROUP BY status"))


def queue_workers(store: Store) -> dict[str, int]:
    """Queue to the number of the worker processes that fetch from it."""
    found: dict[str, int] = {}
    for queues, count in store.rows("SELECT queues, COUNT(*) FROM {workers} WHERE status = 'running' GROUP BY queues"):
        for queue in json.loads(queues or "[]"):
            found[queue] = found.get(queue, 0) + int(count)
    return found


def last_losses(store: Store, *, since: datetime) -> dict[str, datetime]:
    """Host to when a worker of it was lost last, of those since then."""
    text = "SELECT host, MAX(stopped_at) FROM {workers} WHERE status = 'lost' AND stopped_at >= ? GROUP BY host"
    found = ((host or "", aware(at)) for host, at in store.rows(text, (_moment(store, since),)))
    return {host: at for host, at in found if at is not None}


def running_on(store: Store, worker_id: str) -> list[Row]:
    """The jobs that run in a worker, stuck ones too, sorted by their ids."""
    return select(
        store,
        "SELECT job_id, run_id, actor_name, queue, worker_id, thread, status, heartbeat_interval, last_heartbeat_at, missed_heartbeats, "
        "limits, timeout_at FROM {supervised_jobs} WHERE worker_id = ? AND status IN ('running', 'stalled') AND ended_at IS NULL "
        "ORDER BY job_id",
        (worker_id,),
    )


#: So many stuck jobs are listed at most.
STUCK_ROWS: Final = 1000


def stuck_jobs(store: Store, *, now: datetime, threshold_s: float | None = None) -> list[Row]:
    """The jobs that are stuck, those that were heard of longest ago first, with ``diagnosis`` and ``cause``, None where nothing was seen.

    Parameters:
      threshold_s: instead of those that are called stuck, the running ones that owe heartbeats and sent none for so long.
    """
    text, values = "status = 'stalled'", []
    if threshold_s is not None:
        text = (
            "status IN ('running', 'stalled') AND (heartbeat_interval IS NOT NULL OR last_heartbeat_at IS NOT NULL) "
            "AND COALESCE(last_heartbeat_at, started_at) <= ?"
        )
        values = [_moment(store, now - timedelta(seconds=threshold_s))]
    columns = "job_id, run_id, actor_name, queue, status, started_at, last_heartbeat_at, heartbeat_interval, missed_heartbeats, worker_id"
    found = select(
        store,
        f"SELECT {columns} FROM {{supervised_jobs}} WHERE {text} AND ended_at IS NULL "
        f"ORDER BY COALESCE(last_heartbeat_at, started_at) LIMIT {STUCK_ROWS}",
        values,
    )
    for job in found:
        job["diagnosis"], job["cause"] = _diagnosed(store, job["job_id"], job["run_id"])
    return found


def _diagnosed(store: Store, job_id: str, run_id: str) -> tuple[str | None, str | None]:
    text = "SELECT data FROM {events} WHERE job_id = ? AND name IN ('JobStuck', 'JobDiagnosed') ORDER BY created_at DESC, id DESC LIMIT 20"
    for row in select(store, text, (job_id,)):
        data = row["data"] or {}
        if data.get("run_id") == run_id and data.get("diagnosis"):
            return data["diagnosis"], data.get("cause")
    return None, None
