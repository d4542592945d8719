"""What may be left out when the store is away for long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from .. import records
from ..records import Counted, Ended, Enqueued, Started

Entry = tuple[Any, ...]

#: They only tell how a job, a process or a queue was doing at some moment.
SAMPLES: Final = frozenset({records.SAMPLED, records.BEAT, records.HEARTBEAT, records.QUEUE_READ, records.DEFERRED})
#: What a job that just runs leaves behind beside samples.
_LIFE: Final = (records.ENQUEUED, records.STARTED, records.ENDED)
_ABOUT_JOBS: Final = frozenset({*_LIFE, records.SKIPPED, records.DEAD, records.VIOLATED, records.STUCK})


def thin(entries: Iterable[Entry], *, drop_successes: bool) -> list[Entry]:
    """*entries* without samples; counts of what was left out stand at the end.

    Failures, losses, dead letters, events and what a process says about itself all stay, in their order.  Thinned
    again, they stay the same.

    Args:
      drop_successes: leave out, too, the jobs that were sent, ran once and succeeded, with nothing else to tell, all
        of it within *entries*: of those the number and the sum of durations stay, as COUNTED.  A job of which only a
        part is here stays: the store knows, or will know, the rest of it.
    """
    entries = list(entries)
    successes = _plain_successes(entries) if drop_successes else frozenset()
    kept: list[Entry] = []
    totals = _Totals()
    for entry in entries:
        kind = entry[0]
        if kind in SAMPLES or _is_repeated(entry):
            totals.drop(entry[1], records.ENTRY_TYPES[kind].__name__, 1)
        elif kind == records.DROPPED:
            totals.drop(*entry[1:])
        elif kind == records.COUNTED:
            totals.count(Counted(*entry))
        elif kind not in _LIFE or entry[2] not in successes:
            kept.append(entry)
        elif kind == records.ENDED:
            run = Ended(*entry)
            totals.count(Counted(records.COUNTED, run.at, run.queue, run.actor, run.outcome, run.status, 1, run.duration_s))
    return [*kept, *totals.entries()]


def _is_repeated(entry: Entry) -> bool:
    """Whether it says again what the health of a job is."""
    return entry[0] == records.HEALTH_CHECKED and not entry[7]


def _plain_successes(entries: list[Entry]) -> frozenset[str]:
    lives: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry[0] in _ABOUT_JOBS or (entry[0] == records.HEALTH_CHECKED and not _is_repeated(entry)):
            lives[entry[2]].append(entry)
        elif entry[0] == records.EVENT and entry[3] is not None:
            lives[entry[3]].append(entry)
    return frozenset(job_id for job_id, life in lives.items() if _is_plain_success(life))


def _is_plain_success(life: list[Entry]) -> bool:
    by_kind = {entry[0]: entry for entry in life}
    if len(life) != len(_LIFE) or by_kind.keys() != set(_LIFE):
        return False
    sent, started, ended = Enqueued(*by_kind[records.ENQUEUED]), Started(*by_kind[records.STARTED]), Ended(*by_kind[records.ENDED])
    return (
        (ended.outcome, ended.status, ended.error) == ("succeeded", "completed", None)
        and started.run_id == ended.run_id
        and sent.retries == started.retries == ended.retries == 0
    )


class _Totals:
    """What was left out, by what it was."""

    def __init__(self) -> None:
        self._dropped: dict[str, tuple[int, float, str, int]] = {}
        self._counted: dict[tuple[str, str, str, str | None], Counted] = {}

    def drop(self, at: float, what: str, count: int) -> None:
        _, last, _, before = self._dropped.get(what, (records.DROPPED, at, what, 0))
        self._dropped[what] = (records.DROPPED, max(at, last), what, before + count)

    def count(self, more: Counted) -> None:
        key = (more.queue, more.actor, more.outcome, more.status)
        before = self._counted.get(key)
        if before is not None:
            more = more._replace(
                at=max(more.at, before.at), number=before.number + more.number, duration_sum_s=before.duration_sum_s + more.duration_sum_s
            )
        self._counted[key] = more

    def entries(self) -> list[Entry]:
        """As plain tuples, for named ones are no plain data, and in an order that does not depend on how often it is done."""
        return [*sorted(self._dropped.values(), key=lambda entry: entry[2]), *sorted(map(tuple, self._counted.values()), key=_names)]


def _names(entry: Entry) -> tuple[str, ...]:
    _, _, queue, actor, outcome, status, *_ = entry
    return queue, actor, outcome, status or ""
