"""What the store has of a run that was lost: its last samples, how far it was, its last known stack."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from .suspects import RunFacts
from .times import unix_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from . import Store

#: The last samples of a run that its error row keeps.
SAMPLES: Final = 10
#: Frames of a stack that are kept, the innermost ones.
_FRAMES: Final = 40


def collect(store: Store, runs: Sequence[tuple[Any, str]]) -> dict[str, RunFacts]:
    """(key of the job, run_id) to what is known, by run_id."""
    return {run_id: _facts(store, job, run_id) for job, run_id in runs}


def _facts(store: Store, job: Any, run_id: str) -> RunFacts:
    text = (
        "SELECT job_id, actor_name, run_id, started_at, timeout_at, memory_attribution, memory_usage, cpu_usage, sampled_at, phase, "
        "progress, crashes FROM {supervised_jobs} WHERE id = ?"
    )
    ((job_id, actor, latest, started, timeout, attribution, memory, cpu, sampled, phase, progress, crashes),) = store.rows(text, (job,))
    is_latest = latest == run_id
    samples = _samples(store, job, run_id)
    was_stuck, stack = _diagnosed(store, job_id, run_id)
    earlier = max(0, int(crashes or 0) - 1)  # this loss is counted already
    if not is_latest:
        return RunFacts(job_id, run_id, actor, samples=samples, crashes=earlier, stack=stack)
    at = unix_time(sampled)
    if at is not None and memory is not None and (not samples or samples[-1][0] < at):
        samples = (*samples, (at, int(memory), None if cpu is None else float(cpu)))[-SAMPLES:]
    return RunFacts(
        job_id,
        run_id,
        actor,
        started_at=unix_time(started),
        timeout_at=unix_time(timeout),
        samples=samples,
        memory_attribution=attribution,
        cpu_usage=None if cpu is None else float(cpu),
        phase=phase,
        progress=None if progress is None else float(progress),
        is_stuck=was_stuck,
        crashes=earlier,
        stack=stack,
    )


def _samples(store: Store, job: Any, run_id: str) -> tuple[tuple[float, int | None, float | None], ...]:
    text = (
        "SELECT created_at, memory_usage, cpu_usage FROM {heartbeats} WHERE supervised_job_id = ? AND run_id = ? AND kind = 'sample' "
        f"ORDER BY created_at DESC LIMIT {SAMPLES}"
    )
    return tuple((unix_time(at) or 0.0, memory, cpu) for at, memory, cpu in reversed(store.rows(text, (job, run_id))))


def _diagnosed(store: Store, job_id: str, run_id: str) -> tuple[bool, tuple[str, ...]]:
    """Whether the run was called stuck, and the stack that came with what was last said of why it does not move."""
    text = "SELECT name, data FROM {events} WHERE job_id = ? AND name IN ('JobStuck', 'JobDiagnosed') ORDER BY created_at DESC LIMIT 5"
    was_stuck = False
    stack: tuple[str, ...] = ()
    for name, data in store.rows(text, (job_id,)):
        told = json.loads(data) if isinstance(data, str) else data
        if not isinstance(told, dict) or told.get("run_id") != run_id:
            continue
        was_stuck = was_stuck or name == "JobStuck"
        stack = stack or _frames(told.get("evidence"))
    return was_stuck, stack


def _frames(evidence: Any) -> tuple[str, ...]:
    stack = evidence.get("stack") if isinstance(evidence, dict) else None
    return tuple(str(line) for line in stack[-_FRAMES:]) if isinstance(stack, list) else ()


def context_of(facts: RunFacts) -> dict[str, Any]:
    """What the error row of the run keeps of it."""
    known: dict[str, Any] = {
        "samples": [list(sample) for sample in facts.samples],
        "cpu_usage": facts.cpu_usage,
        "phase": facts.phase,
        "progress": facts.progress,
        "stack": list(facts.stack),
    }
    return {name: value for name, value in known.items() if value not in (None, [])}
