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
    """

    def __init__(self, threads_of: Callable[[], Iterable[tuple[str, int]]]) -> None:
        self._threads_of = threads_of
        self._commands: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"ping": self._ping, "stack": self._stack}

    def run(self, command: Command) -> tuple[str, str]:
        """Carry *command* out.  Never raises."""
        try:
            carry_out = self._commands.get(command.name)
            if carry_out is None:
                raise CommandRefused(f"unknown command {command.name!r}; there are {', '.join(sorted(self._commands))}")
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
        stacks = {job_id: _lines(frames.get(ident)) for job_id, ident in self._threads_of() if wanted in (None, job_id)}
        if wanted is not None and not stacks:
            raise CommandRefused(f"job {wanted} does not run here")
        return {"stacks": stacks}


def _lines(frame: FrameType | None) -> list[str]:
    return [] if frame is None else [line.rstrip() for line in traceback.format_stack(frame, STACK_FRAMES)]
