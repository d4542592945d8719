"""The commands ``pause`` and ``resume``: a worker fetches nothing from some of its queues until it is told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from ..errors import CommandRefused
from .runner import CommandRunner

#: By whom a queue is paused then.
OPERATOR: Final = "operator"


class Pausing(Protocol):
    """How queues of this worker are paused: :class:`dramatiq_chaperone.brokers.Pausing`."""

    @property
    def paused(self) -> Mapping[str, frozenset[str]]:
        """Who has paused which queue."""

    def pause(self, *queues: str, by: str) -> None:
        """Fetch nothing from them any more."""

    def resume(self, *queues: str, by: str) -> None:
        """Fetch from them again."""


class PauseCommands:
    """Answers with the queues that are paused now, each with who paused it.

    Both take ``queues``, a list of names; without it they are about all of the worker.

    Parameters:
      queues: gives the names of the worker's queues.
    """

    def __init__(self, pausing: Pausing, queues: Callable[[], Sequence[str]]) -> None:
        self._pausing, self._queues = pausing, queues

    def add_to(self, runner: CommandRunner) -> None:
        """From now on *runner* carries them out."""
        runner.add("pause", lambda arguments: self._change(self._pausing.pause, arguments))
        runner.add("resume", lambda arguments: self._change(self._pausing.resume, arguments))

    def _change(self, change: Callable[..., None], arguments: dict[str, Any]) -> dict[str, Any]:
        own = self._queues()
        wanted = arguments.get("queues") or own
        if unknown := sorted(set(wanted) - set(own)):
            raise CommandRefused(f"this worker does not serve {', '.join(unknown)}; it serves {', '.join(own)}")
        change(*wanted, by=OPERATOR)
        return {"paused": {queue: sorted(holders) for queue, holders in sorted(self._pausing.paused.items())}}
