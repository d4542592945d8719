"""One value of one setting: parsed, checked, shown."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dramatiq_chaperone.errors import SettingsError

from .alerting import checked_alerts, said
from .masks import MASK, mask_url
from .services import checked_services

if TYPE_CHECKING:
    from dataclasses import Field

#: The origin of what nobody set.
DEFAULT: Final = "default"

#: The tables whose names can be set one by one, and how those settings are called.
NAMED_TABLES: Final = {
    "supervised_jobs": "jobs_table",
    "supervised_job_errors": "errors_table",
    "heartbeats": "heartbeats_table",
    "circuit_breakers": "circuit_breakers_table",
    "resource_violations": "resource_violations_table",
    "job_health_checks": "job_health_checks_table",
    "dead_letter_jobs": "dlq_table",
}


class Found(NamedTuple):
    """A value and where it stood."""

    value: object
    origin: str
    #: Whether it is text to be parsed.
    is_text: bool = False


def checked(spec: Field[Any], found: Found) -> Any:
    """The value of *found* in the type of *spec* and inside its bounds."""
    try:
        value = _typed(str(spec.type), found)
    except (TypeError, ValueError, OverflowError):
        raise _refused(spec, found) from None
    facts = spec.metadata
    if isinstance(value, (int, float)) and not facts.get("low", value) <= value <= facts.get("high", value):
        raise _refused(spec, found)
    if "choices" in facts and value not in facts["choices"]:
        raise _refused(spec, found)
    if spec.name in _SHAPES and not re.fullmatch(_SHAPES[spec.name][0], str(value)):
        raise _refused(spec, found)
    return _database_url(value, spec, found) if spec.name == "database_url" else value


def _typed(kind: str, found: Found) -> Any:
    """Raises TypeError, ValueError or OverflowError."""
    value = found.value
    if kind == "Mapping[str, Any]":
        return checked_alerts(value, found.origin)
    if kind.startswith("Mapping"):
        return checked_services(value, found.origin)
    if kind.startswith("Callable"):
        if not callable(value):
            raise TypeError
        return value
    if kind == "tuple[str, ...]":
        return _items(value)
    if kind.startswith("Path"):
        if not isinstance(value, (str, os.PathLike)):
            raise TypeError
        return expanded(os.fspath(value))
    if found.is_text:
        value = _parsed(kind, str(value))
    if isinstance(value, int) and not isinstance(value, bool) and kind == "float":
        value = float(value)
    if type(value).__name__ != kind.split(" ", maxsplit=1)[0] or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError
    return value


def _parsed(kind: str, text: str) -> object:
    if kind == "bool":
        return _BOOLEANS.get(text.lower(), text)
    if kind in {"int", "float"}:
        return int(text) if kind == "int" else float(text)
    return text


def _items(value: object) -> tuple[str, ...]:
    """A list of text, or text with commas; a comma inside a URL stays there."""
    if isinstance(value, str):
        value = re.split(r"[,\s]+(?=[a-z][\w+.-]*://)", value.strip()) if "://" in value else value.split(",")
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(each, str) for each in value):
        raise TypeError
    items = sorted(value) if isinstance(value, (set, frozenset)) else value
    return tuple(each.strip() for each in items if each.strip())


_BOOLEANS: Final = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
_NAME: Final = (r"[A-Za-z_][A-Za-z0-9_]{0,39}", "a name of at most 40 letters, digits and underscores")
#: What the text of a setting must look like, and how that is said.
_SHAPES: Final[dict[str, tuple[str, str]]] = {
    **dict.fromkeys(NAMED_TABLES.values(), _NAME),
    "table_prefix": (r"([A-Za-z_][A-Za-z0-9_]{0,19})?", "at most 20 letters, digits and underscores"),
    "broker": (r"\w+(\.\w+)*(:\w+(\.\w+)*)?", "a module, or module:attribute"),
    "dashboard_url": (r"https?://\S+", "an http:// or https:// address"),
    "exporter_host": (r"\S+", "a host name or an address"),
    "dlq_cleanup_schedule": (r"\S+( +\S+){4}", "a cron line of five fields"),
}
_KINDS: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "tuple[str, ...]": "a list of text",
    "Path": "a path",
    "Callable[[str, Any], Any]": "callable",
    "Mapping[str, Mapping[str, Any]]": "a table for each service",
    "Mapping[str, Any]": "a table",
}


def bound(spec: Field[Any]) -> str:
    """What a setting's value has to be, in words."""
    facts = spec.metadata
    if "choices" in facts:
        return "one of " + ", ".join(facts["choices"])
    if spec.name in _SHAPES:
        return _SHAPES[spec.name][1]
    if spec.name == "database_url":
        return "a sqlite, postgresql or mysql URL"
    words = _KINDS[str(spec.type).removesuffix(" | None")]
    unit = f" of {facts['unit']}" if "unit" in facts else ""
    if "low" not in facts:
        return words + unit
    return f"{words}{unit}, " + (f"{facts['low']:,} to {facts['high']:,}" if "high" in facts else f"at least {facts['low']:,}")


def _refused(spec: Field[Any], found: Found, why: str | None = None) -> SettingsError:
    value = MASK if spec.metadata.get("secret") else found.value
    message = f"{spec.name} must be {why or bound(spec)}, not {value!r:.200} ({found.origin})"
    return SettingsError(message, field=spec.name, value=value, origin=found.origin)


def _database_url(url: str, spec: Field[Any], found: Found) -> str:
    scheme, separator, rest = url.partition("://")
    scheme = _SCHEMES.get(scheme.lower(), "")
    if not scheme or not separator:
        raise _refused(spec, found)
    if scheme != "sqlite":
        return f"{scheme}://{rest}"
    path, mark, query = rest.removeprefix("/").partition("?")
    if not rest.startswith("/") or path in {"", ":memory:"}:
        raise _refused(spec, found, "a file, which several processes can open: sqlite:///path")
    return f"sqlite:///{expanded(path)}{mark}{query}"


_SCHEMES: Final = {
    "sqlite": "sqlite",
    **dict.fromkeys(("postgresql", "postgres", "postgresql+psycopg"), "postgresql"),
    **dict.fromkeys(("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"), "mysql"),
}


def expanded(path: str) -> Path:
    """*path* made absolute, ``~`` expanded.  Raises SettingsError where this user has no home directory."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        message = "state_dir: this user has no home directory; set CHAPERONE_STATE_DIR"
        raise SettingsError(message, field="state_dir", value=path, origin=DEFAULT) from None


def shown(spec: Field[Any], value: object) -> str:
    """*value* as text for people, masked where it is secret."""
    secret = spec.metadata.get("secret")
    if spec.name == "alerts" and isinstance(value, dict):
        return said(value)
    if secret and value:
        return mask_url(str(value)) if secret == "url" else MASK  # noqa: S105 - how it is masked
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return "; ".join(f"{name}: " + ", ".join(f"{key} {each}" for key, each in options.items()) for name, options in value.items())
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return "" if value is None else str(value)


def thawed(kind: object, value: Any) -> Any:
    """A value of a setting of type *kind*, from what JSON made of it."""
    if value is not None and str(kind).startswith("Path"):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
