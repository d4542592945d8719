"""The watcher: a fork of the ``dramatiq`` master that brings its siblings' journals into the store.

It takes the database, its driver and their cost out of the workers, and sees a worker die without that worker's help.
It outlives its siblings: when the master stops, it stays until the last of them has ended and is written down.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, Final

from . import host
from .alerts.dispatcher import Alerting
from .breakers.sharing import telling
from .brokers.reading import READ_EVERY_S
from .circuits import Circuit
from .control.courier import Courier
from .control.crashes import Crashes
from .control.notices import Notices
from .errors import JournalError
from .freezes import Freezes
from .journal import JournalDirectory, JournalReader
from .journal.suspects import encode
from .metrics.exporter import Exporter
from .metrics.probes import LATE_BEATS, LATE_S
from .monitor import Monitor
from .records import Command
from .settings import Settings
from .store import Store, breakers
from .store.crashes import Return
from .store.turns import Duty, StoreTurns
from .store.writer import WriteBehind

logger = logging.getLogger("dramatiq_chaperone.watcher")

TURN_S: Final = 0.25
#: So long after a command, in seconds, journals are read at every turn: somebody waits for the answer.
HURRY_S: Final = 3.0
#: After the last sibling has ended, the rest of the journals may take this long, in seconds.
DRAIN_S: Final = 10.0
#: And the last turn of its duties, for the answers of messages that are on their way.
LAST_TURN_S: Final = 8.0
#: How long it waits for a sibling that is asked to stop and does not, in seconds: Dramatiq's own limit for that is 10 minutes.
PATIENCE_S: Final = 660.0


class Watcher:
    """The watcher of one master.

    Parameters:
      modules: those in which users have rules and channels of alerts.
    """

    def __init__(self, settings: Settings, master: BaseProcess, *, modules: Sequence[str] = ()) -> None:
        self._master = master
        self._heartbeat_s = settings.worker_heartbeat
        self._directory = JournalDirectory(settings.journal_dir)
        limit_s = LATE_BEATS * settings.worker_heartbeat + LATE_S
        self._siblings_seen = Siblings(self._held_workers, self._silent_s, limit_s=limit_s)
        self._freezes = Freezes(settings, self._held_workers, limit_s=limit_s)
        self._writer = WriteBehind(
            self._directory, settings, takes=lambda name: True, exit_of=self._siblings_seen.exit_of, buried=self._wake
        )
        self._turned_at = time.monotonic()
        own = host.new_worker_id()
        self._exporter = Exporter(
            settings,
            own,
            wake=self._wake,
            among=self._workers,
            turned_at=lambda: self._turned_at,
            reasons=self._siblings_seen.reasons,
            backlog_bytes=self._writer.backlog_bytes,
        )
        self._serves = settings.exporter_port != 0
        duties: list[Duty] = [
            Courier(self._workers, self._deliver, living=self._living),
            _Readings(self._have_queues_read),
            Crashes(self._tell_suspects, self._have_given_back),
            self._freezes,
            Monitor(settings, own, alerting=Alerting(settings, own, wake=self._wake, modules=modules)),
            self._exporter.reader,
        ]
        self._duties = StoreTurns(settings, duties, often=[_Circuits(self._tell_circuits)], away=self._exporter.reader.away)
        self._notices = Notices(self._put)
        #: What every worker has to know of circuit breakers, with the versions that it is made of.
        self._circuits: tuple[list[tuple[str, int]], dict[str, Any]] = ([], {})
        #: How often somebody was asked to give messages back: each time another worker is.
        self._asked = 0
        self._hurries_until = 0.0
        self._is_asked_to_stop = False

    def run(self) -> int:
        """Watch until the siblings, or the master, are gone.  Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)
        self._writer.start()
        self._duties.start()
        if self._serves:
            self._exporter.start()
        asked_at: float | None = None
        while self._master.is_alive():
            self._turned_at = time.monotonic()
            self._freezes.look(self._turned_at)
            if self._siblings_seen.look() or self._turned_at < self._hurries_until:
                self._writer.wake()
            if self._is_asked_to_stop:
                asked_at = asked_at or time.monotonic()
                if not self._siblings() or time.monotonic() - asked_at > PATIENCE_S:
                    break
            time.sleep(TURN_S)
        self._exporter.stop()
        self._writer.stop(timeout_s=DRAIN_S)
        self._writer.finish(timeout_s=DRAIN_S)
        self._duties.stop(timeout_s=LAST_TURN_S)  # after the last is written, for the monitor looks at that once more
        return 0

    def _ask(self, number: int, frame: Any) -> None:
        """A signal handler does nothing but take note."""
        self._is_asked_to_stop = True

    def _workers(self) -> list[str]:
        """The workers whose journals are held here, whoever their master is: they can be reached through these."""
        return list(self._held_workers())

    def _living(self) -> list[str]:
        """Those of them that live, and say so."""
        silent_s = self._writer.silent_s()
        limit_s = LATE_BEATS * self._heartbeat_s + LATE_S
        return [name for name, reader in self._held_workers().items() if reader.owner_alive() and silent_s.get(name, 0.0) <= limit_s]

    def _silent_s(self) -> dict[str, float]:
        return self._writer.silent_s()

    def _wake(self) -> None:
        self._duties.wake()

    def _held_workers(self) -> dict[str, JournalReader]:
        return {name: reader for name, reader in self._writer.held().items() if reader.origin.role == "worker"}

    def _deliver(self, command: Command) -> None:
        """Put a command into its worker's control block, beside those of the last seconds: the worker knows what it has seen."""
        if command.target not in self._writer.held():
            return
        self._hurries_until = time.monotonic() + HURRY_S
        if not self._notices.command(command):
            logger.error("The command %s for %s is too large for its control block.", command.name, command.target)

    def _have_queues_read(self) -> None:
        """Ask one worker of each master what lies in the queues of its broker: all workers of a master have the same one.

        It is asked each time, so that no worker goes on when its watcher is gone, or another one asks another worker.
        """
        for names in self._by_master().values():
            self._notices.request(names[0], "read_queues")

    def _tell_suspects(self, job_ids: list[str]) -> None:
        """Every worker knows the suspects before it begins a message, and what it was told last holds until it is told otherwise."""
        living = [name for names in self._by_master().values() for name in names]
        self._notices.forget(living)
        text = encode(job_ids)
        for name in living:
            if text or self._notices.knows(name, "suspects"):
                self._notices.know(name, "suspects", text)

    def _tell_circuits(self, circuits: list[tuple[str, Circuit]], now: float) -> None:
        """Every worker knows how the circuit breakers stand; one that is new is told, and the others what has changed."""
        versions = [(service, circuit.version) for service, circuit in circuits]
        if versions != self._circuits[0]:
            self._circuits = versions, telling(circuits, now)
        if versions:
            for name in (name for names in self._by_master().values() for name in names):
                self._notices.know(name, "breakers", self._circuits[1])

    def _have_given_back(self, dead: Sequence[Return]) -> None:
        """Ask one worker of each master, for one of them has the broker of the dead; another one each time."""
        self._asked += 1
        for names in self._by_master().values():
            self._notices.request(names[self._asked % len(names)], "give_back", [each._asdict() for each in dead])

    def _by_master(self) -> dict[int | str, list[str]]:
        """The living workers whose journals are held here, in order, by their master."""
        found: dict[int | str, list[str]] = {}
        for name, reader in sorted(self._held_workers().items()):
            if reader.owner_alive():
                found.setdefault(reader.origin.master_pid or name, []).append(name)
        return found

    def _put(self, name: str, message: dict[str, Any]) -> None:
        reader = self._writer.held().get(name)
        if reader is None:
            raise JournalError(f"The journal of {name} is not held here.")
        reader.tell(message)

    def _siblings(self) -> list[str]:
        """The workers of this master that still live."""
        return [
            name for name, reader in self._held_workers().items() if reader.origin.master_pid == self._master.pid and reader.owner_alive()
        ]


