"""Whose doing a reading is, and what is done about it.  Readings and times are made up; journal and jobs are real."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import TimeLimitExceeded

from dramatiq_chaperone import health, health_check, records
from dramatiq_chaperone.errors import CpuLimitExceeded, MemoryLimitExceeded, TimeoutExceeded
from dramatiq_chaperone.journal import Journal, JournalDirectory
from dramatiq_chaperone.limits import CPU_WINDOW_S, MB, JobLimits, resolve
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision.checkups import HealthJudge
from dramatiq_chaperone.supervision.jobs import Job, JobSample
from dramatiq_chaperone.supervision.ladder import StopLadder
from dramatiq_chaperone.supervision.limiting import LimitJudge
from dramatiq_chaperone.supervision.recorder import Recorder
from dramatiq_chaperone.supervision.sampler import Readings
from dramatiq_chaperone.supervision.slots import RunningJobs, Slot
from dramatiq_chaperone.supervision.stopping import Stop

#: What the process uses when nothing is wrong, and what a job that is alone may use: well above what the tests need themselves.
LOW, HIGH = 400 * MB, 5000 * MB
LIMIT_MB = 4000
START = 1000.0


class Ladder(StopLadder):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(RunningJobs())
        self.asked: list[tuple[str, Stop]] = []

    def stop(self, slot: Slot, job: Job, stop: Stop) -> bool:
        self.asked.append((job.job_id, stop))
        return True


class Ward:
    """A worker process with its two judges, and jobs that are there by decree."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.settings = Settings.load(settings, environ={})
        journal = Journal(path, records.Origin("host-1-aaaa", "host", "boot", os.getpid(), 0.0, "worker"))
        self.recorder = Recorder(self.settings, StubBroker(middleware=[]), journal)
        reader = JournalDirectory(path).take("host-1-aaaa")
        assert reader is not None
        self._reader, self._journal = reader, journal
        self.ladder = Ladder()
        self.processed = 0
        self.limits = LimitJudge(self.recorder, self.ladder, lambda: self.processed)
        self.health = HealthJudge(self.recorder, self.limits.zones)
        self.running: list[tuple[Slot, Job]] = []

    def begin(self, name: str, *, at: float = 0.0, is_async: bool = False, time_limit_ms: float | None = None, **options: Any) -> Job:
        job = Job(self.recorder, name, f"run-{name}", "work", "default", 0, "T-1", 1, is_async)
        job.started = START + at
        job.limits = resolve(self.settings, options)
        slot = Slot(None)
        slot.job, slot.time_limit_ms = job, time_limit_ms
        self.running.append((slot, job))
        return job

    def end(self, job: Job) -> None:
        self.running = [pair for pair in self.running if pair[1] is not job]
        self.processed += 1

    def look(self, at: float, *, memory: float = LOW, open_files: int = 10, cpu: float = 0.0, children: int = 0) -> None:
        """*cpu*: seconds that each job has used so far."""
        now = START + at
        for _, job in self.running:
            job.sample = JobSample(now, cpu, 0, 0, 0.0, 0.0, 0.0, 0.0, memory=int(memory))
        readings = Readings(now, 1.8e9 + at, int(memory), len(self.running) > 1, open_files, children)
        self.limits.look(self.running, readings)
        self.health.look(self.running, readings)

    def overdue(self, at: float) -> None:
        for slot, job in self.running:
            self.limits.overdue(slot, job, START + at)

    def entries(self, kind: int) -> list[Any]:
        entries, _ = self._reader.read(0)
        return [records.ENTRY_TYPES[kind](*entry) for entry in entries if entry[0] == kind]

    @property
    def violations(self) -> list[tuple[str | None, str, str]]:
        return [(each.job_id, each.type, each.attribution) for each in self.entries(records.VIOLATED)]

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return [(each.name, json.loads(each.data)) for each in self.entries(records.EVENT)]

    def close(self) -> None:
        self._reader.release()
        self._journal.close()


@pytest.fixture
def make_ward(tmp_path: Path) -> Iterator[Callable[..., Ward]]:
    wards: list[Ward] = []

    def make(**settings: object) -> Ward:
        wards.append(Ward(tmp_path / str(len(wards)), **settings))
        return wards[-1]

    yield make
    for ward in wards:
        ward.close()


@pytest.fixture
def ward(make_ward: Callable[..., Ward]) -> Ward:
    return make_ward()


