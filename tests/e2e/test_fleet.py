"""The life of jobs in a real fleet: ``dramatiq`` with its processes, a real broker, a real store."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.e2e.conftest import Fleet
from tests.processes import WorkerProcess
from tests.waiting import wait_until


def workers(master: WorkerProcess) -> list[psutil.Process]:
    """The worker processes of a master: those that hold a journal with a worker's role."""
    return [child for child in master.children() if "resource_tracker" not in " ".join(child.cmdline())][: master.processes]


def watcher(fleet: Fleet, master: WorkerProcess) -> psutil.Process:
    """The fork that writes: the last child of the master."""
    master.wait_for_log("Fork process 'dramatiq_chaperone.runtime:watch' is ready")
    return master.children()[-1]


class TestRecords:
    def test_every_job_of_a_fleet_is_on_record(self, fleet_on_each_database: Fleet) -> None:
        fleet = fleet_on_each_database
        master = fleet.start()
        fleet.send("work.send(fail_first=number % 5 == 0)", 50)
        fleet.send("fail.send()", 5)
        fleet.wait_for(completed=50, failed=5)
        assert fleet.counter("chaperone_jobs_total") == {"completed": 50, "failed": 5}
        assert fleet.counter("chaperone_runs_total") == {"succeeded": 50, "failed": 15}
        attempts = dict(fleet.sql("SELECT job_id, attempt FROM supervised_jobs"))
        assert attempts == fleet.notes("start")
        errors = fleet.sql("SELECT outcome, exception, count(*) FROM supervised_job_errors GROUP BY outcome, exception ORDER BY exception")
        assert [tuple(row) for row in errors] == [("failed", "RuntimeError", 10), ("failed", "ValueError", 5)]
        assert len(fleet.sql("SELECT id FROM dead_letter_jobs WHERE reason = 'retries exhausted'")) == 5
        wait_until(lambda: len(fleet.sql("SELECT 1 FROM workers WHERE status = 'running' AND beat > 0 AND gauges IS NOT NULL")) == 2)
        assert not fleet.sql("SELECT labels, value FROM counters WHERE name = 'chaperone_unwritable_rows_total'")
        assert master.stop() == 0
        wait_until(lambda: {row[0] for row in fleet.sql("SELECT status FROM workers")} == {"stopped"})

    def test_on_rabbitmq(self, make_fleet: Callable[..., Fleet], rabbitmq_url: str, rabbitmq_queue: Callable[[], str]) -> None:
        fleet = make_fleet(rabbitmq_url, QUEUE=rabbitmq_queue())
        fleet.start()
        fleet.send("work.send(fail_first=number % 5 == 0)", 20)
        fleet.send("fail.send()", 2)
        fleet.wait_for(completed=20, failed=2)
        assert fleet.counter("chaperone_jobs_total") == {"completed": 20, "failed": 2}
        assert len(fleet.sql("SELECT id FROM dead_letter_jobs")) == 2

    def test_a_running_job_is_sampled_and_its_heartbeats_are_kept(self, fleet: Fleet, tmp_path: Path) -> None:
        fleet.start(processes=1)
        fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
        wait_until(
            lambda: fleet.sql(
                "SELECT 1 FROM supervised_jobs WHERE status = 'running' AND memory_usage > 1000000 AND memory_attribution = 'exact'"
                " AND last_heartbeat_at IS NOT NULL AND sampled_at IS NOT NULL"
            ),
            timeout_s=30,
        )
        kinds = Counter(row[0] for row in fleet.sql("SELECT kind FROM heartbeats"))
        assert kinds["manual"] >= 1
        assert kinds["sample"] >= 1
        (tmp_path / "go").touch()
        fleet.wait_for(completed=1)

    def test_the_cpu_of_a_job_is_its_own(self, fleet: Fleet) -> None:
        fleet.start(processes=1, threads=4)
        fleet.send("burn.send(1.5)")
        fleet.send("work.send(1.5)")
        fleet.wait_for(completed=2)
        used = dict(fleet.sql("SELECT actor_name, cpu_seconds FROM supervised_jobs"))
        assert float(used["burn"]) > 0.2  # it may have to share its core
        assert float(used["work"]) < float(used["burn"]) / 2


