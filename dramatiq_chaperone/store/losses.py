"""A worker was lost: what it ran is recorded as lost too, with what is known of each run and which of them are suspect.

There are two verdicts.  A worker whose end was seen has crashed.  One that is silent for too long is lost, which is inferred:
its exit_cause says so (SILENT), and when it is heard of again the verdict is taken back (see :mod:`.returns`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..diagnosis import gone
from . import counters, crashes, evidence
from .columns import STATUS_LEVEL
from .incidents import Incidents
from .rows import put, put_events, write_statistics, write_worker
from .suspects import suspects
from .times import stored_time, unix_time

if TYPE_CHECKING:
    from ..records import Origin
    from . import Store

#: Suspects, and jobs, that the event of a loss names.
MAX_SUSPECTS: Final = 5
MAX_NAMED: Final = 100

_LOST: Final = STATUS_LEVEL["lost"]

#: A run that was lost, with what is known of it.
LOST: Final = (
    ("supervised_job_id", "key"),
    *(("created_at", "time"), ("run_id", "key"), ("attempt", "int"), ("outcome", "word"), ("worker_id", "key"), ("thread", "name")),
    *(("started_at", "time"), ("ended_at", "time"), ("exit_cause", "name"), ("memory_peak", "int"), ("cpu_seconds", "real")),
    ("context", "json"),
)
#: How the exit_cause of an inferred loss begins; no other does.
SILENT: Final = "silent"
#: What is not known is not guessed.
UNKNOWN: Final = "unknown"


#: What a row says of a run, and is not known of one that it returns to.
_OF_A_RUN: Final = (
    *("ended_at", "timeout_at", "thread", "memory_usage", "memory_peak", "cpu_usage", "cpu_seconds", "sampled_at"),
    *("last_heartbeat_at", "progress", "progress_current", "progress_total", "phase", "metadata"),
)


_END: Final = "UPDATE {supervised_jobs} SET ended_at = ?, crashes = crashes + 1 WHERE id = ?"
_LOSE: Final = "UPDATE {supervised_jobs} SET status = 'lost', level = ?, ended_at = ?, crashes = crashes + 1 WHERE id = ?"


class _Run(NamedTuple):
    job: Any
    job_id: str
    run_id: str
    attempt: int
    thread: str | None
    started_at: Any
    memory_peak: int | None
    cpu_seconds: float | None
    queue: str | None
    actor: str | None
    retries: int | None
    #: 'running' or 'stalled' where the job's row was about this run.
    status: str


class _Verdict(NamedTuple):
    #: The name of its event.
    event: str
    at: float
    exit_code: int | None
    exit_cause: str
    #: What the event says beside the rest.
    more: dict[str, Any]


def worker_lost(
    store: Store, origin: Origin, *, at: float, exit_code: int | None, exit_cause: str | None, is_certain: bool = False
) -> list[str]:
    """Record that a worker died, and every run that it had; a second call changes nothing but what is certain.

    Parameters:
      is_certain: its death was seen.  Then its messages go back to their queues at once, else when their leases have run out.

    Returns the ids of the jobs whose runs were lost with it, sorted; none if it had stopped cleanly.
    """
    verdict = _Verdict("WorkerCrashed", at, exit_code, (exit_cause or UNKNOWN)[:255], {"crashed_at": _iso(at)})
    return store.transact(lambda: _Loss(store, origin, verdict, is_certain=is_certain).run())


def worker_silent(store: Store, origin: Origin, *, beat: int, at: float, silent_s: float) -> list[str] | None:
    """Record that a worker is lost because nothing was heard of it.  For the inside of a transaction.

    Parameters:
      beat: the last that was seen of it; where the row has another by now, or is not that of a live worker, nothing is written.
      silent_s: for how long it was watched without a new one.

    Returns the ids of the jobs whose runs were lost with it, sorted; None where nothing is written.
    """
    lock = "" if store.kind == "sqlite" else " FOR UPDATE"
    text = "SELECT status, beat, last_heartbeat_at FROM {workers} WHERE worker_id = ?" + lock
    found = store.rows(text, (origin.worker_id,))
    if not found or found[0][0] not in {"running", "paused"} or int(found[0][1] or 0) != beat:
        return None
    heard_at = unix_time(found[0][2])
    more = {"lost_at": _iso(at), "last_heartbeat_at": None if heard_at is None else _iso(heard_at), "silent_for": round(silent_s, 1)}
    return _Loss(store, origin, _Verdict("WorkerLost", at, None, f"{SILENT} for {silent_s:.0f} s", more)).run()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


class _Loss:
    """One attempt at recording a loss."""

    def __init__(self, store: Store, origin: Origin, verdict: _Verdict, *, is_certain: bool = False) -> None:
        self._store, self._origin, self._verdict, self._at, self._is_certain = store, origin, verdict, verdict.at, is_certain

    def run(self) -> list[str]:
        store, worker_id = self._store, self._origin.worker_id
        found = store.rows("SELECT status, exit_cause FROM {workers} WHERE worker_id = ?" + self._for_update(), (worker_id,))
        if found and found[0][0] == "stopped":
            return []
        if not found or found[0][0] != "lost":
            self._record()
        elif str(found[0][1]).startswith(SILENT):
            self._certain()
        text = "SELECT j.job_id FROM {supervised_job_errors} e JOIN {supervised_jobs} j ON j.id = e.supervised_job_id "
        rows = store.rows(text + "WHERE e.worker_id = ? AND e.outcome = 'lost' ORDER BY j.job_id", (worker_id,))
        lost = [job_id for (job_id,) in rows]
        crashes.note_loss(store, worker_id, lost, at=self._at, is_certain=self._is_certain)
        return lost

    def _for_update(self) -> str:
        return "" if self._store.kind == "sqlite" else " FOR UPDATE"

    def _certain(self) -> None:
        """What was inferred from its silence has been seen now."""
        verdict, worker_id = self._verdict, self._origin.worker_id
        text = "UPDATE {workers} SET exit_code = ?, exit_cause = ? WHERE worker_id = ?"
        self._store.execute(text, (verdict.exit_code, verdict.exit_cause, worker_id))
        text = "UPDATE {supervised_job_errors} SET exit_cause = ? WHERE worker_id = ? AND outcome = 'lost'"
        self._store.execute(text, (verdict.exit_cause, worker_id))
        self._events([[self._at, verdict.event, None, worker_id, None, self._data(**verdict.more, **self._told())]])

    def _told(self) -> dict[str, Any]:
        """What was said of its runs when it was called lost."""
        text = "SELECT data FROM {events} WHERE worker_id = ? AND name = 'WorkerLost' ORDER BY created_at DESC, id DESC LIMIT 1"
        found = self._store.rows(text, (self._origin.worker_id,))
        data = found[0][0] if found else {}
        told = json.loads(data) if isinstance(data, str) else data
        return {name: told.get(name, []) for name in ("jobs", "suspects")}

    def _record(self) -> None:
        at, verdict = self._at, self._verdict
        known = {
            "created_at": at, "updated_at": at, "stopped_at": at, "status": "lost", "exit_code": verdict.exit_code,
            "exit_cause": verdict.exit_cause,
        }  # fmt: skip
        write_worker(self._store, self._origin, known, self._put)
        runs = self._latest()  # first: it waits for whoever puts one of them aside just now
        self._rows([*runs, *self._aside()])

    def _latest(self) -> list[_Run]:
        """The jobs that ran here: they are lost now, or run on where another run of them is open."""
        store, worker_id = self._store, self._origin.worker_id
        text = (
            "SELECT id, job_id, run_id, attempt, thread, started_at, memory_peak, cpu_seconds, queue, actor_name, run_retries, status, "
            "level FROM {supervised_jobs} WHERE worker_id = ? AND ended_at IS NULL ORDER BY job_id"
        )
        runs = []
        for *facts, level in store.rows(text + self._for_update(), (worker_id,)):
            run = _Run(*facts)
            runs.append(run)
            first = level - level % 32
            if run.status not in {"running", "stalled"}:  # another run has told more of this message
                store.execute(_END, (self._stored(), run.job))
            elif not self._go_on(run, first, run.retries):
                store.execute(_LOSE, (first + _LOST, self._stored(), run.job))
        return runs

    def _go_on(self, run: _Run, level: int, retries: int | None) -> bool:
        """Show another run of the same delivery that is still open: its start was reported before that of the lost one."""
        store = self._store
        text = "SELECT run_id, worker_id, started_at FROM {open_runs} WHERE job_id = ? AND retries = ? AND worker_id <> ? ORDER BY run_id"
        open_runs = store.rows(text, (run.job_id, retries, self._origin.worker_id))
        if not open_runs:
            return False
        change = ", ".join(f"{name} = NULL" for name in _OF_A_RUN)
        text = (
            f"UPDATE {{supervised_jobs}} SET {change}, status = 'running', level = ?, run_id = ?, worker_id = ?, started_at = ?, "
            "crashes = crashes + 1 WHERE id = ?"
        )
        store.execute(text, (level + STATUS_LEVEL["running"], *open_runs[0], run.job))
        store.execute("DELETE FROM {open_runs} WHERE run_id = ?", (open_runs[0][0],))
        return True

    def _aside(self) -> list[_Run]:
        """Runs that were open here, but not their row's any more."""
        store, worker_id = self._store, self._origin.worker_id
        text = (
            "SELECT j.id, j.job_id, r.run_id, CASE WHEN j.attempt > 1 THEN j.attempt - 1 ELSE 1 END, NULL, r.started_at, NULL, NULL, "
            "j.queue, j.actor_name, r.retries, 'aside' FROM {open_runs} r JOIN {supervised_jobs} j ON j.job_id = r.job_id "
            "WHERE r.worker_id = ? ORDER BY j.job_id"
        )
        runs = [_Run(*facts) for facts in store.rows(text, (worker_id,))]
        for run in runs:
            store.execute("UPDATE {supervised_jobs} SET crashes = crashes + 1 WHERE id = ?", (run.job,))
        store.execute("DELETE FROM {open_runs} WHERE worker_id = ?", (worker_id,))
        return runs

    def _rows(self, runs: list[_Run]) -> None:
        statistics: counters.Statistics = {}
        incidents = Incidents()
        incidents.worker_lost(self._verdict.exit_cause)
        peaks: counters.Peaks = {}
        at, worker_id, verdict = self._at, self._origin.worker_id, self._verdict
        known = evidence.collect(self._store, [(run.job, run.run_id) for run in runs])
        stuck = {run.run_id for run in runs if run.status == "stalled"}
        known = {run_id: facts._replace(is_stuck=facts.is_stuck or run_id in stuck) for run_id, facts in known.items()}
        ranked = suspects([known[run.run_id] for run in runs], at=at, exit_cause=verdict.exit_cause)
        told = [each._asdict() for each in ranked]
        data = self._data(**verdict.more, jobs=[run.job_id for run in runs][:MAX_NAMED], suspects=told[:MAX_SUSPECTS])
        events = [[at, verdict.event, None, worker_id, None, data]]
        places = {each.run_id: (place, each.reasons) for place, each in enumerate(ranked, 1)}
        found = gone(None if verdict.exit_cause == UNKNOWN else verdict.exit_cause)
        for run in runs:
            place, reasons = places[run.run_id]
            suspicion = {"place": place, "among": len(runs), "reasons": reasons}
            self._error(
                run, {**evidence.context_of(known[run.run_id]), "retries": run.retries, "status": run.status, "suspicion": suspicion}
            )
            facts = {"job_id": run.job_id, "actor_name": run.actor, "queue": run.queue, "run_id": run.run_id, "lost_at": _iso(at)}
            facts |= {"diagnosis": found.text, "cause": found.cause}
            events.append([at, "JobLost", run.job_id, worker_id, None, self._data(**facts)])
            of_actor = (run.queue or "", run.actor or "")
            numbers = statistics.setdefault((int(at // 60), *of_actor), counters.EMPTY.copy())
            numbers[counters.OUTCOME["lost"]] += 1
            incidents.lost(of_actor, verdict.exit_cause)
            if run.memory_peak is not None:
                peaks[of_actor] = max(run.memory_peak, peaks.get(of_actor, 0))
        self._events(events)
        added = {**counters.increments(statistics), **incidents.increments()}
        write_statistics(self._store, statistics, added, peaks, self._put)

    def _events(self, rows: list[list[Any]]) -> None:
        put_events(self._store, rows)

    def _error(self, run: _Run, context: dict[str, Any]) -> None:
        store = self._store
        values = [run.job, self._stored(), run.run_id, run.attempt, "lost", self._origin.worker_id, run.thread, run.started_at,
                  self._stored(), self._verdict.exit_cause, run.memory_peak, run.cpu_seconds, json.dumps(context)]  # fmt: skip
        names = [name for name, _ in LOST]
        key = store.new_key()
        if key is not None:
            names, values = [*names, "id"], [*values, key]
        marks = ", ".join("?" for _ in values)
        ignore, conflict = ("IGNORE ", "") if store.kind == "mysql" else ("", " ON CONFLICT (run_id) DO NOTHING")
        store.execute(f"INSERT {ignore}INTO {{supervised_job_errors}} ({', '.join(names)}) VALUES ({marks}){conflict}", values)

    def _data(self, **facts: Any) -> str:
        origin, verdict = self._origin, self._verdict
        ending = {"exit_code": verdict.exit_code, "exit_cause": verdict.exit_cause}
        return json.dumps({"worker_id": origin.worker_id, "host": origin.host, "pid": origin.pid, **ending, **facts})

    def _stored(self) -> Any:
        return stored_time(self._store.kind, self._at)

    def _put(self, _table: str, columns: Any, rows: list[list[Any]], statement: str) -> None:
        put(self._store, columns, rows, statement)
