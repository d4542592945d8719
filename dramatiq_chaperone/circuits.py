"""Circuits: what becomes of a circuit breaker's state when a call succeeds, fails, or asks to be let through.

Pure: the time is passed in, in Unix seconds of whoever keeps the state.  One step is one atomic operation of a storage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from .events import CircuitBreakerClosed, CircuitBreakerHalfOpened, CircuitBreakerModeChanged, CircuitBreakerOpened, Event

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half_open"
STATES: Final = (CLOSED, OPEN, HALF_OPEN)

AUTO: Final = "auto"
FORCED_OPEN: Final = "forced_open"
DISABLED: Final = "disabled"
METRICS_ONLY: Final = "metrics_only"
MODES: Final = (AUTO, FORCED_OPEN, DISABLED, METRICS_ONLY)

#: What an operator can do to a circuit: these change its state once, those its mode until ``auto``.
ORDERS: Final = ("open", "half_open", "close", "reset")
MODE_ORDERS: Final = {"force_open": FORCED_OPEN, "disable": DISABLED, "metrics_only": METRICS_ONLY, "auto": AUTO}

#: Characters of an error that are kept.
ERROR_WIDTH: Final = 500
#: How long a circuit's row may be older than the last success in it, in seconds.
TOUCH_S: Final = 60.0
#: Two times that are closer, in seconds, are the same: they are of two processes, or of two clocks of one.
CLOCK_S: Final = 0.002


class Policy(NamedTuple):
    """What trips a circuit, and how it recovers; the options of ``breaker(...)`` without the callables."""

    #: Failures in a row that open it; None: only the rate counts.
    failure_threshold: int | None = 5
    #: Trial calls that must succeed to close it.
    success_threshold: int = 2
    #: Seconds that it stays open.
    timeout: float = 300.0
    #: Trial calls at once, over all processes.
    half_open_attempts: int = 3
    #: After so many seconds a trial that was not heard of gives its permit back.
    max_wait_duration_in_half_open_state: float = 60.0
    #: Percent of failed calls in the window that open it; None: there is no window.
    failure_rate_threshold: float | None = None
    #: Calls that the window holds.
    sliding_window_size: int = 100
    #: Calls that it must hold before the rate counts.
    minimum_number_of_calls: int = 100
    #: The timeout is multiplied by it for each opening that follows a failed trial.
    exponential_backoff_multiplier: float = 1.0
    #: Seconds that the timeout grows to, at most.
    exponential_max_wait_duration_in_open_state: float = 3600.0
    #: The share of the timeout by which it is shortened or lengthened at random.
    randomized_wait_factor: float = 0.0

    @property
    def window(self) -> int:
        """The length of the window; 0: none."""
        return 0 if self.failure_rate_threshold is None else self.sliding_window_size

    def wait_s(self, openings: int, chance: float) -> float:
        """How long the circuit stays open at its *openings*-th opening in a row; *chance* is 0 to 1."""
        try:
            grown = self.timeout * self.exponential_backoff_multiplier ** max(0, openings - 1)
        except OverflowError:
            grown = float("inf")
        if self.exponential_backoff_multiplier != 1:
            grown = min(grown, max(self.timeout, self.exponential_max_wait_duration_in_open_state))
        return grown * (1 + self.randomized_wait_factor * (2 * chance - 1))


class Permit(NamedTuple):
    """Leave for one trial call."""

    permit_id: str
    #: The half-open phase that it is of.
    phase: int


class Result(StrEnum):
    """What a call says about the service."""

    SUCCESS = "success"
    FAILURE = "failure"
    #: Nothing: it was interrupted, or its error is one to ignore.
    NEITHER = "neither"


class Outcome(NamedTuple):
    """How a call ended.

    ``successes`` is the number of successes of this process that came before it and were not told yet; with SUCCESS and
    no permit it is that of all that are told.  ``success_age_s``: so long ago was the last one, seconds; None: there was
    none since the last failure of this process.
    """

    result: Result
    permit: Permit | None = None
    successes: int = 0
    success_age_s: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """The state of one circuit.  Times are Unix seconds.

    Attributes:
      failures: in a row.
      successes: of trial calls since it is half open.
      openings: in a row, without a close between.
      reopens_at: from when on trial calls are let through.
      permits: (id, when it runs out) of each trial that goes on.
      timeout: the option of the last process that had a failure, for orders from outside.
      phase: the version at which it last became half open.
      window: the last calls as text, the newest last: 1 is a failure.
      version: grows with each change; that of a new circuit is larger than that of any older one of the same name.
    """

    state: str = CLOSED
    mode: str = AUTO
    failures: int = 0
    successes: int = 0
    openings: int = 0
    opened_at: float | None = None
    reopens_at: float | None = None
    half_opened_at: float | None = None
    last_failure_at: float | None = None
    last_success_at: float | None = None
    last_error: str | None = None
    permits: tuple[tuple[str, float], ...] = ()
    window: str = ""
    window_size: int = 0
    timeout: float | None = None
    phase: int = 0
    version: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether every call is let through and counted."""
        return (self.state == CLOSED and self.mode == AUTO) or self.mode == METRICS_ONLY

    @property
    def failure_rate(self) -> float:
        """Percent of the calls in the window that failed."""
        return 100 * self.window.count("1") / len(self.window) if self.window else 0.0


