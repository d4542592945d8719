"""Counters that only grow, and minute rollups: what a slice adds to them.

Histograms are kept as one row a bucket, each observation in one bucket only; who exports them adds the buckets up.
"""

from __future__ import annotations

import functools
import hashlib
import json
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from ..records import BUCKETS, RUN_OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The bounds of the buckets as Prometheus has them.
BOUNDS: Final = (*(f"{bound:g}" for bound in BUCKETS), "+Inf")

JOBS: Final = "chaperone_jobs_total"
RUNS: Final = "chaperone_runs_total"
RETRIES: Final = "chaperone_retries_total"
VIOLATIONS: Final = "chaperone_violations_total"
CPU: Final = "chaperone_cpu_seconds_total"
DURATION: Final = "chaperone_run_duration_seconds"
WAIT: Final = "chaperone_queue_wait_seconds"
DROPPED: Final = "chaperone_dropped_total"
UNWRITABLE: Final = "chaperone_unwritable_rows_total"
ENQUEUED: Final = "chaperone_enqueued_total"
STUCK: Final = "chaperone_stuck_total"
LOST: Final = "chaperone_lost_total"
WORKERS_LOST: Final = "chaperone_workers_lost_total"
DEAD_LETTERS: Final = "chaperone_dead_letters_total"
RECOVERY: Final = "chaperone_recovery_seconds"
#: Not counted but marked: the highest value ever seen.
MEMORY_PEAK: Final = "chaperone_memory_peak_bytes"

#: What is counted for each minute, queue and actor: positions in a flat list of numbers.
OUTCOME: Final = {outcome: position for position, outcome in enumerate(RUN_OUTCOMES)}
DURATION_SUM: Final = len(RUN_OUTCOMES)
WAIT_SUM: Final = DURATION_SUM + 1
CPU_SUM: Final = DURATION_SUM + 2
RETRY_COUNT: Final = DURATION_SUM + 3
DURATION_FROM: Final = DURATION_SUM + 4
WAIT_FROM: Final = DURATION_FROM + len(BOUNDS)
EMPTY: Final[list[float]] = [0] * (WAIT_FROM + len(BOUNDS))

#: (minute since 1970, queue, actor) to the numbers above.
Statistics = dict[tuple[int, str, str], list[float]]

COUNTER: Final = (("series", "word"), ("name", "name"), ("labels", "json"), ("value", "real"))
_NUMBERS: Final = (
    *(f"runs_{outcome}" for outcome in RUN_OUTCOMES),
    *("duration_seconds", "wait_seconds", "cpu_seconds", "retries"),
    *(f"bucket_{n:02}" for n in range(len(BOUNDS))),
)
_REAL: Final = {"duration_seconds", "wait_seconds", "cpu_seconds"}
ROLLUP: Final = (
    *(("series", "word"), ("minute_at", "time"), ("queue", "name"), ("actor_name", "name")),
    *((name, "real" if name in _REAL else "int") for name in _NUMBERS),
)
HOUR: Final = (("hour_at", "time"), ("process", "key"), ("completed", "int"), ("failed", "int"))
HOUR_SUM: Final = ("completed = o.completed + e.completed", "failed = o.failed + e.failed")
COUNTER_SUM: Final = ("value = o.value + e.value",)
COUNTER_MARK: Final = ("value = CASE WHEN e.value > o.value THEN e.value ELSE o.value END",)
ROLLUP_SUM: Final = tuple(f"{name} = o.{name} + e.{name}" for name in _NUMBERS)

Increments = dict[tuple[str, tuple[tuple[str, str], ...]], float]
#: (queue, actor) to bytes.
Peaks = dict[tuple[str, str], int]


