"""What can be seen of a breaker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ..circuits import CLOSED, FORCED_OPEN, HALF_OPEN, Circuit, Policy

#: Where nobody can say when a call will be let through, it may ask again after so long, in seconds; while trials last up to so long.
ASK_AGAIN_S: Final = 1.0
MOST_S: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class BreakerState:
    """The state of a circuit breaker, as this process knows it.

    Attributes:
      service: its name.
      state: 'closed', 'open' or 'half_open'.
      mode: 'auto', 'forced_open', 'disabled' or 'metrics_only'.
      failure_count: failures in a row.
      success_count: of trial calls, while it is half open.
      failure_rate: percent of the calls in its window; 0 without a window.
      opened_at, reopens_at, half_opened_at, last_failure_at, last_success_at: aware, in UTC, by this host's clock.
      last_error: class and message of the last failure.
      retry_after: seconds until a call may be let through; 0: now.
      succeeded, failed, refused, ignored: calls of this process.
    """

    service: str
    state: str = CLOSED
    mode: str = "auto"
    failure_count: int = 0
    success_count: int = 0
    failure_rate: float = 0.0
    opened_at: datetime | None = None
    reopens_at: datetime | None = None
    half_opened_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_success_at: datetime | None = None
    last_error: str | None = None
    retry_after: float = 0.0
    succeeded: int = 0
    failed: int = 0
    refused: int = 0
    ignored: int = 0

    @property
    def is_refusing(self) -> bool:
        """Whether a call would not be let through now."""
        return self.retry_after > 0


def state_of(service: str, circuit: Circuit, policy: Policy, now: float, ahead_s: float, **counts: int) -> BreakerState:
    """What a circuit looks like.

    Parameters:
      now: by the clock of whoever keeps the circuit.
      ahead_s: by so much that clock is ahead of this host's.
    """

    def moment(at: float | None) -> datetime | None:
        return None if at is None else datetime.fromtimestamp(at - ahead_s, UTC)

    return BreakerState(
        service=service,
        state=circuit.state,
        mode=circuit.mode,
        failure_count=circuit.failures,
        success_count=circuit.successes,
        failure_rate=circuit.failure_rate,
        opened_at=moment(circuit.opened_at),
        reopens_at=moment(circuit.reopens_at),
        half_opened_at=moment(circuit.half_opened_at),
        last_failure_at=moment(circuit.last_failure_at),
        last_success_at=moment(circuit.last_success_at),
        last_error=circuit.last_error,
        retry_after=retry_after_s(circuit, policy, now),
        **counts,
    )


def retry_after_s(circuit: Circuit, policy: Policy, now: float) -> float:
    """Seconds until a call may be let through; 0: now."""
    if circuit.mode == FORCED_OPEN:
        return max(policy.timeout, ASK_AGAIN_S)
    if circuit.is_plain or circuit.mode != "auto":
        return 0.0
    if circuit.state == HALF_OPEN:
        running = [until for _, until in circuit.permits if until > now]
        if len(running) < policy.half_open_attempts:
            return 0.0
        # As long again as the trials have taken: what waits is put off a few times while they last, not once a second.
        return min(MOST_S, max(ASK_AGAIN_S, now - (circuit.half_opened_at or now)))
    return max(0.0, (circuit.reopens_at or 0.0) - now)
