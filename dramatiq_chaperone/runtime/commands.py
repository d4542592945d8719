"""The commands that a worker carries out."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .. import records
from ..brokers import inspector_of
from ..brokers.reading import STOP_S
from ..control.pausing import PauseCommands
from ..control.runner import CommandRunner
from ..errors import CommandRefused, JobRequeued
from ..service import unforkable
from ..supervision.sending import initiated_by
from ..supervision.stopping import Stop

if TYPE_CHECKING:
    from dramatiq import Broker

    from ..brokers import Pausing
    from ..deadletters import Retrier
    from ..settings import Settings
    from ..supervision.heartbeats import HeartbeatJudge
    from ..supervision.ladder import StopLadder
    from ..supervision.recorder import Recorder
    from ..supervision.slots import RunningJobs

#: How long the process of an isolated job has to tell where it is, in seconds.
CHILD_STACK_S: Final = 0.5
#: So many commands are remembered: each may come again for some seconds.
_REMEMBERED: Final = 1000


class Commands:
    """Carries each command out once; the answers go the way of everything else, into the journal."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        recorder: Recorder,
        running: RunningJobs,
        ladder: StopLadder,
        heartbeats: HeartbeatJudge,
        pausing: Pausing | None,
        queues: Callable[[], list[str]],
    ) -> None:
        self._settings, self._broker, self._recorder = settings, broker, recorder
        self._running, self._ladder, self._heartbeats = running, ladder, heartbeats
        self._answered: deque[str] = deque(maxlen=_REMEMBERED)
        self._retrier: Retrier | None = None
        self._runner = CommandRunner(
            lambda: [(job.job_id, slot.ident) for slot, job in running.running()],
            self._stack_of,
            lambda job_id: None if (found := heartbeats.diagnosis(job_id)) is None else found.text,
        )
        self._runner.add("kill", ladder.kill)
        self._runner.add("requeue", self._requeue)
        self._runner.add_slow("retry", self._retry)
        if pausing is not None:
            PauseCommands(pausing, queues).add_to(self._runner)

    def carry_out(self, command: records.Command) -> None:
        """Carry a command out, unless that was done."""
        if command.command_id in self._answered:
            return
        self._answered.append(command.command_id)
        answer = self.run(command)
        if answer is not None:
            self._answer(command, *answer)

    def run(self, command: records.Command) -> tuple[str, str] | None:
        """The answer to a command, None where it comes later.  Never raises."""
        return self._runner.run(command)

    def stop(self) -> None:
        """End what takes its time."""
        if self._retrier is not None:
            self._retrier.stop(timeout_s=STOP_S)

    def _answer(self, command: records.Command, outcome: str, detail: str) -> None:
        self._recorder.append((records.COMMAND_DONE, time.time(), command.command_id, outcome, detail))

    def _stack_of(self, job_id: str) -> list[str] | None:
        """Of a job in a process of its own."""
        children = (job.child for _, job in self._running.running() if job.job_id == job_id)
        return next((child.stack(CHILD_STACK_S) for child in children if child is not None), None)

    def _requeue(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Stop a run, and have its message run again."""
        for slot, job in self._running.running():
            if job.job_id == arguments.get("job_id") and arguments.get("run_id") in {None, job.run_id}:
                job.is_to_rerun = True
                self._ladder.stop(slot, job, Stop("interrupt", "operator", JobRequeued, by=str(arguments.get("by", "operator"))))
                return {"run_id": job.run_id, "grace_s": self._ladder.grace_s(slot)}
        raise CommandRefused(f"job {arguments.get('job_id')} does not run here any more")

    def _retry(self, command: records.Command) -> None:
        """The store is imported here only by the first retry of a dead letter."""
        if self._retrier is None:
            with unforkable:
                from ..deadletters import Retrier

            self._retrier = Retrier(
                self._settings,
                self._broker,
                self._recorder.origin.worker_id,
                send=self._send_again,
                answer=lambda command, outcome, detail: self._answer(command, outcome, json.dumps(detail)),
                close=inspector.close if (inspector := inspector_of(self._broker)) is not None else lambda: None,
            )
        self._retrier.put(command)

    def _send_again(self, message: Any, job_id: str) -> None:
        with initiated_by("retry", job_id):
            self._broker.enqueue(message)
