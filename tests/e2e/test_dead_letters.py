"""Dead letters from the command line to the second run: real workers, real brokers, and processes that die in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import commands, deadletters, open_store, queries
from tests.e2e.conftest import Fleet
from tests.processes import ROOT, WorkerProcess
from tests.waiting import wait_until

CHAPERONE = Path(sys.executable).with_name("chaperone")


def chaperone(fleet: Fleet, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **fleet.env, **env}
    return subprocess.run([str(CHAPERONE), *arguments], env=environment, capture_output=True, text=True, timeout=90, check=False)


def read(fleet: Fleet, *arguments: str, **env: str) -> Any:
    done = chaperone(fleet, *arguments, "--format", "json", **env)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def workers(master: WorkerProcess) -> list[psutil.Process]:
    return [each for each in master.children() if "multiprocessing.resource_tracker" not in " ".join(each.cmdline())]


@pytest.fixture
def failed(fleet: Fleet, tmp_path: Path) -> str:
    """A worker, and the id of a job that failed for good in it; it would do well the next time."""
    fleet.start(processes=1)
    fleet.send(f"fail_unless.send({str(tmp_path / 'go')!r})")
    fleet.wait_for(failed=1)
    wait_until(lambda: fleet.sql("SELECT 1 FROM dead_letter_jobs"))
    (tmp_path / "go").touch()
    ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
    return str(job_id)


class TestFromTheCommandLine:
    def test_list_show_retry(self, fleet: Fleet, failed: str) -> None:
        (letter,) = read(fleet, "dead-letters")["dead_letters"]
        assert (letter["job_id"], letter["reason"], letter["exception"]) == (failed, "retries exhausted", "ValueError")
        shown = chaperone(fleet, "dead-letters", "show", failed[:8])
        assert "ValueError: there is no" in shown.stdout
        assert "Sent again" not in shown.stdout

        done = chaperone(fleet, "dead-letters", "retry", failed[:8])
        assert done.returncode == 0, done.stderr
        new_id = done.stdout.split()[-1]
        fleet.wait_for(failed=1, completed=1)
        assert fleet.notes("end") == {new_id: 1}
        ((retried_as, by),) = fleet.sql("SELECT retried_as, (SELECT who FROM audit_log) FROM dead_letter_jobs")
        assert retried_as == new_id != failed
        assert "@" in by
        ((initiator, old),) = fleet.sql(f"SELECT initiator_type, initiator_id FROM supervised_jobs WHERE job_id = '{new_id}'")
        assert (initiator, old) == ("retry", failed)
        assert f"as {new_id}, which is completed" in chaperone(fleet, "dead-letters", "show", failed).stdout

        again = chaperone(fleet, "dead-letters", "retry", failed)
        assert again.returncode == 1
        assert "retried already" in again.stderr
        assert fleet.notes("end") == {new_id: 1}

    def test_many_at_once(self, fleet: Fleet, tmp_path: Path) -> None:
        fleet.start(processes=2)
        fleet.send(f"fail_unless.send({str(tmp_path / 'go')!r})", 120)
        fleet.send("fail.send()", 3)
        fleet.wait_for(failed=123)
        wait_until(lambda: len(fleet.sql("SELECT 1 FROM dead_letter_jobs")) == 123)
        (tmp_path / "go").touch()
        assert chaperone(fleet, "dead-letters", "retry", "--all").returncode == 2, "nobody can be asked"
        told = read(fleet, "dead-letters", "retry", "--all", "--actor", "fail_unless", "--yes", "--limit", "110")["results"]
        assert len([each for each in told if each["retried_as"]]) == 110
        fleet.wait_for(failed=123, completed=110)
        assert len(fleet.sql("SELECT 1 FROM audit_log")) == 110
        assert len(read(fleet, "dead-letters", "list", "--waiting", "--limit", "100")["dead_letters"]) == 13

        assert chaperone(fleet, "dead-letters", "purge", "--all").returncode == 2, "as above"
        assert read(fleet, "dead-letters", "purge", "--all", "--retried", "--yes") == {"deleted": 110}
        assert read(fleet, "dead-letters", "purge", "--all", "--actor", "fail", "--yes") == {"deleted": 3}
        assert len(fleet.sql("SELECT 1 FROM dead_letter_jobs")) == 10
        assert fleet.sql("SELECT target, result FROM audit_log WHERE what = 'purge dead letters' ORDER BY id") == [
            ("retried True", "110 deleted"),
            ("actor fail", "3 deleted"),
        ]

    def test_while_no_worker_is_up_it_waits(self, fleet: Fleet, tmp_path: Path) -> None:
        master = fleet.start(processes=1)
        fleet.send(f"fail_unless.send({str(tmp_path / 'go')!r})")
        fleet.wait_for(failed=1)
        wait_until(lambda: fleet.sql("SELECT 1 FROM dead_letter_jobs"))
        assert master.stop() == 0
        (tmp_path / "go").touch()
        ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
        done = chaperone(fleet, "dead-letters", "retry", job_id, "--timeout", "1")
        assert done.returncode == 1
        assert "it waits for one, for up to an hour" in done.stderr
        fleet.start(processes=1)
        fleet.wait_for(failed=1, completed=1)

    def test_a_worker_that_has_not_the_actor_passes_it_on(self, fleet: Fleet) -> None:
        first = fleet.start(processes=1, MORE_ACTORS="1")
        fleet.send("fail.send()")
        fleet.wait_for(failed=1)
        wait_until(lambda: fleet.sql("SELECT 1 FROM dead_letter_jobs"))
        assert first.stop() == 0
        store = open_store(Settings.load({"database_url": fleet.database_url}, environ={}), create=False)
        store.execute("UPDATE {dead_letter_jobs} SET actor_name = 'newcomer'")
        store.close()
        fleet.start("--queues", "nothing", processes=1)  # else it would take the message too, and not know its actor
        ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
        asked = chaperone(fleet, "dead-letters", "retry", job_id, "--timeout", "6")
        assert asked.returncode == 1
        assert "1 passed it on: there is no actor newcomer here" in asked.stderr
        assert fleet.sql("SELECT retried_at FROM dead_letter_jobs") == [(None,)]
        fleet.start(processes=1, MORE_ACTORS="1")
        fleet.wait_for(failed=1, completed=1)

    def test_without_a_watcher(self, fleet: Fleet, tmp_path: Path) -> None:
        fleet.env["CHAPERONE_WATCHER"] = "0"
        fleet.start(processes=1)
        fleet.send(f"fail_unless.send({str(tmp_path / 'go')!r})")
        fleet.wait_for(failed=1)
        wait_until(lambda: fleet.sql("SELECT 1 FROM dead_letter_jobs"))
        (tmp_path / "go").touch()
        ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
        assert chaperone(fleet, "dead-letters", "retry", job_id).returncode == 0
        fleet.wait_for(failed=1, completed=1)

    def test_on_rabbitmq(
        self, make_fleet: Callable[..., Fleet], rabbitmq_url: str, rabbitmq_queue: Callable[[], str], tmp_path: Path
    ) -> None:
        fleet = make_fleet(rabbitmq_url, QUEUE=rabbitmq_queue())
        fleet.start(processes=1)
        fleet.send(f"fail_unless.send({str(tmp_path / 'go')!r})")
        fleet.wait_for(failed=1)
        wait_until(lambda: fleet.sql("SELECT 1 FROM dead_letter_jobs"))
        (tmp_path / "go").touch()
        ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
        done = chaperone(fleet, "dead-letters", "retry", job_id)
        assert done.returncode == 0, done.stderr
        fleet.wait_for(failed=1, completed=1)


class TestWhatOnlyTheBrokerKnows:
    def test_it_is_listed_as_such(self, fleet: Fleet, failed: str) -> None:
        store = open_store(Settings.load({"database_url": fleet.database_url}, environ={}), create=False)
        list(deadletters.purge(store, deadletters.Picked()))
        store.close()
        told = wait_until(lambda: read(fleet, "dead-letters")["broker"])
        assert [(each["queue"], each["dead"], each["unknown"], each["messages"]) for each in told] == [("default", 1, 1, None)]
        (asked,) = read(fleet, "dead-letters", "--broker", "tests.e2e.fleet_app:broker")["broker"]
        assert [(each["job_id"], each["actor"]) for each in asked["messages"]] == [(failed, "fail_unless")]
        assert failed in chaperone(fleet, "dead-letters", "--broker", "tests.e2e.fleet_app:broker").stdout


DIES = """
import os, signal
from dramatiq_chaperone.store import deadletters
claim = deadletters.claim
def dies(*arguments, **more):
    claim(*arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)
