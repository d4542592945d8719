"""Jobs that wait for disk space or for a service, in real workers: none is lost, none runs twice, whenever a worker dies."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dramatiq_chaperone.circuits import Policy, order
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.store.breakers import alter
from tests.conftest import StartProcess
from tests.e2e.conftest import Fleet
from tests.e2e.test_fleet import workers
from tests.processes import ROOT, WorkerProcess
from tests.scaling import scaled
from tests.waiting import wait_until

JOBS = 8


class Deferral:
    """A fleet whose disk has as much space as the test says; its jobs need 100 MB.

    Attributes:
      send: what makes a job that waits.
    """

    send = "work.send()"

    def __init__(self, fleet: Fleet, path: Path, make_queue: Callable[[], str]) -> None:
        self.fleet = fleet
        self._disk, self._death = path / "disk", path / "death"
        fleet.app = "tests.e2e.deferral_app"
        fleet.env |= {"DISK": str(self._disk), "DEATH": str(self._death), "QUEUE": make_queue()}
        self.free(1000)
        self._set_up(make_queue)

    def _set_up(self, make_queue: Callable[[], str]) -> None:
        self.fleet.env["CHAPERONE_DISK_SPACE_THRESHOLD"] = "100"
        self.begin()

    def free(self, megabytes: int) -> None:
        fresh = self._disk.with_suffix(".new")
        fresh.write_text(str(megabytes))
        fresh.replace(self._disk)

    def begin(self) -> None:
        """From now on jobs wait."""
        self.free(10)

    def end(self) -> None:
        """They need not wait any more."""
        self.free(1000)

    def start(self, **env: str) -> WorkerProcess:
        """A worker that knows whether jobs wait."""
        return self.fleet.start(processes=1, threads=2, **env)

    def wait(self) -> None:
        """Until all jobs do, and none has run."""
        wait_until(lambda: waits(self.fleet) == JOBS, timeout_s=40, what="all to wait")
        assert self.fleet.notes() == {}

    def has_died(self) -> bool:
        return self._death.exists()

    def events(self, name: str) -> list[Any]:
        return [json.loads(data) for (data,) in self.fleet.sql(f"SELECT data FROM events WHERE name = '{name}'")]

    def left(self) -> int:
        """What lies in the queues, delayed or not, and in no worker's hands but for its delay."""
        return int(self.fleet.run(_LEFT).stdout)

    def check_that_each_ran_once(self) -> None:
        """And nothing is left, and no retry was used."""
        self.fleet.wait_for(completed=JOBS)
        assert set(self.fleet.notes("start").values()) == {1}, self.fleet.notes("start")
        # Whatever copy is left comes due within seconds; by then it has been dropped.
        wait_until(lambda: self.left() == 0, timeout_s=30, interval_s=0.5, what="the broker to be empty")
        assert set(self.fleet.notes("end").values()) == {1}
        assert len(self.fleet.notes("end")) == JOBS
        assert self.fleet.sql("SELECT max(retries), max(attempt) FROM supervised_jobs") == [(0, 1)]
        assert self.events("JobRanTwice") == []


class Refusal(Deferral):
    """The breaker that the jobs need lets none through; other actors of their queue need none."""

    send = "buy.send()"

    def _set_up(self, make_queue: Callable[[], str]) -> None:
        self.fleet.env["SHOP_QUEUE"] = self._shop_queue(make_queue)
        self.begin()

    def _shop_queue(self, make_queue: Callable[[], str]) -> str:
        return self.fleet.env["QUEUE"]

    def _order(self, what: str) -> None:
        settings = Settings.load(environ=self.fleet.env)
        with contextlib.closing(open_store(settings, create=True)) as store:
            alter(store, "shop", lambda circuit, now: order(circuit, Policy(timeout=600), what, now))

    def begin(self) -> None:
        self._order("force_open")

    def end(self) -> None:
        self._order("auto")

    def start(self, **env: str) -> WorkerProcess:
        master = super().start(**env)
        if self._is_refusing():
            master.wait_for_log("the shop is known to be closed")
        return master

    def _is_refusing(self) -> bool:
        return self.fleet.sql("SELECT 1 FROM circuit_breakers WHERE mode = 'forced_open' OR state = 'open'") != []


class Pause(Refusal):
    """All actors of the jobs' queue need the breaker: it is paused."""

    def _shop_queue(self, make_queue: Callable[[], str]) -> str:
        return make_queue()

    def begin(self) -> None:
        self._order("open")

    def end(self) -> None:
        self._order("half_open")

    def wait(self) -> None:
        wait_until(lambda: self.left() == JOBS, timeout_s=40, interval_s=0.5, what="all to lie in their queue")
        assert self.fleet.notes() == {}
        assert waits(self.fleet) == 0


