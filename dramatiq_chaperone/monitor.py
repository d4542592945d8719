"""Monitor: what has to be done once in a whole fleet, by whoever holds the lease."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from . import host
from .errors import SchemaError, StoreError, StoreUnavailable
from .events import JobRecovered, JobStuck, publish
from .service import internal_error
from .store import Store, commands, leases, queries, retention, stalls
from .store.leases import MONITOR_LEASE, Lease, LeaseLost
from .store.losses import worker_silent
from .store.silence import Heard, live_workers, record_overdue

if TYPE_CHECKING:
    from .alerts.dispatcher import Alerting
    from .settings import Settings

T = TypeVar("T")

logger = logging.getLogger("dramatiq_chaperone.monitor")

LEASE: Final = MONITOR_LEASE
#: The lease is renewed so often, and runs out after two renewals that did not come; seconds.
RENEW_S: Final = 5.0
LEASE_S: Final = 11.0
#: Whoever does not hold it looks so often whether it is free: a successor is there within LEASE_S + LOOK_S of a holder's death.
LOOK_S: Final = 2.5
#: Seconds between two rounds of retention: by the clock, never "when idle", for a busy fleet is the one whose tables grow.
RETENTION_EVERY_S: Final = 3600.0
#: A round stops after so many seconds and goes on at the next turn, so that commands are not kept waiting.
ROUND_S: Final = 0.5
#: A worker that is silent for so many of its heartbeats is perhaps gone; for so many it is lost.
INCONCLUSIVE_BEATS: Final = 3
LOST_BEATS: Final = 6
#: For one that has died on this host: whoever has its journal knows more, and says so sooner.
GONE_BEATS: Final = 24
#: A job of a silent worker is overdue so long after its timeout, in seconds: the worker may have ended it, and cannot say so.
OVERDUE_S: Final = 30.0
#: A command for the fleet that was claimed and not answered for so long may be claimed again; seconds.
GIVE_BACK_S: Final = 120.0
COMMANDS_EVERY_S: Final = 15.0
#: At its end it waits so long for the answers to messages of alerts that are on their way, in seconds.
ANSWERS_S: Final = 5.0


class Monitor:
    """A duty of :class:`~dramatiq_chaperone.store.turns.StoreTurns`.  Candidates are the watchers, and processes without one.

    Every write is conditional on the lease, in its own transaction: a holder that was frozen writes nothing when it wakes.

    Parameters:
      holder: unique for this process and start.
      alerting: takes a turn with each of its own.
      clock: monotonic seconds.
    """

    def __init__(
        self, settings: Settings, holder: str, *, alerting: Alerting | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._settings, self._holder, self._alerting, self._clock = settings, holder, alerting, clock
        self._lease: Lease | None = None
        self._next_look = 0.0
        self._next_retention = 0.0
        self._next_workers = 0.0
        self._next_commands = 0.0
        self._silence = Silence(settings.worker_heartbeat)
        #: What was called stuck, and when, by worker.
        self._stuck: dict[str, list[tuple[JobStuck, float]]] = {}

    def turn(self, store: Store) -> None:
        """Take or renew the lease, and do what is due.  Raises StoreError."""
        try:
            self._hold(store)
            if self._lease is not None:
                self._act(store, self._lease)
        except LeaseLost:
            self._let_go()
        except StoreError:
            self._silence.forget()  # what was not heard of meanwhile was perhaps not written
            raise

    def leave(self, store: Store) -> None:
        """Give the lease up, so that another need not wait for it to run out."""
        if self._lease is not None:
            if self._alerting is not None:
                with contextlib.suppress(LeaseLost):
                    self._alert(store, self._lease)  # of what was written last, perhaps the death of a worker
                    self._alerting.finish(store, timeout_s=ANSWERS_S)
            self._let_go()
            leases.release(store, LEASE, self._holder)

    def _hold(self, store: Store) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        if self._lease is None and leases.is_held(store, LEASE):
            self._next_look = now + LOOK_S
            return
        self._next_look = now + RENEW_S
        epoch = leases.acquire(store, LEASE, self._holder, seconds=LEASE_S)
        if epoch is None:
            self._next_look = now + LOOK_S
            self._let_go()
        elif self._lease is None or self._lease.epoch != epoch:
            self._let_go()
            self._lease = Lease(LEASE, self._holder, epoch)

    def _let_go(self) -> None:
        self._lease = None
        self._silence.forget()
        if self._alerting is not None:
            self._alerting.let_go()

    def _act(self, store: Store, lease: Lease) -> None:
        now = self._clock()
        if now >= self._next_workers:
            self._next_workers = now + self._settings.worker_heartbeat / 4
            self._watch(store, lease)
        if now >= self._next_commands:
            self._next_commands = now + COMMANDS_EVERY_S
            leases.under(store, lease, lambda: commands.give_back(store, after_s=GIVE_BACK_S))
        self._alert(store, lease)
        if now >= self._next_retention and self._retain(store, lease, now + ROUND_S):
            self._next_retention = now + RETENTION_EVERY_S

    def _alert(self, store: Store, lease: Lease) -> None:
        """Whatever goes wrong with an alert, workers are watched."""
        if self._alerting is None:
            return
        try:
            self._alerting.turn(store, lease)
        except (StoreUnavailable, SchemaError, LeaseLost):
            raise
        except Exception as error:  # noqa: BLE001 - as above
            internal_error("alerts", error)

    # -- workers

    def _watch(self, store: Store, lease: Lease) -> None:
        asked_at = self._clock()
        workers = live_workers(store)
        verdicts = self._silence.look(workers, asked_at=asked_at, now=self._clock())
        for verdict in verdicts:
            if verdict.is_lost:
                self._lose(store, lease, verdict)
            else:
                self._look_for_overdue(store, lease, verdict)
            if verdict.lives and not host.is_stopped(verdict.worker.origin.pid):
                self._look_for_stuck(store, lease, verdict)
        silent = {each.worker.origin.worker_id for each in verdicts}
        for worker_id in self._stuck.keys() - silent:
            self._tell_recovered(store, lease, worker_id)

    def _lose(self, store: Store, lease: Lease, verdict: Verdict) -> None:
        origin = verdict.worker.origin
        at = time.time()
        lost = leases.under(store, lease, lambda: worker_silent(store, origin, beat=verdict.worker.beat, at=at, silent_s=verdict.silent_s))
        if lost is not None:
            text = "The worker %s on %s has been silent for %.0f s: it counts as lost, with the %d jobs that it ran."
            logger.error(text, origin.worker_id, origin.host, verdict.silent_s, len(lost))

    def _look_for_overdue(self, store: Store, lease: Lease, verdict: Verdict) -> None:
        worker, silent_s, at = verdict.worker, verdict.silent_s, time.time()
        overdue = leases.under(store, lease, lambda: record_overdue(store, worker, silent_s=silent_s, grace_s=OVERDUE_S, at=at))
        for job_id in overdue:
            logger.error("The job %s is past its timeout, and its worker %s is silent.", job_id, worker.origin.worker_id)

    def _look_for_stuck(self, store: Store, lease: Lease, verdict: Verdict) -> None:
        """A watcher sees its siblings freeze within seconds; this is for workers that have none.  It is their silence that counts."""
        worker_id, silent_s, at = verdict.worker.origin.worker_id, verdict.silent_s, time.time()
        text = f"alive, no progress: its process says nothing for {silent_s:.0f} s"
        found = []
        for job in queries.running_on(store, worker_id):
            missed, threshold = stalls.missed(job, silent_s, self._settings)
            if job["status"] == "running" and 0 < threshold <= missed:
                facts: dict[str, Any] = {name: job[name] or "" for name in ("job_id", "run_id", "actor_name", "queue", "worker_id")}
                facts.update(diagnosis=text, cause="idle", evidence={"silent_s": round(silent_s, 1)})
                found.append(JobStuck(**facts, stuck_duration=silent_s, last_heartbeat=job["last_heartbeat_at"], missed_heartbeats=missed))
        if found:
            marks = [(each.job_id, each.run_id, each.missed_heartbeats) for each in found]
            leases.under(store, lease, lambda: stalls.write(store, found, at, stuck=marks))
            self._stuck.setdefault(worker_id, []).extend((each, self._clock()) for each in found)
            for each in found:
                logger.error("The job %s is stuck: its worker %s lives and is silent for %.0f s.", each.job_id, worker_id, silent_s)
                publish(each)

    def _tell_recovered(self, store: Store, lease: Lease, worker_id: str) -> None:
        """The worker speaks again, and judges for itself."""
        at, running = time.time(), {job["run_id"] for job in queries.running_on(store, worker_id)}
        moving = [
            JobRecovered(
                job_id=each.job_id,
                actor_name=each.actor_name,
                queue=each.queue,
                worker_id=worker_id,
                run_id=each.run_id,
                recovered_at=datetime.fromtimestamp(at, UTC),
                stuck_duration=round(self._clock() - since, 1),
                missed_heartbeats=each.missed_heartbeats,
            )
            for each, since in self._stuck[worker_id]
            if each.run_id in running
        ]
        leases.under(store, lease, lambda: stalls.write(store, moving, at, moving=[(each.job_id, each.run_id) for each in moving]))
        del self._stuck[worker_id]
        for each in moving:
            publish(each)

    # -- old rows

    def _retain(self, store: Store, lease: Lease, until: float) -> bool:
        """Go on with a round of retention; whether it came to its end."""

        def within(work: Callable[[], T]) -> T:
            return leases.under(store, lease, work)

        return all(self._clock() < until for _ in retention.prune(store, self._settings, within=within))


class Verdict(NamedTuple):
    """A worker is silent."""

    worker: Heard
    #: For how long it was watched without a new beat, by the watching process's own clock.
    silent_s: float
    #: Whether that is enough to call it lost; else it is inconclusive.
    is_lost: bool
    #: Whether it is seen to live, on this host.
    lives: bool = False


class _Seen(NamedTuple):
    beat: int
    since: float


class Silence:
    """Times how long workers are silent, by the monotonic clock of this process alone: clocks of other hosts may be wrong.

    After a gap of its own, or of the store, everything is timed anew: a full threshold is waited before anybody is called lost.

    Parameters:
      heartbeat_s: between two beats of a worker that does not say it itself.
      identity: of this host; what is alive here is never lost, however silent it is.
      is_alive: whether a process (pid, start) of this host lives.
    """

    def __init__(
        self,
        heartbeat_s: float,
        *,
        identity: Callable[[], str] = host.host_identity,
        is_alive: Callable[[int, float], bool] = host.is_alive,
    ) -> None:
        self._heartbeat_s, self._identity, self._is_alive = heartbeat_s, identity, is_alive
        self._seen: dict[str, _Seen] = {}
        self._warned: set[str] = set()
        self._looked_at: float | None = None

    def forget(self) -> None:
        """Time everything anew from the next look on."""
        self._looked_at = None

    def look(self, workers: list[Heard], *, asked_at: float, now: float) -> list[Verdict]:
        """Those that are silent for long enough to say so.

        Parameters:
          workers: all that should be heard of, as they stood at some moment between the next two.
          asked_at: when the store was asked, in monotonic seconds.
          now: when it had answered.
        """
        is_gap = self._looked_at is None or now - self._looked_at > max(2 * self._heartbeat_s, 2.0)
        self._looked_at = now
        before, self._seen = ({} if is_gap else self._seen), {}
        verdicts = []
        for worker in workers:
            name = worker.origin.worker_id
            seen = before.get(name)
            if seen is None or seen.beat != worker.beat:
                seen = _Seen(worker.beat, now)
            self._seen[name] = seen
            verdict = self._judged(worker, max(0.0, asked_at - seen.since))
            if verdict is not None:
                verdicts.append(verdict)
        self._warn(verdicts)
        return verdicts

    def _judged(self, worker: Heard, silent_s: float) -> Verdict | None:
        interval_s = max(self._heartbeat_s, worker.interval_s or 0.0)
        if silent_s < INCONCLUSIVE_BEATS * interval_s:
            return None
        origin = worker.origin
        is_here = origin.host_identity == self._identity()
        if is_here and self._is_alive(origin.pid, origin.process_started_at):
            return Verdict(worker, silent_s, False, lives=True)
        return Verdict(worker, silent_s, silent_s >= (GONE_BEATS if is_here else LOST_BEATS) * interval_s)

    def _warn(self, verdicts: list[Verdict]) -> None:
        silent = {each.worker.origin.worker_id: each for each in verdicts if not each.is_lost}
        for name in silent.keys() - self._warned:
            logger.warning("The worker %s on %s has been silent for %.0f s.", name, silent[name].worker.origin.host, silent[name].silent_s)
        self._warned = set(silent)
