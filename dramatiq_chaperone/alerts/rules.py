"""Rules: what an event gives to alert of, and what it ends.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from .. import events
from ..events import Event
from ..service import internal_error
from .kinds import Finding, Over

Rule = Callable[[Any], Iterable[Finding | Over]]

#: Dead letters of which other alerts tell, or nobody need.
_NOT_FAILED: Final = frozenset({"poison", "cancelled"})
_UNITS: Final[Mapping[str, str]] = {"memory": "MB", "cpu": "%", "timeout": "s", "disk": "MB", "file_descriptors": "open files"}


def found(event: Event) -> list[Finding | Over]:
    """All that the rules of this package find in *event*."""
    rule = RULES.get(type(event))
    return [] if rule is None else list(rule(event))


def duration(seconds: float) -> str:
    """``312 s``, ``5 min``, ``3.2 h``."""
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _labels(event: events.JobEvent) -> dict[str, str]:
    given = {"actor": event.actor_name, "queue": event.queue, "worker": event.worker_id, "job_id": event.job_id}
    return {name: value for name, value in given.items() if value}


def _of_job(event: events.JobEvent) -> list[tuple[str, str]]:
    pairs = [("Job", event.job_id), ("Actor", event.actor_name), ("Queue", event.queue), ("Worker", event.worker_id or "")]
    return [(name, value) for name, value in pairs if value]


def _stuck(event: events.JobStuck) -> Iterable[Finding]:
    details = [*_of_job(event), ("Stuck for", duration(event.stuck_duration)), ("Last heartbeat", _at(event.last_heartbeat) or "never")]
    if event.diagnosis:
        details.append(("Diagnosis", event.diagnosis))
    stack = event.evidence.get("stack", "") if isinstance(event.evidence, Mapping) else ""
    text = "\n".join(map(str, stack)) if isinstance(stack, list | tuple) else str(stack)
    yield Finding("job_stuck", event.job_id, event.actor_name, _labels(event), details, text)


def _recovered(event: events.JobRecovered) -> Iterable[Over]:
    yield Over(("job_stuck",), event.job_id)


def _timeout(event: events.JobTimeout) -> Iterable[Finding]:
    if not event.is_default:
        limits = [("Timeout", duration(event.timeout_seconds)), ("Runs for", duration(event.actual_duration))]
        yield Finding("job_timeout", event.job_id, event.actor_name, _labels(event), [*_of_job(event), *limits])


def _violation(event: events.ResourceViolationDetected) -> Iterable[Finding]:
    kind = event.violation_type
    if event.is_default or kind in {"timeout", "disk"}:  # of which JobTimeout and DiskSpaceLow tell
        return
    unit = _UNITS.get(kind, "")
    details = [
        *_of_job(event),
        ("Limit", f"{event.limit:,.0f} {unit}".rstrip()),
        ("Used", f"{event.actual:,.0f} {unit}".rstrip()),
        ("Reading", "the job's own" if event.attribution == "exact" else "the whole worker's"),
    ]
    subject = event.actor_name or event.worker_id or ""
    title = f"{kind.replace('_', ' ').title().replace('Cpu', 'CPU')} Limit Exceeded"
    yield Finding("resource_violation", f"{event.job_id or event.worker_id}:{kind}", subject, _labels(event), details, title=title)


def _disk_low(event: events.DiskSpaceLow) -> Iterable[Finding]:
    if event.jobs_wait:
        details = [("Path", event.path), ("Free", f"{event.free:,.0f} MB"), ("Threshold", f"{event.threshold:,.0f} MB")]
        labels = {"host": event.host, "worker": event.worker_id}
        yield Finding("disk_space", f"{event.host}:{event.path}", event.host or event.path, labels, details)


def _disk_recovered(event: events.DiskSpaceRecovered) -> Iterable[Over]:
    yield Over(("disk_space",), f"{event.host}:{event.path}")


def _opened(event: events.CircuitBreakerOpened) -> Iterable[Finding]:
    details = [("Service", event.service), ("Failures", f"{event.failure_count}"), ("Opened", _at(event.opened_at))]
    if event.last_error:
        details.append(("Last error", event.last_error))
    yield Finding("circuit_breaker", event.service, event.service, {"service": event.service}, details)


def _closed(event: events.CircuitBreakerClosed) -> Iterable[Over]:
    yield Over(("circuit_breaker", "breaker_open_long"), event.service)


def _dead(event: events.JobMovedToDeadLetterQueue) -> Iterable[Finding]:
    if event.reason not in _NOT_FAILED:
        details = [*_of_job(event), ("Reason", event.reason), ("Exception", event.exception or "none"), ("Failed", _at(event.failed_at))]
        yield Finding("job_failed", event.job_id, event.actor_name, _labels(event), details)


def _poisoned(event: events.JobPoisoned) -> Iterable[Finding]:
    details = [*_of_job(event), ("Crashes", f"{event.crashes} of at most {event.max_crashes}")]
    yield Finding("job_poisoned", event.job_id, event.actor_name, _labels(event), details)


def _ignored(event: events.JobStopIgnored) -> Iterable[Finding]:
    details = [*_of_job(event), ("Waited", duration(event.waited)), ("What follows", event.consequence)]
    yield Finding("job_unstoppable", event.job_id, event.actor_name, _labels(event), details)


def _of_worker(event: events.WorkerCrashed | events.WorkerLost) -> tuple[dict[str, str], list[tuple[str, str]]]:
    labels = {"worker": event.worker_id, "host": event.host}
    details = [("Worker", event.worker_id), ("Host", event.host), ("Jobs", f"{len(event.jobs)}")]
    if event.suspects:
        first = event.suspects[0]
        reasons = "; ".join(map(str, first.get("reasons") or ()))
        details.append(("Most suspect", f"{first.get('actor_name') or first.get('job_id')}: {reasons}" if reasons else f"{first}"))
    return {name: value for name, value in labels.items() if value}, [(name, value) for name, value in details if value]


def _crashed(event: events.WorkerCrashed) -> Iterable[Finding | Over]:
    labels, details = _of_worker(event)
    cause = event.exit_cause or "not known"
    yield Finding("worker_crashed", event.worker_id, event.host or event.worker_id, labels, [*details, ("Exit", cause)])
    yield Over(("worker_lost",), event.worker_id)


def _lost(event: events.WorkerLost) -> Iterable[Finding]:
    labels, details = _of_worker(event)
    details.append(("Silent for", duration(event.silent_for)))
    heard_at = event.lost_at.timestamp() - event.silent_for
    yield Finding("worker_lost", event.worker_id, event.host or event.worker_id, labels, details, since=heard_at)


def _returned(event: events.WorkerReturned) -> Iterable[Over]:
    yield Over(("worker_lost",), event.worker_id)


def _at(moment: Any) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


RULES: Final[Mapping[type[Event], Rule]] = {
    events.JobStuck: _stuck,
    events.JobRecovered: _recovered,
    events.JobTimeout: _timeout,
    events.ResourceViolationDetected: _violation,
    events.DiskSpaceLow: _disk_low,
    events.DiskSpaceRecovered: _disk_recovered,
    events.CircuitBreakerOpened: _opened,
    events.CircuitBreakerClosed: _closed,
    events.JobMovedToDeadLetterQueue: _dead,
    events.JobPoisoned: _poisoned,
    events.JobStopIgnored: _ignored,
    events.WorkerCrashed: _crashed,
    events.WorkerLost: _lost,
    events.WorkerReturned: _returned,
}


#: What users have added.
_own: dict[type[Event], list[Callable[[Any], Any]]] = {}


def alert_rule(*kinds: type[Event]) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Make a function a rule for events of these kinds, which have to be stored ones.

    ``@alert_rule(JobMovedToDeadLetterQueue)`` gets each such event and gives None, a :class:`~.kinds.Finding`, a
    :class:`~.kinds.Over` that ends one, or several of them.  It runs in the process that sends alerts, beside the rules
    of Chaperone; what it raises is logged and counted.

    Raises:
      TypeError: a kind is no event, or is not stored.
    """
    for kind in kinds:
        if not events.is_stored(kind):
            raise TypeError(f"{kind!r} is not an event that is stored: rules see what is in the store")

    def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        for kind in kinds:
            _own.setdefault(kind, []).append(function)
        return function

    return register


def all_of(event: Event) -> list[Finding | Over]:
    """What every rule finds in *event*, those of users too.  What one raises, or gives that is neither, stops none of the others."""
    things: list[Finding | Over] = []
    for rule in (found, *_own.get(type(event), ())):
        try:
            given = rule(event)
            several = [given] if given is None or isinstance(given, Finding | Over) else list(given)
            things += [each.cleaned() if isinstance(each, Finding) else each for each in several if each is not None]
        except Exception as error:  # noqa: BLE001 - as above
            internal_error(f"alert rule {getattr(rule, '__qualname__', rule)}", error)
    return things


def rule_modules() -> list[str]:
    """The modules that a process has to import to have the rules of users."""
    return sorted({rule.__module__ for rules in _own.values() for rule in rules})
