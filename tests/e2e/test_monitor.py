"""The monitor in real processes: one of many acts, and one that was frozen does nothing when it wakes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import Store, leases, open_store, queries
from tests.contracts.conftest import Process, beat, booted, drop_tables, enqueued, started
from tests.e2e.conftest import Fleet
from tests.processes import ROOT
from tests.proxy import Proxy
from tests.scaling import scaled
from tests.servers import Postgres
from tests.waiting import wait_until

#: It sees a silent worker, and is stopped at the worst moment: PLACE is 'before' its transaction, or 'inside' it, after its check.
FROZEN = """
import os, signal, sys
from dramatiq_chaperone import monitor
from dramatiq_chaperone.errors import StoreError
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import leases, open_store

def freeze(function):
    def frozen(*arguments, **more):
        print("frozen", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        return function(*arguments, **more)
    return frozen

settings = Settings.load()
store = open_store(settings, create=False)
now = 0.0
it = monitor.Monitor(settings, "frozen", clock=lambda: now)
it._next_retention = float("inf")
if sys.argv[1] == "inside":
    monitor.worker_silent = freeze(monitor.worker_silent)
else:
    lose = monitor.Monitor._lose
    monitor.Monitor._lose = freeze(lose)
for now in range(40):
    try:
        it.turn(store)
    except StoreError as error:
        print("error", type(error).__name__, flush=True)
        break
print("done", flush=True)
store.close()
"""


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/chaperone.sqlite3"
        if request.param != "sqlite":
            url = stack.enter_context(request.getfixturevalue(request.param).database())
        yield Settings.load({"database_url": url, "auto_migrate": True}, environ={"HOME": str(tmp_path)})


def silent_worker(store: Store) -> None:
    """A worker of another host that runs a job."""
    Process(store, "far-1").writes(booted(), beat(1), enqueued(), started())


#: SQLite has one writer: nobody can act while the frozen one is in its transaction.
PLACES = [("sqlite", "before"), *((kind, place) for kind in ("postgres", "mysql") for place in ("before", "inside"))]


@pytest.mark.parametrize(("settings", "place"), PLACES, indirect=["settings"])
def test_a_holder_that_is_stopped_between_check_and_act_writes_nothing(settings: Settings, place: str, tmp_path: Path) -> None:
    store = open_store(settings, create=True)
    silent_worker(store)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAPERONE_DATABASE_URL": settings.database_url, "CHAPERONE_STATE_DIR": str(tmp_path)}
    frozen = subprocess.Popen([sys.executable, "-c", FROZEN, place], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == "frozen\n"
        wait_until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED)
        began = time.monotonic()
        wait_until(lambda: leases.acquire(store, "monitor", "successor", seconds=60), timeout_s=40, interval_s=0.5)
        took = time.monotonic() - began
        print(f"a successor had the lease after {took:.1f} s")
        assert took < 18, "15, and what a busy machine adds"
        frozen.send_signal(signal.SIGCONT)
        assert frozen.wait(timeout=30) == 0
        row = queries.worker_of(store, "far-1")
        assert row is not None
        assert row["status"] == "running"
        assert not queries.list_events(store)
    finally:
        frozen.kill()
        frozen.wait()
        frozen.stdout.close()  # type: ignore[union-attr]  # it is a pipe
        drop_tables(store)
        store.close()


def holder(fleet: Fleet) -> tuple[str, int]:
    """Who holds the lease: its name, and its pid."""
    found = fleet.sql("SELECT holder FROM leases WHERE name = 'monitor' AND holder IS NOT NULL")
    name = str(found[0][0]) if found else ""
    return name, int(name.split("-")[-2]) if name else 0


def test_a_killed_holder_has_a_successor_within_fifteen_seconds(fleet: Fleet) -> None:
    for _ in range(2):
        fleet.start(processes=1)
    name, pid = wait_until(lambda: holder(fleet) if holder(fleet)[1] else None, timeout_s=20)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    wait_until(lambda: holder(fleet)[0] not in {"", name}, timeout_s=40)
    took = time.monotonic() - began
    print(f"a successor had the lease after {took:.1f} s")
    assert took < 18, "15, and what a busy machine adds"


def test_a_silent_worker_is_lost_and_its_own_report_wins(fleet: Fleet, make_fleet: Callable[..., Fleet]) -> None:
    """The worker of another host is silent for six heartbeats; the partition heals; it was alive all the time."""
    fleet.start(processes=1, CHAPERONE_WORKER_HEARTBEAT="1")
    wait_until(lambda: fleet.sql("SELECT 1 FROM workers WHERE status = 'running' AND beat > 1"))
    store = open_store(Settings.load({"database_url": fleet.database_url}, environ={}), create=False)
    try:
        far = Process(store, "far-1")
        at = time.time()
        far.writes(booted(at), beat(1, at=at), enqueued(at=at), started(at=at))
        began = time.monotonic()
        fleet.wait_for(lost=1)
        took = time.monotonic() - began
        print(f"lost after {took:.1f} s of silence, with a heartbeat of 1 s")
        assert 5.9 < took < 12
        assert {row[0] for row in fleet.sql("SELECT status FROM workers")} == {"running", "lost"}, "the one of this host lives"
        far.writes(beat(2, at=time.time()))
        fleet.wait_for(running=1)
        assert {row[0] for row in fleet.sql("SELECT name FROM events")} >= {"WorkerLost", "JobLost", "WorkerReturned"}
    finally:
        store.close()


def passes(seconds: float) -> None:
    """That time itself is the condition here: how long nothing could be written."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, timeout_s=seconds + 1)


@pytest.mark.soak
@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_a_store_that_is_away_makes_nobody_lost(
    make_fleet: Callable[..., Fleet], redis_url: str, postgres: Postgres, proxy: Callable[[str, int], Proxy], how: str
) -> None:
    """Neither a server that is gone, nor one that hangs: the worker of the other host could not write either."""
    seconds = scaled(60, at_least=12)
    with postgres.database() as url:
        parts = urlsplit(url)
        between = proxy(parts.hostname or "127.0.0.1", parts.port or 5432)
        away = parts._replace(netloc=f"{parts.username}:{parts.password or ''}@127.0.0.1:{between.port}").geturl()
        fleet = make_fleet(redis_url, away, CHAPERONE_WORKER_HEARTBEAT="1")
        fleet.start(processes=1)
        direct = make_fleet(redis_url, url)
        wait_until(lambda: holder(direct)[1], timeout_s=20)
        store = open_store(Settings.load({"database_url": url}, environ={}), create=False)
        try:
            far = Process(store, "far-1")
            number = iter(range(2, 10_000))

            def beats(for_s: float) -> None:
                until = time.monotonic() + for_s
                while time.monotonic() < until:
                    far.writes(beat(next(number), at=time.time()))
                    passes(1)
                    assert direct.statuses() == {"running": 1}

            far.writes(booted(time.time()), beat(1, at=time.time()), enqueued(at=time.time()), started(at=time.time()))
            beats(8)
            getattr(between, how)()
            passes(seconds)
            between.restore() if how == "cut" else between.thaw()
            passes(3)  # a writer tries again after 5 s at most
            beats(8)
            assert not [row for row in direct.sql("SELECT name FROM events") if row[0] == "WorkerLost"]
            direct.wait_for(lost=1)  # and now it is silent indeed
        finally:
            store.close()


ELSEWHERE = """
from dramatiq_chaperone import host
host.host_identity = lambda: "another host"
"""


def test_a_partition(make_fleet: Callable[..., Fleet], redis_url: str, postgres: Postgres, tmp_path: Path) -> None:
    """A real worker of what looks like another host is cut off with its watcher, is called lost, and finishes what it runs."""
    (tmp_path / "sitecustomize.py").write_text(ELSEWHERE)
    with postgres.database() as url:
        fleet = make_fleet(redis_url, url, CHAPERONE_WORKER_HEARTBEAT="1", HEARTBEAT_TIMEOUT="600000")
        fleet.start("--queues", "nothing", processes=1)
        wait_until(lambda: holder(fleet)[1], timeout_s=20)
        elsewhere = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "CHAPERONE_STATE_DIR": str(tmp_path / "elsewhere")}
        far = fleet.start(processes=1, **elsewhere)
        fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
        fleet.wait_for(running=1)
        ((worker_id,),) = fleet.sql("SELECT worker_id FROM workers WHERE host_identity = 'another host'")
        cut_off = [*far.children(), psutil.Process(far.pid)]
        for each in cut_off:
            each.suspend()
        fleet.wait_for(lost=1)
        assert {row[0] for row in fleet.sql(f"SELECT name FROM events WHERE worker_id = '{worker_id}'")} >= {"WorkerLost", "JobLost"}
        for each in cut_off:
            each.resume()
        fleet.wait_for(running=1)
        ((status, cause),) = fleet.sql(f"SELECT status, exit_cause FROM workers WHERE worker_id = '{worker_id}'")
        assert (status, cause) == ("running", None)
        (tmp_path / "go").touch()
        fleet.wait_for(completed=1)
        assert list(fleet.notes("start").values()) == [1]
        ((crashes, errors),) = fleet.sql("SELECT crashes, (SELECT count(*) FROM supervised_job_errors) FROM supervised_jobs")
        assert (crashes, errors) == (0, 0)
