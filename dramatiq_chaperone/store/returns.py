"""A worker that was called lost for its silence is heard of again: its own report wins over what was inferred."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import crashes, statements
from .columns import OPEN_RUN, STATUS_LEVEL
from .losses import SILENT
from .rows import put, put_events
from .times import stored_time, unix_time

if TYPE_CHECKING:
    from ..records import Origin
    from . import Store

_INFERRED: Final = f"exit_cause LIKE '{SILENT}%'"


def worker_back(store: Store, origin: Origin) -> bool:
    """Take the verdict on a worker back, if there is one that was inferred.  For the inside of the transaction of its report.

    Its runs are open again: those that the rows of their jobs are still about run on there, the others are kept beside until
    their ends are reported.  What was counted stays counted.

    Returns whether there was one.
    """
    text = f"SELECT stopped_at FROM {{workers}} WHERE worker_id = ? AND status = 'lost' AND {_INFERRED}"
    found = store.rows(text, (origin.worker_id,))
    if not found:
        return False
    now = time.time()
    change = "status = 'running', stopped_at = NULL, exit_cause = NULL, updated_at = ?"
    text = f"UPDATE {{workers}} SET {change} WHERE worker_id = ? AND {_INFERRED}"
    store.execute(text, (stored_time(store.kind, now), origin.worker_id))
    crashes.not_dead(store, origin.worker_id)
    runs = _runs(store, origin.worker_id)
    for run in runs:
        _reopen(store, origin.worker_id, run)
    data = {
        "worker_id": origin.worker_id, "host": origin.host, "pid": origin.pid, "returned_at": datetime.fromtimestamp(now, UTC).isoformat(),
        "lost_for": round(max(0.0, now - (unix_time(found[0][0]) or now)), 1), "jobs": [run.job_id for run in runs],
    }  # fmt: skip
    rows = [[now, "WorkerReturned", None, origin.worker_id, None, json.dumps(data)]]
    put_events(store, rows)
    return True


class _Lost(NamedTuple):
    """A run that was called lost, and its job's row as it is now."""

    error: Any
    job: Any
    job_id: str
    run_id: str
    started_at: Any
    context: Any
    latest: str
    status: str
    level: int
    latest_retries: int | None


def _runs(store: Store, worker_id: str) -> list[_Lost]:
    text = (
        "SELECT e.id, j.id, j.job_id, e.run_id, e.started_at, e.context, j.run_id, j.status, j.level, j.run_retries "
        "FROM {supervised_job_errors} e JOIN {supervised_jobs} j ON j.id = e.supervised_job_id "
        f"WHERE e.worker_id = ? AND e.outcome = 'lost' AND e.{_INFERRED} ORDER BY j.job_id"
    )
    return [_Lost(*row) for row in store.rows(text + ("" if store.kind == "sqlite" else " FOR UPDATE"), (worker_id,))]


def _reopen(store: Store, worker_id: str, lost: _Lost) -> None:
    store.execute("DELETE FROM {supervised_job_errors} WHERE id = ?", (lost.error,))
    store.execute("UPDATE {supervised_jobs} SET crashes = crashes - 1 WHERE id = ? AND crashes > 0", (lost.job,))
    known = (json.loads(lost.context) if isinstance(lost.context, str) else lost.context) or {}
    if lost.latest != lost.run_id:
        retries = lost.latest_retries if known.get("retries") is None else known["retries"]
        row = [lost.run_id, lost.job_id, worker_id, retries, unix_time(lost.started_at), time.time()]
        update = ("created_at = e.created_at",)
        put(store, OPEN_RUN, [row], statements.insert(store.kind, "open_runs", OPEN_RUN, store.key_type, key="run_id", update=update))
    elif lost.status == "lost":
        was = "stalled" if known.get("status") == "stalled" else "running"
        level = lost.level - lost.level % 32 + STATUS_LEVEL["running"]  # stalled is running, seen more closely
        store.execute("UPDATE {supervised_jobs} SET status = ?, level = ?, ended_at = NULL WHERE id = ?", (was, level, lost.job))
    else:  # another run has told more of the message, as a retry
        store.execute("UPDATE {supervised_jobs} SET ended_at = NULL WHERE id = ?", (lost.job,))
