"""Workers that die, that are stopped and wake up, and messages that end them: real masters on a real broker."""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.e2e.conftest import Fleet
from tests.e2e.test_fleet import watcher, workers
from tests.scaling import scaled
from tests.waiting import wait_until


def started(fleet: Fleet, count: int, *, timeout_s: float = 30.0) -> None:
    """Wait for so many first lines of actors."""
    wait_until(lambda: sum(fleet.notes("start").values()) >= count, timeout_s=timeout_s, interval_s=0.02)


def nothing_left(url: str, queue: str = "default") -> bool:
    """Whether Redis has no message and no lease any more."""
    with redis.Redis.from_url(url) as client:
        messages = client.hlen(f"dramatiq:{queue}.msgs") + client.hlen(f"dramatiq:{queue}.DQ.msgs") + client.llen(f"dramatiq:{queue}")
        return not messages and not client.keys("dramatiq:__acks__.*")


def dies_beside_another(fleet: Fleet, redis_url: str, go: Path) -> tuple[float, float]:
    """Kill a worker that runs four messages and holds four more, beside another master.

    Returns the seconds until the four are on record as lost, and until all eight run on the other.
    """
    has_watcher = fleet.env.get("CHAPERONE_WATCHER") != "0"
    doomed = fleet.start(processes=1, threads=4)
    if has_watcher:
        watcher(fleet, doomed)
    before = fleet.notes("start")
    fleet.send(f"hold.send({str(go)!r})", 8)
    started(fleet, sum(before.values()) + 4)
    with redis.Redis.from_url(redis_url) as client:
        wait_until(lambda: len(client.smembers(client.keys("dramatiq:__acks__.*.default")[0])) == 8)
    other = fleet.start(processes=1, threads=8)
    if has_watcher:
        watcher(fleet, other)
    lost = "SELECT count(*) FROM supervised_job_errors WHERE outcome = 'lost'"
    lost_before = fleet.sql(lost)[0][0]
    victim = workers(doomed)[0]
    victim.kill()
    began = time.monotonic()
    wait_until(lambda: fleet.sql(lost)[0][0] == lost_before + 4, timeout_s=10, interval_s=0.02)
    recorded = time.monotonic() - began
    started(fleet, sum(before.values()) + 4 + 8, timeout_s=20)
    elapsed = time.monotonic() - began
    go.touch()
    doomed.wait()
    wait_until(lambda: nothing_left(redis_url))
    other.stop()
    return recorded, elapsed


class TestDeath:
    @pytest.mark.parametrize("has_watcher", [True, False])
    def test_its_messages_run_on_another_master_at_once(self, fleet: Fleet, redis_url: str, tmp_path: Path, has_watcher: bool) -> None:
        fleet.env["CHAPERONE_WATCHER"] = str(int(has_watcher))
        recorded, elapsed = dies_beside_another(fleet, redis_url, tmp_path / "go")
        assert recorded < 3
        assert elapsed < 10
        fleet.wait_for(completed=8)
        assert sorted(fleet.notes("start").values()) == [1] * 4 + [2] * 4, "what was only held runs once"
        assert set(fleet.notes("end").values()) == {1}
        assert fleet.counter("chaperone_runs_total") == {"succeeded": 8, "lost": 4}
        assert not fleet.sql("SELECT 1 FROM events WHERE name = 'JobRanTwice'")


def runs_until_done(fleet: Fleet, *, masters: int, done: Callable[[], bool]) -> int:
    """Start a master whenever the one before has ended, as a supervisor of the system does; how many it took."""
    for number in range(1, masters + 1):
        master = fleet.start(processes=1, threads=4)
        wait_until(lambda master=master: not master.is_running or done(), timeout_s=60, interval_s=0.05)
        if done():
            master.stop()
            return number
        master.wait()
    raise AssertionError(f"not done after {masters} masters: {fleet.statuses()}")


