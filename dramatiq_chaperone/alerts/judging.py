"""From events and readings to alerts: what is new, what is seen again, what is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..events import JobLost, JobRanTwice, WorkerCrashed, WorkerLost, WorkerReturned, from_stored, publish
from ..service import internal_error
from ..settings import THRESHOLDS
from ..store import alerts as rows
from ..store import leases
from ..store.database import DataRefused
from . import fleet, routing, rules, thresholds
from .kinds import Alert, Finding, Over, fingerprint, kind_of

if TYPE_CHECKING:
    from ..settings import Settings
    from ..store import Store
    from ..store.leases import Lease
    from ..store.queries import Row

#: Events that nobody publishes when they are written: it is the store that finds them.
FOUND_BY_STORE: Final = (JobLost, JobRanTwice, WorkerCrashed, WorkerLost, WorkerReturned)
#: Events that are judged in one transaction, and transactions in one turn.
BATCH: Final = 500
BATCHES: Final = 10
#: Seconds between two looks: at thresholds, at jobs that alerts are about.
THRESHOLDS_EVERY_S: Final = 15.0
ENDS_EVERY_S: Final = 2.0
#: An alert whose end nobody reports is over so long after it was seen last, in seconds.
FORGET_S: Final = 86_400.0


def unsettled(store: Store) -> list[Alert]:
    """The alerts that fire, or of whose end somebody has yet to hear."""
    return [Alert(**facts) for facts in rows.unsettled(store)]


class Judge:
    """Keeps alerts as events and readings tell."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = {name: default for name, (_, default) in THRESHOLDS.items()} | dict(settings.alerts.get("thresholds", {}))
        #: When the next look is due.
        self._next_thresholds = self._next_ends = 0.0
        self._measured_at = float("-inf")
        #: Fingerprint to since when a threshold is passed, and since when it is not any more.
        self._above: dict[str, float] = {}
        self._below: dict[str, float] = {}
        #: Queue to what its jobs wait for, in words.
        self.waits_for: Mapping[str, frozenset[str]] = {}

    def turn(self, store: Store, lease: Lease, now: float) -> bool:
        """Look at what is due.  Whether an alert is another than before.  Raises StoreError and LeaseLost."""
        has_changed = self.judge(store, lease, now)
        if now >= self._next_ends:
            self._next_ends = now + ENDS_EVERY_S
            has_changed |= self._see_ends(store, lease, now)
        if now >= self._next_thresholds:
            self._next_thresholds = now + THRESHOLDS_EVERY_S
            has_changed |= self._measure(store, lease, now)
        return has_changed

    def judge(self, store: Store, lease: Lease, now: float) -> bool:
        """Let the rules see what has happened, and publish what only the store has found.  Whether there is something to alert of.

        Where alerts are switched off nothing is, also not when they are switched on again.
        """
        has_changed = False
        for _ in range(BATCHES):
            found = rows.to_judge(store, limit=BATCH)
            try:
                has_changed |= self._judge(store, lease, found, now)
            except DataRefused as error:
                internal_error("alerts", error)
                for each in found:
                    has_changed |= self._judge_alone(store, lease, each, now)
            if len(found) < BATCH:
                break
        return has_changed

    def _judge(self, store: Store, lease: Lease, found: Sequence[Row], now: float) -> bool:
        events = [event for each in found if (event := from_stored(each["name"], each["data"] or {})) is not None]
        things = [thing for event in events for thing in rules.all_of(event)] if self._settings.alerting_enabled else []

        def keep() -> None:
            rows.judged(store, [each["id"] for each in found])
            self._raise(store, things, now)

        if found:
            leases.under(store, lease, keep)
        for event in events:
            if isinstance(event, FOUND_BY_STORE):
                publish(event)
        return bool(things)

    def _judge_alone(self, store: Store, lease: Lease, found: Row, now: float) -> bool:
        """One of a batch in which something cannot be kept: if it is this one, it is given up, so that it does not stop the others."""
        try:
            return self._judge(store, lease, [found], now)
        except DataRefused as error:
            internal_error("alerts", error)
            leases.under(store, lease, lambda: rows.judged(store, [found["id"]]))
            return False

    def _raise(self, store: Store, things: Sequence[Finding | Over], now: float) -> None:
        """Keep what was found: a new alert, one that is seen again, one that is over.  For the inside of a transaction."""
        named = [each for thing in things for each in _fingerprints(thing)]
        open_ = rows.open_by_fingerprint(store, named)
        jobs = [each.labels["job_id"] for each in things if isinstance(each, Finding) and "job_id" in each.labels]
        marks = rows.marked(store, jobs)
        new: dict[str, tuple[Finding, int]] = {}
        again: dict[str, tuple[Finding, int]] = {}
        over: list[str] = []
        for thing in things:
            if isinstance(thing, Over):
                for name in _fingerprints(thing):
                    if name in new:
                        finding, number = new.pop(name)
                        over.append(rows.raise_new(store, self._facts(finding, marks, number), now))
                    elif name in open_:
                        over.append(open_.pop(name))
                continue
            known = new if thing.fingerprint not in open_ else again
            known[thing.fingerprint] = (thing, known.get(thing.fingerprint, (thing, 0))[1] + 1)
        for finding, number in new.values():
            rows.raise_new(store, self._facts(finding, marks, number), now)
        for name, (finding, number) in again.items():
            if name in open_:
                rows.seen_again(store, open_[name], number, _evidence(finding), now)
        rows.resolve(store, over, now)

    def _facts(self, finding: Finding, marks: Mapping[str, Mapping[str, Any]], number: int) -> dict[str, Any]:
        kind = kind_of(finding.type)
        mark = marks.get(finding.labels.get("job_id", ""), {})
        priority = routing.priority_of(finding.labels.get("actor", ""), self._settings, is_critical=bool(mark.get("critical")))
        is_point = kind.is_point if finding.is_point is None else finding.is_point
        return {
            "type": finding.type,
            "subject": finding.subject,
            "severity": "critical" if priority == "critical" else finding.severity or kind.severity,
            "priority": priority,
            "status": "happened" if is_point else "firing",
            "fingerprint": finding.fingerprint,
            "is_point": is_point,
            "labels": dict(finding.labels),
            "evidence": _evidence(finding, str(mark.get("runbook_url") or "")),
            "number": number,
        }

    # -- what ends by itself

    def _see_ends(self, store: Store, lease: Lease, now: float) -> bool:
        """Jobs that ended, workers that were replaced, and what nobody has heard the end of."""
        firing = [each for each in unsettled(store) if each.is_firing]
        of_jobs: dict[str, list[str]] = {}
        for each in firing:
            if kind_of(each.type).is_of_job and "job_id" in each.labels:
                of_jobs.setdefault(each.labels["job_id"], []).append(each.id)
        over = [key for job in rows.ended_jobs(store, list(of_jobs)) for key in of_jobs[job]]
        shared = [each for each in firing if each.type == "resource_violation" and "job_id" not in each.labels]
        of_workers = {each.id: each.labels.get("worker", "") for each in shared}
        gone = rows.ended_workers(store, list(of_workers.values()))
        over += [key for key, worker in of_workers.items() if worker in gone]
        lost = [each for each in firing if each.type == "worker_lost"]
        heard_at = {each.id: float(each.evidence.get("since", each.first_seen_at)) for each in lost}
        over += fleet.replaced(store, {each.id: (each.labels.get("host", ""), heard_at[each.id]) for each in lost})
        forgotten = [each.id for each in firing if now - each.last_seen_at > FORGET_S and _may_be_forgotten(each)]

        def keep() -> None:
            rows.resolve(store, [*over, *forgotten], now)
            # Nobody knows that it is over, so nobody is told so.
            rows.suppress(store, dict.fromkeys(forgotten, "forgotten"), now)
            rows.settle(store, forgotten, now)

        if over or forgotten:
            leases.under(store, lease, keep)
        return bool(over)

    def _holds_s(self, type_: str) -> float:
        """How long it has to be true before it fires."""
        return 0.0 if type_ in thresholds.AT_ONCE else self._numbers[thresholds.HOLDS.get(type_, "for")]

    def _measure(self, store: Store, lease: Lease, now: float) -> bool:
        """Compare the fleet with its thresholds: what is above for long enough fires, and is over when it is below for as long."""
        readings, self.waits_for = fleet.read(store, now, window_s=self._numbers["window"])
        if now - self._measured_at > 3 * THRESHOLDS_EVERY_S:  # what was between is not known
            self._above, self._below = {}, {}
        self._measured_at = now
        found = {each.fingerprint: each for each in thresholds.found(readings, self._settings, self._numbers)}
        self._above = {name: self._above.get(name, now) for name in found}
        ripe = [each for name, each in found.items() if now - self._above[name] >= self._holds_s(each.type)]
        firing = {each.fingerprint: each for each in unsettled(store) if each.is_firing and each.type in thresholds.TYPES}
        known = [
            name for name, each in firing.items() if each.type not in thresholds.OF_READINGS or each.labels.get("queue") in readings.queues
        ]
        self._below = {name: self._below.get(name, now) for name in known if name not in found}
        over = [firing[name].id for name, since in self._below.items() if now - since >= self._numbers["for"]]
        new = [each for each in ripe if each.fingerprint not in firing]

        def keep() -> None:
            self._raise(store, new, now)
            rows.resolve(store, over, now)

        if new or over:
            leases.under(store, lease, keep)
        return bool(new or over)


def _may_be_forgotten(alert: Alert) -> bool:
    """Whether nothing but its own report would tell the end of it: not a job, whose row does, nor a breaker, which stays open."""
    return alert.type not in thresholds.TYPES and not kind_of(alert.type).is_of_job and alert.type != "circuit_breaker"


def _fingerprints(thing: Finding | Over) -> list[str]:
    return [thing.fingerprint] if isinstance(thing, Finding) else [fingerprint(type_, thing.key) for type_ in thing.types]


def _evidence(finding: Finding, runbook: str = "") -> dict[str, Any]:
    given = {
        "key": finding.key,
        "title": finding.title,
        "details": [list(pair) for pair in finding.details],
        "text": finding.evidence,
        "meaning": finding.meaning,
        "runbook": finding.runbook or runbook,
        "since": finding.since,
    }
    return {name: value for name, value in given.items() if value}
