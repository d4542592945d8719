"""The heartbeat contract: when a job has missed one, when it is stuck, and when it moves again."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone import records
from dramatiq_chaperone.errors import HeartbeatsMissed
from dramatiq_chaperone.events import HeartbeatMissed, finish_events, on
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.supervision.heartbeats import HeartbeatJudge, is_gap, silence
from dramatiq_chaperone.supervision.jobs import Job
from dramatiq_chaperone.supervision.ladder import StopLadder
from dramatiq_chaperone.supervision.policy import OPTIONS, Promise, policy_of_unknown
from dramatiq_chaperone.supervision.sampler import Readings
from dramatiq_chaperone.supervision.slots import Slot
from dramatiq_chaperone.supervision.stopping import Stop
from tests.unit.supervision.test_jobs import Desk

NOW = 1_790_000_000.0
seconds = st.floats(0, 1e6)
intervals = st.floats(1e-3, 1e5)


class Ladder(StopLadder):
    """Takes note of what is to be stopped."""

    def __init__(self) -> None:
        self.stops: list[Stop] = []

    def stop(self, slot: Slot, job: Job, stop: Stop) -> bool:
        self.stops.append(stop)
        return True


class Bench:
    """A judge, one job, and a clock."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.desk = Desk(path)
        self.ladder = Ladder()
        self.judge = HeartbeatJudge(self.desk.recorder, self.ladder, expected_s=lambda: 1.0)
        self.job = self.desk.job()
        self.job.message = SimpleNamespace(options=options)
        self.slot = self.desk.run(self.job)
        self.slot.ident = threading.get_ident()
        self.now = self.job.started = float(round(self.job.started))  # whole seconds add up exactly

    def look(self, seconds: float, *, step: float = 1.0) -> None:
        """Let *seconds* go by, with a look after each *step*."""
        until = self.now + seconds
        while self.now + step <= until + 1e-9:
            self.now += step
            self.job.flush()
            self.judge.look([(self.slot, self.job)], Readings(self.now, NOW + self.now - self.job.started, 1, False, 1))

    def rows(self) -> list[tuple[int, bool]]:
        return [(each.missed_heartbeats, each.is_stuck) for each in self.desk.entries(records.STUCK)]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(each.data) for each in self.desk.entries(records.EVENT) if each.name == name]

    def close(self) -> None:
        self.desk.reader.release()
        self.desk.journal.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made: list[Bench] = []

    def build(**options: Any) -> Bench:
        made.append(Bench(tmp_path / str(len(made)), **options))
        return made[-1]

    yield build
    for each in made:
        each.close()
    assert "heartbeats" not in internal_errors


class TestSilence:
    @given(seconds, seconds, intervals, st.integers(0, 100))
    def test_it_counts_whole_intervals(self, heard_at: float, more: float, interval: float, threshold: int) -> None:
        missed, is_stuck = silence(heard_at, heard_at + more, interval, threshold)
        assert missed >= 0
        assert missed * interval <= more + 1e-6 * max(1.0, more, heard_at)
        assert (missed + 1) * interval >= more - 1e-6 * max(1.0, more, heard_at)
        assert is_stuck == (0 < threshold <= missed)

    @given(seconds, st.lists(seconds, min_size=1, max_size=30), intervals)
    def test_how_often_somebody_looks_makes_no_difference(self, heard_at: float, looks: list[float], interval: float) -> None:
        counts = [silence(heard_at, heard_at + at, interval, 3).missed for at in sorted(looks)]
        assert counts == sorted(counts)
        assert counts[-1] == silence(heard_at, heard_at + max(looks), interval, 3).missed

    @given(seconds, seconds, intervals, st.integers(1, 100))
    def test_a_clock_that_goes_back_makes_nobody_stuck(self, now: float, more: float, interval: float, threshold: int) -> None:
        assert silence(now + more, now, interval, threshold) == (0, False)

    @given(st.floats(0.01, 1.2), st.floats(0.5, 10), intervals)
    def test_a_late_turn_is_no_gap(self, share: float, expected: float, interval: float) -> None:
        assert not is_gap(share * expected, expected, interval)

    @given(st.floats(0.5, 10), intervals)
    def test_missing_a_threshold_takes_a_gap(self, expected: float, interval: float) -> None:
        """Whoever was away for long enough to miss a heartbeat that came in time was away for a gap."""
        assert is_gap(1.25 * expected + interval, expected, interval)