deadletters.claim = dies
from tests.e2e.fleet_app import *
"""


class TestDeathInBetween:
    def test_a_worker_that_dies_between_claim_and_send(
        self, fleet: Fleet, tmp_path: Path, start_worker: Callable[..., WorkerProcess]
    ) -> None:
        """At most once: it is not sent, what is on record says so, and a person may renew the claim."""
        first = fleet.start(processes=1)
        fleet.send(f"fail_unless.send({str(tmp_path / 'go')!r})")
        fleet.wait_for(failed=1)
        wait_until(lambda: fleet.sql("SELECT 1 FROM dead_letter_jobs"))
        assert first.stop() == 0
        (tmp_path / "go").touch()
        ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
        (tmp_path / "dying_app.py").write_text(DIES)
        env = {**fleet.env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        dying = start_worker("dying_app", processes=1, threads=2, env=env, cwd=tmp_path, ready=True)
        done = chaperone(fleet, "dead-letters", "retry", job_id, "--timeout", "5")
        assert done.returncode == 1
        wait_until(lambda: not dying.is_running)
        ((retried_as,),) = fleet.sql("SELECT retried_as FROM dead_letter_jobs")
        assert retried_as is not None
        assert not fleet.sql(f"SELECT 1 FROM supervised_jobs WHERE job_id = '{retried_as}'")

        fleet.start(processes=1)
        assert "not on record" in chaperone(fleet, "dead-letters", "show", job_id).stdout
        for more in ([], ["--again"]):  # the claim is younger than a minute
            refused = chaperone(fleet, "dead-letters", "retry", job_id, *more)
            assert refused.returncode == 1
            assert retried_as in refused.stderr
        assert not fleet.notes("end")
        store = open_store(Settings.load({"database_url": fleet.database_url}, environ={}), create=False)
        store.execute("UPDATE {dead_letter_jobs} SET retried_at = '2020-01-01 00:00:00.000000+00:00'")
        store.close()
        done = chaperone(fleet, "dead-letters", "retry", job_id, "--again")
        assert done.returncode == 0, done.stderr
        fleet.wait_for(failed=1, completed=1)

    def test_a_watcher_that_dies_with_the_command(self, fleet: Fleet, failed: str) -> None:
        """It has claimed the command, and no worker has it: two minutes later the monitor gives it to another."""
        store = open_store(Settings.load({"database_url": fleet.database_url}, environ={}), create=False)

        def claimed_by_one_that_died() -> str:
            arguments = {"dead_letters": [str(queries.dead_letters_like(store, failed)[0]["id"])]}
            asked = commands.issue(store, commands.FLEET, "retry", arguments, issued_by="test", seconds=600)
            store.execute("UPDATE {commands} SET claimed_at = '2020-01-01 00:00:00.000000+00:00' WHERE id = ?", (asked,))
            return asked

        try:
            asked = store.transact(claimed_by_one_that_died)
            wait_until(lambda: commands.answer(store, asked).outcome == "done", timeout_s=40)
        finally:
            store.close()
        fleet.wait_for(failed=1, completed=1)


REFUSED = """
from dramatiq_chaperone.errors import CommandRefused
from dramatiq_chaperone.models import DeadLetterJob
try:
    DeadLetterJob.all().get().retry()
