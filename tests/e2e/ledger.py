"""What the actors of a storm wrote down, run by run, and where the store says something else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from tests.e2e.conftest import Fleet

FINAL: Final = {"completed", "failed", "cancelled"}


@dataclass
class Run:
    """One run of a job: ``how`` is the last line that it wrote; 'start' or 'alive' where it never came to an end."""

    job_id: str
    run_id: str
    pid: int
    started: float
    last: float
    how: str

    @property
    def has_returned(self) -> bool:
        return self.how == "end"

    @property
    def was_cut_off(self) -> bool:
        return self.how in {"start", "alive"}


class Ledger:
    """All runs, by their ids; and by their jobs, in the order in which they began."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.runs: dict[str, Run] = {}
        for line in fleet.ledger.read_text().splitlines():
            what, job_id, run_id, pid, at = line.split()
            run = self.runs.setdefault(run_id, Run(job_id, run_id, int(pid), float(at), float(at), what))
            run.last, run.how = float(at), what
        self.jobs: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(self.runs.values(), key=lambda run: run.started):
            self.jobs[run.job_id].append(run)

    def story(self, job_id: str) -> str:
        """What both say of a job, for whoever has to find out why they differ."""
        job = f"(SELECT id FROM supervised_jobs WHERE job_id = '{job_id}')"
        queries = {
            "job": f"actor_name, status, attempt, retries, crashes, run_id, worker_id FROM supervised_jobs WHERE job_id = '{job_id}'",
            "error": f"run_id, attempt, outcome, worker_id, started_at, ended_at, exit_cause, exception FROM supervised_job_errors "
            f"WHERE supervised_job_id = {job} ORDER BY id",
            "event": f"created_at, name, worker_id, data FROM events WHERE job_id = '{job_id}' ORDER BY id",
            "dead": f"reason, message FROM dead_letter_jobs WHERE job_id = '{job_id}'",
        }
        lines = [f"--- {job_id}"]
        lines += [f"  ledger {run.started:.3f} to {run.last:.3f}: {run.how} (run {run.run_id}, pid {run.pid})" for run in self.jobs[job_id]]
        lines += [f"  {what} {row}" for what, query in queries.items() for row in self._fleet.sql(f"SELECT {query}")]
        return "\n".join(lines)

    def overlaps(self) -> dict[str, Run]:
        """Jobs of which two runs certainly went on at the same time, for each wrote something while the other did; and the first."""
        found = {}
        for job_id, runs in self.jobs.items():
            for first, second in combinations(runs, 2):
                if second.started < first.last:
                    found[job_id] = first
        return found

    def returned_and_ran_again(self) -> dict[str, Run]:
        """Jobs that began once more after a run of them had returned, and that run."""
        found = {}
        for job_id, runs in self.jobs.items():
            for first, second in combinations(runs, 2):
                if first.has_returned and second.started >= first.last:
                    found[job_id] = first
        return found


class Account:
    """What the store has of them."""

    def __init__(self, fleet: Fleet) -> None:
        self.jobs = {row[0]: row[1:] for row in fleet.sql("SELECT job_id, status, attempt, crashes FROM supervised_jobs")}
        text = "SELECT e.run_id, e.outcome, e.worker_id FROM supervised_job_errors e"
        self.outcomes = {run_id: outcome for run_id, outcome, _ in fleet.sql(text)}
        self.twice = {job_id for (job_id,) in fleet.sql("SELECT job_id FROM events WHERE name = 'JobRanTwice'")}
        #: The runs of a worker have the end of its id before their number.
        self.lost_workers = {row[0][-8:] for row in fleet.sql("SELECT worker_id FROM workers WHERE status = 'lost'")}
        self.dead_letters = dict(fleet.sql("SELECT job_id, reason FROM dead_letter_jobs"))

    def status(self, job_id: str) -> str:
        return str(self.jobs[job_id][0])

    def was_killed(self, runs: Iterable[Run]) -> list[Run]:
        """Those of *runs* that an operator or a limit has ended for good."""
        return [run for run in runs if self.outcomes.get(run.run_id) == "killed"]

    def has_crashed(self, run: Run) -> bool:
        """Whether the run's worker is on record as lost, or the run is."""
        return self.outcomes.get(run.run_id) == "lost" or run.run_id.partition("-")[0] in self.lost_workers
