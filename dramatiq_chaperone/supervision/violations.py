"""Limits that were passed, on record."""

from __future__ import annotations

from time import time
from typing import Any, Final

from .. import limits, records
from ..events import Event, JobCpuExceeded, JobMemoryExceeded, JobTimeout, ResourceViolationDetected
from ..limits import DISK, MB, MEMORY, Limit
from .jobs import Job
from .recorder import Recorder, to_json

#: Units of the amounts in ResourceViolationDetected.
_EVENT_UNIT: Final = {MEMORY: MB, DISK: MB}


class Violations:
    """Puts violations on record: a row, and the events that tell of it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def add(self, job: Job | None, kind: str, limit: Limit, actual: float, *, attribution: str, evidence: dict[str, Any]) -> None:
        """Record that *limit* was passed.

        Parameters:
          job: whose it is; None: the worker's.
          actual: in the unit of *kind*, as the limit.
          evidence: what it was seen by.
        """
        recorder = self._recorder
        names = ("", "", None, None) if job is None else (job.actor_name, job.queue, job.job_id, job.run_id)
        actor, queue, job_id, run_id = names
        text = to_json({"is_default": limit.is_default, **evidence})
        recorder.append(
            (records.VIOLATED, time(), job_id, run_id, kind, limit.value, actual, attribution, text, actor, queue, limit.is_default)
        )
        of_job = {"job_id": job_id or "", "actor_name": actor, "queue": queue, "worker_id": recorder.origin.worker_id}
        unit = _EVENT_UNIT.get(kind, 1)
        recorder.emit(
            ResourceViolationDetected(
                **of_job,
                violation_type=kind,
                limit=limit.value / unit,
                actual=actual / unit,
                exceeded_by=abs(actual - limit.value) / unit,
                attribution=attribution,
                is_default=limit.is_default,
            )
        )
        if job is not None and (event := _event(kind, limit, actual, attribution, of_job)) is not None:
            recorder.emit(event)


def _event(kind: str, limit: Limit, actual: float, attribution: str, of_job: dict[str, Any]) -> Event | None:
    facts = {**of_job, "is_default": limit.is_default}
    match kind:
        case limits.MEMORY:
            return JobMemoryExceeded(**facts, memory_limit=int(limit.value), memory_usage=int(actual), attribution=attribution)
        case limits.CPU:
            return JobCpuExceeded(**facts, cpu_limit=limit.value, cpu_usage=actual, attribution=attribution)
        case limits.TIMEOUT:
            return JobTimeout(**facts, timeout_seconds=limit.value, actual_duration=actual)
    return None
