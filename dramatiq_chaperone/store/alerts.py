"""Alerts as rows: what waits to be judged, the alerts themselves, their groups, and what keeps them quiet.

Only the holder of the monitor's lease writes here, but for what people say: that they know (ack), that they do not want to
know (silences), that a limit shall not hold any more.  Times come in and go out as Unix seconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from . import counters
from .queries import select
from .rows import counter_upsert, insert_one, put, row_key
from .times import time_or_none, unix_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from . import Store
    from .queries import Row

OPENED: Final = "chaperone_alerts_opened_total"
SUPPRESSED: Final = "chaperone_alerts_suppressed_total"

#: Alerts that are looked after at once, at most: the oldest go first.
MOST_ALERTS: Final = 20_000
_KEYS: Final = 500
_COLUMNS: Final = (
    *("id", "type", "subject", "severity", "priority", "status", "fingerprint", "is_point", "labels", "evidence", "count"),
    *("first_seen_at", "last_seen_at", "resolved_at", "told_at", "limited_from", "acknowledged_at", "acknowledged_by"),
    *("suppressed", "is_settled"),
)
_TIMES: Final = frozenset(name for name in _COLUMNS if name.endswith("_at") or name == "limited_from")


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" for _ in values)


def _chunks(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[first : first + _KEYS] for first in range(0, len(values), _KEYS))


# -- events that wait for the rules


def to_judge(store: Store, *, limit: int) -> list[Row]:
    """Events that no rule has seen, the oldest first: id, name, data, created_at."""
    text = f"SELECT id, name, data, created_at FROM {{events}} WHERE to_judge IS NOT NULL ORDER BY to_judge, id LIMIT {int(limit)}"
    return select(store, text)


def judged(store: Store, keys: Sequence[Any]) -> None:
    """The rules have seen these.  For the inside of the transaction that keeps what they found."""
    for chunk in _chunks(sorted(keys)):
        store.execute(f"UPDATE {{events}} SET to_judge = NULL WHERE id IN ({_marks(chunk)})", chunk)


# -- alerts


#: What is not read of every alert in each turn: stacks are long.  What others are about is needed to see whether these mute them.
_LIGHT: Final = "CASE WHEN type IN ('worker_lost', 'circuit_breaker') THEN evidence END"


def _rows(store: Store, condition: str, values: Sequence[Any] = (), tail: str = "", *, is_light: bool = False) -> list[dict[str, Any]]:
    columns = ", ".join(_LIGHT if is_light and name == "evidence" else store.quote(name) for name in _COLUMNS)
    found = []
    for row in store.rows(f"SELECT {columns} FROM {{alerts}} WHERE {condition} {tail}", values):
        facts = dict(zip(_COLUMNS, row, strict=True))
        for name in _TIMES:
            facts[name] = unix_time(facts[name])
        for name in ("labels", "evidence"):
            facts[name] = json.loads(facts[name]) if isinstance(facts[name], str) else facts[name] or {}
        facts["labels"] = {str(name): str(value) for name, value in facts["labels"].items()}
        facts["id"], facts["is_point"], facts["is_settled"] = str(facts["id"]), bool(facts["is_point"]), bool(facts["is_settled"])
        facts["priority"] = facts["priority"] or "normal"
        facts["subject"], facts["number"] = facts["subject"] or "", facts.pop("count")
        found.append(facts)
    return found


def unsettled(store: Store) -> list[dict[str, Any]]:
    """The alerts that fire, or of whose end somebody has yet to hear, the oldest first; of most without their evidence."""
    return _rows(store, "is_settled = 0", tail=f"ORDER BY created_at, id LIMIT {MOST_ALERTS}", is_light=True)


def by_ids(store: Store, keys: Sequence[str]) -> list[dict[str, Any]]:
    """These alerts, in their order."""
    found = {}
    for chunk in _chunks(list(dict.fromkeys(keys))):
        for row in _rows(store, f"id IN ({_marks(chunk)})", [row_key(store, key) for key in chunk]):
            found[row["id"]] = row
    return [found[key] for key in keys if key in found]


def raise_new(store: Store, facts: Mapping[str, Any], at: float, *, is_test: bool = False) -> str:
    """Add an alert, and count it unless it is a test; gives its id.  For the inside of a transaction."""
    values = {
        **{name: facts[name] for name in ("type", "subject", "severity", "priority", "status", "fingerprint")},
        "is_point": int(facts["is_point"]),
        "is_settled": 0,
        "count": facts.get("number", 1),
        **{name: time_or_none(store.kind, at) for name in ("created_at", "updated_at", "first_seen_at", "last_seen_at")},
        **{name: json.dumps(facts[name], default=str) for name in ("labels", "evidence")},
    }
    values["subject"] = str(values["subject"])[:255]
    if not is_test:
        count(store, {(OPENED, (("severity", facts["severity"]), ("type", facts["type"]))): 1})
    return insert_one(store, "alerts", values)


def seen_again(store: Store, key: str, number: int, evidence: Mapping[str, Any], at: float) -> None:
    """It was found again, *number* times."""
    counted = store.quote("count")
    text = f"UPDATE {{alerts}} SET {counted} = {counted} + ?, evidence = ?, last_seen_at = ?, updated_at = ? WHERE id = ?"
    store.execute(
        text, (number, json.dumps(evidence, default=str), time_or_none(store.kind, at), time_or_none(store.kind, at), row_key(store, key))
    )


def resolve(store: Store, keys: Sequence[str], at: float) -> None:
    """These are over."""
    for chunk in _chunks(list(keys)):
        picked = f"status = 'firing' AND id IN ({_marks(chunk)})"
        text = f"UPDATE {{alerts}} SET status = 'resolved', resolved_at = ?, updated_at = ? WHERE {picked}"
        store.execute(text, (time_or_none(store.kind, at), time_or_none(store.kind, at), *(row_key(store, key) for key in chunk)))


def settle(store: Store, keys: Sequence[str], at: float) -> None:
    """Nothing comes of these any more."""
    for chunk in _chunks(list(keys)):
        text = f"UPDATE {{alerts}} SET is_settled = 1, updated_at = ? WHERE id IN ({_marks(chunk)})"
        store.execute(text, (time_or_none(store.kind, at), *(row_key(store, key) for key in chunk)))


def suppress(store: Store, reasons: Mapping[str, str], at: float) -> None:
    """Nobody is told of these, for a reason: it is on record, and counted once for each alert."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        by_reason.setdefault(reason, []).append(key)
    for reason, keys in sorted(by_reason.items()):
        changed = 0
        for chunk in _chunks(keys):
            text = (
                "UPDATE {alerts} SET suppressed = ?, updated_at = ? "
                f"WHERE id IN ({_marks(chunk)}) AND (suppressed IS NULL OR suppressed <> ?)"
            )
            cursor = store.execute(text, (reason, time_or_none(store.kind, at), *(row_key(store, key) for key in chunk), reason))
            changed += max(0, cursor.rowcount)
        if changed:
            count(store, {(SUPPRESSED, (("reason", reason),)): changed})


