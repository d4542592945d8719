"""Values as text for people, and as data for programs.  Pure: the time is passed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from enum import Enum
from typing import Any, Final

#: What stands where there is nothing to say.
NOTHING: Final = "–"

_BAR_FULL: Final = "━"
#: The part of a bar that is not done yet.
BAR_REST: Final = "─"
_BYTES: Final = ("B", "kB", "MB", "GB", "TB")


def seconds(value: float | None) -> str:
    """A duration, in two units at most: ``4 ms``, ``12.3 s``, ``3 m 20 s``, ``2 h 5 m``, ``3 d 4 h``."""
    if value is None:
        return NOTHING
    if value < 0:
        value = 0.0
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    for size, unit, below, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below} {smaller}"
    return f"{whole} s"


def size(value: float | None) -> str:
    """Bytes, by thousands: ``512 B``, ``61.0 MB``."""
    if value is None:
        return NOTHING
    amount, unit = float(value), 0
    while amount >= 999.95 and unit < len(_BYTES) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {_BYTES[unit]}" if unit else f"{amount:.0f} B"


def percent(value: float | None) -> str:
    """A share of a hundred, or CPU of one core."""
    return NOTHING if value is None else f"{value:.0f} %"


def number(value: float | None) -> str:
    """A count, with its thousands apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def text(value: object) -> str:
    """Anything, on one line."""
    return NOTHING if value is None or value == "" else " ".join(str(value).split())


def amount(kind: str, value: float | None) -> str:
    """What a limit of this kind is, or was: bytes, percent of a core, seconds, or a number of files."""
    if kind in {"memory", "disk"}:
        return size(value)
    if kind == "cpu":
        return percent(value)
    return seconds(value) if kind == "timeout" else number(value)


def cut(value: str, length: int) -> str:
    """*value* in at most *length* characters."""
    return value if len(value) <= length else value[: length - 1] + "…"


def clock(at: datetime | None, zone: tzinfo | None = None) -> str:
    """A time in the reader's zone, to the second."""
    return NOTHING if at is None else at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def clock_near(at: datetime | None, now: datetime, zone: tzinfo | None = None) -> str:
    """The same, without the date on the day of *now*."""
    text = clock(at, zone)
    return text.removeprefix(f"{now.astimezone(zone):%Y-%m-%d} ")


def clock_ms(at: datetime | None, zone: tzinfo | None = None) -> str:
    """The time of day in the reader's zone, to the millisecond."""
    if at is None:
        return NOTHING
    local = at.astimezone(zone)
    return local.strftime("%H:%M:%S.") + f"{local.microsecond // 1000:03d}"


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago; a time to come is ``in 3.0 s``."""
    if at is None:
        return NOTHING
    past = (now - at).total_seconds()
    return f"{seconds(past)} ago" if past >= 0 else f"in {seconds(-past)}"


def short_id(job_id: str) -> str:
    """The first 8 characters of a UUID, which is unique nearly always; another id as it is."""
    is_uuid = len(job_id) == 36 and job_id.count("-") == 4
    return job_id[:8] if is_uuid else job_id


def bar(share: float | None, width: int) -> str:
    """A bar of *width* characters for 0–100; nothing for None."""
    if share is None:
        return ""
    full = round(max(0.0, min(100.0, share)) / 100 * width)
    return _BAR_FULL * full + BAR_REST * (width - full)


_LEVELS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int) -> str:
    """The last *width* values as a row of bars, the highest one full."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return _LEVELS[0] * len(shown)
    return "".join(_LEVELS[min(len(_LEVELS) - 1, int(value / top * (len(_LEVELS) - 1) + 0.5))] for value in shown)


def as_data(value: Any) -> Any:
    """*value* as JSON takes it: times in UTC with a Z, named tuples and dataclasses as objects."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return as_data(value.value)
    if hasattr(value, "_asdict"):
        return as_data(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: as_data(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_data(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_data(each) for each in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)
