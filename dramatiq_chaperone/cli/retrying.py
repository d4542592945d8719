"""Asks the fleet to send dead letters again, and waits for its answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

#: Dead letters in one command: what a worker is told has to fit its control block.
BATCH: Final = 50
_LOOK_S: Final = 0.05

Row = Mapping[str, Any]


class Result(NamedTuple):
    """What became of one."""

    job_id: str
    actor: str | None
    #: The id of the new job; None where it was not sent (yet).
    retried_as: str | None
    reason: str | None


class Retries:
    """One command for each fifty of an actor, one after the other.

    Parameters:
      who: for the audit log.
      again: renew claims of which no message is on record.
      timeout_s: that one answer may take; after one that did not come the rest is asked for and not waited for.
      advance: told how many are done.
    """

    def __init__(self, store: Store, *, who: str, again: bool, timeout_s: float, advance: Callable[[int], None]) -> None:
        self._store, self._who, self._again = store, who, again
        self._timeout_s, self._advance = timeout_s, advance

    def run(self, letters: Sequence[Row]) -> list[Result]:
        """Have these sent again; what became of each, in the order of their actors."""
        results: list[Result] = []
        place = _place
        for _, rows in groupby(sorted(letters, key=place), key=place):
            some = list(rows)
            for first in range(0, len(some), BATCH):
                batch = some[first : first + BATCH]
                results += self._batch(batch)
                self._advance(len(batch))
        return results

    def _batch(self, letters: Sequence[Row]) -> list[Result]:
        from dramatiq_chaperone.store import commands

        arguments = {
            "dead_letters": [str(each["id"]) for each in letters],
            "queue": letters[0]["queue"],
            "by": self._who,
            "origin": "cli",
            "again": self._again,
        }
        asked = commands.issue(self._store, commands.FLEET, "retry", arguments, issued_by=self._who, seconds=commands.RETRY_S)
        answer = self._waited(asked)
        detail = answer.detail or {}
        if answer.outcome is None:
            self._timeout_s = 0.0
            told = f"; {len(detail['workers'])} passed it on: {detail.get('reason')}" if detail.get("workers") else ""
            otherwise = f"no worker has done it yet, so it waits for one, for up to an hour{told}"
        else:
            otherwise = detail.get("reason") or answer.outcome
        retried, refused = detail.get("retried") or {}, detail.get("refused") or {}
        return [self._result(each, retried.get(str(each["id"])), refused.get(str(each["id"]), otherwise)) for each in letters]

    @staticmethod
    def _result(letter: Row, retried_as: str | None, reason: str) -> Result:
        return Result(letter["job_id"], letter["actor_name"], retried_as, None if retried_as else reason)

    def _waited(self, asked: str) -> Any:
        from dramatiq_chaperone.store import commands

        deadline = time.monotonic() + self._timeout_s
        while True:
            answer = commands.answer(self._store, asked)
            if answer.outcome is not None or time.monotonic() >= deadline:
                return answer
            time.sleep(_LOOK_S)


def _place(letter: Row) -> tuple[str, str]:
    return letter["actor_name"] or "", letter["queue"] or ""


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal and there are many."""
    if total < BATCH or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