def told(store: Store, keys: Sequence[str], at: float) -> None:
    """A channel took a message with these: from now on the limit of their fingerprints holds."""
    for chunk in _chunks(list(keys)):
        text = f"UPDATE {{alerts}} SET told_at = COALESCE(told_at, ?), limited_from = ?, suppressed = NULL WHERE id IN ({_marks(chunk)})"
        store.execute(text, (time_or_none(store.kind, at), time_or_none(store.kind, at), *(row_key(store, key) for key in chunk)))


def limited_from(store: Store, fingerprints: Sequence[str]) -> dict[str, float]:
    """Fingerprint to when an alert of it was told last, where a limit may hold."""
    found: dict[str, float] = {}
    for chunk in _chunks(list(dict.fromkeys(fingerprints))):
        text = (
            "SELECT fingerprint, MAX(limited_from) FROM {alerts} "
            f"WHERE limited_from IS NOT NULL AND fingerprint IN ({_marks(chunk)}) GROUP BY fingerprint"
        )
        for name, at in store.rows(text, chunk):
            found[name] = unix_time(at) or 0.0
    return found


def ended_jobs(store: Store, job_ids: Sequence[str]) -> set[str]:
    """Those of these jobs that do not run: they ended, wait for a retry, or are not on record any more."""
    running: set[str] = set()
    for chunk in _chunks(list(dict.fromkeys(job_ids))):
        text = f"SELECT job_id FROM {{supervised_jobs}} WHERE status IN ('running', 'stalled') AND job_id IN ({_marks(chunk)})"
        running.update(job_id for (job_id,) in store.rows(text, chunk))
    return set(job_ids) - running