class TestPoison:
    def test_it_runs_three_times_and_is_then_dead_lettered_with_its_crashes(self, fleet: Fleet, redis_url: str) -> None:
        self._poison(fleet)
        wait_until(lambda: nothing_left(redis_url))
        with redis.Redis.from_url(redis_url) as client:
            assert client.zcard("dramatiq:default.XQ") == 1

    def test_on_rabbitmq(self, make_fleet: Callable[..., Fleet], rabbitmq_url: str, rabbitmq_queue: Callable[[], str]) -> None:
        self._poison(make_fleet(rabbitmq_url, QUEUE=rabbitmq_queue()))

    @staticmethod
    def _poison(fleet: Fleet) -> None:
        fleet.send("work.send(0.05) if number != 10 else poison.send()", 41)
        masters = runs_until_done(fleet, masters=6, done=lambda: fleet.statuses() == {"completed": 40, "failed": 1})
        assert masters == 4
        ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs WHERE actor_name = 'poison'")
        assert fleet.notes("start")[job_id] == 3
        assert len(fleet.notes("end")) == 40, "the innocent all ran"
        ((reason, message),) = fleet.sql("SELECT reason, message FROM dead_letter_jobs")
        assert reason == "poison"
        assert message.startswith("It ended 3 workers (max_crashes is 3):\n")
        lost = {row[0] for row in fleet.sql("SELECT worker_id FROM workers WHERE status = 'lost'")}
        assert {line.split()[0] for line in message.splitlines()[1:]} == lost
        assert len(lost) == 3
        assert fleet.sql("SELECT count(*) FROM events WHERE name = 'JobPoisoned'") == [(1,)]


