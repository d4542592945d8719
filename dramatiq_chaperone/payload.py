"""What is kept of a job's arguments: JSON, without secrets, of a bounded size; whatever the arguments are.

It runs on the way of ``send()``, so small plain arguments take a short way: one look at each value, one call of the
JSON encoder.  All others are copied piece by piece, with a budget, so that 10 MB are never looked at whole.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fnmatch import fnmatchcase
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from .service import internal_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .records import Payload

REDACTED: Final = "[redacted]"

#: Keys whose values are never kept, unless ``redact`` says ``!pattern``.
DEFAULT_PATTERNS: Final = (
    *("*password*", "*passwd*", "*passphrase*", "pwd", "*_pwd", "*secret", "*secrets", "*_secret_*", "secret_*", "*credential*"),
    *("*authorization*", "auth", "*_auth", "token", "*_token", "token_hash", "*accesstoken", "*authtoken", "*refreshtoken"),
    *("*_tokens", "!max_tokens", "!*_max_tokens", "jwt", "*_jwt", "bearer", "*api_key*", "*apikey*", "*access_key*", "*private_key*"),
    *(
        "*signing_key*",
        "*encryption_key*",
        "cookie",
        "cookies",
        "*_cookie",
        "*_cookies",
        "sessionid",
        "session_key",
        "csrf*",
        "otp",
        "*_otp",
    ),
    *("pin", "*_pin", "card", "*_card", "card_number", "*_card_number", "*cardnumber", "cvv", "*_cvv", "cvc", "*_cvc", "ssn", "*_ssn"),
)

#: MySQL holds 100 levels of JSON.
_MAX_DEPTH: Final = 64
_MAX_REPR: Final = 200
_MAX_CACHED: Final = 4096
_MIN_SECRET: Final = 4
#: What is recorded as it is: so many arguments, of so many characters each, and in JSON at most so many bytes in all.
_MAX_PLAIN: Final = 8
_MAX_PLAIN_TEXT: Final = 200
_PLAIN_BYTES: Final = _MAX_PLAIN * (4 * _MAX_PLAIN_TEXT + 3) + 100
_MAX_INT: Final = 2**63 - 1
_SCALARS: Final = (str, int, float, bool, type(None))
#: A name, what is between, and a value: ``token=abc``, ``'pin': '1234'``, ``Authorization: Bearer abc``.  A name is tried from its
#: beginning only, and never given back in parts: a message may be one word of a megabyte.
_NAMED_VALUE: Final = re.compile(
    r"""(?<![\w-])([\w-]++)(["']?\s?[=:]\s?)((?:(?:Bearer|Basic|Token)\s+)?(?:"[^"]*"|'[^']*'|[^\s"',;&)\]}]+))"""
)
_NOT_YET_A_NAME: Final = re.compile(r"^[^A-Za-z_]+")
_URL_PASSWORD: Final = re.compile(r"(://[^\s/:@?#]*:)[^\s/@]+@")
#: Bookkeeping of Dramatiq that says nothing about the job, and would make every retry look larger.
_DROPPED_OPTIONS: Final = frozenset(("traceback", "redis_message_id"))


def _encoder() -> Callable[[Any], str]:
    """JSONEncoder.encode, which makes its inner encoder anew for each call: here it is made once, where it is as we know it."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode
    probe = {"a": [1, 2.5, "é\n", None, True]}
    try:
        inner = json.encoder.c_make_encoder(  # type: ignore[attr-defined]  # absent on PyPy
            None, json.JSONEncoder().default, json.encoder.encode_basestring, None, ":", ",", False, False, False
        )
        if "".join(inner(probe, 0)) == encode(probe):
            return lambda value: "".join(inner(value, 0))
    except (TypeError, AttributeError):
        pass
    return encode


_encode: Final = _encoder()


