"""Deliveries of alerts: one row an attempt.  It waits, is claimed by whoever holds the lease, and ends as sent or failed.

An attempt that was claimed by a holder that is gone, or that did not come back, has perhaps reached people: it is made
again and says that it may be a repeat.  So a message is sent at least once, and once more for each such death at most.
"""

from __future__ import annotations

import itertools
import json
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..records import BUCKETS
from . import counters
from .alerts import SUPPRESSED, count
from .rows import insert_one
from .times import stored_time, unix_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from . import Store

SENT: Final = "chaperone_alert_deliveries_total"
DURATION: Final = "chaperone_alert_delivery_duration_seconds"

#: A message is tried for so long at most, in seconds.
LIFE_S: Final = 86_400.0
WAITING: Final = "waiting"
SENDING: Final = "sending"
DONE: Final = ("sent", "failed", "flood")


class Delivery(NamedTuple):
    """One attempt at one message to one channel; times are Unix seconds."""

    id: str
    #: The same for all attempts.
    message: str
    channel: str
    route: str
    notice: str
    attempt: int
    #: (id of an alert, 'firing' or 'resolved').
    alerts: tuple[tuple[str, str], ...]
    created_at: float
    may_repeat: bool = False
    result: str = WAITING
    next_at: float | None = None
    finished_at: float | None = None
    error: str | None = None
    title: str | None = None
    seconds: float | None = None


_PICKED: Final = (
    *("id", "message", "channel", "route", "notice", "attempt", "alerts", "created_at", "may_repeat", "result", "next_at", "finished_at"),
    *("error", "title", "seconds"),
)


def _at(store: Store, at: float | None) -> Any:
    return None if at is None else stored_time(store.kind, max(at, 0.0))


def _key(store: Store, key: str) -> Any:
    return int(key) if store.key_type == "id" else key


#: Messages of one moment keep their order; attempts at one keep its place.
_numbers: Final = itertools.count()


def _new_message(at: float) -> str:
    return f"{int(at * 1e6):014x}-{next(_numbers) % 0x1000000:06x}-{secrets.token_hex(4)}"


def add(
    store: Store,
    channel: str,
    alerts: Sequence[tuple[str, str]],
    at: float,
    *,
    route: str,
    notice: str,
    message: str | None = None,
    attempt: int = 1,
    next_at: float | None = None,
    may_repeat: bool = False,
    result: str = WAITING,
) -> str:
    """Add one that waits; gives its id.  For the inside of a transaction."""
    row = {
        "alert_id": _key(store, alerts[0][0]),
        "created_at": _at(store, at),
        "channel": channel[:255],
        "attempt": attempt,
        "result": result,
        "route": route[:255],
        "message": message or _new_message(at),
        "notice": notice,
        "alerts": json.dumps(alerts),
        "next_at": _at(store, at if next_at is None else next_at),
        "may_repeat": int(may_repeat),
    }
    return insert_one(store, "alert_deliveries", row)


def _select(store: Store, condition: str, values: Sequence[Any], tail: str) -> list[Delivery]:
    found = []
    columns = ", ".join(store.quote(name) for name in _PICKED)
    for row in store.rows(f"SELECT {columns} FROM {{alert_deliveries}} WHERE {condition} {tail}", values):
        facts = dict(zip(_PICKED, row, strict=True))
        told = json.loads(facts["alerts"]) if isinstance(facts["alerts"], str) else facts["alerts"]
        facts |= {name: unix_time(facts[name]) for name in ("created_at", "next_at", "finished_at")}
        facts |= {"id": str(facts["id"]), "alerts": tuple((key, status) for key, status in told), "may_repeat": bool(facts["may_repeat"])}
        found.append(Delivery(**facts))
    return found


def waiting(store: Store, *, limit: int = 500) -> list[Delivery]:
    """Those that wait, the oldest first, due or not: a newer one of a channel does not overtake."""
    return _select(store, "result = ?", (WAITING,), f"ORDER BY created_at, message LIMIT {int(limit)}")


def claim(store: Store, key: str, holder: str, at: float) -> bool:
    """Take one that waits, before it is sent; False if somebody else has."""
    text = "UPDATE {alert_deliveries} SET result = ?, claimed_at = ?, claimed_by = ? WHERE id = ? AND result = ?"
    return bool(store.execute(text, (SENDING, _at(store, at), holder, _key(store, key), WAITING)).rowcount)


def give_back(store: Store, holder: str, at: float) -> int:
    """What others had claimed waits again, and may be a repeat; gives the number."""
    text = "UPDATE {alert_deliveries} SET result = ?, may_repeat = 1, next_at = ? WHERE result = ? AND claimed_by <> ?"
    return int(store.execute(text, (WAITING, _at(store, at), SENDING, holder)).rowcount)