class TestZombie:
    def test_a_process_that_was_stopped_past_its_lease_neither_acknowledges_nor_retries(self, fleet: Fleet, redis_url: str) -> None:
        fleet.env["HEARTBEAT_TIMEOUT"] = "3000"
        stopped = fleet.start(processes=1, threads=4)
        watcher(fleet, stopped)
        fleet.send("nap.send(2, fail=number % 2 == 1)", 8)
        started(fleet, 4)
        wait_until(lambda: fleet.statuses()["running"] == 4)
        victim = workers(stopped)[0]
        victim.send_signal(signal.SIGSTOP)
        try:
            fleet.start(processes=1, threads=8)  # its maintenance gives the messages of the silent to itself
            started(fleet, 12, timeout_s=30)
        finally:
            victim.send_signal(signal.SIGCONT)
        fleet.wait_for(completed=4, failed=4)
        wait_until(lambda: nothing_left(redis_url), timeout_s=30)
        attempts = dict(fleet.sql("SELECT job_id, attempt FROM supervised_jobs"))
        assert attempts == fleet.notes("start"), "a run is on record whoever had it"
        assert sum(fleet.notes("end").values()) == 4 + 2, "two had begun before it was stopped, and ran to their end"
        assert sum(fleet.notes("fail").values()) == 4 * 4 + 2, "a failed run of a message that another has is not retried"
        assert stopped.log().count("was skipped") == 8, "the four that it ran, the four that it had fetched"
        # The two that returned; one that failed too, where the start of the other run was on record before its end.
        told = "SELECT count(*) FROM events WHERE name = 'JobRanTwice'"
        wait_until(lambda: 2 <= fleet.sql(told)[0][0] <= 4, timeout_s=20, interval_s=0.1)
        with redis.Redis.from_url(redis_url) as client:
            assert client.zcard("dramatiq:default.XQ") == 4, "nothing is dead-lettered twice"

    def test_a_delayed_message_is_sent_on_by_one(self, fleet: Fleet, redis_url: str) -> None:
        """Stopped beyond its time and the lease, both would: the one that has it, and the one that had."""
        fleet.env["HEARTBEAT_TIMEOUT"] = "3000"
        stopped = fleet.start(processes=1, threads=4)
        fleet.send("work.send_with_options(delay=5_000)", 20)
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            wait_until(lambda: client.llen("dramatiq:default.DQ") == 0)
            victim = workers(stopped)[0]
            victim.send_signal(signal.SIGSTOP)
            try:
                fleet.start(processes=1, threads=8)
                started(fleet, 20, timeout_s=30)
            finally:
                victim.send_signal(signal.SIGCONT)
        fleet.wait_for(completed=20)
        fleet.send("nap.send(0)", 8)  # behind whatever the first one sends on
        fleet.wait_for(completed=28)
        wait_until(lambda: nothing_left(redis_url), timeout_s=30)
        assert set(fleet.notes("start").values()) == {1}

    def test_on_rabbitmq_the_store_tells_who_has_it(
        self, make_fleet: Callable[..., Fleet], rabbitmq_url: str, rabbitmq_queue: Callable[[], str]
    ) -> None:
        fleet = make_fleet(f"{rabbitmq_url}?heartbeat=3", QUEUE=rabbitmq_queue())
        stopped = fleet.start(processes=1, threads=2)
        watcher(fleet, stopped)
        fleet.send("nap.send(4, fail=number % 2 == 1)", 2)
        started(fleet, 2)
        wait_until(lambda: fleet.statuses()["running"] == 2)
        victim = workers(stopped)[0]
        victim.send_signal(signal.SIGSTOP)
        try:
            fleet.start(processes=1, threads=4)
            started(fleet, 4, timeout_s=40)
            wait_until(lambda: len(fleet.sql("SELECT 1 FROM supervised_jobs WHERE attempt > 1")) == 2)
        finally:
            victim.send_signal(signal.SIGCONT)
        fleet.wait_for(completed=1, failed=1)
        assert dict(fleet.sql("SELECT job_id, attempt FROM supervised_jobs")) == fleet.notes("start")
        assert sum(fleet.notes("end").values()) == 2
        assert sum(fleet.notes("fail").values()) == 4 + 1, "a failed run of a message that another has is not retried"
        assert stopped.log().count("was skipped") == 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_workers_are_killed_again_and_again_beside_one_that_goes_on(fleet: Fleet, redis_url: str) -> None:
    """Dramatiq's own leases last a minute here, so whatever comes back in time came back by hand."""
    jobs, kills = scaled(25_000, at_least=400), scaled(28, at_least=4)
    random.seed(28)
    fleet.start(processes=1, threads=4)
    fleet.send("work.send(0.01, fail_first=number % 20 == 0)", jobs)
    for _ in range(kills):
        doomed = fleet.start(processes=1, threads=4)
        before = sum(fleet.notes("start").values())
        enough = before + random.randint(5, max(10, jobs // (kills + 1)))
        wait_until(lambda enough=enough: sum(fleet.notes("start").values()) >= enough or len(fleet.notes("end")) == jobs, timeout_s=120)
        workers(doomed)[0].kill()
        doomed.wait(timeout_s=60)
    began = time.monotonic()
    wait_until(lambda: fleet.statuses() == {"completed": jobs}, timeout_s=600, interval_s=0.5, what=f"{fleet.statuses()}")
    wait_until(lambda: nothing_left(redis_url), timeout_s=30)
    print(f"all of {jobs} done {time.monotonic() - began:.1f} s after the last of {kills} kills")
    ends = fleet.notes("end")
    assert len(ends) == jobs
    twice = {job for job, count in ends.items() if count > 1}
    # What ran twice to its end had ended, and was not acknowledged when its worker died; the second end may be a moment late.
    known = "SELECT job_id FROM events WHERE name = 'JobRanTwice' UNION SELECT job_id FROM supervised_jobs WHERE crashes > 0"
    wait_until(lambda: twice <= {row[0] for row in fleet.sql(known)}, timeout_s=20, interval_s=0.1)
    wait_until(lambda: fleet.sql("SELECT count(*) FROM returns WHERE done_at IS NULL") == [(0,)], timeout_s=30, interval_s=0.1)
    assert not fleet.sql("SELECT 1 FROM dead_letter_jobs"), "nobody is called poison who only was there"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_how_long_it_takes(fleet: Fleet, redis_url: str) -> None:
    """From the kill to the record, and to the first line of its messages on another master: median and worst are printed."""
    times = scaled(20, at_least=2)
    both = [dies_beside_another(fleet, redis_url, fleet.path / f"go-{number}") for number in range(times)]
    recorded, running = [each[0] for each in both], [each[1] for each in both]
    for what, figures in (("recorded", recorded), ("running elsewhere", running)):
        print(f"{what}: median {statistics.median(figures):.2f} s, worst {max(figures):.2f} s of {times}")
    assert max(recorded) < 3
    assert max(running) < 10
