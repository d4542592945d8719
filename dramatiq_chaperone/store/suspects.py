"""What killed this worker: its last runs, the most suspect first.  Pure: what is known of them is passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ..host import OUT_OF_MEMORY

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A growth below this says nothing, in bytes: an interpreter grows by so much when it imports something.
_GROWTH_BYTES: Final = 16 << 20
#: Percent of a core from which on a run counts as busy.
_BUSY_PERCENT: Final = 80.0
#: A run that began so shortly before the end counts as one that may have brought it about, in seconds.
_JUST_S: Final = 2.0
_MB: Final = 1 << 20
#: Weights; only their order among each other has a meaning.
_MEMORY, _MEMORY_OOM, _MEMORY_SHARED, _ONSET = 3.0, 8.0, 0.5, 1.5
_CRASHED, _CRASHED_MORE, _ALONE = 4.0, 1.0, 2.0
_STUCK, _LATE, _BUSY, _JUST = 1.5, 1.0, 1.0, 1.0


class RunFacts(NamedTuple):
    """What is known of a run that was lost."""

    job_id: str
    run_id: str
    actor: str | None
    #: Unix seconds, as all times here.
    started_at: float | None = None
    timeout_at: float | None = None
    #: (at, bytes, percent of a core) of its last samples, oldest first; None where one was not taken.
    samples: tuple[tuple[float, int | None, float | None], ...] = ()
    #: 'exact' or 'shared': the memory of the process, with that of other jobs.
    memory_attribution: str | None = None
    cpu_usage: float | None = None
    phase: str | None = None
    progress: float | None = None
    is_stuck: bool = False
    #: Earlier runs of this message that were lost with their workers.
    crashes: int = 0
    #: The last that is on record, the innermost frame last.
    stack: tuple[str, ...] = ()


class Suspect(NamedTuple):
    """A run that may have ended its worker."""

    job_id: str
    run_id: str
    actor: str | None
    score: float
    #: In words, the weightiest first.
    reasons: list[str]


def suspects(runs: Sequence[RunFacts], *, at: float, exit_cause: str) -> list[Suspect]:
    """These runs, the most suspect first; those that are equally so by job_id.

    It is a ranking, not a verdict: nobody saw what happened.

    Parameters:
      at: when the worker was found dead, in Unix seconds.
      exit_cause: of the worker; memory weighs more where it is that it ran out of it.
    """
    onset_at, first = _onset(runs)
    found = [
        _weighed(run, at, onset_at if run is first else None, is_oom=OUT_OF_MEMORY in exit_cause, is_alone=len(runs) == 1) for run in runs
    ]
    return sorted(found, key=lambda each: (-each.score, each.job_id))


def _onset(runs: Sequence[RunFacts]) -> tuple[float | None, RunFacts | None]:
    """When the memory that several share began to grow, and the run that had begun last by then."""
    shared = [run for run in runs if run.memory_attribution == "shared" and run.started_at is not None]
    readings = sorted((at, memory) for run in shared for at, memory, _ in run.samples if memory is not None)
    if len(shared) < 2 or not readings:
        return None, None
    lowest = min(memory for _, memory in readings)
    grown = readings[-1][1] - lowest
    calm = [at for at, memory in readings if memory <= lowest + grown / 10]
    before = [run for run in shared if run.started_at is not None and run.started_at <= calm[-1] + _JUST_S]
    if grown < _GROWTH_BYTES or not before:
        return None, None
    return calm[-1], max(before, key=lambda run: run.started_at or 0.0)


def _weighed(run: RunFacts, at: float, onset_at: float | None, *, is_oom: bool, is_alone: bool) -> Suspect:
    reasons: list[tuple[float, str]] = []
    if onset_at is not None and run.started_at is not None:
        reasons.append((_ONSET, f"memory began to grow {max(0.0, onset_at - run.started_at):.0f} s after it began"))
    if run.crashes:
        times = "a worker" if run.crashes == 1 else f"{run.crashes} workers"
        reasons.append((_CRASHED + _CRASHED_MORE * (run.crashes - 1), f"{times} died with it before"))
    grown = growth_bytes(run)
    if grown >= _GROWTH_BYTES:
        weight = (_MEMORY_OOM if is_oom else _MEMORY) * (1 + min(4.0, grown / (1024 * _MB)))
        whose = ""
        if run.memory_attribution == "shared":
            weight, whose = weight * _MEMORY_SHARED, " (the process, with other jobs)"
        reasons.append((weight, f"memory grew by {grown // _MB} MB while it ran{whose}"))
    if run.is_stuck:
        reasons.append((_STUCK, "it was stuck"))
    if run.timeout_at is not None and run.timeout_at < at:
        reasons.append((_LATE, f"it was {at - run.timeout_at:.0f} s past its timeout"))
    if run.cpu_usage is not None and run.cpu_usage >= _BUSY_PERCENT:
        reasons.append((_BUSY, f"it used {run.cpu_usage:.0f} % of a core"))
    if run.started_at is not None and 0 <= at - run.started_at <= _JUST_S:
        reasons.append((_JUST, f"it had begun {at - run.started_at:.1f} s before"))
    if is_alone:
        reasons.append((_ALONE, "nothing else ran there"))
    reasons.sort(key=lambda reason: -reason[0])
    return Suspect(run.job_id, run.run_id, run.actor, round(sum(weight for weight, _ in reasons), 2), [text for _, text in reasons])


def growth_bytes(run: RunFacts) -> int:
    """By how much memory grew from the lowest of its samples to a later one; 0 where it did not, or too few were taken."""
    lowest: int | None = None
    most = 0
    for _, memory, _ in run.samples:
        if memory is None:
            continue
        lowest = memory if lowest is None else min(lowest, memory)
        most = max(most, memory - lowest)
    return most
