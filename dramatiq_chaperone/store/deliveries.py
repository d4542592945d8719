"""Deliveries of alerts: one row an attempt.  It waits, is claimed by whoever holds the lease, and ends as sent or failed.

An attempt that was claimed by a holder that is gone, or that did not come back, has perhaps reached people: it is made
again and says that it may be a repeat.  So a message is sent at least once, and once more for each such death at most.
"""

from __future__ import annotations

import itertools
import json
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import counters
from .alerts import count, suppress
from .rows import insert_one, row_key
from .times import time_or_none, unix_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from . import Store

SENT: Final = "chaperone_alert_deliveries_total"
DURATION: Final = "chaperone_alert_delivery_duration_seconds"

#: A message is tried for so long at most, in seconds.
LIFE_S: Final = 86_400.0
#: One that has waited for so long is overdue, in seconds.
OVERDUE_S: Final = 300.0
#: So many failing attempts are well enough, in percent.
HEALTHY_PERCENT: Final = 5.0
#: Deliveries of a channel that are looked through for one that may be sent.
_LOOK: Final = 200
_LAST: Final = (float("inf"), "")
WAITING: Final = "waiting"
SENDING: Final = "sending"


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
        "alert_id": row_key(store, alerts[0][0]),
        "created_at": time_or_none(store.kind, at),
        "channel": channel[:255],
        "attempt": attempt,
        "result": result,
        "route": route[:255],
        "message": message or _new_message(at),
        "notice": notice,
        "alerts": json.dumps(alerts),
        "next_at": time_or_none(store.kind, at if next_at is None else next_at),
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


def find(store: Store, key: str) -> Delivery:
    """The delivery of this id."""
    return _select(store, "id = ?", (row_key(store, key),), "")[0]


def channels_that_wait(store: Store) -> list[str]:
    """The channels for which there is something, due or not."""
    return [name for (name,) in store.rows("SELECT DISTINCT channel FROM {alert_deliveries} WHERE result = ? ORDER BY channel", (WAITING,))]


def next_of(store: Store, channel: str, now: float) -> Delivery | None:
    """The oldest delivery to *channel* that is due; None without one.

    One that is about an alert of an older one, which has failed and is to be tried again, does not overtake it.
    """
    due = _select(
        store,
        "result = ? AND channel = ? AND next_at <= ?",
        (WAITING, channel, time_or_none(store.kind, now)),
        f"ORDER BY created_at, message LIMIT {_LOOK}",
    )
    if not due:
        return None
    text = f"SELECT alerts, created_at, message FROM {{alert_deliveries}} WHERE result = ? AND channel = ? AND next_at > ? LIMIT {_LOOK}"
    held: dict[str, tuple[float, str]] = {}
    for alerts, created_at, message in store.rows(text, (WAITING, channel, time_or_none(store.kind, now))):
        place = (unix_time(created_at) or 0.0, message)
        for key, _ in json.loads(alerts) if isinstance(alerts, str) else alerts:
            held[key] = min(place, held.get(key, place))
    free = (each for each in due if all(held.get(key, _LAST) > (each.created_at, each.message) for key, _ in each.alerts))
    return next(free, None)


def claim(store: Store, key: str, holder: str, at: float) -> bool:
    """Take one that waits, before it is sent; False if somebody else has."""
    text = "UPDATE {alert_deliveries} SET result = ?, claimed_at = ?, claimed_by = ? WHERE id = ? AND result = ?"
    return bool(store.execute(text, (SENDING, time_or_none(store.kind, at), holder, row_key(store, key), WAITING)).rowcount)


def sending(store: Store) -> list[str]:
    """What is claimed, by whomever."""
    return [str(key) for (key,) in store.rows("SELECT id FROM {alert_deliveries} WHERE result = ? ORDER BY id", (SENDING,))]


def give_back(store: Store, keys: Sequence[str], at: float) -> None:
    """These, which somebody had claimed who is gone, wait again, and may be repeats.  For the inside of a transaction."""
    text = "UPDATE {alert_deliveries} SET result = ?, may_repeat = 1, next_at = ? WHERE id = ? AND result = ?"
    for key in keys:
        store.execute(text, (WAITING, time_or_none(store.kind, at), row_key(store, key), SENDING))


def finish(store: Store, delivery: Delivery, result: str, at: float, *, seconds: float, error: str | None = None, title: str = "") -> bool:
    """An attempt is over; False if it was not this holder's any more."""
    text = "UPDATE {alert_deliveries} SET result = ?, finished_at = ?, seconds = ?, error = ?, title = ? WHERE id = ? AND result = ?"
    values = (result, time_or_none(store.kind, at), seconds, error, title[:1000], row_key(store, delivery.id), SENDING)
    if not store.execute(text, values).rowcount:
        return False
    increments: counters.Increments = {(SENT, (("channel", delivery.channel), ("result", result))): 1}
    counters.observe(increments, DURATION, (("channel", delivery.channel),), [seconds])
    count(store, increments)
    return True


