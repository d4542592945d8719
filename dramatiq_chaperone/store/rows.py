"""Rows on their way into the database: how they are put there, and the statements that several writers share."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from . import counters, statements
from .batch import clean
from .columns import EVENT
from .database import DataRefused
from .times import iso

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


def put_events(store: Store, rows: Sequence[Sequence[Any]]) -> None:
    """Add events: (at, name, job_id, worker_id, service, data), which wait for the rules of alerts from then on."""
    put(store, EVENT, [[*row, 1] for row in rows], statements.insert(store.kind, "events", EVENT, store.key_type))


def row_key(store: Store, key: str) -> Any:
    """A key as a value of a statement: PostgreSQL compares a number with numbers only.  One that cannot be is no row's."""
    if store.key_type != "id":
        return key
    return int(key) if key.isdigit() and len(key) < 19 else -1


def insert_one(store: Store, table: str, values: Mapping[str, Any]) -> str:
    """Add one row, and give its key.  For the inside of a transaction; JSON columns come as text."""
    key = store.new_key()
    given = dict(values) if key is None else {**values, "id": key}
    columns, marks = ", ".join(map(store.quote, given)), ", ".join("?" for _ in given)
    returning = " RETURNING id" if store.kind == "postgres" and key is None else ""
    cursor = store.execute(f"INSERT INTO {{{table}}} ({columns}) VALUES ({marks}){returning}", list(given.values()))
    return key if key is not None else str(cursor.fetchone()[0] if returning else cursor.lastrowid)


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


def mark_stuck(store: Store, job_id: str, run_id: str, *, is_stuck: bool, missed: int | None = None) -> None:
    """Call a run stalled, or running again, if the row is about it and it has not ended.

    Parameters:
      missed: heartbeats in a row; None leaves that as it is.
    """
    text = (
        "UPDATE {supervised_jobs} SET missed_heartbeats = COALESCE(?, missed_heartbeats), "
        "status = CASE WHEN ended_at IS NULL AND status IN ('running', 'stalled') THEN ? ELSE status END WHERE job_id = ? AND run_id = ?"
    )
    store.execute(text, (missed, "stalled" if is_stuck else "running", job_id, run_id))


def counter_upsert(store: Store, update: tuple[str, ...] = counters.COUNTER_SUM) -> str:
    """The statement that adds to counters, or marks their highest value (COUNTER_MARK)."""
    return statements.insert(store.kind, "counters", counters.COUNTER, store.key_type, key="series", update=update)


def write_statistics(
    store: Store, statistics: counters.Statistics, found: counters.Increments, peaks: counters.Peaks, put_rows: Any
) -> None:
    """Add to the rollups, then to the counters, then raise the marks: every writer in the same order."""
    rollup = statements.insert(store.kind, "rollups", counters.ROLLUP, store.key_type, key="series, minute_at", update=counters.ROLLUP_SUM)
    put_rows("rollups", counters.ROLLUP, counters.rollup_rows(statistics), rollup)
    put_rows("counters", counters.COUNTER, counters.counter_rows(found), counter_upsert(store))
    put_rows("counters", counters.COUNTER, counters.mark_rows(peaks), counter_upsert(store, counters.COUNTER_MARK))


def write_worker(store: Store, origin: Origin, known: dict[str, Any], put_rows: Any) -> None:
    """Make or update the row of a worker."""
    facts = {
        **_WORKER_ZERO, **known, "worker_id": origin.worker_id, "host": clean(origin.host, 255), "host_identity": origin.host_identity,
        "pid": origin.pid, "process_started_at": origin.process_started_at,
    }  # fmt: skip
    statement = statements.insert(store.kind, "workers", WORKER, store.key_type, key="worker_id", update=_WORKER_UPDATE)
    put_rows("workers", WORKER, [[facts.get(name) for name, _ in WORKER]], statement)