def finish(store: Store, delivery: Delivery, result: str, at: float, *, seconds: float, error: str | None = None, title: str = "") -> bool:
    """An attempt is over; False if it was not this holder's any more."""
    text = "UPDATE {alert_deliveries} SET result = ?, finished_at = ?, seconds = ?, error = ?, title = ? WHERE id = ? AND result = ?"
    values = (result, _at(store, at), seconds, error, title[:1000], _key(store, delivery.id), SENDING)
    if not store.execute(text, values).rowcount:
        return False
    increments: counters.Increments = {(SENT, (("channel", delivery.channel), ("result", result))): 1}
    buckets = [0] * len(counters.BOUNDS)
    place = next((n for n, bound in enumerate(BUCKETS) if seconds <= bound), len(counters.BOUNDS) - 1)
    buckets[place] = 1
    counters.add_histogram(increments, DURATION, (("channel", delivery.channel),), buckets, seconds)
    count(store, increments)
    return True


def drop_waiting(store: Store, message: str, channel: str) -> None:
    """No other attempt at this message is needed: a late answer says that it has arrived."""
    text = "DELETE FROM {alert_deliveries} WHERE message = ? AND channel = ? AND result = ?"
    store.execute(text, (message, channel, WAITING))


def flood(store: Store, delivery: Delivery, at: float) -> None:
    """A channel has had enough: this one is not sent, and its next message says so."""
    text = "UPDATE {alert_deliveries} SET result = 'flood', finished_at = ? WHERE id = ? AND result = ?"
    if store.execute(text, (_at(store, at), _key(store, delivery.id), WAITING)).rowcount:
        count(store, {(SUPPRESSED, (("reason", "flood"),)): len(delivery.alerts)})


def flooded(store: Store, channel: str, now: float) -> tuple[int, int]:
    """Messages, and alerts in them, that the channel did not get since its last message; of a day at most."""
    day = _at(store, now - LIFE_S)
    last = "SELECT MAX(finished_at) FROM {alert_deliveries} WHERE created_at >= ? AND channel = ? AND result = 'sent'"
    since = store.rows(last, (day, channel))[0][0]
    condition, values = ("AND finished_at > ?", (day, channel, since)) if since is not None else ("", (day, channel))
    text = f"SELECT alerts FROM {{alert_deliveries}} WHERE created_at >= ? AND channel = ? AND result = 'flood' {condition}"
    found = [json.loads(each) if isinstance(each, str) else each for (each,) in store.rows(text, values)]
    return len(found), sum(len(each) for each in found)


def sent_since(store: Store, since: float) -> dict[str, int]:
    """Channel to the messages that it took since then, or is being given."""
    picked = "created_at >= ? AND result IN ('sent', 'sending') AND COALESCE(finished_at, claimed_at) >= ?"
    text = f"SELECT channel, COUNT(*) FROM {{alert_deliveries}} WHERE {picked} GROUP BY channel"
    return {channel: int(number) for channel, number in store.rows(text, (_at(store, since - LIFE_S), _at(store, since)))}


def of_alert(store: Store, key: str) -> list[Delivery]:
    """All attempts at telling of an alert, the oldest first: the newest 10,000 deliveries are looked through."""
    newest = _select(store, "1 = 1", (), "ORDER BY created_at DESC, id DESC LIMIT 10000")
    return [each for each in reversed(newest) if any(alert == key for alert, _ in each.alerts)]


def statistics(store: Store, *, since: float) -> dict[str, Any]:
    """How deliveries went since then, in the specification's shape.

    Returns ``{"total_sent", "total_failed", "by_channel": {channel: {"sent", "failed"}}, "by_type": {type: {"sent", "failed"}}}``:
    attempts by channel, and by the type of the first alert in each.
    """
    text = (
        "SELECT d.channel, a.type, d.result, COUNT(*) FROM {alert_deliveries} d JOIN {alerts} a ON a.id = d.alert_id "
        "WHERE d.created_at >= ? AND d.result IN ('sent', 'failed') GROUP BY d.channel, a.type, d.result"
    )
    found: dict[str, Any] = {"total_sent": 0, "total_failed": 0, "by_channel": {}, "by_type": {}}
    for channel, type_, result, number in store.rows(text, (_at(store, since),)):
        found[f"total_{result}"] += int(number)
        for name, which in (("by_channel", channel), ("by_type", type_)):
            each = found[name].setdefault(which, {"sent": 0, "failed": 0})
            each[result] += int(number)
    return found


def health(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The specification's verdict: under 5 % of the attempts fail; None where there was none, and nothing is known.

    Returns ``{"healthy": bool | None, "stats": …, "failure_rate": percent}``.
    """
    sent, failed = statistics["total_sent"], statistics["total_failed"]
    rate = 100.0 * failed / (sent + failed) if sent + failed else 0.0
    return {"healthy": rate < 5.0 if sent + failed else None, "stats": dict(statistics), "failure_rate": round(rate, 2)}
