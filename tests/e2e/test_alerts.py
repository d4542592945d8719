"""Alerts from a real fleet, on real channels: who handles what, what arrives, and what does not get lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.conftest import Fleet
from tests.e2e.test_fleet import workers
from tests.processes import ROOT
from tests.receivers import Mailbox, Request, WebServer, mail_server
from tests.scaling import scaled
from tests.waiting import wait_until


@pytest.fixture
def alert_fleet(fleet: Fleet) -> Fleet:
    fleet.app = "tests.e2e.alerts_app"
    return fleet


@pytest.fixture
def server() -> Iterator[WebServer]:
    with closing(WebServer()) as server:
        yield server


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as box:
        yield box


def lines(fleet: Fleet, what: str) -> list[tuple[str, int]]:
    """What was noted of it: about what, and by which process."""
    if not fleet.ledger.exists():
        return []
    found = (line.split() for line in fleet.ledger.read_text().splitlines())
    return [(about, int(pid)) for name, about, pid in found if name == what]


def test_a_job_of_the_staging_system_is_told_by_mail_and_on_slack(alert_fleet: Fleet, server: WebServer, mailbox: Mailbox) -> None:
    fleet = alert_fleet
    fleet.start(
        processes=1,
        SLACK_AT=f"http://{server.address}/services",
        CHAPERONE_SLACK_WEBHOOK_URL="https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
        CHAPERONE_ALERT_RECIPIENTS="ops@example.com",
        MAIL_HOST="127.0.0.1",
        MAIL_PORT=str(mailbox.port),
        MAIL_ENCRYPTION="none",
        MAIL_FROM_ADDRESS="alerts@example.com",
        CHAPERONE_ALERT_GROUP_WAIT="1",
    )
    fleet.run("staging.send()")
    wanted = "[Chaperone Alert] Job Timeout: staging"
    wait_until(lambda: wanted in [mail["Subject"] for _, _, mail in mailbox.mails], timeout_s=60)
    wait_until(
        lambda: f"⏱️ {wanted}" in {attachment["title"] for each in server.got for attachment in each.data["attachments"]}, timeout_s=60
    )
    ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
    slack = {attachment["title"]: attachment["text"] for each in server.got for attachment in each.data["attachments"]}
    assert job_id in slack[f"⏱️ {wanted}"]
    done = subprocess.run(
        [Path(sys.executable).with_name("chaperone"), "alerts", "--firing"],
        env={**os.environ, **fleet.env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Job Timeout: staging" in done.stdout


def test_an_event_is_handled_once_by_whoever_finds_it(alert_fleet: Fleet) -> None:
    fleet = alert_fleet
    master = fleet.start(processes=2, threads=2, CHAPERONE_ALERT_CHANNELS="ledger", CHAPERONE_ALERT_GROUP_WAIT="0")
    pids = {process.pid for process in workers(master)}
    fleet.run("invoice.send(); linger.send()")
    wait_until(lambda: lines(fleet, "JobMovedToDeadLetterQueue") and lines(fleet, "linger"), timeout_s=30)
    ((_, worker),) = lines(fleet, "JobMovedToDeadLetterQueue")
    assert worker in pids, "what a worker finds, in the worker"
    ((job_id, victim),) = lines(fleet, "linger")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: lines(fleet, "WorkerCrashed") and lines(fleet, "JobLost"), timeout_s=30)
    ((_, watcher),) = lines(fleet, "WorkerCrashed")
    assert lines(fleet, "JobLost") == [(job_id, watcher)]
    assert watcher not in pids, "what the watcher finds, in the watcher"
    wanted = {"[Chaperone_Alert]_Invoice_Failed:_ACME", "[Chaperone_Alert]_Job_Failed:_invoice"}
    wait_until(lambda: wanted <= {title for title, _ in lines(fleet, "message")}, timeout_s=30)
    assert {pid for _, pid in lines(fleet, "message")} == {watcher}
    assert Counter(title for title, _ in lines(fleet, "message")).most_common(1)[0][1] == 1


def test_a_listener_ends_a_job_that_uses_more_than_twice_its_memory(alert_fleet: Fleet) -> None:
    fleet = alert_fleet
    fleet.start(processes=1, threads=1)
    fleet.run("hoard.send()")
    fleet.wait_for(cancelled=1)
    ((who,),) = fleet.sql("SELECT result FROM audit_log WHERE what = 'kill'")
    assert who is not None


HOLDER = """
import sys, time
from dramatiq_chaperone import monitor
from dramatiq_chaperone.alerts.dispatcher import Alerting
from dramatiq_chaperone.errors import StoreError
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store

monitor.LEASE_S, monitor.RENEW_S, monitor.LOOK_S = 1.0, 0.3, 0.1
settings = Settings.load()
holder = sys.argv[1]
it = monitor.Monitor(settings, holder, alerting=Alerting(settings, holder))
store = open_store(settings, create=True)
while True:
    try:
        it.turn(store)
    except StoreError as error:
        print(error, flush=True)
    time.sleep(0.05)
