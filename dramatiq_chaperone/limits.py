"""The limits of a job, and when one of them is passed.  Pure: time and readings are passed in, what was before is a value.

Amounts are in the unit of their kind: memory and disk in bytes, CPU in percent of one core, time in seconds, and the
number of open files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf, isfinite
from typing import Any, Final, NamedTuple

from .settings import Settings

MEMORY: Final = "memory"
CPU: Final = "cpu"
TIMEOUT: Final = "timeout"
DISK: Final = "disk"
FILES: Final = "file_descriptors"
#: The kinds of limits, as ``resource_violations.type`` has them.
KINDS: Final = (MEMORY, CPU, TIMEOUT, DISK, FILES)

#: Bytes in the MB of an option.
MB: Final = 1_000_000

#: From this share of a limit on, a job is in the soft zone; it leaves it below the second one.
SOFT: Final = 0.8
SOFT_END: Final = 0.75
#: A limit that was passed is kept again only below this share of it.
OVER_END: Final = 0.9
#: How long a reading has to stay below before a zone is left, in seconds.
END_S: Final = 10.0
#: CPU is taken over this time, in seconds: a burst that is shorter passes no limit.
CPU_WINDOW_S: Final = 60.0
#: Readings that a violation carries as its evidence, at most.
EVIDENCE: Final = 20

CLEAR: Final = "clear"
NEAR: Final = "near"
OVER: Final = "over"


class Limit(NamedTuple):
    """A limit in the unit of its kind."""

    value: float
    #: Whether nobody set it: then passing it is put on record, and nothing is done about it.
    is_default: bool = False


class JobLimits(NamedTuple):
    """What a job may use; None: no limit.  The actions are None where nobody set one."""

    memory: Limit | None = None
    cpu: Limit | None = None
    files: Limit | None = None
    disk: Limit | None = None
    #: None too where Dramatiq's time_limit counts.
    timeout: Limit | None = None
    #: When the job is due, in seconds; infinite: never; None: that is for Dramatiq's TimeLimit to say.
    timeout_s: float | None = None
    on_memory: str | None = None
    on_cpu: str | None = None
    on_timeout: str | None = None
    #: Whether somebody set a memory limit: then it matters what the process used before the job began.
    has_memory_limit: bool = False

    @property
    def has_time_limit(self) -> bool:
        """Whether a message or an actor has set Dramatiq's time_limit, and it counts."""
        return self.timeout is None and self.timeout_s is None


def resolve(settings: Settings, *levels: Mapping[str, Any]) -> JobLimits:
    """The limits of a job.

    Parameters:
      levels: options, the nearest first: those of the message, those of the actor.  0 and None switch a limit off; what
        is no number is passed over, for a message may come from anywhere.
    """
    timeout, timeout_s = _timeout(settings, levels)
    memory = _limit(settings, levels, "memory_limit", MB)
    return JobLimits(
        memory=memory,
        cpu=_limit(settings, levels, "cpu_limit"),
        files=_limit(settings, levels, "file_descriptor_limit"),
        disk=_limit(settings, levels, "disk_space_threshold", MB),
        timeout=timeout,
        timeout_s=timeout_s,
        on_memory=_action(settings, levels, "on_memory"),
        on_cpu=_action(settings, levels, "on_cpu"),
        on_timeout=_action(settings, levels, "on_timeout"),
        has_memory_limit=memory is not None and not memory.is_default,
    )


def _limit(settings: Settings, levels: Sequence[Mapping[str, Any]], name: str, unit: int = 1) -> Limit | None:
    for options in levels:
        if name in options and (value := _number(options[name])) is not None:
            return Limit(value * unit) if value else None
    value = float(getattr(settings, name))
    return Limit(value * unit, is_default=not settings.is_set(name)) if value else None


def _timeout(settings: Settings, levels: Sequence[Mapping[str, Any]]) -> tuple[Limit | None, float | None]:
    for options in levels:
        if "timeout" in options and (value := _number(options["timeout"])) is not None:
            return (Limit(value), value) if value else (None, inf)
        if "time_limit" in options:
            return None, None
    value = settings.timeout
    if settings.is_set("timeout"):
        return (Limit(value), value) if value else (None, inf)
    return Limit(value, is_default=True), None


