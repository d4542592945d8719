"""`chaperone alerts` and `chaperone test-alerts`, as somebody uses them who was woken."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dramatiq_chaperone.alerts.dispatcher import Alerting
from dramatiq_chaperone.events import CircuitBreakerOpened, JobMovedToDeadLetterQueue
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import Store, leases, open_store
from dramatiq_chaperone.store.leases import Lease
from dramatiq_chaperone.store.rows import put_events
from tests.receivers import WebServer
from tests.waiting import wait_until

Chaperone = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = Path(sys.executable).with_name("chaperone")


@pytest.fixture
def server() -> Iterator[WebServer]:
    with closing(WebServer()) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, server: WebServer) -> Settings:
    return Settings.load(
        {"state_dir": str(tmp_path), "alert_urls": f"json://{server.address}", "alert_group_wait": 0}, environ={"HOME": str(tmp_path)}
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with closing(open_store(settings, create=True)) as store:
        yield store


@pytest.fixture
def chaperone(tmp_path: Path, server: WebServer) -> Chaperone:
    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        known = {"CHAPERONE_STATE_DIR": str(tmp_path), "CHAPERONE_ALERT_URLS": f"json://{server.address}", "PYTHONWARNINGS": "error"}
        command = [str(COMMAND), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env={**os.environ, **known, **env}
        )

    return run


def happen(store: Store, settings: Settings) -> None:
    """A breaker opens and a job fails, and the sender has its turns."""
    at = datetime.now(UTC)
    found = (
        CircuitBreakerOpened(service="payments", failure_count=5, opened_at=at),
        JobMovedToDeadLetterQueue(job_id="j1", actor_name="charge", exception="ValueError", failed_at=at, reason="retries exhausted"),
    )
    rows = [[time.time(), type(each).__name__, None, None, None, json.dumps(dataclasses.asdict(each), default=str)] for each in found]
    store.transact(lambda: put_events(store, rows))
    epoch = leases.acquire(store, "monitor", "test", seconds=60)
    assert epoch is not None
    alerting = Alerting(settings, "test")
    try:

        def is_told() -> bool:
            alerting.turn(store, Lease("monitor", "test", epoch))
            return len(store.rows("SELECT id FROM {alert_deliveries} WHERE result = 'sent'")) == 2

        wait_until(is_told, timeout_s=30, interval_s=0.05)
    finally:
        alerting.let_go()


def test_alerts_are_listed_shown_and_acknowledged(chaperone: Chaperone, store: Store, settings: Settings) -> None:
    happen(store, settings)
    listed = chaperone("alerts")
    assert listed.returncode == 0, listed.stderr
    assert "Job Failed: charge" in listed.stdout
    (firing,) = json.loads(chaperone("alerts", "--firing", "--format", "json").stdout)["alerts"]
    assert (firing["type"], firing["subject"], firing["severity"], firing["acknowledged_at"]) == (
        "circuit_breaker",
        "payments",
        "error",
        None,
    )
    assert firing["first_seen_at"].endswith("Z")
    shown = chaperone("alerts", "show", firing["id"])
    for part in ("Circuit Breaker Opened: payments", "failures", "Deliveries", "json", "sent"):
        assert part in shown.stdout
    done = chaperone("alerts", "ack", firing["id"])
    assert (done.returncode, done.stdout) == (0, f"{firing['id']}: acknowledged\n")
    assert chaperone("alerts", "ack", firing["id"]).returncode == 1
    assert "looks after it since" in chaperone("alerts", "show", firing["id"]).stdout
    assert [row[0] for row in store.rows("SELECT what FROM {audit_log}")] == ["alert ack"]
    missing = chaperone("alerts", "show", 999)
    assert (missing.returncode, "No alert 999 is on record" in missing.stderr) == (1, True)
    wrong = chaperone("alerts", "--type", "circut_breaker")
    assert (wrong.returncode, "did you mean circuit_breaker" in wrong.stderr) == (2, True)


def test_silences_and_maintenance(chaperone: Chaperone, store: Store) -> None:
    assert chaperone("alerts", "silences").returncode == 1
    assert chaperone("alerts", "silence", "actor=import_*", "--for", "2h", "--reason", "the feed is down").returncode == 0
    assert chaperone("alerts", "maintenance", "--in", "1h", "--for", "30m").returncode == 0
    found = json.loads(chaperone("alerts", "silences", "--format", "json").stdout)["silences"]
    assert [(each["notice"], each["match"]) for each in found] == [("maintenance", {}), ("silence", {"actor": ["import_*"]})]
    assert "the feed is down" in chaperone("alerts", "silences").stdout
    assert chaperone("alerts", "unsilence", found[1]["id"]).returncode == 0
    assert chaperone("alerts", "unsilence", found[1]["id"]).returncode == 1
    for wrong, words in (
        (["actor"], "no LABEL=PATTERN"),
        (["actr=x"], "did you mean actor"),
    ):
        refused = chaperone("alerts", "silence", *wrong, "--for", "1h", "--reason", "x")
        assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
    assert "no duration" in chaperone("alerts", "silence", "actor=x", "--for", "soon", "--reason", "x").stderr


def test_limits_are_listed_and_cleared(chaperone: Chaperone, store: Store, settings: Settings) -> None:
    assert chaperone("alerts", "limits").returncode == 1
    happen(store, settings)
    found = json.loads(chaperone("alerts", "limits", "--format", "json").stdout)["limits"]
    assert sorted((each["type"], each["key"]) for each in found) == [("circuit_breaker", "payments"), ("job_failed", "j1")]
    assert chaperone("alerts", "limits", "--clear", "circuit-breaker", "payments").stdout == "1 cleared\n"
    assert len(json.loads(chaperone("alerts", "limits", "--format", "json").stdout)["limits"]) == 1
    assert chaperone("alerts", "limits", "--clear").stdout == "1 cleared\n"


def test_statistics(chaperone: Chaperone, store: Store, settings: Settings) -> None:
    assert "unknown: nothing was sent" in chaperone("alerts", "stats").stdout
    happen(store, settings)
    health = json.loads(chaperone("alerts", "stats", "--format", "json").stdout)
    assert (health["healthy"], health["failure_rate"], health["stats"]["total_sent"]) == (True, 0.0, 2)
    assert health["stats"]["by_channel"] == {"json": {"sent": 2, "failed": 0}}


def test_a_trial_before_any_worker_has_run(chaperone: Chaperone, server: WebServer) -> None:
    done = chaperone("test-alerts")
    assert (done.returncode, done.stdout.count("sent")) == (0, 5), done.stdout + done.stderr
    assert "✓ 4 test alerts sent." in done.stdout
    titles = [each.data["title"] for each in server.got]
    assert titles[0] == "[Chaperone Alert] TEST: Job Stuck: example_actor"
    assert all("This is a test. Nothing is wrong." in each.data["message"] for each in server.got)


def test_a_trial_tells_what_failed(chaperone: Chaperone, store: Store, server: WebServer) -> None:
    server.answer = (500, b"no")
    done = chaperone("test-alerts", "stuck", "--channel", "json")
    assert done.returncode == 1
    assert "1 of 1 test alerts were not delivered." in done.stderr
    assert "500" in done.stdout
    assert [row[0] for row in store.rows("SELECT result FROM {alert_deliveries}")] == ["failed"]
    assert chaperone("alerts", "stats").returncode == 1
    wrong = chaperone("test-alerts", "stuk")
    assert (wrong.returncode, "did you mean stuck" in wrong.stderr) == (2, True)
    wrong = chaperone("test-alerts", "--channel", "jsn")
    assert (wrong.returncode, "did you mean json" in wrong.stderr) == (2, True)


def test_a_trial_without_a_channel_says_so(chaperone: Chaperone) -> None:
    done = chaperone("test-alerts", "stuck", CHAPERONE_ALERT_URLS="")
    assert done.returncode == 0
    assert "No channel is configured" in done.stderr