class TestTheWatcher:
    def test_workers_beside_a_watcher_load_no_database(self, fleet: Fleet) -> None:
        master = fleet.start(processes=1, threads=2)
        fleet.send("work.send()")
        fleet.wait_for(completed=1)
        watching = watcher(fleet, master)
        worker = workers(master)[0]
        assert worker.pid != watching.pid
        loaded = {Path(each.path).name.split(".")[0] for each in worker.memory_maps()}
        assert not any("sqlite" in name for name in loaded)
        assert any("sqlite" in Path(each.path).name for each in watching.memory_maps())

    def test_without_a_watcher_the_workers_write_themselves(self, fleet: Fleet) -> None:
        master = fleet.start(CHAPERONE_WATCHER="0")
        fleet.send("work.send()", 10)
        fleet.wait_for(completed=10)
        assert "Fork process" not in master.log()
        assert master.stop() == 0

    def test_a_watcher_that_the_master_did_not_wait_for_is_replaced_by_the_workers(self, fleet: Fleet) -> None:
        """Imports that take longer than --worker-fork-timeout: Dramatiq starts no fork then, and says nothing."""
        master = fleet.start("--worker-fork-timeout", "10", SLOW_IMPORT="2", WATCHER_GRACE="2")
        fleet.send("work.send()", 10)
        fleet.wait_for(completed=10)
        assert "The watcher has not come: the worker" in master.log()
        assert "Fork process" not in master.log()
        assert master.stop() == 0

    def test_a_killed_watcher_loses_and_doubles_nothing(self, fleet: Fleet) -> None:
        master = fleet.start()
        watching = watcher(fleet, master)
        fleet.send("work.send()", 2)
        fleet.wait_for(completed=2)
        fleet.send("work.send(0.02)", 50)
        watching.kill()
        fleet.send("work.send(0.02)", 48)
        fleet.wait_for(completed=100)
        assert "The watcher is gone: the worker" in master.log()
        assert fleet.counter("chaperone_runs_total") == {"succeeded": 100}
        assert master.stop() == 0

    def test_when_the_master_is_killed_the_workers_write_on(self, fleet: Fleet) -> None:
        master = fleet.start()
        watching, left = watcher(fleet, master), workers(master)
        fleet.send("work.send(0.01)", 20)
        fleet.wait_for(completed=20)
        master.kill()
        wait_until(
            lambda: not watching.is_running() or watching.status() == psutil.STATUS_ZOMBIE, timeout_s=20, what="the watcher to leave"
        )
        fleet.send("work.send(0.01)", 20)
        fleet.wait_for(completed=40)
        assert fleet.counter("chaperone_runs_total") == {"succeeded": 40}
        for worker in left:
            worker.terminate()

    def test_it_stays_until_its_siblings_have_ended(self, fleet: Fleet, tmp_path: Path) -> None:
        master = fleet.start(processes=1)
        watcher(fleet, master)
        fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
        fleet.wait_for(running=1)
        master.send_signal(signal.SIGTERM)
        master.wait_for_log("Stopping worker process...")
        (tmp_path / "go").touch()
        assert master.wait() == 0
        assert fleet.statuses() == {"completed": 1}
        assert {row[0] for row in fleet.sql("SELECT status FROM workers")} == {"stopped"}

    def test_a_reload_by_sighup(self, fleet: Fleet) -> None:
        master = fleet.start()
        fleet.send("work.send(0.02)", 50)
        master.send_signal(signal.SIGHUP)
        master.wait_ready(boots=2)
        fleet.send("work.send(0.02)", 50)
        fleet.wait_for(completed=100)
        assert fleet.counter("chaperone_runs_total") == {"succeeded": 100}
        wait_until(
            lambda: Counter(row[0] for row in fleet.sql("SELECT status FROM workers")) == {"stopped": 2, "running": 2},
            what="the first two workers to be stopped",
        )

    def test_two_masters_on_one_host(self, fleet: Fleet) -> None:
        masters = [fleet.start(processes=1) for _ in range(2)]
        fleet.send("work.send(0.01)", 60)
        fleet.wait_for(completed=60)
        assert fleet.counter("chaperone_jobs_total") == {"completed": 60}
        assert [master.stop() for master in masters] == [0, 0]
        assert os.listdir(next((fleet.state_dir / "journal").iterdir())) == []


class TestDeath:
    def test_what_was_in_flight_is_lost_and_what_was_acknowledged_is_recorded(self, fleet: Fleet, tmp_path: Path) -> None:
        fleet.env["HEARTBEAT_TIMEOUT"] = "2000"
        master = fleet.start(processes=1)
        watcher(fleet, master)
        fleet.send("work.send()", 20)
        fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
        fleet.wait_for(completed=20, running=1)
        workers(master)[0].kill()
        fleet.wait_for(completed=20, lost=1)
        (error,) = fleet.sql("SELECT outcome, worker_id FROM supervised_job_errors")
        assert error[0] == "lost"
        ((status,),) = fleet.sql("SELECT status FROM workers")
        assert status == "lost"
        names = Counter(row[0] for row in fleet.sql("SELECT name FROM events"))
        assert names["JobLost"] == names["WorkerCrashed"] == 1

        (tmp_path / "go").touch()
        fleet.start(processes=1)
        fleet.wait_for(completed=21)
        ((attempt,),) = fleet.sql("SELECT attempt FROM supervised_jobs WHERE actor_name = 'hold'")
        assert attempt == 2
