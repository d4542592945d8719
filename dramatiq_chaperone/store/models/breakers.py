"""Circuit breakers."""

from __future__ import annotations

from typing import Any

from . import fields
from .records import Record


class CircuitBreaker(Record):
    """The state of a service's circuit breaker."""

    service: Any = fields.unique()
    created_at: Any = fields.time()
    updated_at: Any = fields.time()
    state: Any = fields.text("closed, open or half_open")
    mode: Any = fields.text("auto, forced_open, disabled or metrics_only")
    failure_count: Any = fields.count(default=0)
    success_count: Any = fields.count(default=0)
    last_failure_at: Any = fields.time()
    last_success_at: Any = fields.time()
    opened_at: Any = fields.time()
    reopens_at: Any = fields.time("from when on trial calls are let through")
    half_opened_at: Any = fields.time()
    last_error: Any = fields.long_text("class and message of the last failure")
    permits: Any = fields.count(default=0)
    version: Any = fields.count(default=0)