except CommandRefused:
    note("refused")
"""


def test_the_models_ask_for_the_same(fleet: Fleet, failed: str) -> None:
    fleet.run("from dramatiq_chaperone.models import SupervisedJob\nSupervisedJob.get().retry(issued_by='ann')")
    fleet.wait_for(failed=1, completed=1)
    assert fleet.sql("SELECT who, what, target, origin FROM audit_log") == [("ann", "retry dead letter", failed, "models")]
    fleet.run(REFUSED)
    assert "refused" in fleet.ledger.read_text()


def test_a_crash_shows_its_suspects(fleet: Fleet, tmp_path: Path) -> None:
    fleet.env["HEARTBEAT_TIMEOUT"] = "60000"
    master = fleet.start(processes=1, threads=2)
    fleet.send(f"hold.send({str(tmp_path / 'never')!r})")
    fleet.wait_for(running=1)
    fleet.send(f"grow.send(200, {str(tmp_path / 'die')!r})")
    fleet.wait_for(running=2)
    wait_until(lambda: fleet.sql("SELECT 1 FROM supervised_jobs WHERE actor_name = 'grow' AND memory_peak > 200000000"), timeout_s=40)
    (tmp_path / "die").touch()
    fleet.wait_for(lost=2)
    wait_until(lambda: not master.is_running)
    ((worker_id, cause),) = fleet.sql("SELECT worker_id, exit_cause FROM workers WHERE status = 'lost'")
    assert cause in {"SIGKILL", "unknown"}, "the wait status is seen only while it is a zombie"
    told = read(fleet, "workers", worker_id)
    assert told["status"] == "lost"
    first, second = told["end"]["suspects"]
    assert (first["actor"], second["actor"]) == ("grow", "hold")
    assert any("memory grew by" in reason for reason in first["reasons"])
    page = chaperone(fleet, "workers", worker_id).stdout
    assert page.index("grow") < page.index("hold")
    ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs WHERE actor_name = 'grow'")
    assert "suspect 1 of 2: memory" in chaperone(fleet, "job", job_id).stdout
