"""Looks after the health of running jobs: a record whenever it changes, and one from time to time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Final

from .. import records
from ..events import HealthStatusChanged
from ..health import CHECK_S, PERIOD_S, WELL, Checks, Finding, Health, HealthStatus, JobFacts, assess
from .jobs import THINNING, Job
from .recorder import Recorder
from .sampler import Readings
from .slots import Slot

#: What is told of a job that nobody has looked at yet.
_NEVER: Final = HealthStatus.UNKNOWN.value


class _Patient:
    """What is remembered of one run."""

    __slots__ = ("codes", "findings", "next_ask", "next_record", "status")

    def __init__(self, now: float, age_s: float) -> None:
        self.status = _NEVER
        self.codes: tuple[str, ...] = ()
        #: Of the users' checks, by their names.
        self.findings: dict[str, Finding] = {}
        self.next_ask = now
        #: A healthy job is on record only when it has run for a while.
        self.next_record = now + PERIOD_S - age_s


class HealthJudge:
    """Asked by the sampler after each sample, after all judges whose findings it takes up.

    Parameters:
      zones: how a job stands to its limits.
      circuits: the services that a job needs, and whose circuit breakers are open.
    """

    def __init__(
        self,
        recorder: Recorder,
        zones: Callable[[Job], Mapping[str, str]],
        circuits: Callable[[Job], tuple[str, ...]] = lambda job: (),
    ) -> None:
        self._recorder, self._zones, self._circuits = recorder, zones, circuits
        self._checks = Checks()
        self._patients: dict[str, _Patient] = {}

    def look(self, running: Sequence[tuple[Slot, Job]], readings: Readings) -> None:
        """Assess every running job."""
        runs = {job.run_id for _, job in running}
        for gone in [run_id for run_id in self._patients if run_id not in runs]:
            del self._patients[gone]
        for _, job in running:
            self._look_at(job, readings)

    def _look_at(self, job: Job, readings: Readings) -> None:
        now = readings.now
        patient = self._patients.get(job.run_id)
        if patient is None:
            patient = self._patients[job.run_id] = _Patient(now, now - job.started)
        zones, has_checks = self._zones(job), bool(self._checks)
        circuits = self._circuits(job)
        if zones or circuits or job.is_stuck or job.missed_heartbeats or has_checks:
            facts = _facts(job, readings, zones, circuits)
            if not has_checks:
                patient.findings = {}
            elif now >= patient.next_ask:
                patient.next_ask = now + CHECK_S * 0.999
                patient.findings = self._checks.ask(facts, now, patient.findings)
            found = assess(facts, tuple(patient.findings.values()))
        else:
            found = WELL
        self._tell(job, patient, found, now)

    def _tell(self, job: Job, patient: _Patient, found: Health, now: float) -> None:
        before = patient.status
        is_change = found.status != before or found.codes != patient.codes
        if before == _NEVER and found.status == HealthStatus.HEALTHY:
            is_change = False  # nothing to tell of a job that begins well
            if now < patient.next_record:
                return
        if not is_change and now < patient.next_record:
            return
        patient.status, patient.codes = found.status.value, found.codes
        patient.next_record = now + max(PERIOD_S, (now - job.started) / THINNING) * 0.999
        reason = None if found.reason is None else self._recorder.redactor.in_text(found.reason)
        self._record(job, found, reason, is_change=is_change)
        if is_change:
            self._recorder.emit(
                HealthStatusChanged(
                    **job.about,
                    new_status=found.status.value,
                    previous_status=before,
                    reason=reason,
                    issues=found.codes,
                )
            )

    def _record(self, job: Job, found: Health, reason: str | None, *, is_change: bool) -> None:
        metadata = None
        if found.findings:
            findings = [{"status": each.status.value, "code": each.code, "reason": each.reason} for each in found.findings]
            metadata = self._recorder.encode_metadata({"findings": findings})
        self._recorder.append((records.HEALTH_CHECKED, time(), job.job_id, job.run_id, found.status.value, reason, metadata, is_change))


def _facts(job: Job, readings: Readings, zones: Mapping[str, str], circuits: tuple[str, ...]) -> JobFacts:
    sample = job.sample
    return JobFacts(
        job_id=job.job_id,
        actor_name=job.actor_name,
        queue=job.queue,
        retries=job.retries,
        age_s=readings.now - job.started,
        memory=None if sample is None else sample.memory,
        memory_is_shared=readings.is_shared and job.child is None,
        cpu_percent=None if sample is None else sample.cpu,
        zones=zones,
        missed_heartbeats=job.missed_heartbeats,
        is_stuck=job.is_stuck,
        progress=job.progress,
        phase=job.phase,
        metadata=job.reported,
        open_circuits=circuits,
    )
