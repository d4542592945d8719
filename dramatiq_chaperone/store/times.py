"""Times as a database has them: aware ones in PostgreSQL, naive ones in MySQL, ISO text in SQLite; UTC in all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

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


def time_or_none(kind: str, at: float | None) -> Any:
    """The same, where there may be none; a clock may be before 1970."""
    return None if at is None else stored_time(kind, max(at, 0.0))


def aware(value: Any) -> datetime | None:
    """A time as the database gave it, as an aware datetime in UTC."""
    if value is None:
        return None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    moment: datetime = value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