class TestMemory:
    def test_a_job_that_is_alone_is_held_to_its_limit(self, ward: Ward) -> None:
        ward.look(0)
        ward.begin("j1", at=0.5, memory_limit=LIMIT_MB)
        ward.look(1)
        ward.look(2, memory=HIGH)
        ward.look(3, memory=HIGH)

        (entry,) = ward.entries(records.VIOLATED)
        assert (entry.job_id, entry.run_id, entry.type, entry.attribution) == ("j1", "run-j1", "memory", "exact")
        assert (entry.limit, entry.actual, entry.actor, entry.queue, entry.is_default) == (LIMIT_MB * MB, HIGH, "work", "default", False)
        evidence = json.loads(entry.metadata)
        assert evidence == {"is_default": False, "before": LOW, "history": [[-1.0, LOW], [0.0, HIGH]]}
        assert [name for name, _ in ward.events] == ["ResourceViolationDetected", "JobMemoryExceeded", "HealthStatusChanged"]
        general, special, _ = (data for _, data in ward.events)
        assert (general["type"], general["limit"], general["actual"], general["exceeded_by"]) == ("memory", 4000, 5000, 1000)
        assert (special["memory_limit"], special["memory_usage"], special["actual"]) == (LIMIT_MB * MB, HIGH, HIGH)
        assert ward.ladder.asked == [], "record is the default"

    @pytest.mark.parametrize("means", ["interrupt", "kill"])
    def test_it_is_stopped_once_where_that_was_asked_for(self, ward: Ward, means: str) -> None:
        ward.begin("j1", memory_limit=LIMIT_MB, on_memory=means)
        for at in range(5):
            ward.look(at, memory=HIGH if at else LOW)
        assert ward.ladder.asked == [("j1", Stop(means, "memory", MemoryLimitExceeded))]

    def test_a_new_episode_stops_it_again(self, ward: Ward) -> None:
        ward.begin("j1", memory_limit=LIMIT_MB, on_memory="interrupt")
        for at, memory in ((1, HIGH), (2, LOW), (13, LOW), (14, HIGH)):
            ward.look(at, memory=memory)
        assert len(ward.ladder.asked) == len(ward.violations) == 2

    def test_a_limit_that_nobody_set_only_goes_on_record(self, make_ward: Callable[..., Ward]) -> None:
        ward = make_ward(on_memory="interrupt")
        ward.look(0, memory=100 * MB)
        ward.begin("j1")
        ward.look(1, memory=HIGH)
        assert ward.violations == [("j1", "memory", "exact")]
        assert ward.entries(records.VIOLATED)[0].is_default
        assert all(data["is_default"] for _, data in ward.events)
        assert ward.ladder.asked == []
        assert ward.entries(records.HEALTH_CHECKED) == []

    def test_of_two_jobs_it_is_the_workers_once(self, ward: Ward) -> None:
        for name in ("j1", "j2"):
            ward.begin(name, memory_limit=LIMIT_MB, on_memory="kill")
        ward.begin("j3", memory_limit=2 * LIMIT_MB)
        for at in range(5):
            ward.look(at, memory=HIGH)
        (entry,) = ward.entries(records.VIOLATED)
        assert (entry.job_id, entry.run_id, entry.attribution, entry.limit) == (None, None, "shared", LIMIT_MB * MB)
        assert [each["job_id"] for each in json.loads(entry.metadata)["jobs"]] == ["j1", "j2", "j3"]
        assert [name for name, _ in ward.events] == ["ResourceViolationDetected"]
        assert ward.entries(records.EVENT)[0].job_id is None
        assert ward.ladder.asked == []
        assert ward.entries(records.HEALTH_CHECKED) == []

    def test_who_had_company_once_is_not_blamed_later(self, ward: Ward) -> None:
        """What its neighbour leaves behind is in the process for long."""
        hog = ward.begin("hog", memory_limit=LIMIT_MB, on_memory="interrupt")
        ward.begin("j1", memory_limit=LIMIT_MB, on_memory="interrupt")
        ward.look(1)
        ward.end(hog)
        ward.look(2, memory=HIGH)
        assert ward.violations == [(None, "memory", "shared")]
        assert ward.ladder.asked == []

    def test_who_had_company_between_two_looks_is_not_either(self, ward: Ward) -> None:
        ward.begin("j1", memory_limit=LIMIT_MB, on_memory="interrupt")
        ward.look(1)
        ward.processed += 1
        ward.look(2, memory=HIGH)
        assert ward.violations == [(None, "memory", "shared")]
        assert ward.ladder.asked == []

    def test_what_was_there_before_is_not_the_jobs_doing(self, ward: Ward) -> None:
        ward.look(0, memory=HIGH)
        ward.begin("j1", at=0.5, memory_limit=LIMIT_MB, on_memory="interrupt")
        ward.look(1, memory=HIGH + 100 * MB)
        assert ward.violations == [(None, "memory", "shared")]
        assert ward.ladder.asked == []
        ward.look(2, memory=HIGH + (LIMIT_MB + 1) * MB)
        assert ward.violations[1:] == [("j1", "memory", "exact")], "it has grown by more than it may have in all"

    def test_what_another_left_between_two_looks_is_not_either(self, ward: Ward) -> None:
        ward.look(0)
        ward.processed += 1
        ward.begin("j1", at=0.9, memory_limit=LIMIT_MB, on_memory="interrupt")
        ward.look(1, memory=HIGH)
        assert ward.violations == [(None, "memory", "shared")]
        assert ward.ladder.asked == []

    @pytest.mark.parametrize(("before", "children", "expected"), [(LOW, 0, "j1"), (HIGH, 0, None), (LOW, 4000 * MB, None)])
    def test_what_the_process_used_when_it_began_is_known(self, ward: Ward, before: int, children: int, expected: str | None) -> None:
        ward.processed += 1
        ward.begin("j1", memory_limit=LIMIT_MB).memory_before = before
        ward.look(1, memory=HIGH, children=children)
        assert [job_id for job_id, *_ in ward.violations] == [expected]

    def test_a_jobs_own_violation_is_not_told_of_its_worker_too(self, ward: Ward) -> None:
        ward.begin("j1", memory_limit=LIMIT_MB)
        ward.look(1, memory=HIGH)
        ward.begin("j2", at=1.5, memory_limit=LIMIT_MB)
        ward.look(2, memory=HIGH)
        assert ward.violations == [("j1", "memory", "exact")]

    def test_the_workers_episode_ends_when_nothing_runs_any_more(self, ward: Ward) -> None:
        jobs = [ward.begin(name, memory_limit=LIMIT_MB) for name in ("j1", "j2")]
        ward.look(1, memory=HIGH)
        for job in jobs:
            ward.end(job)
        ward.look(2)
        ward.look(13)
        for name in ("j3", "j4"):
            ward.begin(name, at=14, memory_limit=LIMIT_MB)
        ward.look(15, memory=HIGH)
        assert ward.violations == [(None, "memory", "shared")] * 2


