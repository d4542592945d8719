"""Notices: what one worker is told through its control block, which holds one message at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import JournalError
from ..records import Command

#: A worker looks into its control block at least this often, in seconds; so long what is told once stays in it.
KEEP_S: Final = 20.0


class Notices:
    """Makes of commands, of requests and of what is known for the time being one message after the other.

    Each replaces the one before, so each holds everything that its worker may not have read yet; it knows what it has seen.

    Parameters:
      tell: puts a message into the block of a worker.  Raises JournalError where it is too large, or the worker is gone.
      clock: monotonic seconds.
    """

    def __init__(self, tell: Callable[[str, dict[str, Any]], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._commands: list[tuple[float, Command]] = []
        #: What each worker was told to know, and since when.
        self._known: dict[str, dict[str, Any]] = {}
        self._requests: dict[tuple[str, str], tuple[float, int, Any]] = {}
        #: No successor of this process begins with the numbers of this one.
        self._numbers = time.time_ns()

    def command(self, command: Command) -> bool:
        """Give a command to its worker; whether it got there."""
        self._commands.append((self._clock(), command))
        return self._send(command.target)

    def request(self, worker_id: str, name: str, value: Any = True) -> bool:
        """Ask something of a worker, once: it stays in the block for a while, with a number by which the worker knows it."""
        self._numbers += 1
        self._requests[worker_id, name] = (self._clock(), self._numbers, value)
        return self._send(worker_id)

    def know(self, worker_id: str, name: str, value: Any) -> bool:
        """Have a worker know *value* from now on; nothing is sent if it does."""
        known = self._known.setdefault(worker_id, {})
        if known.get(name) == value and name in known:
            return True
        known[name] = value
        return self._send(worker_id)

    def knows(self, worker_id: str, name: str) -> bool:
        """Whether a worker was told anything of this name."""
        return name in self._known.get(worker_id, {})

    def forget(self, living: list[str]) -> None:
        """Only these workers are still there."""
        self._known = {name: known for name, known in self._known.items() if name in living}
        self._requests = {key: request for key, request in self._requests.items() if key[0] in living}

    def _send(self, worker_id: str) -> bool:
        """Whether everything that is new is in the block."""
        now = self._clock()
        self._commands = [(at, each) for at, each in self._commands if now - at < KEEP_S]
        self._requests = {key: request for key, request in self._requests.items() if now - request[0] < KEEP_S}
        commands = [each._asdict() for _, each in self._commands if each.target == worker_id]
        requests = {name: [number, value] for (target, name), (_, number, value) in self._requests.items() if target == worker_id}
        message = {"known": self._known.get(worker_id, {}), "requests": requests}
        for first in range(len(commands) + 1):
            try:
                self._tell(worker_id, {**message, "commands": commands[first:]})
            except JournalError:  # more than the block holds: the oldest have been seen
                continue
            return first < len(commands) or not commands
        return False


class Reader:
    """The other end: takes a message apart, and each request once."""

    def __init__(self) -> None:
        self._heard: dict[str, int] = {}

    def requests(self, message: dict[str, Any]) -> dict[str, Any]:
        """The requests that were not heard before, by name."""
        found = {}
        for name, (number, value) in message.get("requests", {}).items():
            if self._heard.get(name) != number:
                self._heard[name] = number
                found[name] = value
        return found