def drop_waiting(store: Store, message: str, channel: str) -> None:
    """No other attempt at this message is needed: a late answer says that it has arrived."""
    text = "DELETE FROM {alert_deliveries} WHERE message = ? AND channel = ? AND result = ?"
    store.execute(text, (message, channel, WAITING))


def flood(store: Store, delivery: Delivery, at: float) -> None:
    """A channel has had enough: this one is not sent, and its next message says so."""
    text = "UPDATE {alert_deliveries} SET result = 'flood', finished_at = ? WHERE id = ? AND result = ?"
    if store.execute(text, (time_or_none(store.kind, at), row_key(store, delivery.id), WAITING)).rowcount:
        suppress(store, {key: "flood" for key, _ in delivery.alerts}, at)


def flooded(store: Store, channel: str, now: float) -> tuple[int, int]:
    """Messages, and alerts in them, that the channel did not get since its last message; of a day at most."""
    last = "SELECT MAX(finished_at) FROM {alert_deliveries} WHERE channel = ? AND result = 'sent' AND finished_at >= ?"
    day = time_or_none(store.kind, now - LIFE_S)
    since = store.rows(last, (channel, day))[0][0]
    text = "SELECT alerts FROM {alert_deliveries} WHERE channel = ? AND result = 'flood' AND finished_at >= ?"
    found = [json.loads(each) if isinstance(each, str) else each for (each,) in store.rows(text, (channel, since or day))]
    return len(found), sum(len(each) for each in found)


def sent_since(store: Store, channel: str, since: float) -> int:
    """Messages that *channel* took since then."""
    text = "SELECT COUNT(*) FROM {alert_deliveries} WHERE channel = ? AND result = 'sent' AND finished_at >= ?"
    return int(store.rows(text, (channel, time_or_none(store.kind, since)))[0][0])


def of_alert(store: Store, key: str) -> list[Delivery]:
    """All attempts at telling of an alert, the oldest first: the newest 10,000 deliveries are looked through."""
    newest = _select(store, "1 = 1", (), "ORDER BY created_at DESC, id DESC LIMIT 10000")
    return [each for each in reversed(newest) if any(alert == key for alert, _ in each.alerts)]


def statistics(store: Store, *, since: float, now: float) -> dict[str, Any]:
    """How deliveries went since then, in the specification's shape, and how many are overdue.

    Returns ``{"total_sent", "total_failed", "by_channel": {…}, "by_type": {…}, "overdue"}``: attempts, by channel and by the type of
    the first alert in each as ``{"sent", "failed"}``; and messages that nobody has had for five minutes.
    """
    text = (
        "SELECT d.channel, a.type, d.result, COUNT(*) FROM {alert_deliveries} d JOIN {alerts} a ON a.id = d.alert_id "
        "WHERE d.finished_at >= ? AND d.result IN ('sent', 'failed') GROUP BY d.channel, a.type, d.result"
    )
    found: dict[str, Any] = {"total_sent": 0, "total_failed": 0, "by_channel": {}, "by_type": {}}
    for channel, type_, result, number in store.rows(text, (time_or_none(store.kind, since),)):
        found[f"total_{result}"] += int(number)
        for name, which in (("by_channel", channel), ("by_type", type_)):
            each = found[name].setdefault(which, {"sent": 0, "failed": 0})
            each[result] += int(number)
    text = "SELECT COUNT(*) FROM {alert_deliveries} WHERE result IN (?, ?) AND created_at < ?"
    found["overdue"] = int(store.rows(text, (WAITING, SENDING, time_or_none(store.kind, now - OVERDUE_S)))[0][0])
    return found


def fail(statistics: Mapping[str, Any]) -> bool:
    """Whether messages do not arrive: some are overdue, or all attempts failed."""
    return bool(statistics["overdue"] or (statistics["total_failed"] and not statistics["total_sent"]))


def health(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The specification's verdict: under 5 % of the attempts fail, and nothing is overdue; None where nothing was to be sent.

    Returns ``{"healthy": bool | None, "stats": …, "failure_rate": percent}``.
    """
    sent, failed = statistics["total_sent"], statistics["total_failed"]
    rate = 100.0 * failed / (sent + failed) if sent + failed else 0.0
    is_known = sent + failed > 0 or statistics["overdue"] > 0
    healthy = rate < HEALTHY_PERCENT and not statistics["overdue"] if is_known else None
    return {"healthy": healthy, "stats": dict(statistics), "failure_rate": round(rate, 2)}