class Step(NamedTuple):
    """What an operation made of a circuit."""

    circuit: Circuit
    #: The circuit itself, where nothing has changed.
    before: Circuit
    permit: Permit | None = None
    is_admitted: bool = True
    #: The states that it went into, in their order.
    entered: tuple[str, ...] = ()

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to keep."""
        return self.circuit is not self.before


#: A step yet to be taken: from a circuit and the time.
Operation = Callable[[Circuit, float], Step]


class Altered(NamedTuple):
    """A step that was taken, and when, by the clock of whoever keeps the circuit."""

    step: Step
    now: float


class Calls(NamedTuple):
    """Calls of one process since it last told, by service."""

    service: str
    succeeded: int
    failed: int
    refused: int
    ignored: int
    #: Successes that no record has told yet, and when the last of them was; Unix seconds of this host.
    successes: int
    last_success_at: float
    #: The length of the window, 0: none.
    window_size: int
    #: How long calls took: the sum, and how many in each bucket of :data:`.records.BUCKETS` and beyond; empty: not measured.
    seconds: float = 0.0
    buckets: tuple[int, ...] = ()


def new_circuit(now: float) -> Circuit:
    """A circuit of which nothing was heard yet."""
    return Circuit(version=int(now * 1_000_000))


def record(circuit: Circuit, policy: Policy, outcome: Outcome, now: float, chance: float = 0.5) -> Step:
    """A call has ended."""
    if circuit.mode == DISABLED:
        return Step(circuit, circuit)
    if outcome.result is Result.FAILURE:
        return _failed(circuit, policy, outcome, now, chance)
    if outcome.result is Result.NEITHER:
        return _step(circuit, _without(circuit, outcome.permit))
    if outcome.permit is not None:
        return _trial_succeeded(circuit, policy, outcome.permit, now)
    return _step(circuit, _succeeded(circuit, policy.window, max(1, outcome.successes), now))


def acquire(circuit: Circuit, policy: Policy, permit_id: str, now: float) -> Step:
    """A call asks to be let through."""
    if circuit.mode == FORCED_OPEN:
        return Step(circuit, circuit, is_admitted=False)
    if circuit.state == CLOSED or circuit.mode != AUTO:
        return Step(circuit, circuit)
    found = circuit
    entered: tuple[str, ...] = ()
    if circuit.state == OPEN:
        if now < (circuit.reopens_at or 0.0):
            return Step(circuit, circuit, is_admitted=False)
        found = _half_opened(circuit, now)
        entered = (HALF_OPEN,)
    permits = tuple(each for each in found.permits if each[1] > now)
    if len(permits) >= policy.half_open_attempts:
        return Step(circuit, circuit, is_admitted=False)
    permits = (*permits, (permit_id, now + policy.max_wait_duration_in_half_open_state))
    permit = Permit(permit_id, found.phase)
    return _step(circuit, replace(found, permits=permits))._replace(permit=permit, entered=entered)


def order(circuit: Circuit, policy: Policy, what: str, now: float) -> Step:
    """An operator wants it so: one of ORDERS or MODE_ORDERS."""
    if what in MODE_ORDERS:
        mode = MODE_ORDERS[what]
        if mode == circuit.mode:
            return Step(circuit, circuit)
        if mode == AUTO:  # what it knew is of another time
            fresh = replace(_closed(circuit, now), mode=AUTO, failures=0, last_error=circuit.last_error)
            return _entered(circuit, fresh, CLOSED) if circuit.state != CLOSED else _step(circuit, fresh)
        return _step(circuit, replace(circuit, mode=mode, permits=()))
    if what == "reset":
        times = {"opened_at": None, "reopens_at": None, "half_opened_at": None, "last_failure_at": None}
        blank = replace(_closed(circuit, now), failures=0, last_error=None, **times)  # type: ignore[arg-type]  # each may be None
        return _entered(circuit, blank, CLOSED) if circuit.state != CLOSED else _step(circuit, blank)
    if what == "open":
        if circuit.state == OPEN:
            return Step(circuit, circuit)
        return _entered(circuit, _opened(circuit, policy, now, 0.5), OPEN)
    if what == "half_open":
        if circuit.state == HALF_OPEN:
            return Step(circuit, circuit)
        return _entered(circuit, _half_opened(replace(circuit, opened_at=circuit.opened_at or now), now), HALF_OPEN)
    if what == "close":
        if circuit.state == CLOSED:
            return Step(circuit, circuit)
        return _entered(circuit, replace(_closed(circuit, now), failures=circuit.failures), CLOSED)
    raise ValueError(f"{what!r} is none of {', '.join((*ORDERS, *MODE_ORDERS))}")


def told(circuit: Circuit, successes: int, last_success_at: float, window_size: int) -> Step:
    """A process tells of its successes since the last time; those that are older than a failure clear nothing."""
    if circuit.mode == DISABLED or not successes:
        return Step(circuit, circuit)
    is_newer = last_success_at >= (circuit.last_failure_at or 0.0) - CLOCK_S
    known = circuit.last_success_at or 0.0
    window_size = window_size or circuit.window_size
    clears = is_newer and circuit.state == CLOSED and (circuit.failures or circuit.window != "0" * window_size)
    is_news = clears or last_success_at - known >= TOUCH_S
    if not is_news:
        return Step(circuit, circuit)
    if not is_newer or circuit.state != CLOSED:
        return _step(circuit, replace(circuit, last_success_at=max(known, last_success_at)))
    return _step(circuit, _succeeded(circuit, window_size, successes, max(known, last_success_at)))


def events_of(service: str, step: Step, now: float) -> list[Event]:
    """What is to be said of a step."""
    circuit = step.circuit
    at = datetime.fromtimestamp(now, UTC)
    found: list[Event] = []
    for state in step.entered:
        if state == OPEN:
            found.append(CircuitBreakerOpened(service=service, failure_count=circuit.failures, opened_at=at, last_error=circuit.last_error))
        elif state == HALF_OPEN:
            found.append(CircuitBreakerHalfOpened(service=service, half_opened_at=at))
        else:
            found.append(CircuitBreakerClosed(service=service, closed_at=at))
    if circuit.mode != step.before.mode:
        found.append(CircuitBreakerModeChanged(service=service, mode=circuit.mode, previous_mode=step.before.mode, changed_at=at))
    return found


def waiting_for(service: str) -> str:
    """Why a message is kept back whose breaker is open; it stands on its job's row, and who counts those looks for it."""
    return f"waiting for {service}"


