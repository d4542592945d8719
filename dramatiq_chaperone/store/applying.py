"""Writing a slice of a journal, and the loss of a worker: each in one transaction, each counted once."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import counters, statements
from .batch import Batch, clean, clean_json
from .columns import CORE, DEAD_LETTER, ERROR, EVENT, HEARTBEAT, JOB, OPEN_RUN
from .database import DataRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..records import Origin
    from . import Store

Columns = tuple[tuple[str, str], ...]

#: Rows in one statement, and characters in one parameter; MySQL refuses packets above 16 MB unless it is told otherwise.
_CHUNK_ROWS: Final = 2000
_CHUNK_CHARACTERS: Final = 4_000_000

WORKER: Final[Columns] = (
    *(("worker_id", "key"), ("created_at", "time"), ("updated_at", "time"), ("host", "name"), ("host_identity", "name"), ("pid", "int")),
    *(("process_started_at", "time"), ("pool", "name"), ("broker", "word"), ("broker_id", "key"), ("queues", "text"), ("threads", "int")),
    *(("status", "word"), ("started_at", "time"), ("beat", "int"), ("last_heartbeat_at", "time"), ("stopped_at", "time"), ("rss", "int")),
    *(
        ("cpu", "real"),
        ("jobs_processed", "int"),
        ("jobs_failed", "int"),
        ("gauges", "json"),
        ("versions", "text"),
        ("exit_code", "int"),
        ("exit_cause", "name"),
    ),
)
_WORKER_ZERO: Final = {"beat": 0, "jobs_processed": 0, "jobs_failed": 0}
_WORKER_GROWS: Final = frozenset({"beat", "jobs_processed", "jobs_failed"})
#: A worker that has ended stays so, whatever else of it comes to light.
_WORKER_STATUS: Final = "status = CASE WHEN o.status IN ('stopped', 'lost') THEN o.status ELSE e.status END"
_WORKER_UPDATE: Final = (
    _WORKER_STATUS,
    *(
        f"{name} = CASE WHEN e.{name} > o.{name} THEN e.{name} ELSE o.{name} END" if name in _WORKER_GROWS
        else f"{name} = COALESCE(o.{name}, e.{name})" if name == "created_at" else f"{name} = COALESCE(e.{name}, o.{name})"
        for name, _ in WORKER if name not in {"worker_id", "status"}
    ),
)  # fmt: skip


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
        batch = Batch(worker_id=origin.worker_id, broker=store.broker_of(origin), flush=self._flush)
        batch.add(entries)
        batch.finish()
        rows = batch.job_rows()
        columns = JOB if batch.is_wide else CORE
        self._put("supervised_jobs", tuple((each.name, each.type) for each in columns), rows,
                  statements.job_upsert(store.kind, columns, store.key_type, ordered=store.ordered))  # fmt: skip
        self._open_runs(batch)
        self._children(batch)
        self._events(batch)
        if origin.role == "worker" and batch.worker:
            self._worker(batch.worker)
            store.remember_broker(origin.worker_id, batch.worker.get("broker"))
        self._commands(batch)
        self._count(batch)
        return Applied(is_new=True, jobs=len(rows), refused=sum(self._refused.values()) + batch.broken)

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

    def _children(self, batch: Batch) -> None:
        kind, key_type = self._store.kind, self._store.key_type
        for table, columns, rows in (
            ("supervised_job_errors", ERROR, batch.errors),
            ("heartbeats", HEARTBEAT, batch.heartbeats),
            ("dead_letter_jobs", DEAD_LETTER, batch.dead_letters),
        ):
            if rows:
                self._put(table, columns, rows, statements.child_insert(kind, table, columns, key_type))

    def _events(self, batch: Batch) -> None:
        rows = batch.events
        for job_id, run_id in self._store.rows("SELECT job_id, run_id FROM {supervised_jobs} WHERE twice_by = ?", (self._flush,)):
            rows.append(
                [time.time(), "JobRanTwice", job_id, self._origin.worker_id, None, json.dumps({"job_id": job_id, "run_id": run_id})]
            )
        self._put("events", EVENT, rows, self._insert("events", EVENT))

    def _commands(self, batch: Batch) -> None:
        text = "UPDATE {commands} SET finished_at = ?, outcome = ?, detail = ? WHERE id = ? AND finished_at IS NULL"
        for at, outcome, detail, command_id in batch.commands:
            values = (stored_time(self._store.kind, at), outcome, detail, command_id)
            if not self._is_careful:
                self._store.execute(text, values)
                continue
            try:
                with self._store.savepoint():
                    self._store.execute(text, values)
            except DataRefused:
                self._refused["commands"] = self._refused.get("commands", 0) + 1

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
        for what, count in batch.dropped.items():
            found[counters.DROPPED, (("what", what),)] = count
        if batch.broken:
            self._refused["journal"] = batch.broken
        write_statistics(store, batch.statistics, found, self._put)
        if self._refused:
            rows = counters.counter_rows({(counters.UNWRITABLE, (("table", table),)): n for table, n in self._refused.items()})
            self._put("counters", counters.COUNTER, rows, counter_upsert(store))

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


def put(store: Store, columns: Columns, rows: list[list[Any]], statement: str) -> None:
    """Run a statement of :mod:`.statements` for these rows."""
    if not rows:
        return
    if store.key_type != "id":
        rows = [[*row, store.new_key()] for row in rows]
    if store.kind == "sqlite":
        store.execute_many(statement, _with_iso_times(columns, rows))
        return
    for first in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[first : first + _CHUNK_ROWS]
        if statements.ROWS in statement:
            _put_literals(store, columns, chunk, statement)
        else:
            _put_json(store, chunk, statement)


_encode_row: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode
#: Escapes that JSON has and MySQL does not know.
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-f]{4})|(.))", re.DOTALL)


def _put_literals(store: Store, columns: Columns, rows: list[list[Any]], statement: str) -> None:
    """Write rows as literals: what JSON makes of a value is one for MySQL too, strings in double quotes included."""
    parts = [_encode_row(row) for row in _with_iso_times(columns, rows, suffix="")]
    text = "(" + "),(".join([part[1:-1] for part in parts]) + ")"
    if len(text) > _CHUNK_CHARACTERS and len(rows) > 1:
        middle = len(rows) // 2
        _put_literals(store, columns, rows[:middle], statement)
        _put_literals(store, columns, rows[middle:], statement)
        return
    if not text.isascii():
        text.encode()
    if "\\u" in text or "\\f" in text:
        text = _ESCAPE.sub(_unescaped, text)
    store.execute_literals(statement, statements.ROWS, text)


def _unescaped(match: re.Match[str]) -> str:
    code, character = match.groups()
    if code is not None:
        return chr(int(code, 16)) if code != "0000" else "\ufffd"
    return "\f" if character == "f" else match.group()


def _put_json(store: Store, rows: list[list[Any]], statement: str) -> None:
    text = json.dumps(rows, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(text) > _CHUNK_CHARACTERS and len(rows) > 1:
        middle = len(rows) // 2
        _put_json(store, rows[:middle], statement)
        _put_json(store, rows[middle:], statement)
        return
    if not text.isascii():
        text.encode()  # half a surrogate is told here, before a driver makes something else of it
    if "\\u0000" in text:
        raise DataRefused("A NUL character.")
    store.execute(statement, (text,))


def _with_iso_times(columns: Columns, rows: list[list[Any]], *, suffix: str = "+00:00") -> list[list[Any]]:
    times = [position for position, (_, type_) in enumerate(columns) if type_ == "time"]
    converted = []
    for row in rows:
        row = row.copy()  # noqa: PLW2901  # the caller's stays as it is, for another try
        for position in times:
            at = row[position]
            if at is not None:
                row[position] = iso(at, suffix)
        converted.append(row)
    return converted


_seconds: dict[int, str] = {}


def iso(at: float, suffix: str = "+00:00") -> str:
    """A time as SQLite stores it: ISO text of fixed width, in UTC."""
    micros = round(at * 1_000_000)
    second, micro = divmod(micros, 1_000_000)
    text = _seconds.get(second)
    if text is None:
        if len(_seconds) > 4096:
            _seconds.clear()
        text = _seconds[second] = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{micro:06}{suffix}"


def unix_time(value: Any) -> float | None:
    """A time as the database gave it, in Unix seconds."""
    if value is None:
        return None
    moment: datetime = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()


def stored_time(kind: str, at: float) -> Any:
    """A time as a single value of a statement."""
    if kind == "sqlite":
        return iso(at)
    moment = datetime.fromtimestamp(at, UTC)
    return moment if kind == "postgres" else moment.replace(tzinfo=None)


def counter_upsert(store: Store) -> str:
    """The statement that adds to counters."""
    return statements.insert(store.kind, "counters", counters.COUNTER, store.key_type, key="series", update=counters.COUNTER_SUM)


def write_statistics(store: Store, statistics: counters.Statistics, found: counters.Increments, put_rows: Any) -> None:
    """Add to the rollups, then to the counters: every writer in the same order."""
    rollup = statements.insert(store.kind, "rollups", counters.ROLLUP, store.key_type, key="series, minute_at", update=counters.ROLLUP_SUM)
    put_rows("rollups", counters.ROLLUP, counters.rollup_rows(statistics), rollup)
    put_rows("counters", counters.COUNTER, counters.counter_rows(found), counter_upsert(store))


def write_worker(store: Store, origin: Origin, known: dict[str, Any], put_rows: Any) -> None:
    """Make or update the row of a worker."""
    facts = {
        **_WORKER_ZERO, **known, "worker_id": origin.worker_id, "host": clean(origin.host, 255), "host_identity": origin.host_identity,
        "pid": origin.pid, "process_started_at": origin.process_started_at,
    }  # fmt: skip
    statement = statements.insert(store.kind, "workers", WORKER, store.key_type, key="worker_id", update=_WORKER_UPDATE)
    put_rows("workers", WORKER, [[facts.get(name) for name, _ in WORKER]], statement)
