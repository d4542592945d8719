"""The handle of a job: what it writes, when it is silent, how its history stays small.  Time is passed in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone import records
from dramatiq_chaperone.errors import JobCancelled
from dramatiq_chaperone.journal import Journal, JournalDirectory
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision.execution import Execution
from dramatiq_chaperone.supervision.jobs import Job, entered, heartbeat, left, number, percent, report_progress
from dramatiq_chaperone.supervision.ladder import StopLadder
from dramatiq_chaperone.supervision.recorder import Recorder
from dramatiq_chaperone.supervision.sampler import REFRESH_S, SLOWEST_S, Judge, Readings, Sampler
from dramatiq_chaperone.supervision.slots import RunningJobs, Slot
from dramatiq_chaperone.supervision.stopping import Interrupter

DAY = 86_400


class Desk:
    """A journal in a folder of its own, and what stands in it."""

    def __init__(self, path: Path) -> None:
        self.journal = Journal(path, records.Origin("host-1-aaaa", "host", "boot", os.getpid(), 0.0, "worker"))
        broker = StubBroker(middleware=[])
        dramatiq.set_broker(broker)
        self.recorder = Recorder(Settings.load({}, environ={}), broker, self.journal)
        self.running = RunningJobs()
        reader = JournalDirectory(path).take("host-1-aaaa")
        assert reader is not None
        self.reader = reader

    def job(self) -> Job:
        return Job(self.recorder, "job-1", "run-1", "work", "default", 0, "T-1", 1, False)

    def entries(self, kind: int) -> list[Any]:
        position, found = 0, []
        while True:
            entries, after = self.reader.read(position)
            found += [records.ENTRY_TYPES[entry[0]](*entry) for entry in entries if entry[0] == kind]
            if after == position:
                return found
            position = after

    def sampler(self, *judges: Judge) -> Sampler:
        return Sampler(
            self.journal,
            self.running,
            Execution(self.recorder, self.running),
            Interrupter(self.running),
            StopLadder(self.running),
            beat_s=5.0,
            consumers=lambda: (1, 2),
            turns=lambda now: None,
            judges=judges,
        )

    def run(self, job: Job) -> Slot:
        slot = Slot(None)
        slot.job = job
        self.running.slots[job.ident] = slot
        return slot


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.reader.release()
    desk.journal.close()


class TestProgress:
    @pytest.mark.parametrize(
        ("current", "total", "expected"),
        [
            (0, 10, 0),
            (1, 3, 33),
            (10, 10, 100),
            (11, 10, 100),
            (-1, 10, 0),
            (5, 0, 0),
            (5, -1, 0),
            (float("nan"), 10, 0),
            (1e308, 1e-308, 0),
        ],
    )
    def test_percent_is_clamped(self, current: float, total: float, expected: int) -> None:
        assert percent(current, total) == expected

    @given(st.floats() | st.integers(), st.floats() | st.integers())
    def test_percent_is_a_percentage_whatever_comes(self, current: float, total: float) -> None:
        assert 0 <= percent(current, total) <= 100

    @given(st.floats() | st.integers() | st.text() | st.none())
    def test_only_finite_numbers_are_kept(self, value: Any) -> None:
        found = number(value)
        assert found is None or abs(found) < 1e300

    def test_the_rate_tells_how_long_it_takes(self, desk: Desk) -> None:
        job = desk.job()
        assert job.eta_s is None
        for second in range(5):
            job.current, job.total = second * 10, 100
            job.look(float(second))
        assert job.eta_s == pytest.approx(6.0)
        job.current = 100
        assert job.eta_s == 0

    def test_the_rate_is_the_recent_one(self, desk: Desk) -> None:
        job = desk.job()
        job.total = 10_000
        for second in range(200):
            job.current = second if second < 100 else 100 + (second - 100) * 10
            job.look(float(second))
        assert job.eta_s == pytest.approx((10_000 - job.current) / 10)


class TestHistory:
    def test_a_job_of_a_day_leaves_at_most_about_500_rows(self, desk: Desk) -> None:
        """Samples each second, and progress each second."""
        job = desk.job()
        sampler = desk.sampler()
        slot = desk.run(job)
        kept_reports, last = 0, float("-inf")
        for second in range(0, DAY, 1):
            now = job.started + second
            if job.is_due(last, now):
                kept_reports, last = kept_reports + 1, now
            sampler._sample_job(slot, job, 1000 + second % 7, False, now, float(second))
        samples = [entry for entry in desk.entries(records.SAMPLED) if entry.keep]
        assert len(samples) + kept_reports <= 500
        assert len(samples) > 150
        assert all(entry.span[:2] == (1000, 1006) for entry in samples[-50:]), "the extremes of each thinned span"

    def test_a_job_s_row_is_refreshed_between_two_kept_samples(self, desk: Desk) -> None:
        job, sampler = desk.job(), desk.sampler()
        slot = desk.run(job)
        for second in range(2000):
            sampler._sample_job(slot, job, 1000, False, job.started + second, float(second))
        times = [entry.at for entry in desk.entries(records.SAMPLED)]
        assert max(b - a for a, b in pairwise(times)) <= REFRESH_S

    def test_alone_is_exact_and_once_shared_stays_shared(self, desk: Desk) -> None:
        job, sampler = desk.job(), desk.sampler()
        slot = desk.run(job)
        sampler._sample_job(slot, job, 1000, False, job.started + 1, 1.0)
        assert not job.is_shared
        sampler._sample_job(slot, job, 5000, True, job.started + 3, 3.0)
        sampler._sample_job(slot, job, 2000, False, job.started + 5, 5.0)
        assert [entry.memory_attribution for entry in desk.entries(records.SAMPLED)] == ["exact", "shared", "exact"]
        assert (job.is_shared, job.memory_peak) == (True, 5000)


class TestSamplersBudget:
    def test_it_slows_down_to_one_sample_in_ten_seconds_and_recovers(self, desk: Desk) -> None:
        sampler = desk.sampler()
        for _ in range(10):
            sampler._pace(1.0)
        assert sampler.sample_interval_s == SLOWEST_S
        for _ in range(10):
            sampler._pace(0.0)
        assert sampler.sample_interval_s == 1.0

    def test_a_sample_within_its_budget_changes_nothing(self, desk: Desk) -> None:
        sampler = desk.sampler()
        sampler._pace(0.0029)
        assert sampler.sample_interval_s == 1.0

    def test_its_cost_is_in_the_beat(self, desk: Desk) -> None:
        sampler = desk.sampler()
        sampler.run_once()
        sampler._next_beat = 0.0
        sampler.run_once()
        gauges = json.loads(desk.entries(records.BEAT)[-1].gauges)
        assert gauges["sampler_cpu_seconds"] > 0
        assert gauges["sample_interval_s"] == 1.0
        assert gauges["open_files"] > 2


class Jury:
    """Keeps what it is shown, and raises if it is told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.seen: list[tuple[int, Readings]] = []
        self._fails = fails

    def look(self, running: Sequence[tuple[Slot, Job]], readings: Readings) -> None:
        if self._fails:
            raise ValueError("no verdict")
        self.seen.append((len(running), readings))


