"""A worker was lost: what it ran is recorded as lost too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import counters, statements
from .applying import put, stored_time, write_statistics, write_worker
from .columns import EVENT, STATUS_LEVEL

if TYPE_CHECKING:
    from ..records import Origin
    from . import Store

_LOST: Final = STATUS_LEVEL["lost"]

#: A run that was lost, with what is known of it.
LOST: Final = (
    ("supervised_job_id", "key"),
    *(("created_at", "time"), ("run_id", "key"), ("attempt", "int"), ("outcome", "word"), ("worker_id", "key"), ("thread", "name")),
    *(("started_at", "time"), ("ended_at", "time"), ("exit_cause", "name"), ("memory_peak", "int"), ("cpu_seconds", "real")),
)


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


def worker_lost(store: Store, origin: Origin, *, at: float, exit_code: int | None, exit_cause: str | None) -> list[str]:
    """Record that a worker died, and every run that it had; a second call changes nothing.

    Returns the ids of the jobs whose runs were lost with it, sorted; none if it had stopped cleanly.
    """
    return store.transact(lambda: _Loss(store, origin, at, exit_code, exit_cause).run())


class _Loss:
    """One attempt at recording a loss."""

    def __init__(self, store: Store, origin: Origin, at: float, exit_code: int | None, exit_cause: str | None) -> None:
        self._store, self._origin, self._at = store, origin, at
        self._code, self._cause = exit_code, exit_cause[:255] if exit_cause else None

    def run(self) -> list[str]:
        store, worker_id = self._store, self._origin.worker_id
        found = store.rows("SELECT status FROM {workers} WHERE worker_id = ?" + self._for_update(), (worker_id,))
        if found and found[0][0] == "stopped":
            return []
        if not found or found[0][0] != "lost":
            self._record()
        text = "SELECT j.job_id FROM {supervised_job_errors} e JOIN {supervised_jobs} j ON j.id = e.supervised_job_id "
        rows = store.rows(text + "WHERE e.worker_id = ? AND e.outcome = 'lost' ORDER BY j.job_id", (worker_id,))
        return [job_id for (job_id,) in rows]

    def _for_update(self) -> str:
        return "" if self._store.kind == "sqlite" else " FOR UPDATE"

    def _record(self) -> None:
        at = self._at
        known = {"created_at": at, "updated_at": at, "stopped_at": at, "status": "lost", "exit_code": self._code, "exit_cause": self._cause}
        write_worker(self._store, self._origin, known, self._put)
        runs = self._latest()  # first: it waits for whoever puts one of them aside just now
        self._rows([*runs, *self._aside()])

    def _latest(self) -> list[_Run]:
        """The jobs that ran here: they are lost now, or run on where another run of them is open."""
        store, worker_id = self._store, self._origin.worker_id
        text = (
            "SELECT id, job_id, run_id, attempt, thread, started_at, memory_peak, cpu_seconds, queue, actor_name, status, level, "
            "run_retries FROM {supervised_jobs} WHERE worker_id = ? AND ended_at IS NULL ORDER BY job_id"
        )
        runs = []
        for *facts, status, level, retries in store.rows(text + self._for_update(), (worker_id,)):
            run = _Run(*facts)
            runs.append(run)
            first = level - level % 32
            if status not in {"running", "stalled"}:  # another run has told more of this message
                store.execute(_END, (self._stored(), run.job))
            elif not self._go_on(run, first, retries):
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
            "j.queue, j.actor_name FROM {open_runs} r JOIN {supervised_jobs} j ON j.job_id = r.job_id "
            "WHERE r.worker_id = ? ORDER BY j.job_id"
        )
        runs = [_Run(*facts) for facts in store.rows(text, (worker_id,))]
        for run in runs:
            store.execute("UPDATE {supervised_jobs} SET crashes = crashes + 1 WHERE id = ?", (run.job,))
        store.execute("DELETE FROM {open_runs} WHERE worker_id = ?", (worker_id,))
        return runs

    def _rows(self, runs: list[_Run]) -> None:
        statistics: counters.Statistics = {}
        at, worker_id = self._at, self._origin.worker_id
        events = [[at, "WorkerLost", None, worker_id, None, self._data(worker_id=worker_id, jobs=len(runs))]]
        for run in runs:
            self._error(run)
            events.append(
                [at, "JobLost", run.job_id, worker_id, None, self._data(job_id=run.job_id, run_id=run.run_id, worker_id=worker_id)]
            )
            numbers = statistics.setdefault((int(at // 60), run.queue or "", run.actor or ""), counters.EMPTY.copy())
            numbers[counters.OUTCOME["lost"]] += 1
        put(self._store, EVENT, events, statements.insert(self._store.kind, "events", EVENT, self._store.key_type))
        write_statistics(self._store, statistics, counters.increments(statistics), self._put)

    def _error(self, run: _Run) -> None:
        store = self._store
        values = [run.job, self._stored(), run.run_id, run.attempt, "lost", self._origin.worker_id, run.thread, run.started_at,
                  self._stored(), self._cause, run.memory_peak, run.cpu_seconds]  # fmt: skip
        names = [name for name, _ in LOST]
        key = store.new_key()
        if key is not None:
            names, values = [*names, "id"], [*values, key]
        marks = ", ".join("?" for _ in values)
        ignore, conflict = ("IGNORE ", "") if store.kind == "mysql" else ("", " ON CONFLICT (run_id) DO NOTHING")
        store.execute(f"INSERT {ignore}INTO {{supervised_job_errors}} ({', '.join(names)}) VALUES ({marks}){conflict}", values)

    def _data(self, **facts: Any) -> str:
        return json.dumps({**facts, "host": self._origin.host, "pid": self._origin.pid, "exit_code": self._code, "exit_cause": self._cause})

    def _stored(self) -> Any:
        return stored_time(self._store.kind, self._at)

    def _put(self, _table: str, columns: Any, rows: list[list[Any]], statement: str) -> None:
        put(self._store, columns, rows, statement)
