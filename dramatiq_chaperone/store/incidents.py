"""What went wrong, and how long it took to come right: what that adds to the counters, in the flush that brings it."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ..host import OUT_OF_MEMORY
from . import counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What an exit cause is counted as: no exit code, no number of seconds, for labels must not grow.
_CAUSE: Final = re.compile(r"SIG\w+|exit code|signal|silent")

_Actor = tuple[str, str]


def loss_cause(exit_cause: str) -> str:
    """An exit cause in few words: a signal's name, ``'out of memory'``, ``'exit code'``, ``'signal'``, ``'silent'`` or ``'unknown'``."""
    if OUT_OF_MEMORY in exit_cause:
        return OUT_OF_MEMORY
    found = _CAUSE.match(exit_cause)
    return found[0] if found else "unknown"


class Incidents:
    """Those of one transaction."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        #: Seconds, by queue and actor and by what it came back from: ``'stuck'`` or ``'lost'``.
        self._recoveries: dict[tuple[_Actor, str], list[float]] = {}

    def worker_lost(self, exit_cause: str) -> None:
        """A worker process died or fell silent."""
        self._counts[counters.WORKERS_LOST, (("cause", loss_cause(exit_cause)),)] += 1

    def lost(self, of: _Actor, exit_cause: str) -> None:
        """A run was lost with its worker.  *of* is (queue, actor), here and below."""
        self._count(counters.LOST, of, cause=loss_cause(exit_cause))

    def dead(self, of: _Actor, reason: str) -> None:
        """A message is among the dead letters now."""
        self._count(counters.DEAD_LETTERS, of, reason=reason)

    def recovered(self, of: _Actor, seconds: float, *, after: str) -> None:
        """A job runs again."""
        self._recoveries.setdefault((of, after), []).append(max(0.0, seconds))

    def events(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take what events tell of jobs that are stuck, and that move again: rows of ``events``."""
        for _, name, _, _, _, text in rows:
            if name in {"JobStuck", "JobRecovered"}:
                try:
                    self._event(name, json.loads(text))
                except (TypeError, ValueError, AttributeError):
                    continue  # an entry that is torn: what is wrong with it is for the database to say

    def _event(self, name: str, data: dict[str, Any]) -> None:
        of = (str(data.get("queue") or ""), str(data.get("actor_name") or ""))
        if name == "JobStuck":
            self._count(counters.STUCK, of, cause=str(data.get("cause") or "unknown"))
        else:
            self.recovered(of, float(data.get("stuck_duration") or 0.0), after="stuck")

    def increments(self) -> counters.Increments:
        """What all of it adds to the counters."""
        found: counters.Increments = dict(self._counts)
        for ((queue, actor), after), seconds in self._recoveries.items():
            labels = (("actor", actor), ("after", after), ("queue", queue))
            counters.observe(found, counters.RECOVERY, labels, seconds)
        return found

    def _count(self, name: str, of: _Actor, **label: str) -> None:
        queue, actor = of
        self._counts[name, (("actor", actor), *label.items(), ("queue", queue))] += 1