def ended_workers(store: Store, worker_ids: Sequence[str]) -> set[str]:
    """Those of these workers that do not live."""
    living: set[str] = set()
    for chunk in _chunks(list(dict.fromkeys(worker_ids))):
        text = f"SELECT worker_id FROM {{workers}} WHERE status IN ('running', 'paused') AND worker_id IN ({_marks(chunk)})"
        living.update(worker_id for (worker_id,) in store.rows(text, chunk))
    return set(worker_ids) - living


def marked(store: Store, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Job to what its actor or message said of its alerts: ``critical``, ``runbook_url``."""
    found = {}
    for chunk in _chunks(list(dict.fromkeys(job_ids))):
        for row in select(
            store, f"SELECT job_id, limits FROM {{supervised_jobs}} WHERE limits IS NOT NULL AND job_id IN ({_marks(chunk)})", chunk
        ):
            found[row["job_id"]] = row["limits"] if isinstance(row["limits"], dict) else {}
    return found


# -- groups


def groups(store: Store) -> dict[str, dict[str, Any]]:
    """Every group by its series: route, labels, state, due_at."""
    text = "SELECT series, route, labels, state, due_at FROM {alert_groups}"
    found = {}
    for series, route, labels, state, due_at in store.rows(text):
        parts = [json.loads(each) if isinstance(each, str) else each or {} for each in (labels, state)]
        found[series] = {"route": route, "labels": parts[0], "state": parts[1], "due_at": unix_time(due_at)}
    return found


def write_group(store: Store, series: str, facts: Mapping[str, Any] | None, at: float) -> None:
    """Keep a group as it is now; None: nothing is left of it."""
    if facts is None:
        store.execute("DELETE FROM {alert_groups} WHERE series = ?", (series,))
        return
    values = (json.dumps(facts["state"]), time_or_none(store.kind, facts["due_at"]), time_or_none(store.kind, at))
    changed = store.execute("UPDATE {alert_groups} SET state = ?, due_at = ?, updated_at = ? WHERE series = ?", (*values, series))
    if not changed.rowcount and not store.rows("SELECT 1 FROM {alert_groups} WHERE series = ?", (series,)):
        row = {
            "series": series,
            "created_at": time_or_none(store.kind, at),
            "updated_at": time_or_none(store.kind, at),
            "route": facts["route"][:255],
        }
        row |= {"labels": json.dumps(facts["labels"]), "state": values[0], "due_at": values[1]}
        insert_one(store, "alert_groups", row)


# -- silences and maintenance windows


def silences(store: Store, *, now: float) -> list[dict[str, Any]]:
    """Those that hold now or will: id, match, starts_at, until, reason, owner, notice."""
    columns = "id, matcher, starts_at, until, reason, owner, notice, created_at"
    text = f"SELECT {columns} FROM {{silences}} WHERE until > ? AND ended_at IS NULL ORDER BY until, id"
    found = []
    for key, matcher, starts_at, until, reason, owner, notice, created_at in store.rows(text, (time_or_none(store.kind, now),)):
        begin = unix_time(starts_at if starts_at is not None else created_at)
        match = json.loads(matcher) if isinstance(matcher, str) else matcher
        found.append(
            {"id": str(key), "match": match, "starts_at": begin, "until": unix_time(until), "reason": reason or "", "owner": owner or "",
             "notice": notice or "silence"}
        )  # fmt: skip
    return found


def silence(
    store: Store, match: Mapping[str, Sequence[str]], *, starts_at: float, until: float, reason: str, owner: str, notice: str = "silence"
) -> str:
    """Add a silence, or a maintenance window; gives its id."""
    row = {"matcher": json.dumps(match), "reason": reason, "owner": owner[:255], "notice": notice}
    row |= {name: time_or_none(store.kind, at) for name, at in (("created_at", starts_at), ("starts_at", starts_at), ("until", until))}
    return store.transact(lambda: insert_one(store, "silences", row))


def end_silence(store: Store, key: str, at: float) -> bool:
    """End one before its time; False if there is none of this id that holds."""
    text = "UPDATE {silences} SET ended_at = ? WHERE id = ? AND ended_at IS NULL AND until > ?"
    return store.transact(
        lambda: bool(store.execute(text, (time_or_none(store.kind, at), row_key(store, key), time_or_none(store.kind, at))).rowcount)
    )


# -- what people say


def acknowledge(store: Store, keys: Sequence[str], by: str, at: float) -> list[str]:
    """Somebody looks after these: no repeats, no escalation.  Gives those that fired and were not acknowledged yet."""

    def write() -> list[str]:
        done = []
        for key in keys:
            picked = "id = ? AND status = 'firing' AND acknowledged_at IS NULL"
            text = f"UPDATE {{alerts}} SET acknowledged_at = ?, acknowledged_by = ? WHERE {picked}"
            if store.execute(text, (time_or_none(store.kind, at), by[:255], row_key(store, key))).rowcount:
                done.append(key)
        return done

    return store.transact(write)


def clear_limits(store: Store, type_: str | None = None, fingerprint: str | None = None) -> int:
    """Let limits not hold any more: of one fingerprint, of one type, or all.  Gives the number of those that did."""
    condition, values = "limited_from IS NOT NULL", []
    if fingerprint is not None:
        condition, values = f"{condition} AND fingerprint = ?", [fingerprint]
    elif type_ is not None:
        condition, values = f"{condition} AND type = ?", [type_]
    return store.transact(lambda: int(store.execute(f"UPDATE {{alerts}} SET limited_from = NULL WHERE {condition}", values).rowcount))


def limits(store: Store, *, since: float) -> list[Row]:
    """What was told since then, the last first: type, fingerprint, subject, limited_from, evidence."""
    columns = "type, fingerprint, subject, limited_from, evidence"
    text = f"SELECT {columns} FROM {{alerts}} WHERE limited_from >= ? ORDER BY limited_from DESC LIMIT 1000"
    rows = []
    for type_, name, subject, at, evidence in store.rows(text, (time_or_none(store.kind, since),)):
        facts = json.loads(evidence) if isinstance(evidence, str) else evidence or {}
        rows.append({"type": type_, "fingerprint": name, "subject": subject, "limited_from": unix_time(at), "key": facts.get("key", "")})
    return rows


def list_alerts(store: Store, *, status: str | None = None, type_: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The newest first."""
    condition, values = "1 = 1", list[Any]()
    for column, value in (("status", status), ("type", type_)):
        if value is not None:
            condition, values = f"{condition} AND {column} = ?", [*values, value]
    return _rows(store, condition, values, f"ORDER BY created_at DESC, id DESC LIMIT {int(limit)}")


def find(store: Store, key: str) -> dict[str, Any] | None:
    """The alert of this id; None if there is none."""
    found = by_ids(store, [key])
    return found[0] if found else None


def firing(store: Store) -> list[tuple[str, str, int]]:
    """(type, severity, number) of the alerts that fire."""
    picked = "is_settled = 0 AND status = 'firing'"
    text = f"SELECT type, severity, COUNT(*) FROM {{alerts}} WHERE {picked} GROUP BY type, severity ORDER BY type, severity"
    return [(type_, severity, int(number)) for type_, severity, number in store.rows(text)]


def count(store: Store, increments: counters.Increments) -> None:
    """Add to counters.  For the inside of a transaction."""
    put(store, counters.COUNTER, counters.counter_rows(increments), counter_upsert(store))


def open_by_fingerprint(store: Store, fingerprints: Sequence[str]) -> dict[str, str]:
    """Fingerprint to the id of its alert that fires, or that nobody has been told of yet."""
    found = {}
    for chunk in _chunks(list(dict.fromkeys(fingerprints))):
        text = f"SELECT fingerprint, id FROM {{alerts}} WHERE is_settled = 0 AND status <> 'resolved' AND fingerprint IN ({_marks(chunk)})"
        for name, key in store.rows(text, chunk):
            found[name] = str(key)
    return found
