"""What dead workers held: whose messages have to go back, which of them are suspects, and how often each ended its worker.

A *suspect* is a message that a worker held when it died.  Its next starts are written down here before it runs, so that
they count even where the journal of the worker is gone with its disk.  So is one that an operator has cancelled, for a
while: where its rejection did not reach the broker, it comes again.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import statements
from .batch import clean_key
from .rows import put
from .times import stored_time, unix_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from . import Store

#: So many suspects are told to the workers, the latest.
MAX_SUSPECTS: Final = 4000
#: A worker that was not heard of for so long, in seconds, is not believed to run anything: its message came to another.
SILENT_S: Final = 20.0
#: A message that was cancelled is a suspect for so long, in seconds.
CANCELLED_S: Final = 3600.0
#: After so long, in seconds, nobody looks for the messages of a dead worker any more: the broker has given them back itself.
GIVE_UP_S: Final = 86_400.0

_SUSPECT: Final = (("job_id", "key"), ("worker_id", "key"), ("created_at", "time"), ("started_at", "time"), ("unseen", "int"))
_SUSPECT_UPDATE: Final = ("started_at = COALESCE(e.started_at, o.started_at)",)
_RETURN: Final = (
    *(("worker_id", "key"), ("created_at", "time"), ("broker", "word"), ("broker_id", "key"), ("queues", "text")),
    *(("certain", "int"), ("done_at", "time")),
)
_FINAL: Final = "('completed', 'failed', 'cancelled', 'skipped')"


class Return(NamedTuple):
    """A dead worker whose messages have to go back."""

    worker_id: str
    #: Of its broker object: the name of its leases.
    broker_id: str
    queues: tuple[str, ...]
    #: Whether its death was seen.  Else it is only silent, and its leases count until they have run out.
    is_certain: bool


class Cancelled(NamedTuple):
    """A message that an operator has ended for good."""

    #: Who asked, and why, as far as that is on record.
    by: str
    reason: str
    #: Whether it is on record among the dead letters.
    has_letter: bool


class Crash(NamedTuple):
    """A run of a message that ended with its worker."""

    worker_id: str
    #: Unix seconds; None where it is not known.
    at: float | None
    #: ``'SIGKILL'``; None where it is not known.
    cause: str | None


def note_loss(store: Store, worker_id: str, job_ids: Iterable[str], *, at: float, is_certain: bool) -> None:
    """A worker died, and these runs with it.  Part of the transaction that records the loss."""
    suspect(store, worker_id, job_ids, at=at)
    found = store.rows("SELECT broker, broker_id, queues FROM {workers} WHERE worker_id = ?", (worker_id,))
    broker, broker_id, queues = found[0] if found else (None, None, None)
    if broker_id is None:
        return  # its broker gives the messages of a dead connection back by itself
    text = "SELECT 1 FROM {workers} WHERE broker_id = ? AND worker_id <> ? AND status NOT IN ('stopped', 'lost')"
    if store.rows(text, (broker_id, worker_id)):
        return  # forks of one process, which share their leases
    update = ("certain = CASE WHEN e.certain > o.certain THEN e.certain ELSE o.certain END",)
    statement = statements.insert(store.kind, "returns", _RETURN, store.key_type, key="worker_id", update=update)
    put(store, _RETURN, [[worker_id, at, broker, broker_id, queues, int(is_certain), None]], statement)


def suspect(store: Store, worker_id: str, job_ids: Iterable[str], *, at: float, unseen: bool = False) -> None:
    """A worker that is dead held these messages.  A second time changes nothing.

    Parameters:
      unseen: nobody can tell which of them ran: the worker's journal is gone.
    """
    rows = [[clean_key(job_id), worker_id, at, None, int(unseen)] for job_id in sorted(set(job_ids))]
    _put_suspects(store, rows)


def not_dead(store: Store, worker_id: str) -> None:
    """A worker that was only silent is heard of: what it held is no suspect, and nothing of it has to go back.

    For the inside of the transaction of its report.
    """
    store.execute("DELETE FROM {suspects} WHERE worker_id = ? AND started_at IS NULL", (worker_id,))
    store.execute("DELETE FROM {returns} WHERE worker_id = ? AND done_at IS NULL", (worker_id,))


def begin(store: Store, job_id: str, worker_id: str, *, at: float) -> None:
    """A suspect is about to run."""
    store.transact(lambda: _put_suspects(store, [[clean_key(job_id), worker_id, at, at, 0]]))


def _put_suspects(store: Store, rows: list[list[Any]]) -> None:
    if rows:
        statement = statements.insert(store.kind, "suspects", _SUSPECT, store.key_type, key="job_id, worker_id", update=_SUSPECT_UPDATE)
        put(store, _SUSPECT, rows, statement)


def suspects(store: Store) -> list[str]:
    """The messages that a dead worker held and that have not come to an end, those of the latest crash first; then what was cancelled."""
    text = (
        "SELECT s.job_id FROM {suspects} s LEFT JOIN {supervised_jobs} j ON j.job_id = s.job_id "
        f"WHERE j.id IS NULL OR j.status NOT IN {_FINAL} OR j.status = 'cancelled' GROUP BY s.job_id "
        "ORDER BY MAX(CASE WHEN j.status = 'cancelled' THEN 1 ELSE 0 END), MAX(s.created_at) DESC, s.job_id "
        f"LIMIT {MAX_SUSPECTS}"
    )
    return [job_id for (job_id,) in store.rows(text)]


def sweep(store: Store) -> int:
    """Forget suspects whose jobs have ended, so that there are never many; at most 500, how many it were."""
    text = (
        "SELECT s.id FROM {suspects} s JOIN {supervised_jobs} j ON j.job_id = s.job_id "
        f"WHERE j.status IN {_FINAL} AND (j.status <> 'cancelled' OR s.created_at < ?) ORDER BY s.id LIMIT 500"
    )
    keys = [key for (key,) in store.rows(text, (stored_time(store.kind, time.time() - CANCELLED_S),))]
    if keys:
        marks = ", ".join("?" for _ in keys)
        store.transact(lambda: store.execute(f"DELETE FROM {{suspects}} WHERE id IN ({marks})", keys))
    return len(keys)


def returns(store: Store) -> list[Return]:
    """The dead workers whose messages have not gone back yet, the first to die first."""
    text = (
        "SELECT worker_id, broker_id, queues, certain FROM {returns} WHERE done_at IS NULL AND created_at >= ? "
        "ORDER BY created_at, worker_id LIMIT 100"
    )
    since = stored_time(store.kind, time.time() - GIVE_UP_S)
    return [
        Return(worker_id, broker_id, tuple(json.loads(queues or "[]")), bool(certain))
        for worker_id, broker_id, queues, certain in store.rows(text, (since,))
    ]


def given_back(store: Store, worker_id: str, *, at: float) -> None:
    """The messages of a dead worker are in their queues again."""
    text = "UPDATE {returns} SET done_at = ? WHERE worker_id = ? AND done_at IS NULL"
    store.transact(lambda: store.execute(text, (stored_time(store.kind, at), worker_id)))


def counts(store: Store, job_ids: Sequence[str]) -> dict[str, int]:
    """How many crashes are recorded of each of these messages; of those that had one."""
    if not job_ids:
        return {}
    found: dict[str, int] = {}
    for first in range(0, len(job_ids), 500):
        keys = [clean_key(job_id) for job_id in job_ids[first : first + 500]]
        text = f"SELECT job_id, crashes FROM {{supervised_jobs}} WHERE crashes > 0 AND job_id IN ({', '.join('?' for _ in keys)})"
        found.update({job_id: int(crashes) for job_id, crashes in store.rows(text, keys)})
    return found


def crashes(store: Store, job_id: str) -> list[Crash]:
    """The runs of a message that ended with their worker, oldest first.

    Beside those that were recorded as lost: starts that were written through, of workers that are gone and reported no end;
    and, once at most, that it was in the hands of a dead worker whose journal is gone.  What has ended, and was only not
    acknowledged any more, has no such.
    """
    key = clean_key(job_id)
    text = (
        "SELECT e.worker_id, e.ended_at, e.exit_cause FROM {supervised_job_errors} e JOIN {supervised_jobs} j "
        "ON j.id = e.supervised_job_id WHERE j.job_id = ? AND e.outcome = 'lost'"
    )
    found = [Crash(worker_id, unix_time(at), cause) for worker_id, at, cause in store.rows(text, (key,))]
    text = (
        "SELECT s.worker_id, s.created_at, s.started_at, w.exit_cause FROM {suspects} s LEFT JOIN {workers} w ON w.worker_id = s.worker_id "
        "LEFT JOIN {supervised_jobs} o ON o.job_id = s.job_id "
        f"WHERE s.job_id = ? AND (o.id IS NULL OR o.status NOT IN {_FINAL}) AND (s.started_at IS NOT NULL OR s.unseen = 1) "
        "AND (w.id IS NULL OR w.status = 'lost' OR (w.status = 'running' AND w.updated_at < ?)) "
        "AND NOT EXISTS (SELECT 1 FROM {supervised_job_errors} e JOIN {supervised_jobs} j "
        "ON j.id = e.supervised_job_id WHERE j.job_id = s.job_id AND e.worker_id = s.worker_id "
        "AND (s.started_at IS NULL OR e.ended_at >= s.started_at)) ORDER BY s.created_at"
    )
    is_unseen = True
    for worker_id, created_at, started_at, cause in store.rows(text, (key, stored_time(store.kind, time.time() - SILENT_S))):
        if started_at is not None:
            found.append(Crash(worker_id, unix_time(started_at), cause))
        elif is_unseen:
            is_unseen = False
            found.append(Crash(worker_id, unix_time(created_at), cause))
    return sorted(found, key=lambda crash: crash.at or 0.0)


def returned(store: Store, starts: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """How long messages were lost that run again: job_id to the seconds since the death of the worker that ran them was recorded.

    Parameters:
      starts: of runs that have begun: job_id to when, in Unix seconds, and to the retries of the message.  A run that was lost comes
        again with as many as it had.
    """
    held = sorted({job_id for (job_id,) in store.rows("SELECT DISTINCT job_id FROM {suspects}")} & starts.keys())
    found: dict[str, float] = {}
    for first in range(0, len(held), 500):
        keys = held[first : first + 500]
        text = (
            "SELECT j.job_id, e.ended_at, e.context FROM {supervised_job_errors} e JOIN {supervised_jobs} j ON j.id = e.supervised_job_id "
            f"WHERE e.outcome = 'lost' AND j.job_id IN ({', '.join('?' for _ in keys)}) ORDER BY e.ended_at"
        )
        for job_id, ended_at, context in store.rows(text, keys):
            known = json.loads(context) if isinstance(context, str) else context or {}
            at, retries = starts[job_id]
            lost_s = at - (unix_time(ended_at) or at)
            if known.get("retries") == retries and lost_s > 0:
                found[job_id] = lost_s
    return found


def cancelled(store: Store, job_id: str) -> Cancelled | None:
    """What is known of a message that an operator has ended for good; None where that is not so."""
    key = clean_key(job_id)
    text = "SELECT COUNT(d.id) FROM {supervised_jobs} j LEFT JOIN {dead_letter_jobs} d ON d.job_id = j.job_id WHERE j.job_id = ? AND "
    found = store.rows(text + "j.status = 'cancelled' GROUP BY j.id", (key,))
    if not found:
        return None
    text = "SELECT data FROM {events} WHERE job_id = ? AND name = 'JobCancelled' ORDER BY created_at DESC LIMIT 1"
    data: Any = next((data for (data,) in store.rows(text, (key,))), {})
    told = json.loads(data) if isinstance(data, str) else data
    return Cancelled(told.get("cancelled_by") or "operator", told.get("reason") or "", bool(found[0][0]))


def is_taken(store: Store, job_id: str, worker_id: str, *, since: float) -> bool:
    """Whether another worker than this has begun to run the message after *since* (Unix seconds)."""
    key = clean_key(job_id)
    text = (
        "SELECT worker_id, started_at FROM {supervised_jobs} WHERE job_id = ? "
        "UNION ALL SELECT worker_id, started_at FROM {open_runs} WHERE job_id = ? "  # one that was put aside
        "UNION ALL SELECT e.worker_id, e.started_at FROM {supervised_job_errors} e "  # one that has ended: then the row may be ours again
        "JOIN {supervised_jobs} j ON j.id = e.supervised_job_id WHERE j.job_id = ?"
    )
    runs = [(worker, unix_time(started_at)) for worker, started_at in store.rows(text, (key, key, key))]
    return any(worker not in {None, worker_id} and (started_at or 0.0) >= since for worker, started_at in runs)
