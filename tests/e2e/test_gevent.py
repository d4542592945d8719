"""``dramatiq-gevent``: each process is one thread with many greenlets."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import StartProcess
from tests.e2e.conftest import APP, Fleet
from tests.e2e.test_kill import kill, running
from tests.processes import ROOT, Process, WorkerProcess
from tests.waiting import wait_until

pytest.importorskip("gevent")

SCRIPT = Path(sys.executable).parent / "dramatiq-gevent"
WATCHING = "Fork process 'dramatiq_chaperone.runtime:watch' is ready"

Start = Callable[..., Process]


@pytest.fixture
def start(fleet: Fleet, start_process: StartProcess) -> Start:
    """Starts ``dramatiq-gevent`` with one process of eight greenlets, and waits until it is ready."""

    def begin(**env: str) -> Process:
        # gevent itself warns of what it patches; that is not ours to judge.
        process = start_process(
            sys.executable, SCRIPT, APP, "-p", "1", "-t", "8", env={**fleet.env, "PYTHONWARNINGS": "default", **env}, cwd=ROOT
        )
        process.wait_for_log(WorkerProcess.READY)
        return process

    return begin


@pytest.fixture(params=["1", "0"], ids=["watcher", "no watcher"])
def watcher(request: pytest.FixtureRequest) -> str:
    """CHAPERONE_WATCHER."""
    return str(request.param)


def test_the_life_of_jobs_is_on_record(fleet: Fleet, start: Start, watcher: str) -> None:
    master = start(CHAPERONE_WATCHER=watcher)
    if watcher == "1":
        master.wait_for_log(WATCHING)
    fleet.send("work.send(0.05, fail_first=number % 5 == 0)", 40)
    fleet.send("fail.send()", 2)
    fleet.wait_for(completed=40, failed=2)
    assert fleet.counter("chaperone_runs_total") == {"succeeded": 40, "failed": 10}
    assert dict(fleet.sql("SELECT job_id, attempt FROM supervised_jobs")) == fleet.notes("start")
    assert master.stop() == 0
    wait_until(lambda: [row[0] for row in fleet.sql("SELECT status FROM workers")] == ["stopped"])
    assert "Internal error" not in master.log()


def test_greenlets_run_side_by_side_and_are_watched(fleet: Fleet, start: Start, watcher: str, tmp_path: Path) -> None:
    master = start(CHAPERONE_WATCHER=watcher)
    going = tmp_path / "going"
    fleet.send(f"hold.send({str(going)!r})", 5)
    fleet.wait_for(running=5)
    sampled = (
        "SELECT 1 FROM supervised_jobs WHERE sampled_at IS NOT NULL AND memory_attribution = 'shared' AND last_heartbeat_at IS NOT NULL"
    )
    wait_until(lambda: len(fleet.sql(sampled)) == 5, timeout_s=20, what="samples and heartbeats of all five")
    beats = "SELECT beat FROM workers WHERE status = 'running'"
    ((before,),) = fleet.sql(beats)
    wait_until(lambda: fleet.sql(beats)[0][0] > before, timeout_s=20, what="the worker's next beat")
    going.touch()
    fleet.wait_for(completed=5)
    assert master.stop() == 0


def test_the_cpu_of_a_job_is_that_of_its_process(fleet: Fleet, start: Start, tmp_path: Path) -> None:
    """A job that only waits while its neighbour works is not charged as if it were its own thread's time."""
    master = start()
    going = tmp_path / "going"
    fleet.send("burn.send(1.5)")
    fleet.wait_for(completed=1)
    fleet.send(f"hold.send({str(going)!r})")
    wait_until(lambda: fleet.sql("SELECT 1 FROM supervised_jobs WHERE actor_name = 'hold' AND sampled_at IS NOT NULL"), timeout_s=20)
    ((seconds,),) = fleet.sql("SELECT cpu_seconds FROM supervised_jobs WHERE actor_name = 'hold'")
    assert float(seconds) < 1.0, "what the process used before this job began is counted"
    going.touch()
    fleet.wait_for(completed=2)
    assert master.stop() == 0
    assert fleet.sql("SELECT cpu_seconds FROM supervised_jobs WHERE actor_name = 'burn' AND cpu_seconds < 0.1") == []


def test_gevents_own_time_limit_interrupts(fleet: Fleet, start: Start, tmp_path: Path, watcher: str) -> None:
    master = start(CHAPERONE_WATCHER=watcher)
    fleet.send(f"hold.send_with_options(args=({str(tmp_path / 'never')!r},), time_limit=300)")
    fleet.wait_for(failed=1)
    assert fleet.sql("SELECT outcome, exception FROM supervised_job_errors") == [
        ("interrupted", "dramatiq.middleware.time_limit.TimeLimitExceeded")
    ]
    fleet.send("work.send(0.01)", 20)
    fleet.wait_for(failed=1, completed=20)
    assert master.stop() == 0


def test_a_killed_process_leaves_its_jobs_lost(fleet: Fleet, start: Start, tmp_path: Path) -> None:
    master = start()
    master.wait_for_log(WATCHING)
    fleet.send("work.send()", 10)
    fleet.send(f"hold.send({str(tmp_path / 'never')!r})", 3)
    fleet.wait_for(completed=10, running=3)
    ((pid,),) = fleet.sql("SELECT pid FROM workers")
    next(child for child in master.children() if child.pid == pid).send_signal(signal.SIGKILL)
    fleet.wait_for(completed=10, lost=3)


def test_a_job_that_waits_can_be_killed(fleet: Fleet, start: Start, tmp_path: Path, watcher: str) -> None:
    """Greenlets get the interrupt where they wait; one that never waits lets nobody else run, Chaperone included."""
    master = start(CHAPERONE_WATCHER=watcher)
    fleet.send("work.send(600)")
    fleet.send(f"hold.send({str(tmp_path / 'never')!r})")
    sleeping, reporting = running(fleet, "work"), running(fleet, "hold")
    wait_until(lambda: fleet.sql("SELECT 1 FROM heartbeats WHERE kind = 'manual'"), timeout_s=20)
    code, jobs, err = kill(fleet, sleeping, reporting, "--reason", "wrong file")
    assert (code, err) == (0, "")
    assert [(job["outcome"], job["detail"]) for job in jobs] == [("cancelled", "interrupted"), ("cancelled", "told in a heartbeat")]
    assert fleet.notes("start") == {sleeping: 1, reporting: 1}
    fleet.send("work.send()", 20)
    fleet.wait_for(completed=20, cancelled=2)
    assert "Failed to set exception" not in master.log()
    assert "Internal error" not in master.log()


def test_an_isolated_actor_is_refused_at_the_boot(fleet: Fleet, start_process: StartProcess) -> None:
    process = start_process(
        sys.executable, SCRIPT, "tests.e2e.isolated_app", "-p", "1", "-t", "8", env={**fleet.env, "PYTHONWARNINGS": "default"}, cwd=ROOT
    )
    assert process.wait() != 0
    assert "SettingsError: The actor add cannot be isolated: gevent cannot be forked; give it a worker without gevent." in process.log()
