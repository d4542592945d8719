"""How a running job is: healthy, degraded, unhealthy or unknown, and why.  Pure, but for the list of checks that users add."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar, overload

from .service import internal_error

F = TypeVar("F", bound="Callable[[Any], Any]")

#: Seconds between two records of a job whose health does not change; they grow with the age of the job.
PERIOD_S: Final = 60.0
#: A job that nobody has looked at for so long is unknown, in seconds; the slowest sampler looks each 10.
UNSEEN_S: Final = 30.0
#: Or for so many heartbeats of its worker, where those take longer.
UNSEEN_BEATS: Final = 3
#: Seconds between two calls of a user's check for the same job.
CHECK_S: Final = 10.0
#: The share of the sampler's time that one check may take: after a slow call it is left alone for as long as that needs.
CHECK_BUDGET: Final = 0.01
#: A call that takes no longer is free, in seconds.
CHECK_FREE_S: Final = 0.001
#: Characters of a reason.
_REASON_WIDTH: Final = 500


class HealthStatus(StrEnum):
    """How a job is."""

    HEALTHY = "healthy"
    #: It comes near a limit, or is late.
    DEGRADED = "degraded"
    #: It is past a limit, or stuck.
    UNHEALTHY = "unhealthy"
    #: Nobody has seen it lately.
    UNKNOWN = "unknown"


_RANK: Final = {HealthStatus.HEALTHY: 0, HealthStatus.UNKNOWN: 1, HealthStatus.DEGRADED: 2, HealthStatus.UNHEALTHY: 3}


class JobFacts(NamedTuple):
    """What a check is told of a running job."""

    job_id: str
    actor_name: str
    queue: str
    #: Failed runs before this one.
    retries: int
    #: Seconds since the run began.
    age_s: float
    #: Bytes; whether other jobs of the process are in it.
    memory: int | None = None
    memory_is_shared: bool = False
    #: Percent of one core since the look before.
    cpu_percent: float | None = None
    #: Kind of limit to how the job stands to it ('near' or 'over'); only limits that somebody set.
    zones: Mapping[str, str] = {}
    #: Heartbeats that it promised and did not send, in a row.
    missed_heartbeats: int = 0
    is_stuck: bool = False
    #: Seconds since anybody looked at the job.
    unseen_s: float = 0.0
    #: Percent; None before the first report.
    progress: int | None = None
    phase: str | None = None
    #: What the job reported last with heartbeat() or report_progress().
    metadata: Mapping[str, Any] = {}
    #: Services whose circuit breaker is open, and which the job needs.
    open_circuits: tuple[str, ...] = ()


class Finding(NamedTuple):
    """One thing that speaks against a job."""

    status: HealthStatus
    #: Short and always the same, for programs: ``'memory_near_limit'``; of a user's check its name.
    code: str
    #: For people.
    reason: str


class Health(NamedTuple):
    """A verdict: the worst of its findings."""

    status: HealthStatus
    findings: tuple[Finding, ...] = ()

    @property
    def reason(self) -> str | None:
        """All reasons, the worst first; None where nothing speaks against the job."""
        return "; ".join(finding.reason for finding in self.findings) or None

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings, the worst first."""
        return tuple(finding.code for finding in self.findings)


#: Of a job that nothing speaks against.
WELL: Final = Health(HealthStatus.HEALTHY)

_WORDS: Final = {"memory": "memory", "cpu": "CPU", "timeout": "running time", "file_descriptors": "open files", "disk": "free disk space"}