Make = Callable[[type[Deferral]], Deferral]


@pytest.fixture(params=["redis", "rabbitmq"])
def make_deferral(request: pytest.FixtureRequest, make_fleet: Callable[..., Fleet], tmp_path: Path) -> Make:
    """On a broker of each kind."""

    def make(kind: type[Deferral]) -> Deferral:
        if request.param == "redis":
            fleet = make_fleet(request.getfixturevalue("redis_url"), HEARTBEAT_TIMEOUT="2000")
            return kind(fleet, tmp_path, iter(("default", "shop")).__next__)
        return kind(make_fleet(request.getfixturevalue("rabbitmq_url")), tmp_path, request.getfixturevalue("rabbitmq_queue"))

    return make


@pytest.fixture
def deferral(make_deferral: Make) -> Deferral:
    """Jobs that wait for disk space."""
    return make_deferral(Deferral)


def waits(fleet: Fleet) -> int:
    """Jobs that were put off so far."""
    return len(fleet.sql("SELECT DISTINCT job_id FROM events WHERE name = 'JobDeferred'"))


def chaperone(fleet: Fleet, *arguments: str) -> str:
    """What the command prints."""
    command = [str(Path(sys.executable).with_name("chaperone")), *arguments]
    done = subprocess.run(command, env={**os.environ, **fleet.env}, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_jobs_wait_for_space_and_use_no_retry(deferral: Deferral) -> None:
    fleet = deferral.fleet
    master = deferral.start()
    fleet.send("work.send(fail_first=number == 0)", JOBS)
    wait_until(lambda: waits(fleet) == JOBS, timeout_s=30, what="all to wait")
    fleet.wait_for(pending=JOBS)
    assert fleet.notes() == {}
    (row,) = fleet.sql("SELECT min(eta - created_at) >= 0, max(attempt), max(retries), min(deliveries) FROM supervised_jobs")
    assert tuple(row)[1:3] == (0, 0)
    assert int(row[3]) >= 1
    assert {event["reason"] for event in deferral.events("JobDeferred")} == {"less than 100 MB are free on /data"}
    assert [event["threshold"] for event in deferral.events("DiskSpaceLow")] == [100]
    status = chaperone(fleet, "status")
    assert f"{JOBS}  less than 100 MB are free on /data" in status
    ((job_id, *_),) = fleet.sql("SELECT job_id FROM supervised_jobs LIMIT 1")
    assert "put off: less than 100 MB are free on /data" in chaperone(fleet, "job", job_id)
    deferral.free(1000)
    fleet.wait_for(completed=JOBS)
    assert fleet.sql("SELECT max(retries), sum(attempt) FROM supervised_jobs") == [(1, JOBS + 1)]
    assert set(fleet.notes("end").values()) == {1}
    assert len(fleet.notes("end")) == JOBS
    wait_until(lambda: len(deferral.events("DiskSpaceRecovered")) == 1)
    assert master.stop() == 0


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        *((kind, step) for kind in (Deferral, Refusal) for step in ("before", "after", "acked")),
        *((Pause, step) for step in ("taken", "given", "fetched", "returned", "looked")),
    ],
)
def test_a_worker_that_is_killed_on_the_way_loses_nothing_and_nothing_runs_twice(
    make_deferral: Make, kind: type[Deferral], step: str
) -> None:
    deferral = make_deferral(kind)
    deferral.start()  # it makes the store, and stays
    first = deferral.start(DIE=step)
    deferral.fleet.send(deferral.send, JOBS)
    wait_until(deferral.has_died, timeout_s=40, what="the death")
    first.wait()
    deferral.wait()
    deferral.end()
    deferral.check_that_each_ran_once()


@pytest.mark.parametrize("step", ["resume", "resumed"])
def test_a_worker_that_is_killed_when_its_queue_is_resumed(make_deferral: Make, step: str) -> None:
    pause = make_deferral(Pause)
    masters = [pause.start(DIE=step) for _ in range(2)]
    pause.fleet.send(pause.send, JOBS)
    for master in masters:
        master.wait_for_log("reached: returned")
    pause.wait()
    pause.end()
    wait_until(pause.has_died, timeout_s=40, what="the death")
    pause.check_that_each_ran_once()


