"""The monitor: one holder in a whole fleet; old rows go by the clock; who is silent for too long is lost, and may come back."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dramatiq_chaperone import host, records
from dramatiq_chaperone import monitor as monitoring
from dramatiq_chaperone.errors import StoreUnavailable
from dramatiq_chaperone.monitor import LEASE, RETENTION_EVERY_S, Monitor
from dramatiq_chaperone.store import Store, commands, counters, crashes, leases, queries, silence
from dramatiq_chaperone.store.times import stored_time
from tests.contracts.conftest import NOW, MakeStore, Process, StoreSettings, beat, booted, ended, enqueued, event, job, origin, started


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def holder_of(store: Store) -> Any:
    return store.rows("SELECT holder FROM {leases} WHERE name = ?", (LEASE,))[0][0]


def old_job(store: Store, job: str, *, start: int) -> None:
    """A job that was sent and begun in 2026, by a process of which nothing is left: older than any limit."""
    store.apply(origin("host-1-gone", role="producer"), [enqueued(job), started(job, f"run-{job}")], start=start, end=start + 10)
    store.execute("UPDATE {supervised_jobs} SET created_at = ?, updated_at = ?", (_long_ago(store), _long_ago(store)))


def _long_ago(store: Store) -> Any:
    return stored_time(store.kind, NOW - 400 * 86_400)


def jobs_of(store: Store) -> int:
    return int(store.rows("SELECT count(*) FROM {supervised_jobs}")[0][0])


def test_one_of_two_holds_the_lease_and_leaves_it_to_the_other(make_store: MakeStore) -> None:
    store = make_store()
    settings: Any = StoreSettings("")
    first, second = Monitor(settings, "first", clock=Clock()), Monitor(settings, "second", clock=(later := Clock()))
    first.turn(store)
    second.turn(store)
    assert holder_of(store) == "first"
    first.leave(store)
    later.now = 100.0
    second.turn(store)
    assert holder_of(store) == "second"
    second.leave(store)
    assert holder_of(store) is None


def test_old_rows_go_once_an_hour(make_store: MakeStore) -> None:
    store, clock = make_store(), Clock()
    monitor = Monitor(StoreSettings(""), "only", clock=clock)  # type: ignore[arg-type]  # what it needs of the settings
    old_job(store, "j1", start=0)
    monitor.turn(store)
    assert jobs_of(store) == 0
    old_job(store, "j2", start=10)
    clock.now = RETENTION_EVERY_S - 1
    monitor.turn(store)
    assert jobs_of(store) == 1
    clock.now = RETENTION_EVERY_S + 1
    monitor.turn(store)
    assert jobs_of(store) == 0


def test_who_does_not_hold_the_lease_deletes_nothing(make_store: MakeStore) -> None:
    store = make_store()
    assert leases.acquire(store, LEASE, "another", seconds=60) is not None
    old_job(store, "j1", start=0)
    Monitor(StoreSettings(""), "late", clock=Clock()).turn(store)  # type: ignore[arg-type]  # as above
    assert jobs_of(store) == 1


def test_who_lost_the_lease_in_the_middle_of_a_round_deletes_nothing(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was frozen after it had taken or checked the lease, and another has it since."""
    store = make_store()
    old_job(store, "j1", start=0)
    clock = Clock()
    monitor = Monitor(StoreSettings(""), "frozen", clock=clock)  # type: ignore[arg-type]  # as above
    prune = monitoring.retention.prune

    def frozen(*arguments: Any, **more: Any) -> Any:
        take_over(store)
        return prune(*arguments, **more)

    monkeypatch.setattr(monitoring.retention, "prune", frozen)
    monitor.turn(store)
    assert jobs_of(store) == 1
    assert holder_of(store) == "successor"


def take_over(store: Store) -> None:
    """The lease runs out, and another takes it."""
    store.execute("UPDATE {leases} SET expires_at = ? WHERE name = ?", (stored_time(store.kind, NOW - 1e6), LEASE))
    assert leases.acquire(store, LEASE, "successor", seconds=60) is not None


class Watch:
    """A monitor that holds the lease, and a clock that goes second by second."""

    def __init__(self, store: Store, holder: str = "watch", **settings: Any) -> None:
        self.store, self.clock = store, Clock()
        self.monitor = Monitor(StoreSettings("", **settings), holder, clock=self.clock)  # type: ignore[arg-type]  # what it needs
        self.monitor._next_retention = float("inf")  # the rows of these tests are old

    def passes(self, seconds: int, *, each: Callable[[], object] = lambda: None) -> None:
        for _ in range(seconds):
            self.clock.now += 1
            each()
            self.monitor.turn(self.store)


