"""Calls of this process, counted on the way of each: a nanosecond matters, a lock would be many."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from collections import deque
from typing import Final, NamedTuple

from ..circuits import Calls
from ..records import BUCKETS

#: Durations that wait to be looked at.
MOST: Final = 65_536


class Count:
    """A number that only grows; any thread may add to it.

    Attributes:
      add: adds one; a single call into C, which no other thread can interrupt.
    """

    __slots__ = ("_lock", "_looks", "add")

    def __init__(self) -> None:
        self._looks = 0
        self._lock = threading.Lock()
        self.add = itertools.count().__next__

    def value(self) -> int:
        """The number now."""
        with self._lock:
            self._looks += 1
            return self.add() - self._looks + 1


class Durations:
    """How long calls took, in seconds.

    Attributes:
      add: takes one; a single call into C.  Of more than MOST between two looks the last are kept.
    """

    def __init__(self) -> None:
        self._fresh: deque[float] = deque(maxlen=MOST)
        self._seconds, self._buckets = 0.0, [0] * (len(BUCKETS) + 1)
        self.add = self._fresh.append

    def take(self) -> tuple[float, tuple[int, ...]]:
        """What is new since the last time: the sum, and how many in each bucket, none where there is nothing."""
        for _ in range(len(self._fresh)):
            seconds = self._fresh.popleft()
            self._seconds += seconds
            self._buckets[bisect_left(BUCKETS, seconds)] += 1
        found = self._seconds, tuple(self._buckets)
        self._seconds, self._buckets = 0.0, [0] * len(self._buckets)
        return found if any(found[1]) else (0.0, ())

    def give_back(self, seconds: float, buckets: tuple[int, ...]) -> None:
        """They could not be told."""
        self._seconds += seconds
        for place, number in enumerate(buckets):
            self._buckets[place] += number


class Numbers(NamedTuple):
    """Calls by what came of them."""

    succeeded: int = 0
    failed: int = 0
    refused: int = 0
    ignored: int = 0


class Tally:
    """The calls of one breaker in this process."""

    def __init__(self) -> None:
        self.succeeded, self.failed, self.refused, self.ignored = Count(), Count(), Count(), Count()
        self.durations = Durations()
        self._told = Numbers()
        #: Successes that a record or a report has told of.
        self._told_successes = 0
        #: Successes before the last failure.
        self._at_failure = 0
        self._lock = threading.Lock()

    def numbers(self) -> Numbers:
        """Since the process began."""
        return Numbers(self.succeeded.value(), self.failed.value(), self.refused.value(), self.ignored.value())

    def take(self) -> tuple[Numbers, int, tuple[float, tuple[int, ...]]]:
        """What is new since the last time, how many successes no record has told of, and how long calls took; all is told now."""
        with self._lock:
            now, before = self.numbers(), self._told
            self._told = now
            successes = max(0, now.succeeded - self._told_successes)
            self._told_successes = max(self._told_successes, now.succeeded)
            return Numbers(*(a - b for a, b in zip(now, before, strict=True))), successes, self.durations.take()

    def give_back(self, calls: Calls) -> None:
        """They could not be told."""
        numbers = (calls.succeeded, calls.failed, calls.refused, calls.ignored)
        with self._lock:
            self._told = Numbers(*(a - b for a, b in zip(self._told, numbers, strict=True)))
            self._told_successes -= calls.successes
            self.durations.give_back(calls.seconds, calls.buckets)

    def take_successes(self) -> tuple[int, bool]:
        """Before a failure: how many successes were not told, which are told now, and whether there was any since the last failure."""
        with self._lock:
            total = self.succeeded.value()
            found, self._told_successes = max(0, total - self._told_successes), max(total, self._told_successes)
            has_succeeded, self._at_failure = total > self._at_failure, total
            return found, has_succeeded

    def has_succeeded(self) -> bool:
        """Whether there was a success since the last failure."""
        return self.succeeded.value() > self._at_failure
