"""The error of a call that was not let through."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Final

import pybreaker
from dramatiq.errors import Retry

#: A job that ends with it is retried up to this share of the wait later than it could be, and at least up to a second.
SPREAD: Final = 0.1


class BreakerOpen(pybreaker.CircuitBreakerError, Retry):
    """The call was not made: the circuit breaker of its service is open.

    A job that ends with it is retried when a call may be let through, as dramatiq's Retry has it, and not by plain backoff.

    Attributes:
      delay: that time, with some more at random, in milliseconds.
      service: whose breaker it is.
      since: when it opened, aware and in UTC; None where it was forced open.
      retry_after: seconds until a call may be let through.
    """

    def __init__(self, service: str, since: datetime | None = None, retry_after: float = 0.0) -> None:
        self.service, self.since, self.retry_after = service, since, retry_after
        opened = "is forced open" if since is None else f"is open since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        delay_s = retry_after + random.uniform(0, max(1.0, SPREAD * retry_after))
        text = f"The circuit breaker of {service!r} {opened}; ask again in {retry_after:.1f} s."
        Retry.__init__(self, text, delay=int(1000 * delay_s))

    def __reduce__(self) -> tuple[type[BreakerOpen], tuple[str, datetime | None, float]]:
        return type(self), (self.service, self.since, self.retry_after)