class _Circuits:
    """A duty: see which circuit breakers changed."""

    def __init__(self, tell: Callable[[list[tuple[str, Circuit]], float], None]) -> None:
        self._tell = tell

    def turn(self, store: Store) -> None:
        self._tell(*breakers.read_told(store))

    def leave(self, store: Store) -> None:
        """Nothing is held."""


class _Readings:
    """A duty: have the queues read every 5 s.  While the store is away nobody takes its turns, and nobody could keep a reading."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._due_at = 0.0

    def turn(self, store: Store) -> None:
        now = time.monotonic()
        if now >= self._due_at:
            self._due_at = now + READ_EVERY_S
            self._ask()

    def leave(self, store: Store) -> None:
        """Nothing is held."""


class Siblings:
    """What can be seen of the workers from outside: how they ended, and which of them live and say nothing.

    Parameters:
      held: the workers' journals, by worker_id.
      silent_s: for how long each has written nothing into its journal, in seconds.
      limit_s: from then on it counts as frozen.
      oom_kills: how often the kernel killed a process of this pid's cgroup because memory ran out; None where it does not tell.
    """

    def __init__(
        self,
        held: Callable[[], dict[str, JournalReader]],
        silent_s: Callable[[], dict[str, float]],
        *,
        limit_s: float,
        oom_kills: Callable[[int], int | None] = host.oom_kills,
    ) -> None:
        self._held, self._silent_s, self._limit_s = held, silent_s, limit_s
        self._exits: dict[str, int] = {}
        self._frozen: set[str] = set()
        self._memory = _MemoryDeaths(oom_kills)

    def look(self) -> bool:
        """Take a look; often, for a process that has ended can be asked for its exit code only until its master waits for it.

        Returns whether one of them is gone, and its journal is still to be written down.
        """
        held, silent_s = self._held(), self._silent_s()
        is_gone = False
        for name, reader in held.items():
            self._see_end(name, reader)
            is_alive = reader.owner_alive()
            is_gone = is_gone or not is_alive
            is_frozen = silent_s.get(name, 0.0) > self._limit_s and is_alive
            if is_frozen and name not in self._frozen:
                self._frozen.add(name)
                logger.error("The worker %s lives and has not been heard of for %.0f s: it is frozen.", name, silent_s[name])
            elif not is_frozen and name in self._frozen:
                self._frozen.discard(name)
                logger.warning("The worker %s is not frozen any more.", name)
        self._frozen &= held.keys()
        self._exits = {name: code for name, code in self._exits.items() if name in held}
        self._memory.look([name for name, reader in held.items() if reader.owner_alive()], held.keys())
        return is_gone

    def exit_of(self, worker_id: str) -> tuple[int | None, str | None]:
        """Exit code and cause of a worker that is gone, where the system told; a signal is a negative code and its name."""
        held = self._held()
        if worker_id in held:
            self._see_end(worker_id, held[worker_id])
        self._memory.look([name for name, each in held.items() if each.owner_alive()], held.keys())
        code = self._exits.get(worker_id)
        if code in {None, -signal.SIGKILL} and self._memory.has_taken(worker_id):
            return code, host.exit_cause(-signal.SIGKILL, was_oom=True)
        return code, None if code is None else host.exit_cause(code)

    def reasons(self) -> list[str]:
        """What speaks against being ready: no worker at all, or one that is frozen."""
        if not self._held():
            return ["there is no worker"]
        return [f"worker {name} is frozen" for name in sorted(self._frozen)]

    def _see_end(self, name: str, reader: JournalReader) -> None:
        origin = reader.origin
        if name in self._exits or origin.host_identity != host.host_identity():
            return
        code = host.exit_code(origin.pid, origin.process_started_at)
        if code is not None:
            self._exits[name] = code
            logger.error("The worker %s ended: %s.", name, host.exit_cause(code))


class _MemoryDeaths:
    """Which workers the kernel killed because memory ran out, told by the count of their cgroup.

    A count has no names.  So it tells only where as many processes were killed between two looks as workers died.
    """

    def __init__(self, oom_kills: Callable[[int], int | None]) -> None:
        self._oom_kills = oom_kills
        #: Those that lived at the last look.
        self._living: set[str] = set()
        self._count: int | None = None
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    def look(self, living: Iterable[str], held: Collection[str]) -> None:
        """Compare the count with that of the last look.

        Parameters:
          living: the workers that live now.
          held: those that are of interest still.
        """
        with self._lock:
            count = self._oom_kills(os.getpid())  # a fork of their master is in their cgroup
            gone = self._living.difference(living)
            if gone and count is not None and self._count is not None and count - self._count >= len(gone):
                self._taken |= gone
            self._living, self._count = set(living), count
            self._taken &= set(held)

    def has_taken(self, worker_id: str) -> bool:
        """Whether memory is what ended it."""
        return worker_id in self._taken
