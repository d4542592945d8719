"""Circuit breakers as rows: each change is one transaction that locks the row, takes a step, and keeps its events.

The times in a row are the database's own clock: the processes that share a circuit may sit on different hosts.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from .. import circuits
from ..circuits import Altered, Calls, Circuit, Operation, Step
from . import counters
from .rows import counter_upsert, put, put_events
from .times import stored_time, time_or_none, unix_time

if TYPE_CHECKING:
    from . import Store

CALLS: Final = "chaperone_circuit_breaker_calls_total"
CALL_DURATION: Final = "chaperone_circuit_breaker_call_duration_seconds"
TRANSITIONS: Final = "chaperone_circuit_breaker_transitions_total"

#: Circuits that are told to processes, at most; those first by which calls are not simply let through.
MOST: Final = 150
#: A circuit that has become plain is told for so long, in seconds.
FRESH_S: Final = 120.0
#: The width of the column.
SERVICE_WIDTH: Final = 191

_NOW: Final = {"postgres": "EXTRACT(EPOCH FROM clock_timestamp())::float8", "mysql": "UNIX_TIMESTAMP(NOW(6))"}
_NAMES: Final = (
    *("state", "mode", "failure_count", "success_count", "last_failure_at", "last_success_at", "opened_at", "reopens_at"),
    *("half_opened_at", "last_error", "permits", "version", "details", "updated_at"),
)
_TIMES: Final = frozenset({"last_failure_at", "last_success_at", "opened_at", "reopens_at", "half_opened_at", "updated_at"})
_PICKED: Final = (
    *("details", "state", "mode", "failure_count", "success_count", "opened_at", "reopens_at", "half_opened_at", "version"),
    *("last_failure_at", "last_success_at", "last_error"),
)


def alter(store: Store, service: str, operation: Operation, *, age_s: float = 0.0) -> Altered:
    """Take one step with the circuit of *service*, in one transaction; its events are stored with it, once.

    Parameters:
      age_s: so long ago it was meant to be taken.

    Raises:
      StoreError: nothing was changed.
    """
    return store.transact(lambda: _alter(store, service, operation, age_s))


def _alter(store: Store, service: str, operation: Operation, age_s: float) -> Altered:
    circuit, now = _locked(store, service)
    now -= age_s
    step = operation(circuit, now)
    if step.is_changed:
        _write(store, service, step.circuit, now)
        _tell(store, service, step, now)
    return Altered(step, now)


def _locked(store: Store, service: str) -> tuple[Circuit, float]:
    """The circuit, made if need be, and the time; its row is locked until the transaction ends."""
    lock = "" if store.kind == "sqlite" else " FOR UPDATE"
    text = f"SELECT {_now(store)}, {', '.join(_PICKED)} FROM {{circuit_breakers}} WHERE service = ?{lock}"
    found = store.rows(text, (service,))
    if not found:
        _make(store, service)
        found = store.rows(text, (service,))
    return _circuit(found[0][1:]), _time(found[0][0])


def _now(store: Store) -> str:
    return _NOW.get(store.kind, "NULL")


def _time(found: Any) -> float:
    return time.time() if found is None else float(found)


def _clock(store: Store) -> float:
    """The database's time."""
    return time.time() if store.kind == "sqlite" else _time(store.rows(f"SELECT {_now(store)}")[0][0])


def _make(store: Store, service: str) -> None:
    now = _clock(store)
    circuit, at = circuits.new_circuit(now), stored_time(store.kind, now)
    names = ["service", "created_at", "updated_at", "state", "mode", "version", "details"]
    values = [service, at, at, circuit.state, circuit.mode, circuit.version, circuits.to_json(circuit)]
    if (key := store.new_key()) is not None:
        names, values = [*names, "id"], [*values, key]
    marks = ", ".join("?" for _ in values)
    ignore, conflict = ("IGNORE ", "") if store.kind == "mysql" else ("", " ON CONFLICT (service) DO NOTHING")
    store.execute(f"INSERT {ignore}INTO {{circuit_breakers}} ({', '.join(names)}) VALUES ({marks}){conflict}", values)


def _circuit(row: Iterable[Any]) -> Circuit:
    """A row that somebody else wrote has no details: the columns tell."""
    values = dict(zip(_PICKED, row, strict=True))
    details = values.pop("details")
    if details:
        return circuits.from_json(details)
    names = {"failure_count": "failures", "success_count": "successes"}
    known: dict[str, Any] = {names.get(name, name): unix_time(value) if name in _TIMES else value for name, value in values.items()}
    return Circuit(**known)


