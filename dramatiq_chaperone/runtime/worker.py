"""A process that runs jobs: beside its journal, everything that watches over them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import platform
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from .. import records
from ..breakers.sharing import shared
from ..brokers import holding_of, inspector_of
from ..brokers.reading import STOP_S, QueueReader
from ..control.notices import Reader
from ..events import WorkerStarted, WorkerStopped
from ..journal.suspects import code_of, decode
from ..service import internal_error, unforkable
from ..supervision.checkups import HealthJudge
from ..supervision.dumping import StackDumps
from ..supervision.ending import ProcessEnd
from ..supervision.execution import Execution
from ..supervision.heartbeats import HeartbeatJudge
from ..supervision.ladder import StopLadder
from ..supervision.limiting import LimitJudge
from ..supervision.sampler import Sampler
from ..supervision.sending import Sender
from ..supervision.slots import RunningJobs
from ..supervision.stopping import Interrupter
from .commands import Commands
from .gatekeeping import Gatekeeping
from .process import Process

if TYPE_CHECKING:
    from dramatiq import Broker, Worker

    from ..settings import Settings
    from ..store.turns import StoreTurns
    from ..store.writer import WriteBehind

logger = logging.getLogger("dramatiq_chaperone")

#: How long a worker of the dramatiq command waits for a watcher before it writes to the store itself, in seconds.
WATCHER_GRACE_S: Final = 60.0
#: It does not wait any longer when so many segments of its journal wait.
WATCHER_GRACE_SEGMENTS: Final = 16
#: Its last writes may take this long, in seconds; what is left stays in the journal.
DRAIN_S: Final = 10.0
#: And those of one that ends its process to stop a job.
LAST_WORDS_S: Final = 3.0


class WorkerProcess(Process):
    """A process that runs jobs."""

    role = "worker"
    grace_s = WATCHER_GRACE_S
    drain_s = DRAIN_S
    grace_segments = WATCHER_GRACE_SEGMENTS

    def __init__(self, settings: Settings, broker: Broker, worker: Worker, *, expects_watcher: bool, adopts_timers: bool = True) -> None:
        super().__init__(settings, broker)
        self._expects_watcher = expects_watcher
        if not expects_watcher:
            self.grace_s = 0.0
        self._broker, self._worker = broker, worker
        self._duties: StoreTurns | None = None
        self._notices = Reader()
        #: What the watcher has told, and nobody has acted on yet.
        self._unseen: deque[dict[str, Any]] = deque()
        self._looking = threading.Lock()
        self.running = RunningJobs()
        self.gate = Gatekeeping(settings, broker, worker, self.recorder, self.running)
        self.execution = Execution(self.recorder, self.running, self.gate.gaps)
        self.execution.needs = self.gate.needs
        self.sender = Sender(self.recorder, self.running)
        self.ladder = StopLadder(self.running, self.recorder, self._last_rung())
        self.gate.suspicion.stop = self.ladder.stop
        self.limits = LimitJudge(self.recorder, self.ladder, lambda: self.execution.jobs_processed)
        self.execution.memory_exceeded = self.limits.memory_exceeded
        self.interrupter = Interrupter(self.running)
        self.interrupter.overdue = self.limits.overdue
        if adopts_timers:
            self.interrupter.adopt(broker.middleware)
        for actor in list(broker.actors.values()):
            self.execution.wrap(actor)
        self.heartbeats = HeartbeatJudge(self.recorder, self.ladder, expected_s=lambda: self.sampler.sample_interval_s)
        self.commands = Commands(
            settings, broker, self.recorder, self.running, self.ladder, self.heartbeats, self.gate.pausing, self._own_queues
        )
        inspector = inspector_of(broker)
        self.queues = None if inspector is None else QueueReader(self.journal, broker, inspector, self._paused_queues)
        self.dumps = StackDumps(self.journal.path, self.running)
        self.sampler = Sampler(
            self.journal,
            self.running,
            self.execution,
            self.interrupter,
            self.ladder,
            beat_s=settings.worker_heartbeat,
            consumers=self._consumers,
            turns=self._turn,
            # The health of a job is what the others have found.
            judges=[self.limits, self.heartbeats, HealthJudge(self.recorder, self.limits.zones, self.gate.needs.open_for)],
        )
        shared.link = self

    def _last_rung(self) -> ProcessEnd:
        return ProcessEnd(
            self._broker,
            self._worker,
            self.running,
            self.execution,
            self.recorder,
            holding_of(self._broker, self._worker),
            replaceable=self.settings.replaceable,
            siblings=_worker_processes(),
            last_words=self._write_all,
        )

    def booted(self) -> None:
        """Start to sample, for the time limits hang on that, and announce the worker."""
        if self._expects_watcher:
            self._prepare_dumps()
        self.sampler.start()
        self.execution.start()
        broker, worker = self._broker, self._worker
        queues = self._own_queues()
        versions = {"python": platform.python_version(), "dramatiq": version("dramatiq"), "chaperone": version("dramatiq-chaperone")}
        self.recorder.append(
            (
                records.WORKER,
                time.time(),
                type(broker).__name__,
                getattr(broker, "broker_id", None),
                json.dumps(queues),
                worker.worker_threads,
                None,
                json.dumps(versions),
            )
        )
        origin = self.journal.origin
        self.recorder.emit(
            WorkerStarted(worker_id=origin.worker_id, host=origin.host, pid=origin.pid, started_at=datetime.now(UTC), queues=tuple(queues))
        )

    def _own_queues(self) -> list[str]:
        return sorted(self._worker.consumer_whitelist or self._broker.get_declared_queues())

    def _paused_queues(self) -> dict[str, str | None]:
        paused = () if self.gate.pausing is None else self.gate.pausing.paused
        return {queue: self.gate.needs.paused_for.get(queue) for queue in paused}

    def _prepare_dumps(self) -> None:
        try:
            self.dumps.register()
        except (OSError, ValueError) as error:
            internal_error("dumps", error)

    def _consumers(self) -> tuple[int, int]:
        """How many of the threads that fetch messages live, and how many there are."""
        threads = list(self._worker.consumers.values())
        return sum(thread.is_alive() for thread in threads), len(threads)

    def _turn(self, now: float) -> None:
        self.gate.disk.turn(now)
        self.dumps.note_sampler()
        self.look()
        self.gate.needs.turn()
        while self._unseen:
            self._read(self._unseen.popleft())
        self.consider_writing(now)

    def look(self) -> None:
        """See what the watcher has told; circuit breakers cannot wait for the next turn, and have it looked at more often."""
        with self._looking:
            message = self.journal.control.read()
            if message is not None:
                self._unseen.append(message)
        if message is not None and (circuits := message.get("known", {}).get("breakers")) is not None:
            shared.told(circuits)

    def is_watched(self) -> bool:
        """Whether a watcher asks the store for this process, and writes its journal."""
        return self._writer is None and self.journal.has_writer()

    def append(self, entry: tuple[Any, ...]) -> None:
        """Write into the journal."""
        self.recorder.append(entry)

    def _read(self, message: dict[str, Any]) -> None:
        """What the watcher has to say."""
        suspects = message.get("known", {}).get("suspects")
        if suspects is not None:
            self.gate.suspicion.tell(decode(suspects))
        for fields in message.get("commands", ()):
            self.commands.carry_out(records.Command(**fields))
        requests = self._notices.requests(message)
        if "read_queues" in requests and self.queues is not None:
            self.queues.ask()
        if "give_back" in requests:
            self.gate.give_back(requests["give_back"])

    def start_writing(self) -> WriteBehind:
        """Where there is no watcher, this process has its duties too."""
        if self._expects_watcher:
            what = "is gone" if self._had_writer else "has not come"
            logger.warning("The watcher %s: the worker %s writes to the store itself.", what, self.journal.origin.worker_id)
        with unforkable:
            from ..alerts.dispatcher import Alerting
            from ..control.courier import Courier
            from ..control.crashes import Crashes
            from ..monitor import Monitor
            from ..store.turns import StoreTurns

        own = self.journal.origin.worker_id
        crashes = Crashes(self._suspected, self._give_back)
        monitor = Monitor(self.settings, own, alerting=Alerting(self.settings, own, wake=self._wake_duties))
        self._duties = StoreTurns(self.settings, [Courier(lambda: [own], self.commands.carry_out), crashes, monitor])
        self._duties.start()
        if self.queues is not None:
            self.queues.read_on()
        return super().start_writing()

    def _wake_duties(self) -> None:
        if self._duties is not None:
            self._duties.wake()

    def _buried(self) -> None:
        self._wake_duties()  # its messages have to go back

    def _suspected(self, job_ids: list[str]) -> None:
        self.gate.suspicion.tell(frozenset(map(code_of, job_ids)))

    def _give_back(self, dead: Sequence[Any]) -> None:
        self.gate.give_back([each._asdict() for each in dead])

    def _write_all(self) -> None:
        """Before this process ends at once: without a watcher, nobody may come by for long."""
        if self._writer is not None:
            self._writer.stop(timeout_s=LAST_WORDS_S)
            self._writer.finish(timeout_s=LAST_WORDS_S)

    def stop(self) -> None:
        """Stop in the reverse order, and say that it was on purpose."""
        self.commands.stop()
        self.sampler.stop()
        if self.queues is not None:
            self.queues.stop(timeout_s=STOP_S)
        if self._duties is not None:
            self._duties.stop()
        self.gate.stop()
        self.execution.unwrap(self._broker)
        self.execution.stop()
        self.interrupter.restore()
        if shared.link is self:
            shared.flush()
            shared.link = None
        origin = self.journal.origin
        if not self.running.running():  # else it ends with jobs in its hands, and they are lost
            self.recorder.append((records.WORKER_STOPPED, time.time()))
            self.recorder.emit(WorkerStopped(worker_id=origin.worker_id, host=origin.host, pid=origin.pid, stopped_at=datetime.now(UTC)))
        super().stop()


def _worker_processes() -> int | None:
    """How many worker processes the dramatiq master of this one has; None where there is no master, or it does not tell."""
    arguments = getattr(multiprocessing.current_process(), "_args", ())  # dramatiq.cli.worker_process(args, …)
    processes = getattr(arguments[0], "processes", None) if arguments else None
    return processes if isinstance(processes, int) else None