def to_json(circuit: Circuit) -> str:
    """All of it, as text."""
    return json.dumps(asdict(circuit), separators=(",", ":"))


def from_json(text: str) -> Circuit:
    """What :func:`to_json` made.  Raises ValueError."""
    known = {each.name for each in fields(Circuit)}
    values: dict[str, Any] = {name: value for name, value in json.loads(text).items() if name in known}
    values["permits"] = tuple((str(permit_id), float(until)) for permit_id, until in values.get("permits", ()))
    return Circuit(**values)


# -- the parts


def _step(before: Circuit, after: Circuit) -> Step:
    if after is before:
        return Step(before, before)
    return Step(replace(after, version=before.version + 1), before)


def _entered(before: Circuit, after: Circuit, *states: str) -> Step:
    return _step(before, after)._replace(entered=states)


def _closed(circuit: Circuit, now: float) -> Circuit:
    return replace(
        circuit, state=CLOSED, successes=0, openings=0, permits=(), window="", opened_at=None, reopens_at=None, half_opened_at=None
    )


def _opened(circuit: Circuit, policy: Policy, now: float, chance: float) -> Circuit:
    openings = circuit.openings + 1
    until = now + policy.wait_s(openings, chance)
    return replace(
        circuit, state=OPEN, openings=openings, opened_at=now, reopens_at=until, half_opened_at=None, successes=0, permits=(), window=""
    )


