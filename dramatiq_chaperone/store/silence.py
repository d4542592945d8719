"""Workers that should be heard of, and what becomes of those that are not: the monitor's share, each for the inside of a transaction."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..records import Origin
from .rows import put_events
from .times import iso, stored_time, unix_time

if TYPE_CHECKING:
    from . import Store


#: Who has reported a violation, where it was not the worker.
_MONITOR: Final = "monitor"


class Heard(NamedTuple):
    """A live worker, as its row has it."""

    origin: Origin
    beat: int
    #: By its own clock, Unix seconds.
    heard_at: float | None
    #: Seconds between two of its beats; None where it does not say.
    interval_s: float | None


def live_workers(store: Store, *, silent_since: Any = None) -> list[Heard]:
    """Workers that have neither stopped nor been lost.

    Parameters:
      silent_since: only those whose last heartbeat is older, a time as the database has it.
    """
    picked, values = (" AND last_heartbeat_at < ?", (silent_since,)) if silent_since is not None else ("", ())
    text = (
        "SELECT worker_id, host, host_identity, pid, process_started_at, beat, last_heartbeat_at, gauges FROM {workers} "
        f"WHERE status IN ('running', 'paused'){picked} ORDER BY worker_id"
    )
    return [_heard(*row) for row in store.rows(text, values)]


def _heard(
    worker_id: str, host: str | None, identity: str | None, pid: int | None, started: Any, beat: int | None, heard: Any, gauges: Any
) -> Heard:
    interval = _data(gauges).get("heartbeat_s")
    origin = Origin(worker_id, host or "", identity or "", int(pid or 0), unix_time(started) or 0.0, "worker")
    return Heard(origin, int(beat or 0), unix_time(heard), interval if isinstance(interval, (int, float)) else None)


def record_overdue(store: Store, worker: Heard, *, silent_s: float, grace_s: float, at: float) -> list[str]:
    """Record the timeouts of jobs that their worker cannot report, for it is silent; each once.

    It is the worker's clock that counts: when it was heard of last, and how long that is ago.

    Returns the ids of the jobs.
    """
    if worker.heard_at is None:
        return []
    now = worker.heard_at + silent_s
    text = (
        "SELECT id, job_id, run_id, actor_name, queue, started_at, timeout_at FROM {supervised_jobs} j "
        "WHERE worker_id = ? AND ended_at IS NULL AND status IN ('running', 'stalled') AND timeout_at < ? AND NOT EXISTS ("
        "SELECT 1 FROM {resource_violations} v WHERE v.supervised_job_id = j.id AND v.run_id = j.run_id AND v.type = 'timeout') "
        "ORDER BY job_id"
    )
    values = (worker.origin.worker_id, stored_time(store.kind, max(0.0, now - grace_s)))
    overdue = [_Overdue(*row) for row in store.rows(text, values)]
    for job in overdue:
        _record(store, worker, job, now, at)
    return [job.job_id for job in overdue]


def timeout_reported(store: Store, job_id: str, run_id: str) -> bool:
    """Whether :func:`record_overdue` has put the timeout of this run on record."""
    text = (
        "SELECT v.metadata FROM {resource_violations} v JOIN {supervised_jobs} j ON j.id = v.supervised_job_id "
        "WHERE j.job_id = ? AND v.run_id = ? AND v.type = 'timeout'"
    )
    return any(_data(metadata).get("reported_by") == _MONITOR for (metadata,) in store.rows(text, (job_id, run_id)))


def _data(value: Any) -> dict[str, Any]:
    found = json.loads(value) if isinstance(value, str) else value
    return found if isinstance(found, dict) else {}


class _Overdue(NamedTuple):
    job: Any
    job_id: str
    run_id: str
    actor: str | None
    queue: str | None
    started_at: Any
    timeout_at: Any


def _record(store: Store, worker: Heard, job: _Overdue, now: float, at: float) -> None:
    due = unix_time(job.timeout_at) or now
    began = unix_time(job.started_at) or due
    limit, actual, worker_id = round(due - began, 3), round(now - began, 3), worker.origin.worker_id
    metadata = json.dumps({"reported_by": _MONITOR, "worker_silent_since": iso(worker.heard_at or now)})
    known: dict[str, Any] = {
        "supervised_job_id": job.job, "worker_id": worker_id, "created_at": stored_time(store.kind, at), "run_id": job.run_id,
        "type": "timeout", "limit": limit, "actual": actual, "attribution": "exact", "metadata": metadata,
    }  # fmt: skip
    key = store.new_key()
    if key is not None:
        known["id"] = key
    names, marks = ", ".join(map(store.quote, known)), ", ".join("?" for _ in known)
    store.execute(f"INSERT INTO {{resource_violations}} ({names}) VALUES ({marks})", list(known.values()))
    data = {
        "job_id": job.job_id, "actor_name": job.actor, "queue": job.queue, "worker_id": worker_id, "run_id": job.run_id,
        "timeout_seconds": limit, "actual_duration": actual,
    }  # fmt: skip
    rows = [[at, "JobTimeout", job.job_id, worker_id, None, json.dumps(data)]]
    put_events(store, rows)