def busy(store: Store, name: str = "far-1", job_id: str = "j1", **more: Any) -> Process:
    """A worker of another host that runs a job."""
    worker = Process(store, name)
    worker.writes(booted(), beat(1), enqueued(job_id), started(job_id, f"run-{job_id}", **more))
    return worker


def worker_row(store: Store, name: str = "far-1") -> dict[str, Any]:
    found = queries.worker_of(store, name)
    assert found is not None
    return found


def names(store: Store) -> Counter[str]:
    return Counter(row["name"] for row in queries.list_events(store))


class TestSilence:
    def test_a_silent_worker_of_another_host_is_inconclusive_then_lost(self, store: Store, caplog: pytest.LogCaptureFixture) -> None:
        busy(store)
        watch = Watch(store)
        watch.passes(20)
        assert (worker_row(store)["status"], job(store)["status"]) == ("running", "running")
        assert "The worker far-1 on host has been silent for" in caplog.text
        watch.passes(14)
        row = worker_row(store)
        assert (row["status"], job(store)["status"]) == ("lost", "lost")
        assert row["exit_cause"].startswith("silent for 3")
        assert row["exit_code"] is None
        assert names(store) == {"WorkerLost": 1, "JobLost": 1}
        (event,) = [each for each in queries.list_events(store) if each["name"] == "WorkerLost"]
        assert event["data"]["silent_for"] >= 30
        assert event["data"]["jobs"] == ["j1"]
        watch.passes(60)
        assert names(store) == {"WorkerLost": 1, "JobLost": 1}

    def test_one_that_is_heard_of_is_never_lost(self, store: Store) -> None:
        worker, beats = busy(store), iter(range(2, 1000))
        watch = Watch(store)
        # The worst that is allowed: a beat just before each threshold.
        for _ in range(4):
            watch.passes(27)
            worker.writes(beat(next(beats)))
        assert worker_row(store)["status"] == "running"

    def test_a_worker_with_a_longer_heartbeat_has_longer(self, store: Store) -> None:
        worker = busy(store)
        slow = tuple(records.Beat(records.BEAT, NOW, 2, 1, 1.0, 0, 0, '{"heartbeat_s": 60}'))
        worker.writes(slow)
        watch = Watch(store)
        watch.passes(350)
        assert worker_row(store)["status"] == "running"
        watch.passes(20)
        assert worker_row(store)["status"] == "lost"

    def test_what_lives_on_this_host_is_never_lost(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        busy(store)
        monkeypatch.setattr("dramatiq_chaperone.host.host_identity", lambda: "boot-1")
        watch = Watch(store)
        alive = True
        watch.monitor._silence = monitoring.Silence(5.0, identity=lambda: "boot-1", is_alive=lambda pid, at: alive)
        watch.passes(100)
        alive = False
        watch.passes(15)
        assert worker_row(store)["status"] == "running", "its journal tells more"
        alive = True
        watch.passes(200)
        assert worker_row(store)["status"] == "running"
        alive = False
        watch.passes(2)
        assert worker_row(store)["status"] == "lost"

    def test_after_a_gap_of_its_own_a_full_threshold_is_waited(self, store: Store) -> None:
        busy(store)
        watch = Watch(store)
        watch.passes(25)
        watch.clock.now += 600  # it was frozen; its lease is free, and it takes it again
        watch.passes(25)
        assert worker_row(store)["status"] == "running"
        watch.passes(10)
        assert worker_row(store)["status"] == "lost"

    def test_the_store_away_for_a_minute_makes_nobody_lost(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        busy(store)
        watch = Watch(store)
        watch.passes(25)

        def away(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable

        with monkeypatch.context() as patch:
            patch.setattr(leases, "acquire", away)  # as when it can be read, and not be written: nobody's beats come through
            for _ in range(60):
                watch.clock.now += 1
                try:
                    watch.monitor.turn(store)
                except StoreUnavailable:
                    continue
        watch.passes(25)
        assert worker_row(store)["status"] == "running"
        watch.passes(12)
        assert worker_row(store)["status"] == "lost"

    def test_a_successor_waits_a_full_threshold_too(self, store: Store) -> None:
        busy(store)
        first, second = Watch(store, "first"), Watch(store, "second")
        first.passes(25)
        first.monitor.leave(store)
        second.passes(25)
        assert worker_row(store)["status"] == "running"
        second.passes(10)
        assert worker_row(store)["status"] == "lost"

    def test_one_of_two_acts(self, store: Store) -> None:
        busy(store)
        first, second = Watch(store, "first"), Watch(store, "second")
        for _ in range(60):
            first.passes(1)
            second.passes(1)
        assert names(store) == {"WorkerLost": 1, "JobLost": 1}

    def test_a_holder_that_froze_between_check_and_act_writes_nothing(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        busy(store)
        watch = Watch(store, "frozen")
        lose = monitoring.worker_silent

        def frozen(*arguments: Any, **more: Any) -> Any:
            """It has checked the lease, inside of its transaction; it writes, and its lease has run out meanwhile."""
            done = lose(*arguments, **more)
            assert done == ["j1"]
            store.execute("UPDATE {leases} SET expires_at = ? WHERE name = ?", (stored_time(store.kind, NOW - 1e6), LEASE))
            return done

        monkeypatch.setattr(monitoring, "worker_silent", frozen)
        watch.passes(33)
        assert (worker_row(store)["status"], job(store)["status"]) == ("running", "running")
        assert not names(store)

    def test_a_holder_that_froze_after_its_look_writes_nothing(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        busy(store)
        watch = Watch(store, "frozen")
        under = leases.under

        def frozen(*arguments: Any, **more: Any) -> Any:
            if watch.clock.now > 30:
                take_over(store)
            return under(*arguments, **more)

        monkeypatch.setattr(leases, "under", frozen)
        watch.passes(40)
        assert worker_row(store)["status"] == "running"
        assert holder_of(store) == "successor"

    def test_a_beat_that_comes_between_look_and_verdict_counts(self, store: Store) -> None:
        worker = busy(store)
        (seen,) = silence.live_workers(store)
        worker.writes(beat(2))
        lost = store.transact(lambda: monitoring.worker_silent(store, seen.origin, beat=seen.beat, at=NOW, silent_s=30))
        assert lost is None
        assert worker_row(store)["status"] == "running"


class TestReturn:
    """A partition: the worker lived all the time."""

    @pytest.fixture
    def lost(self, store: Store) -> Process:
        worker = busy(store)
        Watch(store).passes(34)
        assert job(store)["status"] == "lost"
        return worker

    def test_its_run_goes_on(self, store: Store, lost: Process) -> None:
        lost.writes(beat(2))
        row, worker = job(store), worker_row(store)
        assert (row["status"], row["crashes"], row["ended_at"], row["run_id"]) == ("running", 0, None, "run-j1")
        assert (worker["status"], worker["exit_cause"], worker["stopped_at"]) == ("running", None, None)
        detail = queries.job_detail(store, "j1")
        assert detail is not None
        assert detail["errors"] == []
        assert names(store) == {"WorkerLost": 1, "JobLost": 1, "WorkerReturned": 1}
        lost.writes(ended(run="run-j1"), beat(3))
        assert job(store)["status"] == "completed"
        assert names(store)["WorkerReturned"] == 1

    @pytest.mark.parametrize(("outcome", "status"), [("succeeded", "completed"), ("failed", "failed"), ("failed", None)])
    def test_its_own_report_of_the_end_wins(self, store: Store, lost: Process, outcome: str, status: str | None) -> None:
        lost.writes(ended(run="run-j1", outcome=outcome, status=status))
        row = job(store)
        assert (row["status"], row["crashes"]) == (status or "pending", 0)
        detail = queries.job_detail(store, "j1")
        assert detail is not None
        assert [each["outcome"] for each in detail["errors"]] == ([] if outcome == "succeeded" else ["failed"])

    def test_what_it_held_is_no_suspect_and_stays_where_it_is(self, store: Store, lost: Process) -> None:
        crashes.suspect(store, "far-2", ["j9"], at=NOW)
        assert set(crashes.suspects(store)) == {"j1", "j9"}
        lost.writes(beat(2))
        assert crashes.suspects(store) == ["j9"]
        assert crashes.returns(store) == []

    def test_one_that_has_stopped_meanwhile_has_stopped(self, store: Store, lost: Process) -> None:
        lost.writes(ended(run="run-j1"), (records.WORKER_STOPPED, NOW + 40))
        assert worker_row(store)["status"] == "stopped"
        assert job(store)["status"] == "completed"

    def test_its_job_runs_elsewhere_already(self, store: Store, lost: Process) -> None:
        other = Process(store, "far-2")
        other.writes(booted(), started(run="run-2"))
        lost.writes(beat(2))
        row = job(store)
        assert (row["status"], row["run_id"], row["worker_id"], row["crashes"]) == ("running", "run-2", "far-2", 0)
        other.writes(ended(run="run-2"))
        lost.writes(ended(run="run-j1", at=NOW + 50))
        assert job(store)["status"] == "completed"
        assert names(store)["JobRanTwice"] == 1
        assert store.rows("SELECT count(*) FROM {open_runs}")[0][0] == 0

    def test_the_other_dies_and_the_first_is_shown_again(self, store: Store, lost: Process) -> None:
        other = Process(store, "far-2")
        other.writes(booted(), started(run="run-2"))
        lost.writes(beat(2))
        other.dies()
        row = job(store)
        assert (row["status"], row["run_id"], row["worker_id"], row["crashes"]) == ("running", "run-j1", "far-1", 1)

    def test_one_that_is_found_dead_in_the_end_has_crashed(self, store: Store, lost: Process) -> None:
        lost.dies(at=time.time() + 100)
        row = worker_row(store)
        assert (row["status"], row["exit_code"], row["exit_cause"]) == ("lost", -9, "SIGKILL")
        assert job(store)["crashes"] == 1
        assert names(store) == {"WorkerLost": 1, "JobLost": 1, "WorkerCrashed": 1}
        end = queries.worker_end(store, "far-1")
        assert end is not None
        assert (end["name"], end["jobs"], end["suspects"][0]["job_id"]) == ("WorkerCrashed", ["j1"], "j1")
        lost.dies(at=time.time() + 101)
        assert names(store)["WorkerCrashed"] == 1

    def test_a_verdict_that_was_seen_stands(self, store: Store) -> None:
        worker = busy(store)
        worker.dies()
        worker.writes(beat(2))
        assert (worker_row(store)["status"], job(store)["status"]) == ("lost", "lost")


class TestOverdue:
    def test_a_timeout_that_its_silent_worker_cannot_report(self, store: Store) -> None:
        worker = busy(store, timeout_at=NOW + 10)
        worker.writes(started("j2", "run-j2", timeout_at=NOW + 3600), beat(2))
        watch = Watch(store, worker_heartbeat=20.0)
        watch.passes(59)
        assert not names(store), "it is heard of"
        watch.passes(10)
        assert names(store) == {"JobTimeout": 1}
        ((kind, limit),) = store.rows(f"SELECT type, {store.quote('limit')} FROM {{resource_violations}}")
        assert (kind, float(limit)) == ("timeout", 10.0)
        watch.passes(20)
        assert names(store) == {"JobTimeout": 1}

    def test_one_that_its_worker_reports_later_too_is_on_record_once(self, store: Store) -> None:
        worker = busy(store, timeout_at=NOW + 10)
        watch = Watch(store, worker_heartbeat=20.0)
        watch.passes(69)
        assert (timeouts(store), names(store)) == (["run-j1"], {"JobTimeout": 1})
        other = (enqueued("j2"), started("j2", "run-j2"), *timed_out("j2"))
        worker.writes(beat(2, at=NOW + 70), *timed_out("j1"), *other)
        assert timeouts(store) == ["run-j1", "run-j2"]
        assert Counter(row["job_id"] for row in queries.list_events(store) if row["name"] == "JobTimeout") == {"j1": 1, "j2": 1}
        assert counted(store) == 2, "the monitor has counted none"

    def test_one_that_its_worker_has_reported_is_none_for_the_monitor(self, store: Store) -> None:
        worker = busy(store, timeout_at=NOW + 10)
        worker.writes(*timed_out("j1", at=NOW + 10))
        Watch(store, worker_heartbeat=20.0).passes(69)
        assert (timeouts(store), names(store), counted(store)) == (["run-j1"], {"JobTimeout": 1}, 1)

    def test_times_that_make_no_sense_cost_only_themselves(self, store: Store) -> None:
        worker = busy(store, timeout_at=NOW + 10)
        Watch(store, worker_heartbeat=20.0).passes(69)
        broken = (records.EVENT, "soon", "JobTimeout", "j1", "far-1", None, "{}")
        worker.writes(broken, *timed_out("j1"), beat(2))
        assert timeouts(store) == ["run-j1"]
        assert worker_row(store)["beat"] == 2

    def test_the_timeout_of_a_later_run_is_another(self, store: Store) -> None:
        worker = busy(store, timeout_at=NOW + 10)
        Watch(store, worker_heartbeat=20.0).passes(69)
        again = (enqueued(retries=1, at=NOW + 71), started(run="r2", retries=1, at=NOW + 72), *timed_out("j1", "r2", at=NOW + 90))
        worker.writes(beat(2), *timed_out("j1"), ended(run="run-j1", outcome="failed", status=None, at=NOW + 70.5), *again)
        assert timeouts(store) == ["r2", "run-j1"]
        events = [row["created_at"].timestamp() for row in queries.list_events(store) if row["name"] == "JobTimeout"]
        assert len(events) == 2
        assert NOW + 90 in events
        assert counted(store) == 2


def timed_out(job_id: str, run: str | None = None, *, at: float = NOW + 70) -> list[tuple[Any, ...]]:
    """What a worker says of a job that is past its timeout."""
    metadata = '{"is_default": false}'
    facts = (records.VIOLATED, at, job_id, run or f"run-{job_id}", "timeout", 10.0, 70.0, "exact", metadata, "work", "default", False)
    return [tuple(records.Violated(*facts)), event("JobTimeout", job_id, at=at)]


def timeouts(store: Store) -> list[str]:
    return [run for (run,) in store.rows("SELECT run_id FROM {resource_violations} WHERE type = 'timeout' ORDER BY run_id")]


def counted(store: Store) -> float:
    return sum(value for _, _, value in queries.counters(store, name=counters.VIOLATIONS))


class TestStuck:
    """A process of this host lives and says nothing: a watcher would have seen it freeze."""

    @staticmethod
    def frozen(store: Store, **more: Any) -> Process:
        worker = Process(store, "here-1")
        pid, began = os.getpid(), host.process_started_at(os.getpid()) or 0.0
        worker.origin = worker.origin._replace(host_identity=host.host_identity(), pid=pid, process_started_at=began)
        worker.writes(booted(), beat(1), enqueued(), started(heartbeat_interval=2.0), enqueued("j2"), started("j2", "r2"))
        return worker

    def test_a_job_that_owes_heartbeats_is_stuck_until_its_worker_speaks_again(self, store: Store) -> None:
        worker, watch = self.frozen(store), Watch(store)
        watch.passes(10)
        assert not names(store)
        watch.passes(20)
        assert (job(store)["status"], job(store, "j2")["status"], names(store)) == ("stalled", "running", {"JobStuck": 1})
        assert job(store)["missed_heartbeats"] >= 3
        worker.writes(beat(2))
        watch.passes(3)
        assert (job(store)["status"], names(store)) == ("running", {"JobStuck": 1, "JobRecovered": 1})

    def test_one_that_is_stopped_is_not_judged(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frozen(store)
        monkeypatch.setattr(host, "is_stopped", lambda pid: True)
        Watch(store).passes(60)
        assert not names(store)

    def test_what_has_ended_meanwhile_has_not_recovered(self, store: Store) -> None:
        worker, watch = self.frozen(store), Watch(store)
        watch.passes(30)
        worker.writes(ended(), beat(2))
        watch.passes(3)
        assert (job(store)["status"], names(store)) == ("completed", {"JobStuck": 1})


def test_a_command_for_the_fleet_whose_claimer_is_gone_is_given_to_another(store: Store) -> None:
    asked = commands.issue(store, commands.FLEET, "retry", {}, issued_by="ann", seconds=3600)
    mine = commands.issue(store, "far-1", "ping", {}, issued_by="ann", seconds=3600)
    assert {each.command_id for each in commands.claim(store, [commands.FLEET, "far-1"])} == {asked, mine}
    assert commands.give_back(store, after_s=60) == 0
    store.execute("UPDATE {commands} SET claimed_at = ?", (stored_time(store.kind, NOW - 1e6),))
    Watch(store).passes(2)
    assert [each.command_id for each in commands.claim(store, [commands.FLEET, "far-1"])] == [asked]
    assert json.dumps(commands.answer(store, asked)) == "[null, null]"