class TestJudges:
    def test_each_is_shown_every_sample_and_the_end(self, desk: Desk) -> None:
        jury = Jury()
        sampler = desk.sampler(jury)
        slot = desk.run(desk.job())
        sampler.sample(10.0)
        slot.job = None
        sampler.sample(11.0)
        sampler.sample(12.0)
        assert [(number, readings.now) for number, readings in jury.seen] == [(1, 10.0), (0, 11.0)]
        assert jury.seen[0][1].memory > 0
        assert not jury.seen[0][1].is_shared

    def test_one_that_fails_does_not_keep_the_next_from_its_look(self, desk: Desk) -> None:
        internal_errors.clear()
        jury = Jury()
        sampler = desk.sampler(Jury(fails=True), jury)
        desk.run(desk.job())
        sampler.sample(10.0)
        assert len(jury.seen) == 1
        assert internal_errors["Jury"] == 1


class TestCancelled:
    def test_a_job_that_was_asked_to_stop_hears_it_at_its_next_report(self, desk: Desk) -> None:
        job = desk.job()
        token = entered(job)
        try:
            heartbeat(step=1)
            job.is_cancelled = True
            for report in (lambda: heartbeat(step=2), lambda: report_progress(1, 2), lambda: list(job.track([1]))):
                with pytest.raises(JobCancelled):
                    report()
        finally:
            left(token)


class TestReports:
    def test_what_cannot_be_written_is_no_error_of_the_job(self, desk: Desk) -> None:
        circular: dict[str, Any] = {}
        circular["self"] = circular
        job = desk.job()
        job.heartbeat({"f": lambda: None, "bytes": b"\xff", "circular": circular, "nul": "\0", "big": "x" * 10_000_000})
        job.report_progress(float("nan"), 10, phase="p" * 1000)
        job.flush()
        entries = desk.entries(records.HEARTBEAT)
        assert len(entries) == 2
        assert len(entries[0].metadata) < 20_000

    def test_a_fork_s_heartbeat_leaves_the_journal_alone(self, desk: Desk) -> None:
        job = desk.job()
        job.heartbeat(parent=1)
        pid = os.fork()
        if pid == 0:
            job.heartbeat(child=1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        job.heartbeat(parent=2)
        assert len(desk.entries(records.HEARTBEAT)) == 2