"""

RAISE = """
import sys, time, json
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.store.rows import put_events
store = open_store(Settings.load(), create=True)
names = sys.argv[1:]
rows = [[time.time(), "CircuitBreakerOpened", None, None, name, json.dumps(
    {"service": name, "failure_count": 5, "opened_at": "2026-01-01T00:00:00+00:00"})] for name in names]
store.transact(lambda: put_events(store, rows))
"""


def a_process(code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_no_alert_is_lost_when_its_sender_is_killed_in_the_middle(tmp_path: Path, server: WebServer) -> None:
    """Killed while the other side has the message and has not answered: it is sent again by the next, which says so."""
    rounds = scaled(20, at_least=3)
    config = tmp_path / "chaperone.toml"
    config.write_text(f'[alerts.channels.hook]\nurls = "json://{server.address}"\nlimit = 0\n[[alerts.routes]]\ngroup_by = ["service"]\n')
    env = {
        "CHAPERONE_STATE_DIR": str(tmp_path), "CHAPERONE_CONFIG": str(config), "CHAPERONE_ALERT_GROUP_WAIT": "0",
        "CHAPERONE_ALERT_REPEAT_INTERVAL": "0",
    }  # fmt: skip
    deaths: Counter[str] = Counter()
    holders: list[subprocess.Popen[str]] = []

    def kill(request: Request) -> None:
        name = request.data["title"].rpartition(" ")[2]
        if not deaths[name]:
            deaths[name] += 1
            holders[-1].kill()
            holders[-1].wait()

    server.on_request = kill
    try:
        names = [f"svc-{number}" for number in range(rounds)]
        assert a_process(RAISE, *names, **env).wait() == 0
        for number in range(rounds + 1):
            holders.append(a_process(HOLDER, f"holder-{number}", **env))
            wait_until(lambda: holders[-1].poll() is not None or len(deaths) == rounds, timeout_s=60, interval_s=0.05)
            if holders[-1].poll() is None:
                break
        told = lambda: Counter(each.data["title"].rpartition(" ")[2] for each in server.got)  # noqa: E731
        wait_until(lambda: all(told()[name] >= 2 for name in names), timeout_s=60, interval_s=0.1)
        time.sleep(1.0)  # and no more
        assert all(number == 1 + deaths[name] for name, number in told().items()), told()
        assert sorted(told()) == sorted(names)
        by_name: dict[str, list[bool]] = {name: [] for name in names}
        for each in server.got:
            by_name[each.data["title"].rpartition(" ")[2]].append("may be a repeat" in each.data["message"])
        assert all(marks == [False, True] for marks in by_name.values()), by_name
    finally:
        for each in holders:
            each.kill()
            each.wait()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_storm_is_a_few_messages(alert_fleet: Fleet, server: WebServer) -> None:
    """Ten thousand violations of 500 jobs in ten seconds: one message a group and channel, in time, and each is accounted for."""
    fleet = alert_fleet
    number = scaled(10_000, at_least=500)
    jobs = max(50, number // 20)
    fleet.start(processes=1, CHAPERONE_ALERT_URLS=f"json://{server.address}", CHAPERONE_ALERT_GROUP_WAIT="5")
    code = f"""
import time
from dramatiq_chaperone.events import ResourceViolationDetected
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.store.rows import put_events
from dramatiq_chaperone.store.times import iso
from dramatiq_chaperone.settings import Settings
import dataclasses, json
store = open_store(Settings.load(), create=True)
columns = "created_at, updated_at, job_id, actor_name, status"
insert = "INSERT INTO {{supervised_jobs}} (" + columns + ") VALUES (?, ?, ?, 'a', 'running')"
store.transact(lambda: [store.execute(insert, (*[iso(time.time())] * 2, f"j{{n}}")) for n in range({jobs})])
began = time.monotonic()
for first in range(0, {number}, {number} // 10):
    rows = []
    for n in range(first, first + {number} // 10):
        event = ResourceViolationDetected(job_id=f"j{{n % {jobs}}}", actor_name="a", violation_type="memory", limit=100.0, actual=200.0)
        rows.append([time.time(), "ResourceViolationDetected", event.job_id, None, None, json.dumps(dataclasses.asdict(event))])
    store.transact(lambda: put_events(store, rows))
    time.sleep(max(0.0, began + (first / {number} + 0.1) * {scaled(10, at_least=1)} - time.monotonic()))
"""
    fleet.run(code)
    wait_until(lambda: server.got, timeout_s=60)
    wait_until(lambda: fleet.sql("SELECT count(*) FROM events WHERE to_judge IS NOT NULL") == [(0,)], timeout_s=60)
    ((seen, total),) = fleet.sql("SELECT count(*), sum(count) FROM alerts WHERE type = 'resource_violation'")
    assert (seen, total) == (jobs, number), "each is accounted for"
    ((opened, sent),) = fleet.sql("SELECT (SELECT min(created_at) FROM alerts), (SELECT min(finished_at) FROM alert_deliveries)")
    ((late_s,),) = fleet.sql(f"SELECT (julianday('{sent}') - julianday('{opened}')) * 86400")
    assert late_s < 5 + 5
    messages = [each.data["title"] for each in server.got]
    assert len(messages) <= 2, messages
    assert "Memory Limit Exceeded" in messages[0]
