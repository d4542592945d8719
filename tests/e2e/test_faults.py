"""Faults are cases: what is lost, what is done twice?  Scaled down in ``make test``, at full size in ``make soak``."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import StartWorker
from tests.e2e.conftest import Fleet
from tests.processes import WorkerProcess
from tests.proxy import Proxy
from tests.scaling import scaled
from tests.servers import Postgres, RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.soak


def everything_ended(fleet: Fleet) -> bool:
    """Whether each job that the actors began has come to a final state."""
    open_jobs = fleet.sql("SELECT count(*) FROM supervised_jobs WHERE status NOT IN ('completed', 'failed')")
    return bool(open_jobs) and open_jobs[0][0] == 0


def agrees(fleet: Fleet, jobs: int) -> None:
    """The store agrees with what the actors wrote down themselves."""
    starts, ends = fleet.notes("start"), fleet.notes("end")
    attempts = {job: int(number) for job, number in fleet.sql("SELECT job_id, attempt FROM supervised_jobs")}
    assert len(attempts) == jobs
    assert set(ends) == set(attempts), "every job ran to its end"
    assert fleet.statuses() == {"completed": jobs}
    # A run is on record before its actor's first line, and its end after its last: a kill may fall between.
    for job, number in starts.items():
        assert attempts[job] >= number, job
    lost = fleet.sql("SELECT count(*) FROM supervised_job_errors WHERE outcome = 'lost'")[0][0]
    runs = fleet.counter("chaperone_runs_total")
    assert runs["succeeded"] <= sum(ends.values())
    assert sum(attempts.values()) == runs["succeeded"] + runs["failed"] + lost
    assert fleet.counter("chaperone_jobs_total") == {"completed": jobs}
    assert not fleet.sql("SELECT labels, value FROM counters WHERE name = 'chaperone_unwritable_rows_total'")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("watcher", ["1", "0"])
def test_kill_9_in_the_middle_of_1000_jobs(fleet: Fleet, watcher: str) -> None:
    """A worker is killed, its master stops the others (F: Dramatiq does), and a new master is started; again and again."""
    jobs, kills = scaled(1000, at_least=200), scaled(20, at_least=3)
    fleet.env.update(HEARTBEAT_TIMEOUT="1500", CHAPERONE_WATCHER=watcher)
    random.seed(4)
    fleet.send("work.send(0.02, fail_first=number % 10 == 0)", jobs)
    for _ in range(kills):
        master = fleet.start()
        before = sum(fleet.notes("start").values())
        enough = before + random.randint(1, max(2, jobs // (kills + 1)))
        wait_until(lambda enough=enough: sum(fleet.notes("start").values()) >= enough or len(fleet.notes("end")) == jobs, timeout_s=60)
        random.choice(master.children()[:2]).kill()
        master.wait(timeout_s=60)
    fleet.start()
    wait_until(lambda: len(fleet.notes("end")) == jobs and everything_ended(fleet), timeout_s=120, interval_s=0.5)
    agrees(fleet, jobs)


@pytest.mark.timeout(600)
def test_the_database_goes_away_for_a_minute(
    make_fleet: Callable[..., Fleet], redis_url: str, postgres: Postgres, proxy: Callable[[str, int], Proxy]
) -> None:
    jobs, seconds = scaled(10_000, at_least=500), scaled(60, at_least=5)
    with postgres.database() as url:
        parts = urlsplit(url)
        between = proxy(parts.hostname or "127.0.0.1", parts.port or 5432)
        away = parts._replace(netloc=f"{parts.username}:{parts.password or ''}@127.0.0.1:{between.port}").geturl()
        fleet = make_fleet(redis_url, away)
        direct = make_fleet(redis_url, url)
        master = fleet.start(threads=8)
        fleet.send("work.send()", 10)
        wait_until(lambda: direct.statuses() == {"completed": 10}, timeout_s=30)
        between.cut()
        until = time.monotonic() + seconds
        fleet.send("work.send(0.001, fail_first=number % 10 == 0)", jobs)
        wait_until(lambda: len(fleet.notes("end")) == jobs + 10, timeout_s=240, interval_s=0.2, what="the jobs, without a database")
        wait_until(lambda: time.monotonic() > until, timeout_s=seconds + 1)
        assert direct.statuses() == {"completed": 10}
        between.restore()
        wait_until(lambda: direct.statuses() == {"completed": jobs + 10}, timeout_s=120, interval_s=0.5)
        agrees(direct, jobs + 10)
        assert {row[0] for row in direct.sql("SELECT status FROM workers")} == {"running"}
        assert master.log().count("is away") == 1
        master.wait_for_log("is back")
        assert master.log().count("is back") == 1


@pytest.mark.timeout(300)
def test_redis_restarts(make_fleet: Callable[..., Fleet], redis_server: RedisServer) -> None:
    jobs = scaled(2000, at_least=100)
    fleet = make_fleet(redis_server.url, HEARTBEAT_TIMEOUT="2000")
    master = fleet.start()
    fleet.send("work.send(0.01)", jobs)
    wait_until(lambda: len(fleet.notes("end")) > jobs // 10)
    redis_server.restart()
    wait_until(lambda: len(fleet.notes("end")) > jobs // 2, timeout_s=60)
    # A message whose reply was lost belongs to a worker that never got it, until that worker ends: Dramatiq's way.
    master.stop()
    fleet.start()
    wait_until(lambda: len(fleet.notes("end")) == jobs and everything_ended(fleet), timeout_s=120, interval_s=0.5)
    agrees(fleet, jobs)


@pytest.mark.timeout(300)
def test_a_full_disk_stops_no_job(start_worker: StartWorker, make_fleet: Callable[..., Fleet], redis_url: str, small_disk: Path) -> None:
    """Journal and SQLite on a file system without room: jobs run, and what could be kept is written when there is room again."""
    jobs = scaled(2000, at_least=300)
    fleet = make_fleet(redis_url, CHAPERONE_STATE_DIR=str(small_disk / "state"))
    fleet.state_dir = small_disk / "state"
    fleet.database_url = f"sqlite:///{fleet.state_dir}/chaperone.sqlite3"
    master = fleet.start(processes=1)
    fleet.send("work.send()", 10)
    fleet.wait_for(completed=10)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    fleet.env["CHAPERONE_STATE_DIR"] = str(fleet.path / "elsewhere")  # the sender has room
    fleet.send("work.send(0.001, fail_first=number % 50 == 0)", jobs)
    wait_until(lambda: len(fleet.notes("end")) == jobs + 10, timeout_s=120, interval_s=0.2, what="the jobs, without a disk")
    filler.unlink()
    wait_until(lambda: fleet.statuses() == {"completed": jobs + 10}, timeout_s=60, interval_s=0.5, what=f"{fleet.statuses()}")
    assert master.is_running
    assert master.stop() == 0


@pytest.mark.timeout(300)
def test_the_clock_jumps_an_hour_forward_and_back(fleet: Fleet, tmp_path: Path) -> None:
    """In one of two workers, while it works: no state is taken back, nobody is called lost, no duration is an hour."""
    jobs = scaled(2000, at_least=150)
    clock = tmp_path / "clock"
    clock.write_text("0")
    fleet.start(processes=1)
    fleet.start(processes=1, CLOCK_FILE=str(clock))
    fleet.send("work.send(0.01, fail_first=number % 3 == 0)", jobs)
    for done, offset in ((0.2, 3600), (0.4, 0), (0.6, -3600), (0.8, 0)):
        wait_until(lambda done=done: len(fleet.notes("end")) > done * jobs, timeout_s=60)
        draft = clock.with_name("next")
        draft.write_text(str(offset))
        draft.rename(clock)
    wait_until(lambda: len(fleet.notes("end")) == jobs and everything_ended(fleet), timeout_s=60, interval_s=0.2)
    agrees(fleet, jobs)
    assert {row[0] for row in fleet.sql("SELECT status FROM workers")} == {"running"}
    assert fleet.sql("SELECT max(cpu_seconds) FROM supervised_jobs")[0][0] < 60


@pytest.mark.timeout(300)
def test_a_stopped_process_is_not_a_dead_one(fleet: Fleet) -> None:
    master = fleet.start(processes=2)
    fleet.send("work.send()", 20)
    fleet.wait_for(completed=20)
    frozen: psutil.Process = master.children()[0]
    frozen.send_signal(signal.SIGSTOP)
    try:
        fleet.send("work.send()", 1)
        wait_until(lambda: sum(fleet.statuses().values()) == 21)
        assert {row[0] for row in fleet.sql("SELECT status FROM workers")} == {"running"}
    finally:
        frozen.send_signal(signal.SIGCONT)
    fleet.wait_for(completed=21)


@pytest.mark.timeout(600)
def test_the_watcher_and_the_workers_are_killed_in_turn(fleet: Fleet) -> None:
    """The hand-over of a journal, at any moment and by kill -9 of either, loses and doubles nothing."""
    jobs, rounds = scaled(3000, at_least=150), scaled(15, at_least=3)
    fleet.env["HEARTBEAT_TIMEOUT"] = "1500"
    random.seed(9)
    fleet.send("work.send(0.01)", jobs)
    for number in range(rounds):
        master: WorkerProcess = fleet.start()
        master.wait_for_log("Fork process")
        before = sum(fleet.notes("start").values())
        wait_until(lambda before=before: sum(fleet.notes("start").values()) > before + 5 or len(fleet.notes("end")) == jobs, timeout_s=20)
        children = master.children()
        children[-1].kill()
        if number % 2:
            children[0].kill()
        else:
            master.send_signal(signal.SIGTERM)
        master.wait(timeout_s=60)
    fleet.start()
    wait_until(lambda: len(fleet.notes("end")) == jobs and everything_ended(fleet), timeout_s=120, interval_s=0.5)
    agrees(fleet, jobs)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 12 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", path], check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield path  # type: ignore[misc]  # pytest makes an iterator of it
    subprocess.run(["umount", "-l", path], check=True)
