"""The size of the long tests."""

from __future__ import annotations

from tests.environment import TEST_SETTINGS

DEFAULT_SCALE = 0.02


def scale() -> float:
    """The share of their full size at which the long tests run: CHAPERONE_TEST_SCALE, 1 for all of it."""
    return float(TEST_SETTINGS.get("CHAPERONE_TEST_SCALE") or DEFAULT_SCALE)


def scaled(full: float, *, at_least: int = 1) -> int:
    """*full*, a number of jobs, kills or seconds, at this run's scale: from *at_least* up to *full*."""
    return max(at_least, round(full * min(scale(), 1.0)))