def _number(value: Any) -> float | None:
    if value is None:
        return 0.0
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) and value >= 0 else None


ACTIONS: Final = ("record", "interrupt", "kill")


def _action(settings: Settings, levels: Sequence[Mapping[str, Any]], name: str) -> str | None:
    for options in levels:
        if options.get(name) in ACTIONS:
            return str(options[name])
    return str(getattr(settings, name)) if settings.is_set(name) else None


class Standing(NamedTuple):
    """How a reading stands to its limit: where it is now, and since when it is on its way out of there."""

    zone: str = CLEAR
    #: Since when the reading is low enough to leave the zone, monotonic seconds; None while it is not.
    low_since: float | None = None


def judge(before: Standing, limit: Limit | None, actual: float, now: float, *, is_floor: bool = False) -> tuple[Standing, bool]:
    """How *actual* stands to *limit*, and whether a violation begins with it.

    It begins once, when the limit is passed; a new one begins only after the reading has been at most 90 % of the limit
    for 10 seconds.

    Parameters:
      before: what this gave for the reading before; ``Standing()`` for the first.
      now: monotonic seconds.
      is_floor: there has to be more than the limit, as of free disk space.
    """
    if limit is None:
        return Standing(), False
    share = _share(limit.value, actual) if is_floor else _share(actual, limit.value)
    if share > 1:
        return Standing(OVER), before.zone != OVER
    is_low = (before.zone == OVER and share <= OVER_END) or (before.zone == NEAR and share < SOFT_END)
    if before.zone == CLEAR:
        return Standing(NEAR if share >= SOFT else CLEAR), False
    if not is_low:
        return Standing(before.zone), False
    since = now if before.low_since is None else before.low_since
    if now - since < END_S:
        return Standing(before.zone, since), False
    return Standing(NEAR if before.zone == OVER and share >= SOFT else CLEAR), False


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else inf if part > 0 else 0.0


class Point(NamedTuple):
    """One look at a run."""

    #: Monotonic seconds.
    at: float
    #: Bytes.
    memory: int
    #: Of the run so far.
    cpu_seconds: float


def remember(history: tuple[Point, ...], point: Point, window_s: float = CPU_WINDOW_S) -> tuple[Point, ...]:
    """*history* with *point*, without what is older than the window needs: of that the newest stays."""
    first = 0
    while first + 1 < len(history) and point.at - history[first + 1].at >= window_s:
        first += 1
    return (*history[first:], point)


def cpu_percent(history: tuple[Point, ...], window_s: float = CPU_WINDOW_S) -> float | None:
    """CPU over the window, in percent of one core; None while the history is shorter."""
    if len(history) < 2 or history[-1].at - history[0].at < window_s:
        return None
    first, last = history[0], history[-1]
    return max(0.0, 100 * (last.cpu_seconds - first.cpu_seconds) / (last.at - first.at))


def memory_evidence(history: tuple[Point, ...]) -> list[tuple[float, int]]:
    """(seconds before the last look, bytes), oldest first, at most 20."""
    last = history[-1].at if history else 0.0
    return [(round(point.at - last, 1), point.memory) for point in _spread(history)]


def cpu_evidence(history: tuple[Point, ...]) -> list[tuple[float, float]]:
    """(seconds before the last look, percent of one core since the entry before), oldest first, at most 20."""
    points = _spread(history)
    last = history[-1].at
    return [
        (round(after.at - last, 1), round(100 * (after.cpu_seconds - before.cpu_seconds) / max(after.at - before.at, 1e-3), 1))
        for before, after in pairwise(points)
    ]


def _spread(history: tuple[Point, ...]) -> list[Point]:
    """At most 20 points, evenly spread, the first and the last among them."""
    if len(history) <= EVIDENCE:
        return list(history)
    step = (len(history) - 1) / (EVIDENCE - 1)
    return [history[round(n * step)] for n in range(EVIDENCE)]