def _half_opened(circuit: Circuit, now: float) -> Circuit:
    return replace(circuit, state=HALF_OPEN, half_opened_at=now, successes=0, permits=(), phase=circuit.version + 1)


def _without(circuit: Circuit, permit: Permit | None) -> Circuit:
    if permit is None:
        return circuit
    left = tuple(each for each in circuit.permits if each[0] != permit.permit_id)
    return circuit if len(left) == len(circuit.permits) else replace(circuit, permits=left)


def _is_of_this_phase(circuit: Circuit, permit: Permit | None) -> bool:
    """A trial that outlives its permit still says how the service is; one of an earlier phase does not."""
    return permit is not None and circuit.state == HALF_OPEN and circuit.phase == permit.phase


def _failed(circuit: Circuit, policy: Policy, outcome: Outcome, now: float, chance: float) -> Step:
    error = (outcome.error or circuit.last_error or "")[:ERROR_WIDTH] or None
    after = replace(circuit, last_failure_at=now, last_error=error, timeout=policy.timeout)
    if circuit.mode == FORCED_OPEN:
        return _step(circuit, after)
    if circuit.state == CLOSED:
        after = _after_successes(after, circuit, policy, outcome, now)
        after = replace(after, failures=after.failures + 1, window=_pushed(after.window, "1", policy.window), window_size=policy.window)
        if circuit.mode == AUTO and _trips(after, policy):
            return _entered(circuit, _opened(after, policy, now, chance), OPEN)
        return _step(circuit, after)
    if circuit.mode == AUTO and _is_of_this_phase(circuit, outcome.permit):
        return _entered(circuit, _opened(replace(after, failures=after.failures + 1), policy, now, chance), OPEN)
    return _step(circuit, after)  # it was let through before the circuit opened


def _after_successes(after: Circuit, before: Circuit, policy: Policy, outcome: Outcome, now: float) -> Circuit:
    """What the successes before a failure make of it: they begin the count anew, unless the last failure of anybody was later."""
    if outcome.success_age_s is None:
        return after
    at = now - outcome.success_age_s
    failures = 0 if at >= (before.last_failure_at or 0.0) - CLOCK_S else after.failures
    window = _pushed(after.window, "0" * min(outcome.successes, policy.window), policy.window)
    return replace(after, failures=failures, window=window, last_success_at=max(at, before.last_success_at or 0.0))


def _trips(circuit: Circuit, policy: Policy) -> bool:
    if policy.failure_threshold is not None and circuit.failures >= policy.failure_threshold:
        return True
    if policy.failure_rate_threshold is None or len(circuit.window) < min(policy.minimum_number_of_calls, policy.sliding_window_size):
        return False
    return circuit.failure_rate >= policy.failure_rate_threshold


def _succeeded(circuit: Circuit, window_size: int, count: int, now: float) -> Circuit:
    after = replace(circuit, last_success_at=now)
    if circuit.state != CLOSED:
        return after
    return replace(after, failures=0, window=_pushed(circuit.window, "0" * min(count, window_size), window_size), window_size=window_size)


def _pushed(window: str, more: str, size: int) -> str:
    return (window + more)[-size:] if size else ""


def _trial_succeeded(circuit: Circuit, policy: Policy, permit: Permit, now: float) -> Step:
    after = replace(_without(circuit, permit), last_success_at=now)
    if circuit.mode != AUTO or not _is_of_this_phase(circuit, permit):
        return _step(circuit, after)
    after = replace(after, successes=after.successes + 1)
    if after.successes < policy.success_threshold:
        return _step(circuit, after)
    return _entered(circuit, replace(_closed(after, now), failures=0, last_success_at=now), CLOSED)
