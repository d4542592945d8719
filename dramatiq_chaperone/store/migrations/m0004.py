"""The fourth version: what a circuit breaker needs beside its row of the first one.  Frozen, as the others."""

from __future__ import annotations

from typing import Final

COLUMNS: Final[dict[str, str]] = {
    "circuit_breakers": """
        reopens_at time
        half_opened_at time
        last_error text
        details text
    """,
}

INDEXES: Final[dict[str, tuple[str, ...]]] = {"events": ("service, created_at where service is not null",)}
