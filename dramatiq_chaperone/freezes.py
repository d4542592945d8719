"""Workers that live and whose sampler does not turn: whether C code holds the GIL, and where.

The worker itself can say nothing then.  A sibling process sees its pulse stand still, and which of its threads work.
If one works alone while the sampler waits for the GIL, that one is asked for the stacks: the signal goes to this very
thread, so its handler runs where the GIL is held, and nobody else can run beside it.  A dump beside running threads
would be a segmentation fault.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import host
from .diagnosis import DUMP_SIGNAL, SAMPLER, STACKS_FILE, THREADS_FILE, Diagnosis, Stack, held_gil, parse_dump
from .events import JobDiagnosed, JobEvent, JobRecovered, JobStuck, publish
from .service import internal_error
from .store import queries, stalls

if TYPE_CHECKING:
    from .journal import JournalReader
    from .settings import Settings
    from .store import Store

    Row = Mapping[str, Any]

logger = logging.getLogger("dramatiq_chaperone.watcher")

#: The pulse stands still for so long, in seconds, before the threads are looked at, and before one is asked for the stacks.
SUSPECT_S: Final = 1.5
SILENT_S: Final = 3.0
#: A look at the threads that told nothing is repeated after so long.
AGAIN_S: Final = 2.0
#: An observer that did not look for so long, in seconds, knows nothing of the time between.
BLIND_S: Final = 1.0
#: The answer may take so long, in seconds, and so many bytes of it are read.
ANSWER_S: Final = 2.0
DUMP_BYTES: Final = 256 << 10

#: The share of the time in which a thread must have worked to be the one that holds the GIL, and at most may have to wait for it.
_WORKS: Final = 0.05
_WAITS: Final = 0.02
#: A sampler that waits for the GIL wakes up so often each second at least, to ask for it: 200 times, fewer on a machine that is
#: crowded.  One that waits for anything else does not, or its pulse goes on.  Source: the switch interval of 5 ms.
_WAKES: Final = 3.0


class ThreadUse(NamedTuple):
    """What a thread has used since it began."""

    cpu_s: float
    #: How often it was given a processor.
    slices: int


def lone_worker(before: Mapping[int, ThreadUse], after: Mapping[int, ThreadUse], seconds: float, sampler: int) -> int | None:
    """The thread that alone worked between two looks at a process, while the sampler waited for the GIL; None: there is none.

    Threads that wait for the GIL ask for it two hundred times a second, which takes a thousandth of a core.
    """
    zero = ThreadUse(0.0, 0)
    if seconds <= 0 or sampler not in after or after[sampler].slices - before.get(sampler, zero).slices < _WAKES * seconds:
        return None
    used = {tid: use.cpu_s - before.get(tid, zero).cpu_s for tid, use in after.items()}
    busiest = max(used, key=lambda tid: used[tid])
    is_alone = all(used[tid] <= min(_WAITS * seconds, used[busiest] / 5) for tid in after if tid != busiest)
    return busiest if used[busiest] >= _WORKS * seconds and is_alone and busiest != sampler else None


@dataclass(slots=True)
class Freeze:
    """A pulse that stands still.  Times are monotonic."""

    worker_id: str
    pulse: int
    #: When it went on last, or when it was certain last that the process could not run.
    since: float
    looked_at: float = 0.0
    used: dict[int, ThreadUse] | None = None
    asked_at: float | None = None
    #: The thread that holds the GIL, by its native id and by its name, and where it is.
    holder: int | None = None
    thread: str | None = None
    stack: Stack = ()
    is_answered: bool = False
    #: Runs of which a diagnosis was told, by run_id; and those that were called stuck, with their job and since when.
    told: set[str] = field(default_factory=set)
    stuck: dict[str, tuple[Row, float]] = field(default_factory=dict)


class Freezes:
    """Looks at the pulses of workers, and tells what stops them.

    :meth:`look` is called by one thread, often; :meth:`turn` by another, as a duty of
    :class:`~dramatiq_chaperone.store.turns.StoreTurns`.

    Parameters:
      held: the workers' journals, by worker_id.
      limit_s: a worker that says nothing for longer is frozen, whatever its jobs promised.
    """

    def __init__(self, settings: Settings, held: Callable[[], dict[str, JournalReader]], *, limit_s: float) -> None:
        self._settings, self._held, self._limit_s = settings, held, limit_s
        self._freezes: dict[str, Freeze] = {}
        self._ended: list[Freeze] = []
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()

    def look(self, now: float) -> None:
        """Take a look.  *now* is monotonic."""
        is_blind, self._looked_at = now - self._looked_at > BLIND_S, now
        held = self._held()
        for name, reader in held.items():
            try:
                self._look_at(name, reader, now, is_blind=is_blind)
            except OSError as error:
                internal_error("freezes", error)
        with self._lock:
            self._freezes = {name: freeze for name, freeze in self._freezes.items() if name in held}

    def _look_at(self, name: str, reader: JournalReader, now: float, *, is_blind: bool) -> None:
        pulse = reader.pulse()
        freeze = self._freezes.get(name)
        if freeze is None or freeze.pulse != pulse or not pulse:
            with self._lock:
                if freeze is not None and freeze.stuck:
                    self._ended.append(freeze)
                self._freezes[name] = Freeze(name, pulse, now)
            return
        origin = reader.origin
        if is_blind or host.is_stopped(origin.pid) or not reader.owner_alive():
            freeze.since, freeze.used = now, None
        elif freeze.asked_at is not None:
            self._read_answer(freeze, reader, now)
        elif now - freeze.since >= SUSPECT_S and origin.host_identity == host.host_identity():
            self._suspect(freeze, reader, now)

    def _suspect(self, freeze: Freeze, reader: JournalReader, now: float) -> None:
        if freeze.used is None or now - freeze.looked_at > AGAIN_S:
            freeze.used, freeze.looked_at = thread_uses(reader.origin.pid), now
        elif now - freeze.since >= SILENT_S and now - freeze.looked_at >= SILENT_S - SUSPECT_S:
            after = thread_uses(reader.origin.pid)
            names = _thread_names(reader)
            sampler = next((int(tid) for tid, name in reversed(names.items()) if name == SAMPLER and tid.isdigit()), 0)
            holder = lone_worker(freeze.used, after, now - freeze.looked_at, sampler)
            freeze.used, freeze.looked_at = after, now
            if holder is not None:
                freeze.holder, freeze.thread, freeze.asked_at = holder, names.get(str(holder)), now
                if not _ask(reader, holder):
                    freeze.is_answered = True

    @staticmethod
    def _read_answer(freeze: Freeze, reader: JournalReader, now: float) -> None:
        assert freeze.asked_at is not None
        if freeze.is_answered or now == freeze.asked_at:
            return
        text = _read(reader.path / STACKS_FILE, DUMP_BYTES)
        freeze.stack, _ = parse_dump(text)
        freeze.is_answered = bool(freeze.stack) or now - freeze.asked_at > ANSWER_S
        if freeze.is_answered:
            logger.warning("Worker %s: %s.", freeze.worker_id, held_gil(freeze.stack, now - freeze.since, is_own=True).text)

    def turn(self, store: Store) -> None:
        """Tell what there is to tell of the jobs of each worker that is silent, and of those that are back."""
        with self._lock:
            freezes, ended = list(self._freezes.values()), list(self._ended)
        now, at = time.monotonic(), time.time()
        for freeze in ended:
            self._tell_recovered(store, freeze, now, at)
            with self._lock:
                self._ended = [each for each in self._ended if each is not freeze]
        for freeze in freezes:
            silent_s = now - freeze.since
            if silent_s >= SILENT_S and (freeze.asked_at is None or freeze.is_answered):
                try:
                    self._tell(store, freeze, silent_s, now, at)
                except (LookupError, TypeError, ValueError) as error:  # the other duties have their turns too
                    internal_error("freezes", error)
                self._settle(freeze)

    def _settle(self, freeze: Freeze) -> None:
        """The pulse may have gone on while jobs were called stuck: then they are called back at the next turn."""
        with self._lock:
            now = self._freezes.get(freeze.worker_id)
            if now is not None and now is not freeze and freeze.stuck and not any(each is freeze for each in self._ended):
                self._ended.append(freeze)

    def leave(self, store: Store) -> None:
        """Nothing is held."""

    def _tell(self, store: Store, freeze: Freeze, silent_s: float, now: float, at: float) -> None:
        jobs = queries.running_on(store, freeze.worker_id)
        stuck: dict[str, tuple[Row, JobStuck]] = {}
        told: dict[str, JobDiagnosed] = {}
        for job in jobs:
            run_id = job["run_id"]
            if run_id in freeze.stuck or job["status"] == "stalled":
                continue
            missed, threshold = stalls.missed(job, silent_s, self._settings)
            is_stuck = freeze.holder is not None and 0 < threshold <= missed
            if not is_stuck and (run_id in freeze.told or (silent_s < self._limit_s and not _is_overdue(job, at))):
                continue
            found = self._diagnosis(freeze, job, jobs, silent_s)
            facts: dict[str, Any] = {name: job[name] or "" for name in ("job_id", "run_id", "actor_name", "queue")}
            facts.update(worker_id=freeze.worker_id, diagnosis=found.text, cause=found.cause, evidence=found.evidence)
            if is_stuck:
                heard = job["last_heartbeat_at"]
                stuck[run_id] = job, JobStuck(**facts, stuck_duration=silent_s, last_heartbeat=heard, missed_heartbeats=missed)
            else:
                told[run_id] = JobDiagnosed(**facts)
        events: list[JobEvent] = [*(event for _, event in stuck.values()), *told.values()]
        if not events:
            return
        marks = [(event.job_id, run_id, event.missed_heartbeats) for run_id, (_, event) in stuck.items()]
        store.transact(lambda: stalls.write(store, events, at, stuck=marks))
        freeze.told |= told.keys()
        freeze.stuck.update({run_id: (job, now) for run_id, (job, _) in stuck.items()})
        for event in events:
            publish(event)

    def _tell_recovered(self, store: Store, freeze: Freeze, now: float, at: float) -> None:
        events = [
            JobRecovered(
                job_id=job["job_id"],
                actor_name=job["actor_name"] or "",
                queue=job["queue"] or "",
                worker_id=freeze.worker_id,
                run_id=run_id,
                recovered_at=datetime.fromtimestamp(at, UTC),
                stuck_duration=now - since,
            )
            for run_id, (job, since) in freeze.stuck.items()
        ]
        running = {job["run_id"] for job in queries.running_on(store, freeze.worker_id)}
        moving = [event for event in events if event.run_id in running]
        store.transact(lambda: stalls.write(store, moving, at, moving=[(event.job_id, event.run_id) for event in moving]))
        for event in moving:
            publish(event)

    @staticmethod
    def _diagnosis(freeze: Freeze, job: Row, jobs: Sequence[Row], silent_s: float) -> Diagnosis:
        if freeze.holder is None:
            text = f"alive, no progress: its process says nothing for {silent_s:.0f} s, and no thread of it works alone"
            return Diagnosis("idle", text, {"silent_s": round(silent_s, 1)})
        holder = next((each["job_id"] for each in jobs if freeze.thread is not None and each["thread"] == freeze.thread), None)
        return held_gil(freeze.stack, silent_s, is_own=freeze.thread is None or holder == job["job_id"], job_id=holder)


def _is_overdue(job: Row, at: float) -> bool:
    return job["timeout_at"] is not None and job["timeout_at"].timestamp() + SILENT_S <= at


def thread_uses(pid: int) -> dict[int, ThreadUse]:
    """What each thread of a process has used, by native id; empty where the system does not tell.

    Source: Documentation/scheduler/sched-stats of Linux.
    """
    found: dict[int, ThreadUse] = {}
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            used_ns, _, slices = Path(f"/proc/{pid}/task/{task}/schedstat").read_bytes().split()
            found[int(task)] = ThreadUse(int(used_ns) / 1e9, int(slices))
    except (OSError, ValueError):
        return {}
    return found


def _ask(reader: JournalReader, thread: int) -> bool:
    """Send the signal to a thread of the owner; not unless the owner waits for it, for else that would be its end."""
    origin = reader.origin
    stacks = reader.path / STACKS_FILE
    if DUMP_SIGNAL is None or not stacks.exists() or not host.is_alive(origin.pid, origin.process_started_at):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "tgkill") or not host.catches(origin.pid, DUMP_SIGNAL):
        return False
    os.truncate(stacks, 0)
    return bool(libc.tgkill(origin.pid, thread, int(DUMP_SIGNAL)) == 0)


def _thread_names(reader: JournalReader) -> dict[str, str]:
    lines = _read(reader.path / THREADS_FILE, DUMP_BYTES).splitlines()
    return {native_id: name for native_id, _, name in (line.partition(" ") for line in lines)}


def _read(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