@pytest.mark.parametrize("kind", [Deferral, Refusal, Pause])
def test_a_worker_that_is_stopped_leaves_what_waits_to_the_next(make_deferral: Make, kind: type[Deferral]) -> None:
    deferral = make_deferral(kind)
    master = deferral.start()
    deferral.fleet.send(deferral.send, JOBS)
    master.wait_for_log("reached: returned" if kind is Pause else "reached: acked")
    deferral.wait()
    assert master.stop() == 0
    wait_until(lambda: deferral.left() == JOBS, what="all to lie in their queue")
    assert deferral.fleet.notes() == {}
    deferral.end()
    deferral.start()
    deferral.check_that_each_ran_once()


@pytest.mark.soak
@pytest.mark.parametrize("kind", [Deferral, Refusal, Pause])
def test_under_random_kills_nothing_is_lost(make_deferral: Make, kind: type[Deferral]) -> None:
    """Space, or the service, comes and goes, and now and then one of two workers is killed, wherever it is."""
    deferral = make_deferral(kind)
    fleet, dice = deferral.fleet, random.Random(7)
    masters = [deferral.start() for _ in range(2)]
    rounds, jobs = scaled(60, at_least=4), scaled(1200, at_least=80)
    code = f"import time\nfor _ in range({jobs}): {deferral.send}; time.sleep({rounds / jobs})"
    sender = threading.Thread(target=lambda: fleet.run(code))
    sender.start()
    kills = 0
    for number in range(rounds):
        (deferral.begin if number % 2 else deferral.end)()
        until = time.monotonic() + 1.0
        wait_until(lambda until=until: time.monotonic() > until)  # type: ignore[misc]
        if dice.random() < 0.4:
            os.kill(workers(masters.pop(0))[0].pid, signal.SIGKILL)
            kills += 1
            masters.append(deferral.start())
    sender.join()
    deferral.end()
    wait_until(lambda: len(fleet.notes("end")) == jobs, timeout_s=120, what="every job to run")
    wait_until(lambda: deferral.left() == 0, timeout_s=60, interval_s=0.5, what="the broker to be empty")
    again = sum(number - 1 for number in fleet.notes("start").values())
    print(f"\n{jobs} jobs, {kills} kills, {waits(fleet)} jobs waited, {again} ran again")
    assert again <= 2 * kills, "only what ran when its worker was killed, or was about to be acknowledged"


_LEFT = """
from dramatiq_chaperone.brokers import inspector_of
print(sum(reading.ready + reading.delayed for reading in inspector_of(broker).readings()))
"""


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("reason", ["disk", "breaker", "queue"])
def test_the_gauges_of_dramatiqs_prometheus_middleware_come_back_to_nothing(
    start_process: StartProcess, tmp_path: Path, request: pytest.FixtureRequest, broker: str, reason: str
) -> None:
    env = {"CHAPERONE_STATE_DIR": str(tmp_path / "state"), "dramatiq_prom_db": str(tmp_path / "prom")}
    queue = request.getfixturevalue("rabbitmq_queue")() if broker == "rabbitmq" else "default"
    url = request.getfixturevalue(f"{broker}_url")
    process = start_process(sys.executable, "-m", "tests.e2e.gauges_app", reason, url, queue, env=env, cwd=ROOT)
    assert process.wait(timeout_s=60) == 0, process.tail()
    said = ["Less than 100 MB are free on /data (10 MB): jobs wait until there is more."] if reason == "disk" else []
    assert process.log().splitlines() == [*said, *_COUNTED]


_COUNTED = ["while they wait: 0 ran", "in progress: 0", "delayed: 0", "failed: 0", "ran or skipped: 5"]


def test_a_threshold_that_no_disk_meets(fleet: Fleet) -> None:
    """The real disk: more than there is has to be free, and then not any more."""
    fleet.env.pop("DISK", None)

    def start(threshold: str) -> WorkerProcess:
        env = {**fleet.env, "CHAPERONE_DISK_SPACE_THRESHOLD": threshold}
        return fleet._start_worker("tests.e2e.deferral_app", processes=1, threads=2, env=env, cwd=ROOT)

    master = start("1000000000000")
    fleet.send("work.send()", JOBS)
    wait_until(lambda: waits(fleet) == JOBS, timeout_s=30, what="all to wait")
    master.stop()
    assert "jobs wait until there is more" in master.log()
    assert fleet.notes() == {}
    start("1")
    fleet.wait_for(completed=JOBS)
    assert set(fleet.notes("start").values()) == {1}
