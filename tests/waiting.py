"""Waiting for a condition, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, timeout_s: float = 10.0, interval_s: float = 0.01, what: str = "") -> T:
    """The first true value of *condition*, which is asked again and again.

    Raises:
        AssertionError: None within *timeout_s*; the message has *what* and the last value.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still waiting for {what or condition!r}; last: {value!r}")
        time.sleep(interval_s)
    return value