def _write(store: Store, service: str, circuit: Circuit, now: float) -> None:
    facts: dict[str, Any] = {
        **{name: getattr(circuit, name) for name in ("state", "mode", "version", "last_error")},
        **{name: time_or_none(store.kind, getattr(circuit, name)) for name in _TIMES - {"updated_at"}},
        "failure_count": circuit.failures,
        "success_count": circuit.successes,
        "permits": len(circuit.permits),
        "details": circuits.to_json(circuit),
        "updated_at": stored_time(store.kind, max(now, 0.0)),
    }
    text = f"UPDATE {{circuit_breakers}} SET {', '.join(f'{name} = ?' for name in _NAMES)} WHERE service = ?"
    store.execute(text, (*(facts[name] for name in _NAMES), service))


def _tell(store: Store, service: str, step: Step, now: float) -> None:
    """Keep the events of a step, and count the states that it went into."""
    rows = []
    for event in circuits.events_of(service, step, now):
        data = json.dumps(dataclasses.asdict(event), default=str, separators=(",", ":"))
        rows.append([now, type(event).__name__, None, None, service, data])
    if rows:
        put_events(store, rows)
    if step.entered:
        _count(store, {(TRANSITIONS, (("service", service), ("state", state))): 1 for state in step.entered})


def _count(store: Store, increments: counters.Increments) -> None:
    put(store, counters.COUNTER, counters.counter_rows(increments), counter_upsert(store))


def flush(store: Store, calls: Iterable[Calls]) -> list[tuple[str, Altered]]:
    """Count calls, and let circuits hear of the successes among them.  Part of the caller's transaction, if there is one.

    Returns what became of the circuits that heard something, by service.
    """
    calls = sorted(calls)
    altered = []
    for each in calls:
        if each.successes:
            age_s = max(0.0, time.time() - each.last_success_at)
            altered.append((each.service, _alter(store, each.service, _telling(each, age_s), 0.0)))
    increments: counters.Increments = {}
    for each in calls:
        if each.buckets:
            counters.add_histogram(increments, CALL_DURATION, (("service", each.service),), each.buckets, each.seconds)
        for result in ("succeeded", "failed", "refused", "ignored"):
            key = (CALLS, (("result", result), ("service", each.service)))
            if number := getattr(each, result):
                increments[key] = increments.get(key, 0) + number
    if increments:
        _count(store, increments)
    return altered


def _telling(calls: Calls, age_s: float) -> Operation:
    return lambda circuit, now: circuits.told(circuit, calls.successes, now - age_s, calls.window_size)


def read(store: Store, service: str) -> tuple[Circuit | None, float]:
    """The circuit of *service*, None if there is none, and the database's time."""
    found = store.rows(f"SELECT {_now(store)}, {', '.join(_PICKED)} FROM {{circuit_breakers}} WHERE service = ?", (service,))
    if not found:
        return None, _clock(store)
    return _circuit(found[0][1:]), _time(found[0][0])


def read_told(store: Store) -> tuple[list[tuple[str, Circuit]], float]:
    """What every process has to know: circuits that are not plain, and those that changed lately; and the database's time."""
    now = _clock(store)
    text = (
        f"SELECT service, {', '.join(_PICKED)} FROM {{circuit_breakers}} "
        "WHERE state <> 'closed' OR mode <> 'auto' OR updated_at >= ? "
        f"ORDER BY CASE WHEN state = 'closed' AND mode = 'auto' THEN 1 ELSE 0 END, service LIMIT {MOST}"
    )
    rows = store.rows(text, (stored_time(store.kind, now - FRESH_S),))
    return [(service, _circuit(row)) for service, *row in rows], now


def read_states(store: Store) -> list[tuple[str, str, str]]:
    """(service, state, mode) of every circuit."""
    rows = store.rows("SELECT service, state, mode FROM {circuit_breakers} ORDER BY service")
    return [(str(service), str(state), str(mode)) for service, state, mode in rows]


def open_since(store: Store, now: float) -> dict[str, float]:
    """Service to the seconds that its breaker is open, by its own judgement."""
    text = "SELECT service, opened_at FROM {circuit_breakers} WHERE state <> 'closed' AND mode = 'auto' AND opened_at IS NOT NULL"
    return {service: max(0.0, now - (unix_time(at) or now)) for service, at in store.rows(text)}
