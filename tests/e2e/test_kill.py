"""``chaperone kill``, with real workers: what it ends, how, and that what it ended never runs again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.e2e.conftest import Fleet
from tests.waiting import wait_until

COMMAND = Path(sys.executable).with_name("chaperone")
#: So short that a test does not take long, so long that the interrupt of Python code comes first.
GRACE = {"CHAPERONE_KILL_GRACE": "1"}
REPLACEABLE = {**GRACE, "CHAPERONE_REPLACEABLE": "1"}


def kill(fleet: Fleet, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """``chaperone kill``: its exit code, what became of each job, standard error."""
    command = [str(COMMAND), "kill", *arguments, "--format", "json"]
    done = subprocess.run(command, env={**os.environ, **fleet.env}, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout)["jobs"] if done.stdout else [], done.stderr


def running(fleet: Fleet, actor: str) -> str:
    """The id of the one running job of *actor*, waited for."""
    text = f"SELECT job_id FROM supervised_jobs WHERE actor_name = '{actor}' AND status = 'running'"
    ((job_id,),) = wait_until(lambda: fleet.sql(text), timeout_s=30, interval_s=0.05, what=f"{actor} to run")
    return str(job_id)


def events(fleet: Fleet, job_id: str) -> dict[str, Any]:
    rows = fleet.sql(f"SELECT name, data FROM events WHERE job_id = '{job_id}' ORDER BY created_at, id")
    return {name: json.loads(data) if isinstance(data, str) else data for name, data in rows}


def is_over(fleet: Fleet, job_id: str, *, means: str) -> None:
    """It is cancelled, once, and says why."""
    (row,) = fleet.sql(f"SELECT status, attempt, failed_at IS NOT NULL FROM supervised_jobs WHERE job_id = '{job_id}'")
    assert row[:2] == ("cancelled", 1)
    assert row[2]
    told = events(fleet, job_id)
    assert told["JobKilled"]["means"] == means
    assert told["JobCancelled"]["reason"] == "wrong file"
    assert fleet.sql(f"SELECT reason FROM dead_letter_jobs WHERE job_id = '{job_id}'") == [("cancelled",)]
    assert [row[0] for row in fleet.sql("SELECT outcome FROM supervised_job_errors")] == ["killed"]
    assert fleet.notes("start")[job_id] == 1
    assert fleet.notes("end")[job_id] == 0
    wait_until(lambda: fleet.counter("chaperone_jobs_total")["cancelled"] == 1)
    assert fleet.counter("chaperone_runs_total")["killed"] == 1


def test_python_code_is_interrupted(fleet: Fleet) -> None:
    master = fleet.start(processes=2, **GRACE)
    fleet.send("burn.send(600)")
    job_id = running(fleet, "burn")
    code, jobs, _ = kill(fleet, job_id[:12], "--reason", "wrong file", "--yes")
    assert (code, jobs[0]["outcome"], jobs[0]["detail"]) == (0, "cancelled", "interrupted")
    is_over(fleet, job_id, means="interrupt")
    ((who, what, target, origin, result),) = fleet.sql("SELECT who, what, target, origin, result FROM audit_log")
    assert "@" in who
    assert (what, target, origin, result) == ("kill", job_id, "cli", "cancelled: interrupted")
    fleet.send("work.send()", 8)
    wait_until(lambda: fleet.statuses()["completed"] == 8, timeout_s=30, what="all threads to work on")
    assert len(master.children()) >= 2
    code, jobs, _ = kill(fleet, job_id)
    assert (code, jobs[0]["outcome"]) == (1, "refused")
    assert "it is cancelled" in jobs[0]["detail"]


def test_a_job_that_reports_is_asked(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start(processes=1, CHAPERONE_WATCHER="0", **GRACE)
    fleet.send(f"hold.send({str(tmp_path / 'never')!r})")
    job_id = running(fleet, "hold")
    wait_until(lambda: fleet.sql("SELECT 1 FROM heartbeats WHERE kind = 'manual'"), timeout_s=20)
    code, jobs, _ = kill(fleet, job_id, "--reason", "wrong file")
    assert (code, jobs[0]["detail"]) == (0, "told in a heartbeat")
    is_over(fleet, job_id, means="ask")


def test_c_code_ends_with_its_process_and_what_it_had_fetched_runs_elsewhere(fleet: Fleet) -> None:
    fast = {"HEARTBEAT_TIMEOUT": "4000"}  # a lease that was left behind would have its message run again soon
    doomed = fleet.start(processes=1, threads=1, **REPLACEABLE, **fast)
    fleet.send("work.send(600)")
    job_id = running(fleet, "work")
    fleet.send("work.send()")
    client = redis.Redis.from_url(fleet.env["BROKER_URL"])
    wait_until(lambda: sum(client.scard(key) for key in client.scan_iter("dramatiq:__acks__*default")) == 2, what="one to be prefetched")
    fleet.start(processes=1, threads=2, **fast)
    code, jobs, _ = kill(fleet, job_id, "--reason", "wrong file")
    assert (code, jobs[0]["outcome"], jobs[0]["detail"]) == (0, "cancelled", "its process was ended")
    assert doomed.wait() != 0
    fleet.wait_for(completed=1, cancelled=1)
    is_over(fleet, job_id, means="process")
    assert fleet.sql("SELECT count(*) FROM workers WHERE status = 'stopped'") == [(1,)]
    stopped = [json.loads(data) for (data,) in fleet.sql("SELECT data FROM events WHERE name = 'WorkerStopped'")]
    assert job_id in stopped[0]["reason"]
    assert fleet.sql("SELECT name FROM events WHERE name IN ('JobLost', 'WorkerLost')") == []
    # Its leases would run out, and maintenance forget it.
    wait_until(lambda: client.zcard("dramatiq:__heartbeats__") == 1, timeout_s=30, interval_s=0.1, what="the dead worker to be forgotten")
    assert [client.hlen("dramatiq:default.XQ.msgs"), client.hlen("dramatiq:default.msgs")] == [1, 0]
    assert fleet.notes("start")[job_id] == 1


def test_on_rabbitmq_too(make_fleet: Callable[..., Fleet], rabbitmq_url: str, rabbitmq_queue: Callable[[], str]) -> None:
    queue = rabbitmq_queue()
    fleet = make_fleet(rabbitmq_url, QUEUE=queue)
    doomed = fleet.start(processes=1, threads=1, **REPLACEABLE)
    fleet.send("work.send(600)")
    job_id = running(fleet, "work")
    fleet.send("work.send()", 3)
    code, jobs, _ = kill(fleet, job_id, "--reason", "wrong file")
    assert (code, jobs[0]["detail"]) == (0, "its process was ended")
    assert doomed.wait() != 0
    fleet.start(processes=1, threads=2)
    fleet.wait_for(completed=3, cancelled=1)
    is_over(fleet, job_id, means="process")
    broker = RabbitmqBroker(url=rabbitmq_url)
    try:
        wait_until(lambda: broker.get_queue_message_counts(queue) == (0, 0, 1), timeout_s=20, what="one dead letter, and nothing else")
    finally:
        broker.close()


def test_beside_other_jobs_the_ladder_ends_at_the_interrupt_unless_it_is_forced(fleet: Fleet, tmp_path: Path) -> None:
    doomed = fleet.start(processes=1, threads=2, **REPLACEABLE)
    fleet.send("work.send(600)")
    fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
    job_id, other = running(fleet, "work"), running(fleet, "hold")
    code, jobs, _ = kill(fleet, job_id, "--reason", "wrong file")
    assert (code, jobs[0]["outcome"]) == (1, "running")
    assert "none: 1 other job runs in this worker process" in jobs[0]["detail"]
    assert "--force" in jobs[0]["detail"]
    assert events(fleet, job_id)["JobStopIgnored"]["consequence"].startswith("none")
    assert doomed.is_running

    code, jobs, _ = kill(fleet, job_id, "--reason", "wrong file", "--force")
    assert (code, jobs[0]["detail"]) == (0, "its process was ended")
    assert doomed.wait() != 0
    fleet.start(processes=1)
    wait_until(lambda: fleet.sql("SELECT 1 FROM supervised_job_errors WHERE outcome = 'lost'"), timeout_s=30)
    outcomes = "SELECT j.job_id, e.outcome FROM supervised_job_errors e JOIN supervised_jobs j ON j.id = e.supervised_job_id"
    assert dict(fleet.sql(outcomes)) == {job_id: "killed", other: "lost"}
    assert dict(fleet.sql("SELECT job_id, status FROM supervised_jobs"))[job_id] == "cancelled"


def test_two_in_one_process_are_both_over_for_good(fleet: Fleet) -> None:
    fast = {"HEARTBEAT_TIMEOUT": "4000"}
    doomed = fleet.start(processes=1, threads=2, **REPLACEABLE, **fast)
    fleet.send("work.send(600)", 2)
    both = "SELECT job_id FROM supervised_jobs WHERE status = 'running'"
    wait_until(lambda: len(fleet.sql(both)) == 2, timeout_s=30)
    ids = [job_id for (job_id,) in fleet.sql(both)]
    code, jobs, _ = kill(fleet, *ids, "--force")
    assert code == 0
    assert {job["job_id"]: job["outcome"] for job in jobs} == dict.fromkeys(ids, "cancelled")
    assert doomed.wait() != 0
    fleet.start(processes=1, threads=2, **fast)
    client = redis.Redis.from_url(fleet.env["BROKER_URL"])
    wait_until(lambda: client.zcard("dramatiq:__heartbeats__") == 1, timeout_s=30, interval_s=0.1, what="the dead worker to be forgotten")
    assert [client.hlen("dramatiq:default.XQ.msgs"), client.hlen("dramatiq:default.msgs")] == [2, 0]
    assert fleet.notes("start") == dict.fromkeys(ids, 1)


def test_a_worker_that_nothing_replaces_goes_on(fleet: Fleet) -> None:
    master = fleet.start(processes=1, threads=1, **GRACE)
    fleet.send("work.send(600)")
    job_id = running(fleet, "work")
    code, jobs, _ = kill(fleet, job_id)
    assert (code, jobs[0]["outcome"]) == (1, "running")
    assert "replaceable" in jobs[0]["detail"]
    assert master.is_running
    # By the models it is the same.
    asked = f"SupervisedJob.get(job_id={job_id!r}).kill(issued_by='ann', reason='wrong file', force=True)"
    fleet.run(f"from dramatiq_chaperone.models import SupervisedJob\n{asked}")
    fleet.wait_for(cancelled=1)
    is_over(fleet, job_id, means="process")
    assert {(who, origin) for who, origin in fleet.sql("SELECT who, origin FROM audit_log") if origin == "models"} == {("ann", "models")}


def test_without_a_watcher_it_writes_its_end_itself(fleet: Fleet) -> None:
    doomed = fleet.start(processes=1, threads=1, CHAPERONE_WATCHER="0", **REPLACEABLE)
    fleet.send("work.send(600)")
    job_id = running(fleet, "work")
    code, jobs, _ = kill(fleet, job_id, "--reason", "wrong file")
    assert (code, jobs[0]["detail"]) == (0, "its process was ended")
    assert doomed.wait() != 0
    is_over(fleet, job_id, means="process")
    ((message, trace),) = fleet.sql("SELECT message, trace FROM supervised_job_errors")
    assert message.endswith(": wrong file")
    assert "in work\n    time.sleep(seconds)" in trace, "where it was"


def test_ctrl_c_leaves_the_kill_in_place(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start(processes=1, threads=1, **{**REPLACEABLE, "CHAPERONE_KILL_GRACE": "4"})
    fleet.send("work.send(600)")
    job_id = running(fleet, "work")
    process = subprocess.Popen(
        [COMMAND, "kill", job_id], env={**os.environ, **fleet.env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: "JobStopDelivered" in events(fleet, job_id), timeout_s=30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "the kill stays in place" in err
    assert job_id in err
    fleet.start(processes=1, threads=1)
    fleet.wait_for(cancelled=1)