class TestPromise:
    def test_message_before_actor_before_setting(self, make: Any) -> None:
        settings = make().desk.recorder.settings
        policy = policy_of_unknown("work", "default", settings)
        assert policy.promise({}, settings) == Promise(60.0, False, 3, "record")
        actor = policy._replace(options={"heartbeat_interval": 30, "missed_heartbeats": 5, "on_stuck": "kill"})
        assert actor.promise({}, settings) == Promise(30.0, True, 5, "kill")
        message = {"heartbeat_interval": 2, "missed_heartbeats": 1, "on_stuck": "interrupt"}
        assert actor.promise(message, settings) == Promise(2.0, True, 1, "interrupt")

    def test_0_switches_it_off(self, make: Any) -> None:
        bench = make(heartbeat_interval=0)
        bench.job.heartbeat()
        bench.look(10_000, step=1)
        assert bench.rows() == []


class TestTheJudge:
    def test_a_job_that_promised_nothing_is_never_stuck(self, make: Any) -> None:
        bench = make()
        bench.look(10_000)
        assert bench.rows() == []
        assert not bench.job.is_stuck

    def test_it_is_counted_from_the_start(self, make: Any) -> None:
        bench = make(heartbeat_interval=10)
        bench.look(29)
        assert bench.rows() == [(1, False), (2, False)]
        bench.look(1)
        assert bench.rows() == [(1, False), (2, False), (3, True)]
        assert (bench.job.missed_heartbeats, bench.job.is_stuck) == (3, True)
        (event,) = bench.events("JobStuck")
        assert (event["job_id"], event["run_id"], event["missed_heartbeats"], event["last_heartbeat"]) == ("job-1", "run-1", 3, None)
        assert event["stuck_duration"] == pytest.approx(30, abs=0.1)
        assert event["evidence"]["stack"]
        assert event["diagnosis"]
        bench.look(20)
        assert len(bench.events("JobStuck")) == 1, "once an episode"
        assert bench.rows()[-1] == (5, True)
        assert bench.ladder.stops == []

    @pytest.mark.parametrize("report", ["heartbeat", "progress"])
    def test_who_reports_once_has_promised_to_go_on(self, make: Any, report: str) -> None:
        bench = make()
        if report == "heartbeat":
            bench.job.heartbeat()
        else:
            bench.job.report_progress(1, 10)
        bench.look(1)
        bench.look(178)
        assert not bench.job.is_stuck
        bench.look(3)
        assert bench.job.is_stuck
        assert bench.events("JobStuck")[0]["last_heartbeat"] is not None

    def test_checks_are_not_counted(self, make: Any) -> None:
        bench = make(heartbeat_interval=100)
        bench.look(99, step=0.1)
        assert bench.rows() == []

    def test_one_event_for_each_interval(self, make: Any) -> None:
        heard: list[HeartbeatMissed] = []
        end = on(HeartbeatMissed, heard.append)
        bench = make(heartbeat_interval=2, missed_heartbeats=0)
        bench.look(10)
        assert finish_events()
        end()
        assert [each.missed_count for each in heard] == [1, 2, 3, 4, 5]
        assert [each.expected_interval for each in heard] == [2.0] * 5
        gaps = {round((b.expected_at - a.expected_at).total_seconds(), 3) for a, b in itertools.pairwise(heard)}
        assert gaps == {2.0}
        assert not bench.job.is_stuck, "0: it never is"

    def test_it_moves_again(self, make: Any) -> None:
        bench = make(heartbeat_interval=1)
        bench.look(5)
        assert bench.job.is_stuck
        bench.job.report_progress(1, 2)
        bench.look(1)
        assert (bench.job.missed_heartbeats, bench.job.is_stuck) == (0, False)
        assert bench.rows()[-1] == (0, False)
        (event,) = bench.events("JobRecovered")
        assert event["missed_heartbeats"] == 5
        assert event["stuck_duration"] == pytest.approx(3)
        bench.look(5)
        assert len(bench.events("JobStuck")) == 2, "a new episode"

    def test_the_row_of_one_that_is_stuck_is_brought_up_to_date_every_five_seconds(self, make: Any) -> None:
        bench = make(heartbeat_interval=1)
        bench.look(23)
        assert bench.rows() == [(1, False), (2, False), (3, True), (8, True), (13, True), (18, True), (23, True)]
        assert bench.job.missed_heartbeats == 23

    def test_a_late_heartbeat_takes_back_what_was_missed(self, make: Any) -> None:
        bench = make(heartbeat_interval=2)
        bench.look(3)
        bench.job.heartbeat()
        bench.look(1)
        assert bench.rows() == [(1, False), (0, False)]
        assert bench.events("JobRecovered") == []

    def test_a_tight_loop_of_reports_is_seen(self, make: Any) -> None:
        bench = make(heartbeat_interval=2)
        for number in range(60):
            for _ in range(100):
                bench.job.report_progress(number, 60)
            bench.look(1)
        assert bench.rows() == []

    @pytest.mark.parametrize("away", [3.0, 20.0, 3600.0])
    def test_a_gap_of_the_observer_grants_a_full_interval(self, make: Any, away: float) -> None:
        bench = make(heartbeat_interval=1)
        bench.look(2)
        before = bench.rows()
        bench.look(away, step=away)
        assert bench.rows() == before
        bench.look(0.9, step=0.9)
        assert bench.rows() == before
        bench.look(0.2, step=0.2)
        assert bench.job.is_stuck, "it has missed 2 before"

    def test_the_first_look_may_be_late_too(self, make: Any) -> None:
        bench = make(heartbeat_interval=1)
        bench.look(1000, step=1000)
        assert bench.rows() == []

    @pytest.mark.parametrize("means", ["interrupt", "kill"])
    def test_it_is_ended_where_that_was_asked_for(self, make: Any, means: str) -> None:
        bench = make(heartbeat_interval=1, on_stuck=means)
        bench.look(10)
        assert bench.ladder.stops == [Stop(means, "stuck", HeartbeatsMissed)]

    def test_one_job_that_cannot_be_judged_keeps_no_other_away(self, make: Any) -> None:
        bench = make(heartbeat_interval=1)
        broken = bench.desk.job()
        broken.message = SimpleNamespace(options={"heartbeat_interval": object()})
        readings = Readings(bench.now + 5, NOW, 1, False, 1)
        for _ in range(2):
            bench.judge.look([(bench.slot, broken), (bench.slot, bench.job)], readings)
            readings = readings._replace(now=readings.now + 1)
        assert bench.job.missed_heartbeats
        assert internal_errors.pop("heartbeats") == 2

    def test_who_goes_on_after_an_interrupt_is_diagnosed(self, make: Any) -> None:
        bench = make()
        bench.look(5)
        bench.slot.sent = HeartbeatsMissed
        bench.look(3)
        assert bench.events("JobDiagnosed") == []
        bench.look(10)
        (event,) = bench.events("JobDiagnosed")
        assert event["diagnosis"].startswith("goes on after HeartbeatsMissed: ")
        assert event["evidence"]["stack"]

    def test_a_look_on_demand(self, make: Any) -> None:
        bench = make()
        bench.look(2)
        assert bench.judge.diagnosis("job-2") is None
        found = bench.judge.diagnosis("job-1")
        assert found is not None


class _Options(Middleware):
    actor_options = OPTIONS


def test_an_actor_promises_for_its_messages(make: Any) -> None:
    bench = make()
    broker = dramatiq.get_broker()
    broker.add_middleware(_Options())

    @dramatiq.actor(actor_name="work", heartbeat_interval=1, broker=broker)
    def work() -> None: ...

    bench.look(5)
    assert bench.job.is_stuck
