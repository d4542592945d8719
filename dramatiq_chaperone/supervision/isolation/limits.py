"""What an isolated job may use, as far as its process is held to it from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...limits import MB

if TYPE_CHECKING:
    from ...limits import JobLimits
    from ...settings import Settings
    from ..policy import Policy


class Limits(NamedTuple):
    """Those of one run, in bytes; None: no limit, or nothing is done at it but to record it."""

    memory: int | None
    address_space: int | None


def limits_of(of_job: JobLimits, policy: Policy, options: dict[str, Any], settings: Settings) -> Limits:
    """The limits of a run.  *options* are those of its message."""
    memory = of_job.memory
    is_kept = memory is not None and not memory.is_default and of_job.on_memory != "record"
    address_space = {**policy.options, **options}.get("address_space_limit", settings.address_space_limit)
    return Limits(int(memory.value) if memory is not None and is_kept else None, int(address_space * MB) if address_space else None)
