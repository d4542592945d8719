"""What there is to alert of: the types, and what a rule finds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..settings import SEVERITIES


class Kind(NamedTuple):
    """A type of alert.

    Attributes:
      title: as people read it.
      severity: critical, error, warning or info.
      emoji: before the title, where a channel has colours.
      is_point: it happened, and has no end: it is told once, and never resolved.
      is_told_late: it is told even where it was over before anybody was told.
      is_of_job: it ends at the latest when its job does.
      meaning: what it is likely to be, in a sentence.
    """

    title: str
    severity: str
    emoji: str
    meaning: str
    is_point: bool = False
    is_told_late: bool = False
    is_of_job: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "job_stuck": Kind(
        "Job Stuck", "error", "🧊", "It may be in an infinite loop, deadlocked, or otherwise unable to complete.", is_of_job=True
    ),
    "job_timeout": Kind(
        "Job Timeout", "error", "⏱️", "It runs longer than its timeout: its input has grown, or what it waits for does not answer.",
        is_told_late=True, is_of_job=True,
    ),
    "circuit_breaker": Kind("Circuit Breaker Opened", "error", "🚨", "Calls of the service fail; none is made until trial calls succeed."),
    "resource_violation": Kind("Resource Violation", "warning", "⚡", "It uses more than it was allowed to.", is_of_job=True),
    "job_failed": Kind("Job Failed", "error", "❌", "It will not be tried again: it is a dead letter now.", is_point=True),
    "job_poisoned": Kind(
        "Job Poisoned", "critical", "☠️", "Each worker that ran it died of it, so it is not run any more.", is_point=True
    ),
    "job_unstoppable": Kind(
        "Job Ignores Its Stop", "warning", "🛑", "It sits in code that cannot be interrupted from inside its process.", is_of_job=True
    ),
    "worker_crashed": Kind("Worker Crashed", "error", "💥", "Its process ended; its jobs run again elsewhere.", is_point=True),
    "worker_lost": Kind("Worker Lost", "error", "🔌", "Nothing is heard of it: its host or its network may be down."),
    "crash_loop": Kind("Workers Crash Again and Again", "critical", "🔁", "Something ends them soon after they start, or one job does."),
    "disk_space": Kind("Disk Space Low", "error", "💽", "Jobs wait until there is more."),
    "no_worker": Kind("No Worker for a Queue", "critical", "👻", "Messages wait, and no worker that lives fetches them."),
    "queue_length": Kind("Queue Too Long", "warning", "📈", "More comes in than is worked off."),
    "oldest_waiting": Kind("Message Waits Too Long", "warning", "⏳", "Workers are too few, too slow, or stand still."),
    "error_rate": Kind("Many Runs Fail", "error", "📉", "Something that many jobs need has changed or broken."),
    "response_time": Kind("Runs Take Too Long", "warning", "🐢", "Something that they need has become slow."),
    "dead_letters": Kind("Dead Letters Pile Up", "error", "📮", "Jobs fail for good faster than usual."),
    "breaker_open_long": Kind("Circuit Breaker Open for Long", "error", "🚧", "The service has not come back."),
    "sla": Kind("Objective Missed", "error", "🎯", "Jobs wait or run longer than they should."),
}  # fmt: skip

#: The specification's other names.
ALIASES: Final[Mapping[str, str]] = {
    "stuck": "job_stuck",
    "timeout": "job_timeout",
    "circuit-breaker": "circuit_breaker",
    "circuit": "circuit_breaker",
    "resource": "resource_violation",
}
PRIORITIES: Final = ("critical", "high", "normal", "low")


class Finding(NamedTuple):
    """What a rule finds: it is true from now on, or has happened.

    Attributes:
      type: one of KINDS, or an own one.
      key: what it is about, unique within its type: a job's id, a service, a queue.
      subject: the same for people: an actor, a service, a queue.
      labels: what it can be matched and grouped by: settings.LABELS but type, severity and priority.
      details: pairs for people, in their order.
      evidence: text of several lines: a stack.
      severity: other than its type's.
      is_point: other than its type's.
      runbook: an address, where its actor has one of its own.
      since: when it began, where that is not now; Unix seconds.
    """

    type: str
    key: str
    subject: str
    labels: Mapping[str, str] = {}
    details: Sequence[tuple[str, str]] = ()
    evidence: str = ""
    severity: str | None = None
    is_point: bool | None = None
    meaning: str = ""
    title: str = ""
    runbook: str = ""
    since: float | None = None

    @property
    def fingerprint(self) -> str:
        """One alert fires for each."""
        return fingerprint(self.type, self.key)

    def cleaned(self) -> Finding:
        """The same, as every database takes it: a user's rule may have put anything into it."""
        return self._replace(
            type=_clean(self.type)[:40] or "unnamed",
            key=_clean(self.key),
            subject=_clean(self.subject)[:255],
            labels={_clean(name): _clean(value)[:255] for name, value in dict(self.labels).items()},
            details=[(_clean(pair[0]), _clean(pair[1])) for pair in map(tuple, self.details) if len(pair) == 2],
            evidence=_clean(self.evidence),
            severity=self.severity if self.severity in SEVERITIES else None,
            meaning=_clean(self.meaning),
            title=_clean(self.title)[:255],
            runbook=_clean(self.runbook),
        )


class Over(NamedTuple):
    """What an event ends: alerts of these types with this key."""

    types: tuple[str, ...]
    key: str


def _clean(value: object) -> str:
    """Text without what a database refuses, of a length that one can read."""
    return str(value).replace("\0", "").encode("utf-8", "replace").decode()[:100_000]


def fingerprint(type_: str, key: str) -> str:
    """Of the alert of this type and key."""
    return hashlib.sha256(f"{type_}:{key}".encode()).hexdigest()[:32]


def kind_of(type_: str) -> Kind:
    """The kind of a type; one that a rule of the user's made up is an error without an end."""
    return KINDS.get(type_) or Kind(type_.replace("_", " ").title(), "error", "🔔", "", is_point=True)


class Alert(NamedTuple):
    """A row of ``alerts``; times are Unix seconds, *number* is how often it was found."""

    id: str
    type: str
    subject: str
    severity: str
    priority: str
    status: str
    fingerprint: str
    is_point: bool
    labels: Mapping[str, str]
    evidence: Mapping[str, Any]
    number: int
    first_seen_at: float
    last_seen_at: float
    resolved_at: float | None = None
    told_at: float | None = None
    limited_from: float | None = None
    acknowledged_at: float | None = None
    acknowledged_by: str | None = None
    suppressed: str | None = None
    is_settled: bool = False

    @property
    def is_firing(self) -> bool:
        """Whether it is not over."""
        return self.status == "firing"

    @property
    def key(self) -> str:
        """What it is about."""
        return str(self.evidence.get("key", ""))

    @property
    def headline(self) -> str:
        """What stays the same of it as long as it fires: ``Job Stuck: import_feed``."""
        return f"{self.evidence.get('title') or kind_of(self.type).title}: {self.subject}"