class Redactor:
    """Tells which keys hide their values.

    A key is compared in snake_case, so ``apiKey``, ``X-Api-Key`` and ``API_KEY`` are all found by ``*api_key*``.  A
    pattern is compared whole (fnmatch); the last one that matches decides, and one that begins with ``!`` shows.

    Parameters:
      patterns: come after DEFAULT_PATTERNS.
      replace: ``replace(key, value)`` gives what is kept of each named value that no pattern hides.
    """

    def __init__(self, patterns: Iterable[str] = (), replace: Callable[[str, Any], Any] | None = None) -> None:
        self.patterns = tuple((each.removeprefix("!").lower(), not each.startswith("!")) for each in (*DEFAULT_PATTERNS, *patterns))
        self.replace = replace
        self._hides: dict[str, bool] = {}

    def hides(self, key: str) -> bool:
        """Whether the value of *key* must not be kept."""
        known = self._hides.get(key)
        return self._decide(key) if known is None else known

    def _decide(self, key: str) -> bool:
        name = _snake_case(key[:_MAX_REPR])
        decision = next((hides for pattern, hides in reversed(self.patterns) if fnmatchcase(name, pattern)), False)
        if len(self._hides) < _MAX_CACHED and len(key) <= _MAX_REPR:
            self._hides[key] = decision
        return decision

    def in_text(self, text: str) -> str:
        """*text* without what looks like the value of a hidden name (``password=…``, ``"token": …``), and without passwords in URLs."""
        text = _URL_PASSWORD.sub(rf"\1{REDACTED}@", text)
        return _NAMED_VALUE.sub(self._without_value, text)

    def _without_value(self, match: re.Match[str]) -> str:
        return match[1] + match[2] + REDACTED if self.hides(_NOT_YET_A_NAME.sub("", match[1])) else match[0]


