"""A fleet in a storm: four masters, each replaced when it ends.

Their workers are killed, stopped and woken, while jobs fail, time out, are killed by an operator or end their worker.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pika
import psutil
import pytest
import redis

from tests.conftest import StartProcess
from tests.e2e.conftest import Fleet
from tests.e2e.ledger import FINAL, Account, Ledger
from tests.e2e.test_crashes import nothing_left
from tests.e2e.test_fleet import workers
from tests.environment import TEST_SETTINGS
from tests.processes import ROOT, WorkerProcess
from tests.scaling import scaled
from tests.waiting import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

MASTERS = 4
#: A storm without a seed of its own (CHAPERONE_TEST_SEED) has this one.
SEED = 28
COMMAND = Path(sys.executable).with_name("chaperone")


class Storm:
    """Strikes the workers of a fleet, in an order that a seed decides, and replaces what has ended.

    Parameters:
      lease_s: a worker that is stopped for longer loses its messages.
    """

    def __init__(self, fleet: Fleet, luck: random.Random, *, lease_s: float) -> None:
        self._fleet, self._luck, self._lease_s = fleet, luck, lease_s
        self._masters: list[WorkerProcess] = [self._start() for _ in range(MASTERS)]
        self._stopped: dict[psutil.Process, float] = {}
        self._commands: list[subprocess.Popen[bytes]] = []
        self.done: Counter[str] = Counter()
        #: Processes that were stopped for so long that others may have been given their messages.
        self.overslept: set[int] = set()

    def _start(self) -> WorkerProcess:
        return self._fleet.start(processes=1, threads=4, ready=False)

    def go_on(self) -> None:
        """Replace the masters that have ended, and wake the workers whose time has come."""
        for place, master in enumerate(self._masters):
            if not master.is_running:
                self._masters[place] = self._start()
                self.done["masters replaced"] += 1
        for process, until in list(self._stopped.items()):
            if time.monotonic() >= until:
                self._wake(process)

    def strike(self) -> None:
        """One blow, at random."""
        blow = self._luck.choices([self._kill_worker, self._stop_worker, self._kill_job], weights=[4, 5, 5])[0]
        blow()

    def calm(self) -> None:
        """Wake everyone."""
        for process in list(self._stopped):
            self._wake(process)
        for command in self._commands:
            command.wait(timeout=60)

    def end(self) -> None:
        """Stop all masters in order; watchers write what there is to write."""
        for master in self._masters:
            if master.is_running:
                master.send_signal(signal.SIGTERM)
        for master in self._masters:
            master.wait(timeout_s=60)

    def _worker(self) -> psutil.Process | None:
        master = self._luck.choice(self._masters)
        with contextlib.suppress(psutil.NoSuchProcess):
            if master.is_running and WorkerProcess.READY in master.log():
                return next((each for each in workers(master) if each not in self._stopped), None)
        return None

    def _kill_worker(self) -> None:
        worker = self._worker()
        if worker is not None:
            worker.kill()
            self.done["workers killed"] += 1

    def _stop_worker(self) -> None:
        worker = self._worker()
        is_long = self._luck.random() < 0.4
        seconds = self._lease_s + self._luck.uniform(0.5, 2.5) if is_long else self._luck.uniform(0.05, 1.0)
        if worker is not None:
            worker.send_signal(signal.SIGSTOP)
            self._stopped[worker] = time.monotonic() + seconds
            if is_long:
                self.overslept.add(worker.pid)
            self.done["workers stopped past their lease" if is_long else "workers stopped"] += 1

    def _wake(self, process: psutil.Process) -> None:
        del self._stopped[process]
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)

    def _kill_job(self) -> None:
        running = sorted(self._fleet.sql("SELECT job_id FROM supervised_jobs WHERE actor_name = 'long' AND status = 'running'"))
        if not running:
            return
        ((job_id,),) = self._luck.sample(running, 1)
        env = {**os.environ, **self._fleet.env}
        command = [str(COMMAND), "kill", str(job_id), "--reason", "storm", "--yes"]
        self._commands.append(
            subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        self.done["jobs killed"] += 1


def play(fleet: Fleet, start_process: StartProcess, *, lease_s: float) -> tuple[Ledger, Account, set[int]]:
    """Send, strike, wait until it is quiet, and read what both have."""
    jobs, seconds, poisonous = scaled(5_000, at_least=200), scaled(120, at_least=10), scaled(5)
    seed = int(TEST_SETTINGS.get("CHAPERONE_TEST_SEED") or SEED)
    print(f"seed {seed}: {jobs} jobs in {seconds} s")
    fleet.app = "tests.e2e.storm_app"
    luck = random.Random(seed)
    storm = Storm(fleet, luck, lease_s=lease_s)
    code = f"from {fleet.app} import send_all; send_all({jobs}, {poisonous}, {seconds * 0.9}, {seed})"
    sender = start_process(sys.executable, "-c", code, env=fleet.env, cwd=ROOT)
    wait_until(fleet.ledger.exists, timeout_s=60, what="the first job")
    until, next_strike = time.monotonic() + seconds, 0.0
    while time.monotonic() < until:
        storm.go_on()
        if time.monotonic() >= next_strike:
            storm.strike()
            next_strike = time.monotonic() + luck.uniform(0.3, 1.5)
        time.sleep(0.05)
    storm.calm()

    def is_quiet() -> bool:
        storm.go_on()
        found = fleet.statuses()
        return sum(found.values()) == jobs and found.keys() <= FINAL

    try:
        assert sender.wait(timeout_s=120) == 0, sender.tail()
        wait_until(is_quiet, timeout_s=240, interval_s=0.2, what="it to be quiet")
    except AssertionError:
        ledger = Ledger(fleet)
        print(fleet.statuses())
        is_open = fleet.sql("SELECT job_id FROM supervised_jobs WHERE status NOT IN ('completed', 'failed', 'cancelled') LIMIT 5")
        print("\n".join(ledger.story(job_id) for (job_id,) in is_open))
        raise
    storm.end()
    wait_until(lambda: fleet.sql("SELECT count(*) FROM workers WHERE status = 'running'") == [(0,)], timeout_s=60, what="all to be written")
    print(", ".join(f"{count} {what}" for what, count in sorted(storm.done.items())))
    return Ledger(fleet), Account(fleet), storm.overslept


def nothing_wrong(ledger: Ledger, what: str, jobs: set[str]) -> None:
    assert not jobs, f"{len(jobs)} {what}:\n" + "\n".join(ledger.story(job_id) for job_id in sorted(jobs)[:3])


def agree(fleet: Fleet, ledger: Ledger, account: Account, overslept: set[int]) -> None:
    """Everything that has to be so when a storm is over."""
    statuses = Counter(account.status(job_id) for job_id in account.jobs)
    print(f"jobs: {dict(statuses)}; dead letters: {dict(Counter(account.dead_letters.values()))}")
    each_job_ends(ledger, account, overslept)
    none_runs_twice_in_secret(ledger, account, overslept)
    each_run_is_on_record(ledger, account)
    jobs, runs = fleet.counter("chaperone_jobs_total"), fleet.counter("chaperone_runs_total")
    print(f"runs: {dict(runs)}; {len(ledger.runs)} on the ledger")
    # A job is counted at its first end.  One that was killed where the message had been taken may have returned elsewhere after that.
    returned = [job_id for job_id, runs in ledger.jobs.items() if account.status(job_id) == "completed" and account.was_killed(runs)]
    print(f"cancelled, and returned elsewhere: {len(returned)}")
    assert jobs.total() == statuses.total()
    assert (jobs - statuses).total() <= len(returned), (jobs, statuses)
    assert sum(runs.values()) == sum(int(attempt) for _, attempt, _ in account.jobs.values())
    assert runs == Counter(account.outcomes.values()) + Counter(succeeded=runs["succeeded"])
    assert not fleet.sql("SELECT labels, value FROM counters WHERE name = 'chaperone_unwritable_rows_total'")


def each_job_ends(ledger: Ledger, account: Account, overslept: set[int]) -> None:
    """Completed after a run that returned; failed or cancelled with a dead letter, and never run again after that.

    But for what was killed in a process that had been stopped for too long, or died then: the broker, which had taken the
    message back, delivers it again, and for a second or two nobody there knows that it is to be killed.
    """
    returned = {run.job_id for run in ledger.runs.values() if run.has_returned}
    nothing_wrong(ledger, "completed without a run that returned", {j for j in account.jobs if account.status(j) == "completed"} - returned)
    dead = {job_id for job_id in account.jobs if account.status(job_id) in {"failed", "cancelled"}}
    nothing_wrong(ledger, "failed without a dead letter", dead - account.dead_letters.keys())
    revived = set()
    for job_id, runs in ledger.jobs.items():
        killed = account.was_killed(runs)
        if killed and any(run.last > killed[0].last for run in runs):
            assert killed[0].pid in overslept or account.has_crashed(killed[0]), ledger.story(job_id)
            revived.add(job_id)
    print(f"killed in a process that had been stopped too long or died, and run on elsewhere: {len(revived)}")
    nothing_wrong(ledger, "dead-lettered and not failed", account.dead_letters.keys() - dead - revived)


def none_runs_twice_in_secret(ledger: Ledger, account: Account, overslept: set[int]) -> None:
    """But for one that woke up after the message was taken, and died before its end: that it went on so long nobody can know."""
    overlaps, again = ledger.overlaps(), ledger.returned_and_ran_again()
    unseen = {job_id for job_id, run in overlaps.items() if run.was_cut_off and run.pid in overslept and account.has_crashed(run)}
    lost = {job_id for job_id, run in again.items() if account.has_crashed(run)}
    print(
        f"ran at the same time: {len(overlaps)}, of them until one died: {len(unseen)}; returned, and ran again: {len(again)}, "
        f"of them after the death of their worker: {len(lost)}; JobRanTwice: {len(account.twice)}"
    )
    nothing_wrong(ledger, "ran at the same time without JobRanTwice", overlaps.keys() - account.twice - unseen)
    nothing_wrong(ledger, "returned, and ran again without JobRanTwice or a crash", again.keys() - account.twice - lost)


def each_run_is_on_record(ledger: Ledger, account: Account) -> None:
    """With the end that it had itself, but where it was cut off, or its process was before that was written down."""
    wrong = set()
    for run in ledger.runs.values():
        outcome = account.outcomes.get(run.run_id, "succeeded")
        if run.has_returned:
            is_right = outcome == "succeeded" or (outcome == "lost" and account.has_crashed(run))
        elif run.was_cut_off:
            is_right = outcome in {"lost", "killed"}
        else:
            is_right = outcome in {"failed", "interrupted", "killed"} or (outcome == "lost" and account.has_crashed(run))
        if not is_right:
            wrong.add(run.job_id)
    nothing_wrong(ledger, "have a run with another end in the store", wrong)


def test_on_redis(fleet: Fleet, redis_url: str, start_process: StartProcess) -> None:
    fleet.env["HEARTBEAT_TIMEOUT"] = "3000"
    ledger, account, overslept = play(fleet, start_process, lease_s=3)
    agree(fleet, ledger, account, overslept)
    assert nothing_left(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        print(f"dead letters on Redis: {client.zcard('dramatiq:default.XQ')}")


def test_on_rabbitmq(
    make_fleet: Callable[..., Fleet], rabbitmq_url: str, rabbitmq_queue: Callable[[], str], start_process: StartProcess
) -> None:
    queue = rabbitmq_queue()
    fleet = make_fleet(f"{rabbitmq_url}?heartbeat=3", QUEUE=queue, CONFIRM_DELIVERY="1")
    ledger, account, overslept = play(fleet, start_process, lease_s=6)
    agree(fleet, ledger, account, overslept)
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
        channel = connection.channel()

        def is_empty() -> bool:
            """One that comes back from a connection that was cut last is looked at, and left alone, by whoever gets it."""
            return not any(channel.queue_declare(name, passive=True).method.message_count for name in (queue, f"{queue}.DQ"))

        wait_until(is_empty, timeout_s=20, interval_s=0.2)
