"""Thresholds: what readings of the whole fleet give to alert of.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from ..records import BUCKETS
from .kinds import Finding
from .rules import duration

if TYPE_CHECKING:
    from ..settings import Settings


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What runs of one actor in one queue did in the window.

    Attributes:
      failed: ended in another way than succeeded.
      buckets: how many took at most BUCKETS[n] seconds and more than BUCKETS[n-1]; the last is all above.
      wait_s: seconds that they had waited, together.
    """

    queue: str
    actor: str
    total: int
    failed: int
    duration_s: float
    wait_s: float = 0.0
    buckets: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Readings:
    """The fleet as it stands.

    Attributes:
      queues: queue to messages that are ready, of those that were read just now.
      oldest_s: queue to the age of its oldest message that could run, in seconds.
      served: the queues that a worker which lives fetches from; None: not known.
      runs: of the last *window_s* seconds.
      dead_letters: queue to those of the last hour.
      open_s: service to the seconds that its breaker is open.
      crashes: host to the workers that crashed in the window.
      held: queues whose messages wait for a breaker or disk space: that is told elsewhere.
    """

    window_s: float = 300.0
    queues: Mapping[str, int] = field(default_factory=dict)
    oldest_s: Mapping[str, float] = field(default_factory=dict)
    served: frozenset[str] | None = None
    runs: Sequence[Runs] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    open_s: Mapping[str, float] = field(default_factory=dict)
    crashes: Mapping[str, int] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


#: Types that come from readings: they end when the readings say so.
TYPES: Final = frozenset(
    {"queue_length", "oldest_waiting", "no_worker", "error_rate", "response_time", "dead_letters", "breaker_open_long", "crash_loop", "sla"}
)
#: True at once: they have lasted already.  The others have to hold for a while, which is a number of its own for some.
AT_ONCE: Final = frozenset({"crash_loop", "breaker_open_long", "dead_letters", "oldest_waiting"})
HOLDS: Final[Mapping[str, str]] = {"no_worker": "no_worker"}
#: What only a reading of the queue can tell to be over.
OF_READINGS: Final = frozenset({"queue_length", "oldest_waiting"})


def found(readings: Readings, settings: Settings, numbers: Mapping[str, float]) -> list[Finding]:
    """What is above its threshold.

    Parameters:
      numbers: settings.THRESHOLDS, as they are in effect; 0 switches one off.
    """
    every = (_queues, _runs, _rest)
    return [*(finding for part in every for finding in part(readings, settings, numbers)), *_objectives(readings, settings, numbers)]


def _queues(readings: Readings, settings: Settings, numbers: Mapping[str, float]) -> Iterator[Finding]:
    for queue, ready in readings.queues.items():
        if 0 < settings.alert_queue_length < ready:
            details = [("Messages", f"{ready:,}"), ("Threshold", f"{settings.alert_queue_length:,}")]
            yield Finding("queue_length", queue, queue, {"queue": queue}, details)
    for queue, age_s in readings.oldest_s.items():
        is_served = readings.served is None or queue in readings.served
        labels, details = {"queue": queue}, [("Oldest message", duration(age_s))]
        if not is_served and numbers["no_worker"] > 0:
            yield Finding("no_worker", queue, queue, labels, details)
        elif 0 < numbers["oldest_waiting"] <= age_s and queue not in readings.held:
            yield Finding("oldest_waiting", queue, queue, labels, [*details, ("Threshold", duration(numbers["oldest_waiting"]))])


def _runs(readings: Readings, settings: Settings, numbers: Mapping[str, float]) -> Iterator[Finding]:
    over = f"over {duration(readings.window_s)}"
    for each in readings.runs:
        if each.total < numbers["minimum_runs"]:
            continue
        labels, key = {"actor": each.actor, "queue": each.queue}, f"{each.queue}:{each.actor}"
        share = 100.0 * each.failed / each.total
        if 0 < settings.alert_error_rate < share:
            details = [
                ("Failed", f"{each.failed} of {each.total} runs, {share:.1f} %, {over}"),
                ("Threshold", f"{settings.alert_error_rate:g} %"),
            ]
            yield Finding("error_rate", key, each.actor, labels, details)
        average_s = each.duration_s / each.total
        if 0 < settings.alert_response_time < average_s:
            details = [("Average", f"{duration(average_s)} {over}"), ("Threshold", duration(settings.alert_response_time))]
            yield Finding("response_time", key, each.actor, labels, details)


def _rest(readings: Readings, settings: Settings, numbers: Mapping[str, float]) -> Iterator[Finding]:
    for queue, count in readings.dead_letters.items():
        if 0 < numbers["dead_letters"] < count:
            details = [("Dead letters", f"{count} in an hour"), ("Threshold", f"{numbers['dead_letters']:g}")]
            yield Finding("dead_letters", queue, queue, {"queue": queue}, details)
    for service, open_s in readings.open_s.items():
        if 0 < numbers["breaker_open"] <= open_s:
            yield Finding("breaker_open_long", service, service, {"service": service}, [("Open for", duration(open_s))])
    for host, count in readings.crashes.items():
        if 0 < numbers["crashes"] <= count:
            details = [("Crashes", f"{count} workers in {duration(readings.window_s)}")]
            yield Finding("crash_loop", host, host, {"host": host}, details)


def _objectives(readings: Readings, settings: Settings, numbers: Mapping[str, float]) -> Iterator[Finding]:
    for number, sla in enumerate(settings.alerts.get("sla", ()), 1):
        name = sla.get("name") or f"objective {number}"
        runs = [each for each in readings.runs if _meets(sla, each.queue, each.actor)]
        total = sum(each.total for each in runs)
        details, share = [], float(sla.get("objective", 95.0))
        if total >= numbers["minimum_runs"] and sla.get("duration"):
            within = 100.0 * sum(_within(each.buckets, sla["duration"]) for each in runs) / total
            if within < share:
                details.append(("Duration", f"{within:.1f} % of {total} runs took at most {duration(sla['duration'])}; wanted {share:g} %"))
        if total >= numbers["minimum_runs"] and sla.get("wait"):
            average_s = sum(each.wait_s for each in runs) / total
            if average_s > sla["wait"]:
                details.append(("Wait", f"{duration(average_s)} on average; wanted {duration(sla['wait'])}"))
        if details:
            labels: dict[str, str] = {label: sla[label] for label in ("queue", "actor") if label in sla}
            yield Finding("sla", name, name, labels, details, severity=sla.get("severity"))


def _meets(sla: Mapping[str, Any], queue: str, actor: str) -> bool:
    return fnmatchcase(queue, sla.get("queue", "*")) and fnmatchcase(actor, sla.get("actor", "*"))


def _within(buckets: Sequence[int], limit_s: float) -> int:
    """How many took at most so long: whole buckets, in favour of the runs in the one that the limit lies in."""
    return sum(number for position, number in enumerate(buckets) if position == 0 or BUCKETS[position - 1] < limit_s)