class PayloadEncoder:
    """Makes JSON text of arguments and metadata.  May be used by many threads at once.

    Parameters:
      max_bytes: of UTF-8, for each text; what is larger is cut.
    """

    def __init__(self, redactor: Redactor, *, max_bytes: int = 16_384) -> None:
        self.redactor = redactor
        self.max_bytes = max_bytes
        #: For each actor's parameters: whether one of them is hidden.
        self._hidden_parameters: dict[tuple[str, ...], bool] = {}

    def encode(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any], parameters: tuple[str, ...] = ()
    ) -> tuple[str | None, bool]:
        """JSON text ``{"args": […], "kwargs": {…}, "options": {…}}``, and whether the job could be sent again from it.

        It could not where anything was redacted, cut, or described because JSON has no form for it.

        Parameters:
          parameters: names of the actor's positional parameters, in order.
        """
        try:
            if options and not _DROPPED_OPTIONS.isdisjoint(options):
                options = {name: value for name, value in options.items() if name not in _DROPPED_OPTIONS}
            whole = {"args": args, "kwargs": kwargs, "options": options}
            if not self._hides_any(parameters):
                text = self._plain_text(whole)
                if text is not None:
                    return text, True
            return self._careful_text(lambda copy: copy.message(whole, parameters))
        except Exception as e:  # noqa: BLE001 - arguments can be anything, and a job must be sent whatever they are
            internal_error("payload", e)
            return None, False

    def encode_metadata(self, metadata: Mapping[str, Any]) -> str | None:
        """JSON text of a dictionary that a job reports, under the same rules."""
        try:
            text = self._plain_text(dict(metadata))
            return text if text is not None else self._careful_text(lambda copy: copy.of(dict(metadata), 0))[0]
        except Exception as e:  # noqa: BLE001 - arguments can be anything, and a job must be sent whatever they are
            internal_error("payload", e)
            return None

    def secrets(self, args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Sequence[str] = ()) -> tuple[str, ...]:
        """The values that were hidden, as text, longest first: what :func:`redact_text` must take out of an error's message."""
        found: set[str] = set()
        try:
            _collect(kwargs, self.redactor, found, hidden=False, depth=0)
            for position, value in enumerate(args[:1000]):
                hidden = position < len(parameters) and self.redactor.hides(parameters[position])
                _collect(value, self.redactor, found, hidden=hidden, depth=0)
        except Exception as e:  # noqa: BLE001 - arguments can be anything, and a job must be sent whatever they are
            internal_error("payload", e)
        return tuple(sorted(found, key=len, reverse=True))

    def takes_plain(self, parameters: tuple[str, ...]) -> bool:
        """Whether plain arguments for these parameters need no encoding here: nothing is hidden, and they fit."""
        return self.redactor.replace is None and self.max_bytes >= _PLAIN_BYTES and not self._hides_any(parameters)

    def _hides_any(self, parameters: tuple[str, ...]) -> bool:
        hidden = self._hidden_parameters.get(parameters)
        if hidden is None:
            hidden = any(map(self.redactor.hides, parameters))
            if len(self._hidden_parameters) < _MAX_CACHED:
                self._hidden_parameters[parameters] = hidden
        return hidden

    def _plain_text(self, value: Any) -> str | None:
        """None: it is not plain, or not small."""
        if self.redactor.replace is not None or self._room_after(value, 0, self.max_bytes) < 0:
            return None
        try:
            text = _encode(value)
        except (ValueError, TypeError):  # not a number
            return None
        return text if self._fits(text) and "\\u0000" not in text else None

    def _room_after(self, value: Any, depth: int, room: int) -> int:
        """What is left of *room*, in bytes, after *value*, a container.

        Negative where it cannot fit, JSON cannot hold it as it is, or a key hides something: then it is copied with care.
        """
        room -= 2 * len(value)
        if depth > _MAX_DEPTH or room < 0:
            return -1
        if type(value) is dict:
            hides = self.redactor.hides
            for key in value:
                if type(key) is not str or hides(key):
                    return -1
            value = value.values()
        for each in value:
            kind = type(each)
            if kind is str:
                room -= len(each)
            elif kind is dict or kind is list or kind is tuple:
                room = self._room_after(each, depth + 1, room)
            elif kind is int:
                if each.bit_length() > 63:
                    return -1
            elif kind is not float and kind is not bool and each is not None:
                return -1
            if room < 0:
                return -1
        return room

    def _fits(self, text: str) -> bool:
        if len(text) > self.max_bytes:
            return False
        return text.isascii() or (_is_unicode(text) and len(text.encode()) <= self.max_bytes)

    def _careful_text(self, make: Callable[[_Copy], Any]) -> tuple[str, bool]:
        """Escapes and long characters are not in the budget, so a copy that is still too large is made again, smaller."""
        budget = max(self.max_bytes - 200, 50)
        for _ in range(12):
            copy = _Copy(self.redactor, budget)
            text = _encode(make(copy))
            size = len(text.encode())
            if size <= self.max_bytes:
                return text, copy.complete
            budget = min(budget * self.max_bytes // size, budget - budget // 4)
        return "{}", False


def is_plain(args: Sequence[Any]) -> bool:
    """Whether positional arguments are few and small, and such that JSON, and every database, has them as they are."""
    if len(args) > _MAX_PLAIN:
        return False
    for each in args:
        kind = type(each)
        if kind is str:
            if len(each) > _MAX_PLAIN_TEXT or not each.isprintable():  # so no NUL and no half surrogate either
                return False
        elif kind is int:
            if not -_MAX_INT <= each <= _MAX_INT:
                return False
        elif each is not None and kind is not bool:
            return False
    return True


def payload_text(payload: Payload) -> str | None:
    """The JSON text of what a journal has as a message's payload."""
    if isinstance(payload, tuple):
        return f'{{"args":{_encode(payload)},"kwargs":{{}},"options":{{}}}}'
    return payload


def redact_text(text: str, secrets: Sequence[str]) -> str:
    """*text* without any of *secrets*, which are longest first, and without NUL characters."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text.replace("\0", "\N{SYMBOL FOR NULL}")


class _Copy:
    """One careful copy: redacted, cut to a budget, and of nothing but what JSON has."""

    def __init__(self, redactor: Redactor, budget: int) -> None:
        self.redactor = redactor
        self.left = budget
        self.complete = True
        self._above: set[int] = set()

    def message(self, whole: Mapping[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
        args = [self.named(name, value, 1) for name, value in zip(parameters, whole["args"], strict=False)]
        rest = whole["args"][len(args) :]
        return {
            "args": args + self.of(rest, 1),
            "kwargs": self.of(whole["kwargs"], 1),
            "options": self.of(whole["options"], 1),
        }

    def named(self, key: str, value: Any, depth: int) -> Any:
        if self.redactor.hides(key):
            return self._instead(REDACTED)
        if self.redactor.replace is not None:
            try:
                kept = self.redactor.replace(key, value)
            except Exception as e:  # noqa: BLE001 - what it would have hidden is not known
                internal_error("redactor", e)
                return self._instead(REDACTED)
            if kept is not value:
                self.complete = False
                value = kept
        return self.of(value, depth)

    def of(self, value: Any, depth: int) -> Any:
        """The copy of *value*, which stands *depth* levels deep."""
        if value is None or value is True or value is False:
            self.left -= 5
            return value
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return self._number(int.__index__(value))
        if isinstance(value, float):
            number = float.__float__(value)
            self.left -= len(float.__repr__(number)) + 2
            return number if math.isfinite(number) else self._instead(str(number))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._bytes(value)
        if isinstance(value, (dict, list, tuple, set, frozenset)) or (is_dataclass(value) and not isinstance(value, type)):
            return self._container(value, depth)
        return self._described(value)

    def _container(self, value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH or id(value) in self._above:
            return self._instead("[circular]" if id(value) in self._above else "[too deep]")
        self._above.add(id(value))
        try:
            self.left -= 2
            if isinstance(value, dict):
                return self._items(dict.items(value), len(value), depth)
            if isinstance(value, (list, tuple)):
                return self._elements(value, depth)
            self.complete = False
            if isinstance(value, (set, frozenset)):
                return self._elements(value, depth)
            names = [each.name for each in fields(value)]
            return self._items(((name, getattr(value, name, None)) for name in names), len(names), depth)
        finally:
            self._above.discard(id(value))

    def _items(self, items: Iterable[tuple[Any, Any]], length: int, depth: int) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, each in items:
            if self.left <= 0:
                copy["…"] = self._instead(f"[{length - len(copy)} more]")
                break
            if not isinstance(key, str):
                self.complete = False
            name = str.__str__(key) if isinstance(key, str) else str(self.of(key, _MAX_DEPTH))
            copy[self._text(name)] = self.named(name, each, depth + 1)
            self.left -= 2
        return copy

    def _elements(self, values: Iterable[Any], depth: int) -> list[Any]:
        copy: list[Any] = []
        for each in values:
            if self.left <= 0:
                copy.append(self._instead(f"[{len(values) - len(copy)} more]"))  # type: ignore[arg-type]
                break
            copy.append(self.of(each, depth + 1))
            self.left -= 1
        return copy

    def _text(self, text: str) -> str:
        """PostgreSQL has no NUL, and UTF-8 no lone surrogates."""
        length, room = len(text), max(self.left, 0)
        self.left -= length + 2
        if length > room:
            self.complete = False
            text = f"{text[:room]}… [{length} characters]"
        if "\0" in text or not _is_unicode(text):
            self.complete = False
            text = text.replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="backslashreplace").decode()
        return text

    def _number(self, number: int) -> int | str:
        if number.bit_length() <= 63:
            self.left -= number.bit_length() // 3 + 2
            return number
        return self._instead(str(number) if number.bit_length() < 2000 else f"[a number of {number.bit_length()} bits]")

    def _bytes(self, value: bytes | bytearray | memoryview) -> str:
        length = value.nbytes if isinstance(value, memoryview) else len(value)
        shown = bytes(value[:50]) if not isinstance(value, memoryview) else b""
        return self._instead(f"{shown!r}" if length == len(shown) else f"{shown!r}… [{length} bytes]")

    def _described(self, value: Any) -> str:
        kind = type(value)
        if isinstance(value, (date, time, timedelta, Decimal, UUID, PurePath, Enum, type)) or self._is_safe_to_show(value):
            try:
                return self._instead(repr(value)[:_MAX_REPR])
            except Exception:  # noqa: BLE001 - its repr is broken
                return self._instead(f"<{kind.__module__}.{kind.__qualname__}: no repr>")
        return self._instead(f"<{kind.__module__}.{kind.__qualname__}>"[:_MAX_REPR])

    def _is_safe_to_show(self, value: Any) -> bool:
        """Whether its repr is likely to be short, and to hold no value that a key would hide."""
        attributes = getattr(value, "__dict__", None)
        if hasattr(type(value), "__len__") or hasattr(value, "nbytes") or isinstance(value, partial):
            return False
        if type(attributes) is not dict:
            return True
        return not any(
            self.redactor.hides(str(name)) or type(each) not in _SCALARS or (type(each) is str and len(each) > _MAX_REPR)
            for name, each in attributes.items()
        )

    def _instead(self, text: str) -> str:
        self.complete = False
        return self._text(text) if self.left > len(text) else self._cut(text)

    def _cut(self, text: str) -> str:
        """A marker is always kept whole: it is short."""
        self.left -= len(text)
        return text[:_MAX_REPR].replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="backslashreplace").decode()


def _collect(value: Any, redactor: Redactor, found: set[str], *, hidden: bool, depth: int) -> None:
    if depth > _MAX_DEPTH or len(found) >= 1000:
        return
    if isinstance(value, dict):
        for key, each in list(value.items())[:1000]:
            _collect(each, redactor, found, hidden=hidden or redactor.hides(str(key)), depth=depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for each in list(value)[:1000]:
            _collect(each, redactor, found, hidden=hidden, depth=depth + 1)
    elif hidden and isinstance(value, (str, int, float, bytes)):
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        if len(text) >= _MIN_SECRET:
            found.update((text, repr(text)[1:-1]))


def _snake_case(key: str) -> str:
    key = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key)
    key = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", key)
    return re.sub(r"[^a-zA-Z0-9\x80-\U0010ffff]+", "_", key).strip("_").lower()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
