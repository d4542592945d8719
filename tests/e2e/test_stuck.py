"""Real hangs are named, and what only takes its time is left alone."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import Fleet
from tests.e2e.test_fleet import workers
from tests.scaling import scaled
from tests.waiting import wait_until

VERDICTS = ("JobStuck", "JobDiagnosed")


@pytest.fixture
def stuck_fleet(fleet: Fleet) -> Iterator[Fleet]:
    """A fleet with actors that hang, and a port where nobody answers."""
    fleet.app = "tests.e2e.stuck_app"
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        fleet.env["SOCKET"] = str(server.getsockname()[1])
        yield fleet


def events(fleet: Fleet, *names: str) -> dict[str, dict[str, Any]]:
    """The last event of these names for each actor."""
    marks = ", ".join(f"'{name}'" for name in names)
    rows = fleet.sql(f"SELECT name, data FROM events WHERE name IN ({marks}) ORDER BY id")
    return {data["actor_name"]: data | {"name": name} for name, data in ((name, json.loads(data)) for name, data in rows)}


def statuses(fleet: Fleet) -> dict[str, str]:
    return dict(fleet.sql("SELECT actor_name, status FROM supervised_jobs"))


@pytest.mark.timeout(180)
def test_hangs_are_named(stuck_fleet: Fleet) -> None:
    fleet = stuck_fleet
    master = fleet.start(processes=1, threads=8)
    fleet.send("keep_lock.send()")
    wait_until(lambda: fleet.notes("start"), timeout_s=30)
    fleet.run("for actor in (spin, doze, fetch, want_lock, left, right): actor.send()")
    named = {"spin", "doze", "fetch", "keep_lock", "want_lock", "left", "right"}
    wait_until(lambda: events(fleet, "JobStuck").keys() >= named, timeout_s=60, interval_s=0.3)
    found = events(fleet, "JobStuck")
    texts = {name: each["diagnosis"] for name, each in found.items()}
    assert "spinning at spin (" in texts["spin"]
    assert found["spin"]["cause"] == "spinning"
    assert found["spin"]["evidence"]["cpu"]
    assert "blocked in doze (" in texts["doze"]
    assert texts["doze"].endswith("sleeps in time.sleep(3600)")
    assert "blocked in fetch (" in texts["fetch"]
    assert "waits for data from a socket in connection.recv(1024)" in texts["fetch"]
    holder = dict(fleet.sql("SELECT actor_name, job_id FROM supervised_jobs"))
    assert "blocked in want_lock (" in texts["want_lock"]
    assert f"waits for the lock LOCK, held by job {holder['keep_lock']} (" in texts["want_lock"]
    assert "in keep_lock (" in texts["want_lock"]
    for side in ("left", "right"):
        assert found[side]["cause"] == "deadlock", texts[side]
        assert holder["left"] in texts[side]
        assert holder["right"] in texts[side]
    assert all("stuck_app.py:" in text for text in texts.values())
    assert all(each["missed_heartbeats"] >= 3 and each["evidence"]["stack"] for each in found.values()), found
    wait_until(lambda: set(statuses(fleet).values()) == {"stalled"})
    assert min(missed for (missed,) in fleet.sql("SELECT missed_heartbeats FROM supervised_jobs")) >= 3
    master.kill()


@pytest.mark.timeout(120)
def test_the_gil_held_in_c(stuck_fleet: Fleet) -> None:
    fleet = stuck_fleet
    master = fleet.start(processes=1, threads=4)
    fleet.send("work.send(3600)")
    fleet.send("doze.send()")
    wait_until(lambda: len(fleet.notes("start")) == 2, timeout_s=30)
    fleet.send("hold_gil.send()")
    wait_until(lambda: events(fleet, "JobStuck").keys() >= {"hold_gil"}, timeout_s=40, interval_s=0.3)
    found = events(fleet, "JobStuck")["hold_gil"]
    assert found["cause"] == "gil"
    assert "the GIL is held in hold_gil (" in found["diagnosis"]
    assert "stuck_app.py:" in found["diagnosis"]
    assert "in match, for " in found["diagnosis"]
    assert found["evidence"]["stack"]
    jobs = dict(fleet.sql("SELECT actor_name, job_id FROM supervised_jobs"))
    # who has promised nothing is judged when its process counts as frozen
    wait_until(lambda: events(fleet, "JobDiagnosed").keys() >= {"work"}, timeout_s=40, interval_s=0.5)
    found = events(fleet, "JobDiagnosed")["work"]
    assert f"by job {jobs['hold_gil']}" in found["diagnosis"]
    assert statuses(fleet)["work"] == "running"
    assert statuses(fleet)["hold_gil"] == "stalled"
    assert "the GIL is held in hold_gil (" in master.log()
    assert workers(master)[0].is_running()
    for each in psutil.Process(master.pid).children():
        each.kill()


@pytest.mark.timeout(120)
def test_one_that_ignores_its_timeout(stuck_fleet: Fleet) -> None:
    stuck_fleet.start(processes=1, threads=2)
    stuck_fleet.send("deaf.send()")
    wait_until(lambda: "deaf" in events(stuck_fleet, "JobDiagnosed"), timeout_s=40, interval_s=0.3)
    found = events(stuck_fleet, "JobDiagnosed")["deaf"]
    assert found["diagnosis"].startswith("goes on after TimeoutExceeded: blocked in deaf (")
    assert found["cause"] == "blocked"
    assert statuses(stuck_fleet)["deaf"] == "running"


@pytest.mark.timeout(120)
def test_after_the_gil_was_held_the_others_move_again(stuck_fleet: Fleet) -> None:
    stuck_fleet.start(processes=1, threads=4)
    stuck_fleet.send("long_sleep.send(3600)")
    wait_until(lambda: stuck_fleet.statuses() == {"running": 1}, timeout_s=30)
    stuck_fleet.send("hold_gil_for.send(25)")
    wait_until(lambda: statuses(stuck_fleet)["long_sleep"] == "stalled", timeout_s=60)
    assert events(stuck_fleet, "JobStuck")["long_sleep"]["cause"] == "gil"
    wait_until(lambda: statuses(stuck_fleet) == {"long_sleep": "running", "hold_gil_for": "completed"}, timeout_s=60)
    wait_until(lambda: events(stuck_fleet, "JobRecovered"), timeout_s=10)
    names = [name for (name,) in stuck_fleet.sql("SELECT name FROM events WHERE name IN ('JobStuck', 'JobRecovered') ORDER BY id")]
    assert names[:2] == ["JobStuck", "JobRecovered"]  # on a machine that is busy enough it may be late once more


@pytest.mark.timeout(120)
def test_it_is_interrupted_where_that_was_asked_for(stuck_fleet: Fleet) -> None:
    stuck_fleet.start(processes=1, threads=2)
    stuck_fleet.send("stubborn.send()")
    stuck_fleet.wait_for(failed=1)
    errors = stuck_fleet.sql("SELECT outcome, exception FROM supervised_job_errors")
    assert errors == [("interrupted", "dramatiq_chaperone.errors.HeartbeatsMissed")] * 2


def how_late_it_is_told(fleet: Fleet, times: int) -> list[float]:
    """From the moment at which the third heartbeat is missed to the row in the store, in seconds, for so many jobs."""
    fleet.start(processes=1, threads=times)
    fleet.send("doze.send()", times)
    late: dict[str, float] = {}

    def seen() -> bool:
        for job_id, started in fleet.sql("SELECT job_id, started_at FROM supervised_jobs WHERE status = 'stalled'"):
            late.setdefault(job_id, time.time() - datetime.fromisoformat(started).timestamp() - 3)
        return len(late) == times

    wait_until(seen, timeout_s=60, interval_s=0.02)
    return list(late.values())


@pytest.mark.timeout(120)
def test_how_late_it_is_told(stuck_fleet: Fleet) -> None:
    late = how_late_it_is_told(stuck_fleet, 20)
    print(f"stuck -> recorded: median {statistics.median(late):.2f} s, worst {max(late):.2f} s")
    assert min(late) >= 0
    assert statistics.median(late) < 10


@pytest.mark.timeout(120)
def test_it_moves_again(stuck_fleet: Fleet) -> None:
    stuck_fleet.start(processes=1, threads=2)
    stuck_fleet.send("pause.send(6)")
    wait_until(lambda: statuses(stuck_fleet).get("pause") == "stalled", timeout_s=40)
    wait_until(lambda: statuses(stuck_fleet).get("pause") == "running", timeout_s=40)
    stuck_fleet.wait_for(completed=1)
    names = [name for (name,) in stuck_fleet.sql("SELECT name FROM events WHERE name IN ('JobStuck', 'JobRecovered') ORDER BY id")]
    assert names == ["JobStuck", "JobRecovered"]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_takes_its_time_is_left_alone(stuck_fleet: Fleet) -> None:
    """Ten jobs, with and without promises, in two processes; the promised intervals are shorter than the jobs by far."""
    seconds = scaled(600, at_least=15)
    stuck_fleet.env["BEAT"] = "3"
    stuck_fleet.start(processes=2, threads=5)
    stuck_fleet.run(f"for actor in HEALTHY: actor.send({seconds})")
    wait_until(lambda: len(stuck_fleet.notes("end")) == 10, timeout_s=seconds * 4 + 60, interval_s=0.5)
    stuck_fleet.wait_for(completed=10)
    assert events(stuck_fleet, *VERDICTS) == {}
    missed = stuck_fleet.sql("SELECT actor_name, missed_heartbeats FROM supervised_jobs WHERE missed_heartbeats > 0")
    assert missed == []


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_stopped_and_continued_under_load_nobody_is_killed_or_judged(make_fleet: Callable[..., Fleet], redis_url: str) -> None:
    """SIGSTOP and SIGCONT for 100 rounds, some longer than it takes to be suspected, while eight threads work."""
    rounds = scaled(100, at_least=4)
    fleet = make_fleet(redis_url)
    fleet.app = "tests.e2e.stuck_app"
    fleet.env["BEAT"] = "2"
    master = fleet.start(processes=2, threads=4)
    fleet.run("for number in range(30): busy.send(10000)\nfor number in range(10): long_sleep.send(10000)")
    wait_until(lambda: fleet.statuses()["running"] == 8, timeout_s=60)  # both are full
    pids = {each.pid for each in workers(master)}
    random.seed(7)
    for number in range(rounds):
        for each in workers(master):
            each.send_signal(signal.SIGSTOP)
        until = time.monotonic() + (random.uniform(3.5, 5.0) if number % 4 == 0 else random.uniform(0.1, 1.5))
        wait_until(lambda until=until: time.monotonic() > until, timeout_s=10)
        for each in workers(master):
            each.send_signal(signal.SIGCONT)
        until = time.monotonic() + random.uniform(0.1, 2.5)
        wait_until(lambda until=until: time.monotonic() > until, timeout_s=10)
    assert {each.pid for each in workers(master)} == pids
    assert events(fleet, *VERDICTS) == {}
    assert "the GIL is held" not in master.log(), "nobody was asked for its stacks"
    for each in psutil.Process(master.pid).children():
        each.kill()


class TestTheCommand:
    @pytest.fixture
    def chaperone(self, stuck_fleet: Fleet) -> Callable[..., subprocess.CompletedProcess[str]]:
        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [str(Path(sys.executable).with_name("chaperone")), "stuck", *arguments]
            return subprocess.run(
                command,
                env={**os.environ, **stuck_fleet.env},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        return run

    @staticmethod
    def on_a_terminal(fleet: Fleet, keys: bytes, *arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("chaperone")), *arguments]
        master, slave = pty.openpty()
        env = {**os.environ, **fleet.env, "COLUMNS": "200"}
        with subprocess.Popen(command, env=env, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            os.close(slave)
            os.write(master, keys)
            assert process.stdout is not None
            said = process.stdout.read().decode()
        os.close(master)
        return said

    @pytest.mark.timeout(180)
    @pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
    def test_requeue_runs_each_exactly_once_more(
        self, stuck_fleet: Fleet, chaperone: Callable[..., Any], broker: str, request: pytest.FixtureRequest
    ) -> None:
        fleet = stuck_fleet
        if broker == "rabbitmq":
            fleet.env["BROKER_URL"] = request.getfixturevalue("rabbitmq_url")
            fleet.env["QUEUE"] = request.getfixturevalue("rabbitmq_queue")()
        fleet.start(processes=1, threads=8)  # in one, for a message that is prefetched waits for the jobs there
        fleet.send("once.send()", 5)
        fleet.send("work.send()", 3)
        wait_until(lambda: fleet.statuses() == {"stalled": 5, "completed": 3}, timeout_s=60, interval_s=0.2, what=f"{fleet.statuses()}")
        listed = chaperone("--format", "json", "--fail")
        assert listed.returncode == 1
        jobs = json.loads(listed.stdout)["jobs"]
        assert [job["actor_name"] for job in jobs] == ["once"] * 5
        assert all("blocked in once (" in job["diagnosis"] for job in jobs)
        assert chaperone("--requeue").returncode == 2, "nobody is there to say yes"
        done = chaperone("--requeue", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("done") == 5
        fleet.wait_for(completed=8)
        ids = {job["job_id"] for job in jobs}
        assert {job: number for job, number in fleet.notes("start").items() if job in ids} == dict.fromkeys(ids, 2)
        assert {job: number for job, number in fleet.notes("end").items() if job in ids} == dict.fromkeys(ids, 1)
        assert {
            (attempt, retries) for attempt, retries in fleet.sql("SELECT attempt, retries FROM supervised_jobs WHERE actor_name = 'once'")
        } == {(2, 1)}
        assert {row[0] for row in fleet.sql("SELECT outcome FROM supervised_job_errors")} == {"interrupted"}
        assert fleet.sql("SELECT what, result, count(*) FROM audit_log GROUP BY what, result") == [("requeue stuck job", "done", 5)]
        assert not fleet.sql("SELECT 1 FROM dead_letter_jobs")
        none = chaperone("--fail")
        assert (none.returncode, none.stdout) == (0, "")
        assert "No job is stuck." in none.stderr

    @pytest.mark.timeout(120)
    @pytest.mark.parametrize("action", ["kill", "requeue"])
    def test_one_that_goes_on_all_the_same_is_not_called_done(self, stuck_fleet: Fleet, chaperone: Callable[..., Any], action: str) -> None:
        """It sleeps in one call into C, and nothing replaces its worker."""
        fleet = stuck_fleet
        fleet.start(processes=1, threads=4, CHAPERONE_KILL_GRACE="1")
        fleet.send("doze.send()")
        wait_until(lambda: fleet.statuses() == {"stalled": 1}, timeout_s=30)
        done = chaperone(f"--{action}", "--yes", "--format", "json")
        (job,) = json.loads(done.stdout)["jobs"]
        assert (done.returncode, job["answer"].partition(": none: ")[0]) == (1, "runs on"), job["answer"]
        assert fleet.sql("SELECT what, result FROM audit_log") == [(f"{action} stuck job", job["answer"])]

    @pytest.mark.timeout(120)
    def test_the_threshold_is_for_those_who_owe_heartbeats(self, stuck_fleet: Fleet, chaperone: Callable[..., Any]) -> None:
        fleet = stuck_fleet
        fleet.start(processes=1, threads=4, BEAT="3600")
        fleet.send("doze.send()")
        fleet.send("work.send(3600)")
        wait_until(lambda: fleet.statuses() == {"running": 2}, timeout_s=30)
        assert json.loads(chaperone("--format", "json").stdout)["jobs"] == []
        wait_until(lambda: json.loads(chaperone("--format", "json", "--threshold", "1").stdout)["jobs"], timeout_s=30)
        (job,) = json.loads(chaperone("--format", "json", "--threshold", "1").stdout)["jobs"]
        assert (job["actor_name"], job["status"]) == ("doze", "running")
        assert "that owes heartbeats" in chaperone("--threshold", "1000").stderr
        assert chaperone("--kill", "--requeue").returncode == 1

    @pytest.mark.timeout(120)
    def test_the_page_of_a_job_and_its_stack_tell_why(self, stuck_fleet: Fleet) -> None:
        fleet = stuck_fleet
        fleet.start(processes=1, threads=4)
        fleet.send("doze.send()")
        wait_until(lambda: fleet.statuses() == {"stalled": 1}, timeout_s=30)
        ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")

        def ask(*arguments: str) -> str:
            command = [str(Path(sys.executable).with_name("chaperone")), *arguments]
            return subprocess.run(command, env={**os.environ, **fleet.env}, capture_output=True, text=True, timeout=60, check=True).stdout

        page = ask("job", job_id)
        assert "Diagnosis, of " in page
        assert "blocked in doze (" in page
        assert "in doze: time.sleep(3600)" in page
        assert "stalled: it has missed" in page
        assert "JobStuck: blocked in doze (" in page
        assert "sleeps in time.sleep(3600)" in ask("stack", job_id)
        said = self.on_a_terminal(fleet, b"n\n", "stuck", "--requeue")
        assert "Stop, and run again, this job? [y/N]" in said
        assert "blocked in doze (" in said
        assert not fleet.sql("SELECT 1 FROM commands WHERE command = 'requeue'")
