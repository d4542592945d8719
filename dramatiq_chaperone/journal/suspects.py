"""Suspects as they stand in a control block, which has no room for their ids."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32


def code_of(job_id: str) -> int:
    """What stands for a message.  Two may have one; then an innocent message is looked at more closely."""
    return crc32(job_id.encode("utf-8", "replace"))


def encode(job_ids: Iterable[str]) -> str:
    """Eight hex digits for each."""
    return "".join(f"{code_of(job_id):08x}" for job_id in job_ids)


def decode(text: str) -> frozenset[int]:
    """Their codes."""
    return frozenset(int(text[at : at + 8], 16) for at in range(0, len(text), 8))
