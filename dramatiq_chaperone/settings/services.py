"""The options of one circuit breaker: ``breaker("payments", timeout=30)``, or ``[breakers.payments]`` in chaperone.toml."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dramatiq_chaperone.errors import SettingsError


class BreakerOption(NamedTuple):
    """An option that is a number.

    Attributes:
      setting: the setting that gives the default; None: ``default`` is it.
      low, high: bounds, inclusive.
    """

    type: type[int | float]
    low: float
    high: float
    help: str
    setting: str | None = None
    default: float | None = None


_DAY_S: Final = 86_400

#: Those with resilience4j's names mean what they mean there.
BREAKER_OPTIONS: Final[Mapping[str, BreakerOption]] = {
    "failure_threshold": BreakerOption(int, 1, 1_000_000, "Failures in a row that open it.", "circuit_breaker_threshold"),
    "success_threshold": BreakerOption(
        int, 1, 1000, "Trial calls that must succeed to close it.", "circuit_breaker_success_threshold"
    ),
    "timeout": BreakerOption(float, 0, _DAY_S, "Seconds that it stays open before a trial call.", "circuit_breaker_timeout"),
    "half_open_attempts": BreakerOption(
        int, 1, 1000, "Trial calls at once, over all processes.", "circuit_breaker_half_open_attempts"
    ),
    "max_wait_duration_in_half_open_state": BreakerOption(
        float, 0.1, _DAY_S, "Seconds after which a trial that was not heard of gives its permit back.", default=60.0
    ),
    "failure_rate_threshold": BreakerOption(
        float, 1, 100, "Percent of the last calls that failed: opens it, in place of failures in a row unless both are given."
    ),
    "sliding_window_size": BreakerOption(int, 1, 10_000, "So many last calls count.", default=100),
    "minimum_number_of_calls": BreakerOption(int, 1, 10_000, "Calls before the rate counts.", default=100),
    "exponential_backoff_multiplier": BreakerOption(
        float, 1, 100, "The timeout is multiplied by it each time that a trial fails.", default=1.0
    ),
    "exponential_max_wait_duration_in_open_state": BreakerOption(
        float, 0, 7 * _DAY_S, "Seconds that the timeout grows to, at most.", default=3600.0
    ),
    "randomized_wait_factor": BreakerOption(float, 0, 1, "Share of the timeout by which it is made shorter or longer.", default=0.0),
}  # fmt: skip


def checked_option(service: str, name: str, value: Any, origin: str) -> Any:
    """*value* as the option *name* has it.

    Raises:
      SettingsError: there is no such option, or the value is not one of it.
    """
    option = BREAKER_OPTIONS.get(name)
    field = f"breakers.{service}.{name}"
    if option is None:
        close = difflib.get_close_matches(name, BREAKER_OPTIONS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(f"{name} is not an option of a circuit breaker ({origin}){hint}", field=field, value=value, origin=origin)
    kinds = (int,) if option.type is int else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not option.low <= value <= option.high:
        words = "a whole number" if option.type is int else "a number"
        bounds = f"{option.low:,g} to {option.high:,g}"
        message = f"{name} of the breaker {service!r} must be {words}, {bounds}, not {value!r:.200} ({origin})"
        raise SettingsError(message, field=field, value=value, origin=origin)
    return option.type(value)


def checked_services(value: object, origin: str) -> dict[str, dict[str, Any]]:
    """The table of services to their options.  Raises SettingsError, TypeError."""
    if not isinstance(value, Mapping):
        raise TypeError
    found: dict[str, dict[str, Any]] = {}
    for service, options in value.items():
        if not isinstance(service, str) or not isinstance(options, Mapping):
            raise TypeError
        found[service] = {str(name): checked_option(service, str(name), each, origin) for name, each in options.items()}
    return found
