"""What ``[alerts]`` of chaperone.toml, or ``Chaperone(alerts={…})``, may hold: channels, routes, and what alerts go by."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from dramatiq_chaperone.errors import SettingsError

from .masks import MASK

_DAY_S: Final = 86_400
_YEAR_S: Final = 365 * _DAY_S
#: What an alert can be matched and grouped by.
LABELS: Final = ("type", "severity", "priority", "actor", "queue", "worker", "host", "service", "job_id")
SEVERITIES: Final = ("critical", "error", "warning", "info")
#: The specification's ways against alert fatigue, as routes: a digest by type, groups by actor, and repeats that grow rare.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "digest": {"group_by": ["type"], "group_wait": 300.0, "group_limit": 10},
    "grouped": {"group_by": ["actor"], "group_wait": 600.0, "group_limit": 5},
    "escalating": {"repeat": [300.0, 900.0, 1800.0, 3600.0]},
}


class _Kind(NamedTuple):
    """What a value has to be.

    Attributes:
      word: 'number', 'whole', 'text', 'texts', 'numbers', 'flag', 'matcher', 'time' or 'choice'.
    """

    word: str
    low: float = 0
    high: float = math.inf
    choices: tuple[str, ...] = ()


_SECONDS: Final = _Kind("number", 0, _YEAR_S)
_TEXT: Final = _Kind("text")
_TEXTS: Final = _Kind("texts")
_MATCHER: Final = _Kind("matcher")

_CHANNEL: Final[Mapping[str, _Kind]] = {
    "urls": _TEXTS,
    "fallback": _TEXT,
    "tags": _TEXTS,
    "limit": _Kind("whole", 0, 100_000),
    "send_resolved": _Kind("flag"),
}
_ROUTE: Final[Mapping[str, _Kind]] = {
    "name": _TEXT,
    "preset": _Kind("choice", choices=tuple(PRESETS)),
    "match": _MATCHER,
    "channels": _TEXTS,
    "tags": _TEXTS,
    "group_by": _Kind("texts", choices=LABELS),
    "group_wait": _SECONDS,
    "group_limit": _Kind("whole", 1, 100_000),
    "group_interval": _SECONDS,
    "repeat": _Kind("numbers", 0, _YEAR_S),
    "escalate_after": _SECONDS,
    "escalate_to": _TEXTS,
    "continue": _Kind("flag"),
}
_SLA: Final[Mapping[str, _Kind]] = {
    "name": _TEXT,
    "queue": _TEXT,
    "actor": _TEXT,
    "wait": _SECONDS,
    "duration": _SECONDS,
    "objective": _Kind("number", 1, 100),
    "severity": _Kind("choice", choices=SEVERITIES),
}
_MAINTENANCE: Final[Mapping[str, _Kind]] = {"start": _Kind("time"), "end": _Kind("time"), "reason": _TEXT, "match": _MATCHER}

#: Numbers that alerts go by: bounds, and the default.
THRESHOLDS: Final[Mapping[str, tuple[_Kind, float]]] = {
    "window": (_Kind("number", 60, 3600), 300.0),
    "minimum_runs": (_Kind("whole", 1, 1_000_000), 20),
    "for": (_SECONDS, 60.0),
    "oldest_waiting": (_SECONDS, 900.0),
    "dead_letters": (_Kind("whole", 0, 1_000_000), 50),
    "breaker_open": (_SECONDS, 1800.0),
    "crashes": (_Kind("whole", 0, 1_000_000), 5),
    "no_worker": (_SECONDS, 60.0),
}


def checked_alerts(value: object, origin: str) -> dict[str, Any]:
    """The whole table, checked.

    Raises:
      SettingsError: a name is unknown or a value is not what it may be; says which, where, and what it may be.
      TypeError: *value* is no table.
    """
    if not isinstance(value, Mapping):
        raise TypeError
    checked: dict[str, Any] = {}
    for name, part in value.items():
        where = f"alerts.{name}"
        if name in {"channels", "runbooks", "limits", "priorities", "thresholds"}:
            if not isinstance(part, Mapping):
                raise _refused(where, part, "a table", origin)
        elif name in {"routes", "sla", "maintenance"} and not isinstance(part, list | tuple):
            raise _refused(where, part, "a list of tables", origin)
        checked[name] = _part(str(name), part, where, origin)
    _refuse_circles(checked, origin)
    return checked


def _part(name: str, part: Any, where: str, origin: str) -> Any:
    match name:
        case "channels":
            return {str(each): _table(_CHANNEL, table, f"{where}.{each}", origin) for each, table in part.items()}
        case "routes" | "sla" | "maintenance":
            shape = {"routes": _ROUTE, "sla": _SLA, "maintenance": _MAINTENANCE}[name]
            return [_table(shape, table, f"{where}[{number}]", origin) for number, table in enumerate(part, 1)]
        case "runbooks":
            return {str(each): _value(_TEXT, url, f"{where}.{each}", origin) for each, url in part.items()}
        case "limits":
            return {str(each): _value(_SECONDS, seconds, f"{where}.{each}", origin) for each, seconds in part.items()}
        case "priorities":
            return _table({"critical": _TEXTS, "high": _TEXTS, "low": _TEXTS}, part, where, origin)
        case "thresholds":
            return _table({key: kind for key, (kind, _) in THRESHOLDS.items()}, part, where, origin)
        case "watchdog_url":
            return _value(_TEXT, part, where, origin)
    known = ("channels", "routes", "runbooks", "limits", "priorities", "thresholds", "sla", "maintenance", "watchdog_url")
    raise _unknown(name, known, "alerts", origin)


def _table(shape: Mapping[str, _Kind], table: object, where: str, origin: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise _refused(where, table, "a table", origin)
    for name in table:
        if name not in shape:
            raise _unknown(str(name), shape, where, origin)
    return {str(name): _value(shape[name], value, f"{where}.{name}", origin) for name, value in table.items()}


def _value(kind: _Kind, value: Any, where: str, origin: str) -> Any:  # noqa: PLR0912 - one case a kind
    match kind.word:
        case "number" | "whole":
            return _number(kind, value, where, origin)
        case "numbers":
            return [_number(kind, each, where, origin) for each in (value if isinstance(value, list | tuple) else [value])]
        case "flag" if isinstance(value, bool):
            return value
        case "text" if isinstance(value, str) and value:
            return value
        case "choice" if value in kind.choices:
            return value
        case "texts" if isinstance(value, str):
            return _value(kind, [value], where, origin)
        case "texts" if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            for each in value:
                if kind.choices and each not in kind.choices:
                    raise _unknown(each, kind.choices, where, origin)
            return list(value)
        case "matcher" if isinstance(value, Mapping):
            return checked_matcher(value, where, origin)
        case "time" if isinstance(value, datetime):
            return value.astimezone().isoformat()
        case "time" if isinstance(value, str):
            try:
                return datetime.fromisoformat(value).astimezone().isoformat()
            except ValueError:
                pass
    words = {"flag": "true or false", "text": "text", "texts": "text, or a list of text", "matcher": "a table", "time": "a date and time"}
    raise _refused(where, value, words.get(kind.word) or "one of " + ", ".join(kind.choices), origin)


def checked_matcher(value: Mapping[Any, Any], where: str = "match", origin: str = "argument") -> dict[str, list[str]]:
    """A matcher: labels to patterns, all of which an alert has to meet, each by one of its patterns.  Raises SettingsError."""
    for name in value:
        if name not in LABELS:
            raise _unknown(str(name), LABELS, where, origin)
    return {str(name): _value(_TEXTS, patterns, f"{where}.{name}", origin) for name, patterns in value.items()}


def _number(kind: _Kind, value: Any, where: str, origin: str) -> float:
    types = (int,) if kind.word == "whole" else (int, float)
    is_number = isinstance(value, types) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not kind.low <= value <= kind.high:
        words = "a whole number" if kind.word == "whole" else "a number"
        raise _refused(where, value, f"{words}, {kind.low:,.0f} to {kind.high:,.0f}", origin)
    return int(value) if kind.word == "whole" else float(value)


def _refuse_circles(alerts: Mapping[str, Any], origin: str) -> None:
    """A channel that is its own fallback.  Whether others are there is known when all settings are."""
    channels = alerts.get("channels", {})
    for name, channel in channels.items():
        if channel.get("fallback") == name:
            raise _refused(f"alerts.channels.{name}.fallback", name, "another channel", origin)


def _refused(where: str, value: object, what: str, origin: str) -> SettingsError:
    is_secret = where.startswith(("alerts.channels", "alerts.watchdog_url"))
    shown = MASK if is_secret else value
    return SettingsError(f"{where} must be {what}, not {shown!r:.200} ({origin})", field=where, value=shown, origin=origin)


def _unknown(name: str, known: Any, where: str, origin: str) -> SettingsError:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
    return SettingsError(f"{name} is not known in {where} ({origin}){hint}", field=f"{where}.{name}", value=name, origin=origin)


def said(alerts: Mapping[str, Any]) -> str:
    """The table in a few words, without its addresses."""
    parts = []
    for name, part in alerts.items():
        if isinstance(part, Mapping):
            parts.append(f"{name}: {', '.join(map(str, part))}")
        elif isinstance(part, list):
            parts.append(f"{name}: {len(part)}")
        else:
            parts.append(name)
    return "; ".join(parts)