@functools.lru_cache(maxsize=4096)
def _series(name: str, labels: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """The key of a series, and its labels as JSON text."""
    text = json.dumps(dict(labels), sort_keys=True)
    return hashlib.blake2b(f"{name}{text}".encode(), digest_size=20).hexdigest(), text


def rollup_rows(statistics: Statistics) -> list[list[object]]:
    """The rows that are added to ``rollups``, sorted by key so that writers cannot deadlock."""
    rows = []
    for (minute, queue, actor), numbers in statistics.items():
        series, _ = _series("rollup", (("actor", actor), ("queue", queue)))
        rows.append([series, minute * 60.0, queue, actor, *numbers[:WAIT_FROM]])
    rows.sort(key=lambda row: (row[0], row[1]))
    return rows


def hour_rows(statistics: Statistics, process: str) -> list[list[object]]:
    """The rows that are added to ``hours``, oldest first: a job has failed when a run did that no retry follows."""
    totals: dict[int, list[float]] = {}
    for (minute, _, _), numbers in statistics.items():
        ended = totals.setdefault(minute // 60, [0, 0])
        ended[0] += numbers[OUTCOME["succeeded"]]
        ended[1] += numbers[OUTCOME["failed"]] + numbers[OUTCOME["interrupted"]] + numbers[OUTCOME["killed"]] - numbers[RETRY_COUNT]
    return [[hour * 3600.0, process, *map(int, ended)] for hour, ended in sorted(totals.items()) if any(ended)]


def counter_rows(increments: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]) -> list[list[object]]:
    """The rows that are added to ``counters``, sorted by key so that writers cannot deadlock."""
    rows: list[list[object]] = []
    for (name, labels), value in increments.items():
        series, text = _series(name, labels)
        rows.append([series, name, text, value])
    rows.sort(key=lambda row: str(row[0]))
    return rows


def mark_rows(peaks: Peaks) -> list[list[object]]:
    """The rows that raise the marks in ``counters``, sorted as above."""
    return counter_rows({(MEMORY_PEAK, (("actor", actor), ("queue", queue))): value for (queue, actor), value in peaks.items()})


def increments(statistics: Statistics) -> Increments:
    """What the statistics of a slice add to the counters."""
    totals: dict[tuple[str, str], list[float]] = {}
    for (_, queue, actor), numbers in statistics.items():
        known = totals.get((queue, actor))
        totals[queue, actor] = numbers if known is None else [a + b for a, b in zip(known, numbers, strict=True)]
    found: Increments = {}
    for (queue, actor), numbers in totals.items():
        labels = (("actor", actor), ("queue", queue))
        for outcome, position in OUTCOME.items():
            if numbers[position]:
                found[RUNS, (*labels, ("outcome", outcome))] = numbers[position]
        if numbers[RETRY_COUNT]:
            found[RETRIES, labels] = numbers[RETRY_COUNT]
        if numbers[CPU_SUM]:
            found[CPU, labels] = numbers[CPU_SUM]
        for name, first, total in ((DURATION, DURATION_FROM, numbers[DURATION_SUM]), (WAIT, WAIT_FROM, numbers[WAIT_SUM])):
            add_histogram(found, name, labels, numbers[first : first + len(BOUNDS)], total)
    return found


def add_histogram(found: Increments, name: str, labels: tuple[tuple[str, str], ...], buckets: Sequence[float], total: float) -> None:
    """Put observations into increments that have none of this series yet: one number a bucket, and their sum."""
    count = sum(buckets)
    if not count:
        return
    found[f"{name}_sum", labels] = total
    found[f"{name}_count", labels] = count
    for bound, number in zip(BOUNDS, buckets, strict=True):
        if number:
            found[f"{name}_bucket", (*labels, ("le", bound))] = number


def observe(found: Increments, name: str, labels: tuple[tuple[str, str], ...], values: Sequence[float]) -> None:
    """The same, of single observations."""
    buckets = [0] * len(BOUNDS)
    for value in values:
        buckets[bisect_left(BUCKETS, value)] += 1
    add_histogram(found, name, labels, buckets, sum(values))
