"""Carries commands out in the worker that they are for."""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

from ..errors import CommandRefused
from ..records import Command
from ..service import internal_error

#: Frames of a stack that are reported, the innermost ones.
STACK_FRAMES: Final = 80


class CommandRunner:
    """Answers commands with (outcome, detail): ``'done'``, ``'refused'`` or ``'failed'``, and a JSON text.

    Parameters:
      threads_of: gives the (job_id, thread ident) of the runs of this process.
      stack_of: gives the stack of a job that runs in a process of its own, None of any other.
      diagnose: says why a job is where it is, None where that is not known.
    """

    def __init__(
        self,
        threads_of: Callable[[], Iterable[tuple[str, int]]],
        stack_of: Callable[[str], list[str] | None] = lambda job_id: None,
        diagnose: Callable[[str], str | None] = lambda job_id: None,
    ) -> None:
        self._threads_of, self._stack_of, self._diagnose = threads_of, stack_of, diagnose
        self._commands: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"ping": self._ping, "stack": self._stack}
        self._slow: dict[str, Callable[[Command], None]] = {}

    def add(self, name: str, carry_out: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Answer the command *name* too.

        Parameters:
          carry_out: gets the arguments, gives the detail of the answer.  It runs on the sampler's thread, so it takes no time;
            CommandRefused says why it cannot be done.
        """
        self._commands[name] = carry_out

    def add_slow(self, name: str, begin: Callable[[Command], None]) -> None:
        """Answer the command *name* too, and later: what takes its time must not hold the sampler up.

        Parameters:
          begin: takes the command and returns at once; whoever carries it out answers by himself.  It may refuse as above.
        """
        self._slow[name] = begin

    def run(self, command: Command) -> tuple[str, str] | None:
        """Carry *command* out; None where the answer comes later.  Never raises."""
        try:
            begin = self._slow.get(command.name)
            if begin is not None:
                begin(command)
                return None
            carry_out = self._commands.get(command.name)
            if carry_out is None:
                raise CommandRefused(f"unknown command {command.name!r}; there are {', '.join(sorted([*self._commands, *self._slow]))}")
            return "done", json.dumps(carry_out(command.arguments), default=repr)
        except CommandRefused as refusal:
            return "refused", json.dumps({"reason": str(refusal)})
        except Exception as error:  # noqa: BLE001 - its issuer gets the answer, the worker goes on
            internal_error("commands", error)
            return "failed", json.dumps({"reason": f"{type(error).__name__}: {error}"})

    def _ping(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"threads": threading.active_count()}

    def _stack(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The stacks of one job's thread, or of every thread that runs one; the innermost frame last."""
        wanted = arguments.get("job_id")
        frames = sys._current_frames()
        stacks = {
            job_id: _lines(frames.get(ident)) if (elsewhere := self._stack_of(job_id)) is None else elsewhere
            for job_id, ident in self._threads_of()
            if wanted in (None, job_id)
        }
        if wanted is not None and not stacks:
            raise CommandRefused(f"job {wanted} does not run here")
        return {"stacks": stacks, "diagnoses": {job_id: self._diagnose(job_id) for job_id in stacks}}


def _lines(frame: FrameType | None) -> list[str]:
    return [] if frame is None else [line.rstrip() for line in traceback.format_stack(frame, STACK_FRAMES)]