class TestCpu:
    def test_it_takes_the_whole_window(self, ward: Ward) -> None:
        ward.begin("j1", cpu_limit=80, on_cpu="interrupt")
        ward.begin("j2", cpu_limit=150)
        for at in range(int(CPU_WINDOW_S) + 10):
            ward.look(at, cpu=float(at))
            if at < CPU_WINDOW_S:
                assert ward.violations == []
        assert ward.violations == [("j1", "cpu", "exact")], "threads have clocks of their own, whoever runs beside them"
        assert ward.ladder.asked == [("j1", Stop("interrupt", "cpu", CpuLimitExceeded))]
        evidence = json.loads(ward.entries(records.VIOLATED)[0].metadata)
        assert evidence["window_s"] == CPU_WINDOW_S
        assert evidence["history"][-1] == [0.0, 100.0]
        assert {"ResourceViolationDetected", "JobCpuExceeded"} <= {name for name, _ in ward.events}

    def test_a_burst_passes_no_limit(self, ward: Ward) -> None:
        ward.begin("j1", cpu_limit=50)
        for at in range(200):
            ward.look(at, cpu=float(min(at, 20)))
        assert ward.violations == []

    def test_coroutines_share_a_thread(self, ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
        """The CPU of the process is the worker's affair, also where one of them is alone."""
        spent = iter(range(1000))
        monkeypatch.setattr("dramatiq_chaperone.supervision.resources.process_cpu_s", lambda: float(next(spent)))
        ward.begin("j1", is_async=True, cpu_limit=80, on_cpu="interrupt")
        for at in range(int(CPU_WINDOW_S) + 10):
            ward.look(at, cpu=float(at))
        assert ward.violations == [(None, "cpu", "shared")]
        assert ward.ladder.asked == []


class TestFiles:
    def test_of_a_job_that_is_alone_and_of_the_worker(self, ward: Ward) -> None:
        job = ward.begin("j1", file_descriptor_limit=100)
        ward.look(1, open_files=200)
        ward.look(2, open_files=200)
        assert ward.violations == [("j1", "file_descriptors", "exact")]
        ward.end(job)
        ward.look(3, open_files=10)
        for name in ("j2", "j3"):
            ward.begin(name, at=4, file_descriptor_limit=100)
        ward.look(5, open_files=200)
        assert ward.violations[1:] == [(None, "file_descriptors", "shared")]


class TestTimeouts:
    def test_ours_interrupts_and_stands_on_record_once(self, ward: Ward) -> None:
        ward.begin("j1", timeout=30)
        ward.overdue(29)
        assert ward.violations == []
        for at in (30.5, 31.5, 32.5):
            ward.overdue(at)
            ward.look(at)
        (entry,) = ward.entries(records.VIOLATED)
        assert (entry.type, entry.limit, entry.actual, entry.is_default) == ("timeout", 30, 30.5, False)
        assert json.loads(entry.metadata)["source"] == "timeout"
        assert ward.ladder.asked == [("j1", Stop("interrupt", "timeout", TimeoutExceeded))]
        events = dict(ward.events)
        assert (events["JobTimeout"]["timeout_seconds"], events["JobTimeout"]["actual_duration"]) == (30, 30.5)

    @pytest.mark.parametrize("means", ["interrupt", "kill"])
    def test_the_action_is_the_nearest_one(self, make_ward: Callable[..., Ward], means: str) -> None:
        ward = make_ward(on_timeout="record")
        ward.begin("j1", timeout=30, on_timeout=means)
        ward.overdue(31)
        assert ward.ladder.asked == [("j1", Stop(means, "timeout", TimeoutExceeded))]

    def test_record_stops_nothing(self, ward: Ward) -> None:
        ward.begin("j1", timeout=30, on_timeout="record")
        ward.overdue(31)
        ward.overdue(10_000)
        assert ward.violations == [("j1", "timeout", "exact")]
        assert ward.ladder.asked == []

    def test_record_leaves_dramatiqs_own_limit_in_force(self, ward: Ward) -> None:
        ward.begin("j1", timeout=30, on_timeout="record", time_limit_ms=60_000)
        ward.overdue(31)
        assert ward.ladder.asked == []
        ward.overdue(61)
        assert ward.ladder.asked == [("j1", Stop("interrupt", "timeout", TimeLimitExceeded))]
        assert len(ward.violations) == 1, "it is too late already"

    @pytest.mark.parametrize(("options", "is_default"), [({"time_limit": 5000}, False), ({}, True)])
    def test_dramatiqs_own_limit(self, ward: Ward, options: dict[str, Any], is_default: bool) -> None:
        ward.begin("j1", time_limit_ms=5000, on_timeout="record", **options)
        ward.overdue(4)
        ward.overdue(6)
        ward.overdue(7)
        (entry,) = ward.entries(records.VIOLATED)
        assert (entry.limit, entry.is_default, json.loads(entry.metadata)["source"]) == (5, is_default, "time_limit")
        assert ward.ladder.asked == [("j1", Stop("interrupt", "timeout", TimeLimitExceeded))]

    def test_the_default_only_goes_on_record(self, make_ward: Callable[..., Ward]) -> None:
        ward = make_ward(on_timeout="kill")
        ward.begin("j1")
        ward.look(3599)
        ward.look(3601)
        ward.look(9000)
        assert ward.violations == [("j1", "timeout", "exact")]
        assert ward.entries(records.VIOLATED)[0].is_default
        assert ward.ladder.asked == []

    @pytest.mark.parametrize("options", [{"timeout": 0}, {"time_limit": inf}])
    def test_the_default_says_nothing_where_somebody_did(self, ward: Ward, options: dict[str, Any]) -> None:
        ward.begin("j1", **options)
        ward.look(10_000)
        assert ward.violations == []

    def test_a_job_that_has_returned_meanwhile_is_left_alone(self, ward: Ward) -> None:
        job = ward.begin("j1", timeout=30)
        ward.running[0][0].job = None
        ward.limits.overdue(ward.running[0][0], job, START + 31)
        assert ward.violations == []


class TestIsolated:
    class Child:
        pid = 1

        def interrupt(self, exception: type[BaseException]) -> None: ...

        def kill(self) -> None: ...

    def test_its_readings_are_its_own_and_it_is_killed(self, ward: Ward) -> None:
        """Beside a job of the worker, which has nothing to do with its memory."""
        job = ward.begin("j1", memory_limit=LIMIT_MB, timeout=30)
        job.child = self.Child()
        ward.begin("j2", memory_limit=LIMIT_MB * 2)
        ward.look(1, memory=HIGH)
        ward.overdue(31)
        assert ward.violations == [("j1", "memory", "exact"), ("j1", "timeout", "exact")]
        stops = [(each.means, each.reason) for _, each in ward.ladder.asked]
        assert stops == [("kill", "memory"), ("kill", "timeout")]

    def test_it_is_only_recorded_where_that_was_asked_for(self, ward: Ward) -> None:
        ward.begin("j1", memory_limit=LIMIT_MB, on_memory="record").child = self.Child()
        ward.look(1, memory=HIGH)
        assert ward.ladder.asked == []


class TestHealth:
    def checks(self, ward: Ward) -> list[tuple[str, str | None, bool]]:
        return [(each.status, each.reason, each.is_change) for each in ward.entries(records.HEALTH_CHECKED)]

    def test_a_healthy_job_is_on_record_after_a_minute_and_then_now_and_then(self, ward: Ward) -> None:
        ward.begin("j1", memory_limit=LIMIT_MB)
        for at in range(59):
            ward.look(at)
        assert self.checks(ward) == []
        for at in range(59, 200):
            ward.look(at)
        assert self.checks(ward) == [("healthy", None, False)] * 3
        for at in range(200, 86_400, 10):
            ward.look(at)
        assert len(self.checks(ward)) < 150, "less often as it gets older"
        assert "HealthStatusChanged" not in {name for name, _ in ward.events}
        assert ward.violations == [("j1", "timeout", "exact")], "the default, on record only"

    def test_each_change_is_told_with_its_reason(self, ward: Ward) -> None:
        ward.begin("j1", memory_limit=LIMIT_MB)
        for at, memory in ((1, LOW), (2, 3500 * MB), (3, 3500 * MB), (4, HIGH), (5, LOW), (16, LOW)):
            ward.look(at, memory=memory)
        assert self.checks(ward) == [
            ("degraded", "memory at 80 % of its limit or more", True),
            ("unhealthy", "memory over its limit", True),
            ("healthy", None, True),
        ]
        changes = [data for name, data in ward.events if name == "HealthStatusChanged"]
        assert [(each["previous_status"], each["new_status"]) for each in changes] == [
            ("unknown", "degraded"), ("degraded", "unhealthy"), ("unhealthy", "healthy"),
        ]  # fmt: skip
        assert changes[1]["issues"] == ["memory_over_limit"]
        assert json.loads(ward.entries(records.HEALTH_CHECKED)[0].metadata)["findings"][0]["code"] == "memory_near_limit"

    def test_a_stuck_job_and_one_past_its_timeout(self, ward: Ward) -> None:
        job = ward.begin("j1")
        job.missed_heartbeats = 1
        ward.look(1)
        job.missed_heartbeats, job.is_stuck = 3, True
        ward.look(2)
        job.missed_heartbeats, job.is_stuck = 0, False
        ward.look(3)
        ward.running[0][0].time_limit_ms = 5000
        ward.overdue(6)
        ward.look(6)
        assert [status for status, *_ in self.checks(ward)] == ["degraded", "unhealthy", "healthy", "unhealthy"]

    def test_a_users_check(self, ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "_checks", ())
        asked = []

        @health_check
        def rows(job: health.JobFacts) -> tuple[str, str] | None:
            asked.append(job.age_s)
            return ("degraded", "password=hunter2 is wrong") if job.metadata.get("errors") else None

        job = ward.begin("j1")
        ward.look(1)
        job.heartbeat(errors=3)
        for at in range(2, 13):
            ward.look(at)
        assert asked == [1.0, 11.0], "each ten seconds"
        (status, reason, is_change), *_ = self.checks(ward)
        assert (status, is_change) == ("degraded", True)
        assert reason is not None
        assert "hunter2" not in reason


def test_judging_costs_little(ward: Ward) -> None:
    """Eight running jobs with a full history: far below a millisecond, which the budget of the sampler asks for."""
    import time

    for number in range(8):
        ward.begin(f"j{number}", memory_limit=LIMIT_MB, cpu_limit=90, timeout=1000)
    for at in range(70):
        ward.look(at, cpu=at / 2)
    costs = []
    for at in range(70, 170):
        began = time.thread_time()
        ward.look(at, cpu=at / 2)
        costs.append(time.thread_time() - began)
    print(f"\n8 jobs judged in {sorted(costs)[50] * 1e6:.0f} µs (median), worst {max(costs) * 1e6:.0f} µs")
    assert sorted(costs)[50] < 0.001
    assert JobLimits().has_time_limit