def assess(facts: JobFacts, more: tuple[Finding, ...] = ()) -> Health:
    """The health of a job.

    Parameters:
      more: what users' checks have found.
    """
    found = [*more]
    if facts.unseen_s > UNSEEN_S:
        found.append(Finding(HealthStatus.UNKNOWN, "not_seen", f"not seen for {facts.unseen_s:.0f} s"))
    if facts.is_stuck:
        found.append(Finding(HealthStatus.UNHEALTHY, "stuck", "stuck: it has missed the heartbeats that it promised"))
    elif facts.missed_heartbeats >= 2:  # one may be late
        found.append(Finding(HealthStatus.DEGRADED, "stale_heartbeat", f"{facts.missed_heartbeats} heartbeats missed"))
    elif facts.missed_heartbeats:
        found.append(Finding(HealthStatus.DEGRADED, "missed_heartbeat", "a heartbeat missed"))
    for kind, zone in facts.zones.items():
        if zone == "over":
            found.append(Finding(HealthStatus.UNHEALTHY, f"{kind}_over_limit", f"{_WORDS.get(kind, kind)} over its limit"))
        elif zone == "near":
            found.append(Finding(HealthStatus.DEGRADED, f"{kind}_near_limit", f"{_WORDS.get(kind, kind)} at 80 % of its limit or more"))
    if facts.open_circuits:
        found.append(Finding(HealthStatus.DEGRADED, "circuit_open", f"circuit open: {', '.join(facts.open_circuits)}"))
    if not found:
        return WELL
    found.sort(key=lambda finding: -_RANK[finding.status])
    return Health(found[0].status, tuple(found))


class _Check(NamedTuple):
    function: Callable[[JobFacts], Any]
    name: str
    #: Where another process can import it from.
    module: str


_checks: tuple[_Check, ...] = ()


@overload
def health_check(function: F) -> F: ...
@overload
def health_check(*, name: str) -> Callable[[F], F]: ...


def health_check(function: F | None = None, *, name: str | None = None) -> Any:
    """Let *function* judge the health of running jobs, beside the built-in checks: ``@health_check``.

    It is called in the worker, every 10 seconds for each running job, with its :class:`JobFacts`.  It returns None where
    the job is well, ``'degraded'`` or ``'unhealthy'``, or one of these with a reason: ``('degraded', 'many rows refused')``.

    It runs on the thread that keeps the time limits and says that the process lives: no I/O, no lock, a millisecond at
    most.  A check whose call takes longer is called less often, so that it gets 1 % of that thread's time.  What it raises,
    or returns that is nothing of the above, is logged once and counted.

    Parameters:
      name: the code of what it finds; by default that of the function.

    Raises:
      TypeError: *function* cannot be called, or is a coroutine function.
    """
    if function is None:
        return lambda each: _added(each, name)
    return _added(function, name)


def _added(function: F, name: str | None) -> F:
    global _checks
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} is no plain function")
    known = str(name or getattr(function, "__name__", type(function).__name__))
    _checks = (*(each for each in _checks if each.function is not function), _Check(function, known, function.__module__))
    return function


def remove_health_check(function: Callable[[Any], Any]) -> None:
    """End what :func:`health_check` began; nothing happens if it is not one."""
    global _checks
    _checks = tuple(each for each in _checks if each.function is not function)


class Checks:
    """Asks the users' checks, within their budget.

    Parameters:
      clock: monotonic seconds; what a call costs is measured with it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        #: When a slow check may be called again, by its function.
        self._not_before: dict[Callable[[JobFacts], Any], float] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(_checks)

    def ask(self, facts: JobFacts, now: float, before: Mapping[str, Finding]) -> dict[str, Finding]:
        """What each check finds, by its name; of one that is over its budget what it found before."""
        found: dict[str, Finding] = {}
        for check in _checks:
            if now < self._not_before.get(check.function, 0.0):
                finding = before.get(check.name)
            else:
                finding = self._call(check, facts, now)
            if finding is not None:
                found[check.name] = finding
        return found

    def _call(self, check: _Check, facts: JobFacts, now: float) -> Finding | None:
        began = self._clock()
        try:
            return _finding(check, check.function(facts))
        except Exception as error:  # noqa: BLE001 - a user's check, which must not keep the others from their turn
            internal_error(f"health check {check.module}.{check.name}", error, job_id=facts.job_id)
            return None
        finally:
            cost = self._clock() - began
            self._not_before[check.function] = now + cost / CHECK_BUDGET if cost > CHECK_FREE_S else 0.0


def _finding(check: _Check, answer: Any) -> Finding | None:
    status, reason = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if status is None or status == HealthStatus.HEALTHY:
        return None
    return Finding(HealthStatus(status), check.name, str(reason or check.name)[:_REASON_WIDTH])
