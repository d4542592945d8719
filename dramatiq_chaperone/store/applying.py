"""Writing a slice of a journal: in one transaction, counted once."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ..records import PASSED
from . import breakers, counters, statements
from .batch import Batch, clean, clean_json
from .columns import CORE, DEAD_LETTER, ERROR, EVENT, HEALTH_CHECK, HEARTBEAT, JOB, OPEN_RUN, QUEUE, QUEUE_UPDATE, VIOLATION, WIDTH
from .commands import passed_on
from .crashes import returned, suspect
from .database import DataRefused
from .incidents import Incidents
from .returns import worker_back
from .rows import Columns, counter_upsert, mark_stuck, put, write_statistics, write_worker
from .silence import timeout_reported
from .times import stored_time, unix_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..records import Origin
    from . import Store


class Applied(NamedTuple):
    """What became of a slice."""

    #: False: it was written before, or the journal's position is another one.
    is_new: bool
    #: Jobs that it touched.
    jobs: int = 0
    #: Rows that the database refused; they are counted, and left out.
    refused: int = 0


def apply(store: Store, origin: Origin, entries: Sequence[tuple[Any, ...]], *, start: int, end: int) -> Applied:
    """Write a slice.  Raises StoreUnavailable, SchemaError; never for what is in it."""
    if end == start:
        return Applied(is_new=False)
    flush = time.time_ns() & 0x7FFF_FFFF_FFFF_FFFF
    try:
        return store.transact(lambda: _Flush(store, origin, flush).run(entries, start, end))
    except (DataRefused, ValueError, TypeError):
        # Something in it is not to this database's taste: the same again, row by row where it must be.
        return store.transact(lambda: _Flush(store, origin, flush, is_careful=True).run(entries, start, end))


#: Positions in the row of a violation.
_JOB, _AT, _RUN, _TYPE = range(4)
#: And in that of a dead letter.
_LETTER_ACTOR, _LETTER_QUEUE, _REASON = 4, 5, 6


def _first_timeout(events: Sequence[list[Any]], job_id: str, at: Any) -> list[Any] | None:
    """The event that goes with a violation: it is told right after it, and does not name its run."""
    for row in events:
        try:
            if row[1] == "JobTimeout" and row[2] == job_id and row[0] >= at:
                return row
        except TypeError:  # one of the times is none; that is for the database to refuse
            continue
    return None


class _Flush:
    """One attempt at one slice."""

    def __init__(self, store: Store, origin: Origin, flush: int, *, is_careful: bool = False) -> None:
        self._store, self._origin, self._flush = store, origin, flush
        self._is_careful = is_careful
        self._refused: dict[str, int] = {}

    def run(self, entries: Sequence[tuple[Any, ...]], start: int, end: int) -> Applied:
        store, origin = self._store, self._origin
        if not self._advance(start, end):
            return Applied(is_new=False)
        if origin.role == "worker":
            self._take_back()
        batch = Batch(worker_id=origin.worker_id, broker=store.broker_of(origin), flush=self._flush)
        batch.add(entries)
        batch.finish()
        rows = batch.job_rows()
        columns = JOB if batch.is_wide else CORE
        self._put("supervised_jobs", tuple((each.name, each.type) for each in columns), rows,
                  statements.job_upsert(store.kind, columns, store.key_type, ordered=store.ordered))  # fmt: skip
        self._stuck(batch)
        self._open_runs(batch)
        self._timeouts(batch)
        self._children(batch)
        self._cancelled(batch)
        self._events(batch)
        if origin.role == "worker" and batch.worker:
            self._worker(batch.worker)
            store.remember_broker(origin.worker_id, batch.worker.get("broker"))
        self._queues(batch)
        self._commands(batch)
        self._count(batch)
        self._breakers(batch)
        return Applied(is_new=True, jobs=len(rows), refused=sum(self._refused.values()) + batch.broken)

    def _take_back(self) -> None:
        worker_back(self._store, self._origin)

    def _advance(self, start: int, end: int) -> bool:
        """Move the journal's position, if it is still where this slice begins."""
        store, now = self._store, stored_time(self._store.kind, time.time())
        if start:
            text = "UPDATE {flushes} SET sequence = ?, updated_at = ? WHERE process = ? AND sequence = ?"
            return bool(store.execute(text, (end, now, self._origin.worker_id, start)).rowcount == 1)
        key = store.new_key()
        names, values = ("process, sequence, updated_at", [self._origin.worker_id, end, now])
        if key is not None:
            names, values = f"{names}, id", [*values, key]
        marks = ", ".join("?" for _ in values)
        ignore, conflict = ("IGNORE ", "") if store.kind == "mysql" else ("", " ON CONFLICT (process) DO NOTHING")
        return bool(store.execute(f"INSERT {ignore}INTO {{flushes}} ({names}) VALUES ({marks}){conflict}", values).rowcount == 1)

    def _stuck(self, batch: Batch) -> None:
        """Mark the runs that are stuck, or move again.

        Stalled is running, seen more closely: the level of the row stays that of a run, so whatever ends it wins.
        """
        for job_id, run_id, missed, is_stuck in sorted(batch.stuck.values()):
            mark_stuck(self._store, job_id, run_id, is_stuck=is_stuck, missed=missed)

    def _open_runs(self, batch: Batch) -> None:
        """Keep the runs that were put aside until their end is reported, or their worker is lost."""
        store = self._store
        text = "SELECT other_run_id, job_id, other_worker_id, other_run_retries, other_started_at FROM {supervised_jobs} WHERE other_by = ?"
        rows = [[*row[:4], unix_time(row[4]), time.time()] for row in store.rows(text, (self._flush,))]
        rows = [row for row in [*rows, *batch.open_runs.values()] if row[0] not in batch.ended_runs]
        if rows:
            rows.sort(key=lambda row: str(row[0]))
            statement = statements.insert(
                store.kind, "open_runs", OPEN_RUN, store.key_type, key="run_id", update=("created_at = e.created_at",)
            )
            self._put("open_runs", OPEN_RUN, rows, statement)
        if batch.ended_runs:
            for (run_id,) in store.rows("SELECT run_id FROM {open_runs} ORDER BY run_id"):
                if run_id in batch.ended_runs:
                    store.execute("DELETE FROM {open_runs} WHERE run_id = ?", (run_id,))

    def _timeouts(self, batch: Batch) -> None:
        """Leave out the timeouts that the monitor has put on record while the worker was silent.

        What they count stays: the monitor counts none, for it does not know whether anybody set the limit.
        """
        for row in [row for row in batch.violations if row[_TYPE] == "timeout"]:
            if timeout_reported(self._store, row[_JOB], clean(row[_RUN], WIDTH["key"])):
                batch.violations.remove(row)
                event = _first_timeout(batch.events, row[_JOB], row[_AT])
                if event is not None:
                    batch.events.remove(event)

    def _children(self, batch: Batch) -> None:
        kind, key_type = self._store.kind, self._store.key_type
        for table, columns, rows in (
            ("supervised_job_errors", ERROR, batch.errors),
            ("heartbeats", HEARTBEAT, batch.heartbeats),
            ("dead_letter_jobs", DEAD_LETTER, batch.dead_letters),
            ("resource_violations", VIOLATION, batch.violations),
            ("job_health_checks", HEALTH_CHECK, batch.health_checks),
        ):
            if rows:
                self._put(table, columns, rows, statements.child_insert(kind, table, columns, key_type))
        shared = VIOLATION[1:]
        self._put("resource_violations", shared, batch.shared_violations, self._insert("resource_violations", shared))

    def _cancelled(self, batch: Batch) -> None:
        if batch.cancelled:
            suspect(self._store, self._origin.worker_id, batch.cancelled, at=max(batch.cancelled.values()))

    def _events(self, batch: Batch) -> None:
        text = "SELECT job_id, run_id, other_run_id FROM {supervised_jobs} WHERE twice_by = ?"
        twice = [self._ran_twice(batch, *row) for row in self._store.rows(text, (self._flush,))]
        self._put("events", EVENT, [[*event, 1] for event in (*batch.events, *twice)], self._insert("events", EVENT))

    def _ran_twice(self, batch: Batch, job_id: str, run_id: str, put_aside: str | None) -> list[Any]:
        """The event of two runs of a message.  The other one is what this slice tells of; or it was put aside; or it has failed."""
        other = batch.run_of(job_id)
        if other in {None, run_id}:
            other = put_aside
        if other in {None, run_id}:
            text = (
                "SELECT e.run_id FROM {supervised_job_errors} e JOIN {supervised_jobs} j ON j.id = e.supervised_job_id "
                "WHERE j.job_id = ? AND e.run_id <> ? ORDER BY e.ended_at DESC LIMIT 1"
            )
            other = next((found for (found,) in self._store.rows(text, (job_id, run_id))), None)
        facts = {"job_id": job_id, "run_id": run_id, "other_run_id": other}
        return [time.time(), "JobRanTwice", job_id, self._origin.worker_id, None, json.dumps(facts)]

    def _queues(self, batch: Batch) -> None:
        rows = [batch.queues[key] for key in sorted(batch.queues)]
        statement = statements.insert(self._store.kind, "queues", QUEUE, self._store.key_type, key="queue, broker", update=QUEUE_UPDATE)
        self._put("queues", QUEUE, rows, statement)

    def _commands(self, batch: Batch) -> None:
        text = "UPDATE {commands} SET finished_at = ?, outcome = ?, detail = ? WHERE id = ? AND finished_at IS NULL"
        for at, outcome, detail, command_id in batch.commands:
            if outcome == PASSED and passed_on(self._store, command_id, detail):
                continue
            values = (stored_time(self._store.kind, at), "refused" if outcome == PASSED else outcome, detail, command_id)
            if not self._is_careful:
                self._store.execute(text, values)
                continue
            try:
                with self._store.savepoint():
                    self._store.execute(text, values)
            except DataRefused:
                self._refused["commands"] = self._refused.get("commands", 0) + 1

    def _breakers(self, batch: Batch) -> None:
        """Last of all, for guarded calls of others wait for these rows."""
        if batch.breaker_calls:
            try:
                with self._store.savepoint():
                    breakers.flush(self._store, batch.breaker_calls.values())
            except DataRefused:
                self._refused["circuit_breakers"] = len(batch.breaker_calls)

    def _worker(self, known: dict[str, Any]) -> None:
        write_worker(self._store, self._origin, known, self._put)

    def _count(self, batch: Batch) -> None:
        store = self._store
        found = counters.increments(batch.statistics)
        text = "SELECT queue, actor_name, status, COUNT(*) FROM {supervised_jobs} WHERE ended_by = ? GROUP BY queue, actor_name, status"
        for queue, actor, status, count in store.rows(text, (self._flush,)):
            found[counters.JOBS, (("actor", actor or ""), ("queue", queue or ""), ("outcome", status))] = count
        for (queue, actor, outcome), count in batch.counted_jobs.items():
            key = (counters.JOBS, (("actor", actor), ("queue", queue), ("outcome", outcome)))
            found[key] = found.get(key, 0) + count
        for (queue, actor, type_), count in batch.passed.items():
            found[counters.VIOLATIONS, (("actor", actor), ("queue", queue), ("type", type_))] = count
        for (queue, actor), count in batch.sent.items():
            found[counters.ENQUEUED, (("actor", actor), ("queue", queue))] = count
        found.update(self._incidents(batch).increments())
        for what, count in batch.dropped.items():
            found[counters.DROPPED, (("what", what),)] = count
        if batch.broken:
            self._refused["journal"] = batch.broken
        hour = statements.insert(store.kind, "hours", counters.HOUR, store.key_type, key="process, hour_at", update=counters.HOUR_SUM)
        self._put("hours", counters.HOUR, counters.hour_rows(batch.statistics, self._origin.worker_id), hour)
        write_statistics(store, batch.statistics, found, batch.peaks, self._put)
        if self._refused:
            rows = counters.counter_rows({(counters.UNWRITABLE, (("table", table),)): n for table, n in self._refused.items()})
            self._put("counters", counters.COUNTER, rows, counter_upsert(store))

    def _incidents(self, batch: Batch) -> Incidents:
        incidents = Incidents()
        incidents.events(batch.events)
        for letter in batch.dead_letters:
            incidents.dead((letter[_LETTER_QUEUE] or "", letter[_LETTER_ACTOR] or ""), letter[_REASON])
        if self._origin.role == "worker" and (starts := batch.starts()):
            for job_id, seconds in returned(self._store, {job_id: start[:2] for job_id, start in starts.items()}).items():
                incidents.recovered(starts[job_id][2], seconds, after="lost")
        return incidents

    def _insert(self, table: str, columns: Columns) -> str:
        return statements.insert(self._store.kind, table, columns, self._store.key_type)

    def _put(self, table: str, columns: Columns, rows: list[list[Any]], statement: str) -> None:
        if not rows:
            return
        if not self._is_careful:
            put(self._store, columns, rows, statement)
            return
        rows = [[_cleaned(value, type_) for value, (_, type_) in zip(row, columns, strict=True)] for row in rows]
        self._bisect(table, columns, rows, statement)

    def _bisect(self, table: str, columns: Columns, rows: list[list[Any]], statement: str) -> None:
        """Write all rows but those that are refused."""
        try:
            with self._store.savepoint():
                put(self._store, columns, rows, statement)
        except (DataRefused, ValueError, TypeError):
            if len(rows) == 1:
                self._refused[table] = self._refused.get(table, 0) + 1
                return
            middle = len(rows) // 2
            self._bisect(table, columns, rows[:middle], statement)
            self._bisect(table, columns, rows[middle:], statement)


def _cleaned(value: Any, type_: str) -> Any:
    """A value of its column's type, or None."""
    if value is None:
        return None
    if type_ == "json":
        return clean_json(value)
    if type_ in {"key", "name", "word", "text"}:
        return clean(value, {"key": 191, "name": 255, "word": 40, "text": 1_000_000}[type_])
    if type_ == "flag":
        return bool(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if number != number or abs(number) > 9e18 or (type_ == "time" and not 0 <= number < 253_402_300_000):  # noqa: PLR0124  # only NaN differs from itself
        return None
    return int(value) if type_ == "int" else number
