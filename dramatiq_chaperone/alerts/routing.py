"""Where an alert goes: its priority, the routes that it matches, what silences it, what mutes it.  Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..circuits import waiting_for
from ..settings import PRESETS
from .kinds import Alert

if TYPE_CHECKING:
    from ..settings import Settings

#: Windows in which an alert that comes again is not told again, by type, in seconds.
LIMITS: Final[Mapping[str, float]] = {"default": 300.0}
_HIGH: Final = ("*payment*", "*order*")
_LOW: Final = ("*cleanup*", "*archive*")
_SEVERITY_RANK: Final = {"critical": 3, "error": 2, "warning": 1, "info": 0}


class Route(NamedTuple):
    """One way from an alert to people; times are seconds."""

    name: str
    match: Mapping[str, Sequence[str]]
    channels: tuple[str, ...]
    group_by: tuple[str, ...]
    group_wait: float
    group_limit: int
    group_interval: float
    #: After each message the time to the next one of what still fires; the last holds from there on.  Empty: none.
    repeat: tuple[float, ...]
    escalate_after: float
    escalate_to: tuple[str, ...]
    goes_on: bool


class Silence(NamedTuple):
    """A silence or a maintenance window; times are Unix seconds."""

    id: str
    match: Mapping[str, Sequence[str]]
    starts_at: float
    until: float
    reason: str = ""
    owner: str = ""
    notice: str = "silence"


def routes_of(settings: Settings, channels: Sequence[str], tags: Mapping[str, Sequence[str]]) -> list[Route]:
    """The routes of the settings; without any, one to all channels, which lets critical ones through at once.

    Parameters:
      channels: all that there are.
      tags: those of each tag.
    """
    routes = [_route(table, number, settings, channels, tags) for number, table in enumerate(settings.alerts.get("routes", ()), 1)]
    if not routes or routes[-1].match:
        routes.append(_route({"name": "default"}, 0, settings, channels, tags))
    # Groups go by the name of their route.
    names = [route.name for route in routes]
    return [
        route._replace(name=f"{route.name} {names[:place].count(route.name) + 1}") if route.name in names[:place] else route
        for place, route in enumerate(routes)
    ]


def _route(table: Mapping[str, Any], number: int, settings: Settings, channels: Sequence[str], tags: Mapping[str, Sequence[str]]) -> Route:
    table = {**PRESETS.get(table.get("preset", ""), {}), **table}
    chosen = [*table.get("channels", ()), *(name for tag in table.get("tags", ()) for name in tags.get(tag, ()))]
    return Route(
        name=table.get("name") or table.get("preset") or f"route {number}",
        match=table.get("match", {}),
        channels=tuple(dict.fromkeys(chosen or channels)),
        group_by=tuple(table.get("group_by", ("type",))),
        group_wait=table.get("group_wait", settings.alert_group_wait),
        group_limit=int(table.get("group_limit", 0)),
        group_interval=table.get("group_interval", settings.alert_group_interval),
        repeat=tuple(table.get("repeat", (settings.alert_repeat_interval,))),
        escalate_after=table.get("escalate_after", 0.0),
        escalate_to=tuple(table.get("escalate_to", ())),
        goes_on=bool(table.get("continue", False)),
    )


def priority_of(actor: str, settings: Settings, *, is_critical: bool = False) -> str:
    """critical, high, normal or low, by the actor's name, whatever its case."""
    patterns = settings.alerts.get("priorities", {})
    chosen = (
        ("critical", (*settings.critical_jobs, *patterns.get("critical", ()))),
        ("high", patterns.get("high", _HIGH)),
        ("low", patterns.get("low", _LOW)),
    )
    if is_critical:
        return "critical"
    return next((name for name, each in chosen if any(fnmatchcase(actor.lower(), it.lower()) for it in each)), "normal")


def runbook_of(type_: str, actor: str, settings: Settings) -> str:
    """The address of the runbook: that of the actor, else that of the type; empty without one."""
    runbooks: Mapping[str, str] = settings.alerts.get("runbooks", {})
    by_actor = next((url for pattern, url in runbooks.items() if actor and fnmatchcase(actor, pattern)), "")
    return by_actor or runbooks.get(type_, "")


def limit_s(type_: str, settings: Settings) -> float:
    """How long an alert that was told is not told again when it comes anew."""
    limits: Mapping[str, float] = {**LIMITS, **settings.alerts.get("limits", {})}
    return limits.get(type_, limits["default"])


def matches(match: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> bool:
    """Whether each label of *match* meets one of its patterns."""
    return all(any(fnmatchcase(labels.get(name, ""), pattern) for pattern in patterns) for name, patterns in match.items())


def labels_of(alert: Alert) -> dict[str, str]:
    """All that *alert* can be matched by."""
    return {**alert.labels, "type": alert.type, "severity": alert.severity, "priority": alert.priority}


def routed(alert: Alert, routes: Iterable[Route]) -> list[tuple[Route, dict[str, str]]]:
    """The routes that *alert* takes, the first and those after one that goes on, each with the labels of its group there."""
    labels, found = labels_of(alert), []
    for route in routes:
        if matches(route.match, labels):
            found.append((route, {name: labels.get(name, "") for name in route.group_by}))
            if not route.goes_on:
                break
    return found


def series(route: str, labels: Mapping[str, str]) -> str:
    """The key of a group."""
    return hashlib.sha256(json.dumps([route, dict(labels)], sort_keys=True).encode()).hexdigest()[:40]


def silenced(alert: Alert, silences: Iterable[Silence], now: float) -> Silence | None:
    """What silences *alert* now."""
    labels = labels_of(alert)
    return next((each for each in silences if each.starts_at <= now < each.until and matches(each.match, labels)), None)


def windows_of(settings: Settings) -> list[Silence]:
    """The maintenance windows of the settings."""
    found = []
    for number, table in enumerate(settings.alerts.get("maintenance", ()), 1):
        begin, end = (datetime.fromisoformat(table[name]).timestamp() if name in table else None for name in ("start", "end"))
        found.append(
            Silence(
                f"settings-{number}",
                table.get("match", {}),
                begin or 0.0,
                end or float("inf"),
                table.get("reason", ""),
                "settings",
                "maintenance",
            )
        )
    return found


def inhibited(alert: Alert, firing: Iterable[Alert], waits_for: Mapping[str, frozenset[str]]) -> Alert | None:
    """The alert that says why *alert* fires: its worker is lost, or the breaker that its queue waits for is open.

    Parameters:
      firing: those that can mute others.
      waits_for: queue to what its jobs wait for, in words: ``circuits.waiting_for``.
    """
    reasons = waits_for.get(alert.labels.get("queue", ""), frozenset())
    for other in firing:
        if other.id == alert.id:
            continue
        if other.type == "worker_lost" and alert.type.startswith(("job_", "resource_")) and alert.labels.get("worker") == other.key:
            return other
        if other.type == "circuit_breaker" and alert.type in {"queue_length", "oldest_waiting"} and waiting_for(other.key) in reasons:
            return other
    return None


def worst(alerts: Iterable[Alert]) -> str:
    """The highest severity among *alerts*."""
    return max((each.severity for each in alerts), key=lambda severity: _SEVERITY_RANK.get(severity, 2), default="info")
