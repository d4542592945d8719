"""Exporters over HTTP, on a real store."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dramatiq_chaperone.metrics.exporter import Exporter
from dramatiq_chaperone.metrics.leadership import CLAIM, LEASE
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import alerts, deliveries, open_store
from dramatiq_chaperone.store.turns import StoreTurns
from tests import servers
from tests.contracts.conftest import Process, booted, ended, enqueued, started
from tests.proxy import Proxy
from tests.waiting import wait_until

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Served:
    """An exporter and its turns, as a process has them."""

    def __init__(self, settings: Settings, holder: str, **more: Any) -> None:
        self.exporter = Exporter(settings, holder, wake=self._wake, **more)
        self.turns = StoreTurns(settings, [self.exporter.reader], away=self.exporter.reader.away)
        self.turns.start()
        self.exporter.start()

    def _wake(self) -> None:
        self.turns.wake()

    def stop(self) -> None:
        """First it stops to listen."""
        assert self.exporter.stop()
        assert self.turns.stop()

    def get(self, path: str, accept: str = "") -> tuple[int, str, str]:
        """Status, content type and body."""
        address = wait_until(lambda: self.exporter.address)
        request = urllib.request.Request(f"http://{address[0]}:{address[1]}{path}", headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read().decode()

    def value(self, name: str, **labels: str) -> float | None:
        """A sample of a scrape; None if it is not there."""
        for family in text_string_to_metric_families(self.get("/metrics")[2]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None

    def reasons(self, path: str) -> list[str]:
        """What a probe says; its status must agree."""
        status, _, body = self.get(path)
        found = json.loads(body)
        assert (status == 200) == found["ok"] == (not found["reasons"])
        reasons: list[str] = found["reasons"]
        return reasons


Serve = Callable[..., Served]


@pytest.fixture
def settings(chaperone_env: Callable[..., None]) -> Settings:
    chaperone_env(EXPORTER_PORT=servers.free_port())
    return Settings.load()


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    """``serve("holder", settings, ...)``, each on a port of its own."""
    with contextlib.ExitStack() as stack:

        def start(holder: str = "one", changed: Settings | None = None, **more: Any) -> Served:
            base = changed or replace(settings, exporter_port=servers.free_port())
            served = Served(base, holder, **more)
            stack.callback(served.stop)
            return served

        yield start


def fill(settings: Settings) -> None:
    """Two jobs that ended, one that runs and one that waits."""
    store = open_store(settings, create=True)
    try:
        Process(store).writes(
            booted(),
            *(enqueued("j1"), started("j1", "r1"), ended("j1", "r1", duration_s=0.2)),
            *(enqueued("j2"), started("j2", "r2"), ended("j2", "r2", duration_s=2.0, outcome="failed", status="failed")),
            *(enqueued("j3"), started("j3", "r3"), enqueued("j4")),
        )
    finally:
        store.close()


def test_a_scrape_as_text_and_as_open_metrics(settings: Settings, serve: Serve) -> None:
    fill(settings)
    served = serve()
    wait_until(lambda: served.value("chaperone_exporter_leader") == 1)
    assert served.value("chaperone_up") == 1
    assert served.value("chaperone_jobs_total", outcome="completed", queue="default", actor="work") == 1
    assert served.value("chaperone_jobs_running", queue="default") == 1
    assert served.value("chaperone_run_duration_seconds_bucket", le="0.25") == 1
    status, content_type, body = served.get("/metrics", OPEN_METRICS)
    assert (status, content_type.split(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith("# EOF\n")
    assert served.get("/")[0] == 404


def test_promtool_has_nothing_against_a_scrape(settings: Settings, serve: Serve) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        servers.missing("promtool", "it is not installed (Debian: prometheus)")
    fill(settings)
    served = serve()
    wait_until(lambda: served.value("chaperone_exporter_leader") == 1)
    scrape = served.get("/metrics")[2]
    done = subprocess.run([str(promtool), "check", "metrics"], input=scrape, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_of_two_serves_the_totals_and_leaves_them_to_the_other(settings: Settings, serve: Serve) -> None:
    fill(settings)
    first = serve("first")
    wait_until(lambda: first.value("chaperone_exporter_leader") == 1)
    second = serve("second")
    assert second.value("chaperone_exporter_leader") == 0
    assert second.value("chaperone_jobs_total") is None
    assert second.value("chaperone_worker_processes", host="host") == 1
    first.stop()
    wait_until(lambda: second.value("chaperone_exporter_leader") == 1 and second.value("chaperone_jobs_total", outcome="completed") == 1)


def test_a_watcher_yields_to_an_exporter_of_the_fleet(settings: Settings, serve: Serve) -> None:
    fill(settings)
    watcher = serve("watcher")
    wait_until(lambda: watcher.value("chaperone_exporter_leader") == 1)
    fleet = serve("fleet", has_precedence=True)
    wait_until(lambda: fleet.value("chaperone_exporter_leader") == 1)
    assert watcher.value("chaperone_exporter_leader") == 0
    fleet.stop()
    wait_until(lambda: watcher.value("chaperone_exporter_leader") == 1)
    store = open_store(settings, create=False)
    try:
        held = dict(store.rows("SELECT name, holder FROM {leases}"))
    finally:
        store.close()
    assert (held[LEASE], held[CLAIM]) == ("watcher", None)


def test_a_port_that_is_taken_is_said_once_and_tried_again(
    settings: Settings, serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dramatiq_chaperone.metrics.exporter.BIND_RETRY_S", 0.05)
    fill(settings)
    with socket.create_server(("127.0.0.1", settings.exporter_port)):
        served = serve("late", settings)
        wait_until(lambda: "cannot be listened on" in caplog.text)
        assert served.exporter.address is None
        assert not served.exporter.reader.read(10).is_leader
    assert served.get("/livez")[0] == 200
    wait_until(lambda: served.value("chaperone_exporter_leader") == 1)
    assert caplog.text.count("cannot be listened on") == 1


@pytest.mark.parametrize("harm", ["cut", "freeze"])
def test_while_the_store_is_away_the_last_values_are_served(
    harm: str, settings: Settings, serve: Serve, postgres: servers.Postgres, proxy: Callable[[str, int], Proxy]
) -> None:
    with postgres.database() as url:
        parts = urlsplit(url)
        between = proxy(parts.hostname or "", parts.port or 5432)
        netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{between.port}".removeprefix("@")
        away = replace(settings, database_url=parts._replace(netloc=netloc).geturl(), auto_migrate=True, exporter_port=servers.free_port())
        fill(away)
        served = serve("one", away)
        wait_until(lambda: served.value("chaperone_jobs_total", outcome="completed") == 1)
        getattr(between, harm)()
        assert served.value("chaperone_up") == 0
        read_at = served.value("chaperone_read_timestamp_seconds")
        assert served.value("chaperone_jobs_total", outcome="completed") == 1
        assert served.reasons("/readyz")[0].startswith("the store does not answer")
        assert served.reasons("/livez") == []
        assert read_at == served.value("chaperone_read_timestamp_seconds")  # of the last values, not of the scrape
        (between.restore if harm == "cut" else between.thaw)()
        wait_until(lambda: served.value("chaperone_up") == 1, timeout_s=30)
        served.stop()


def test_without_a_store_there_is_an_answer_too(serve: Serve) -> None:
    served = serve()
    assert served.value("chaperone_up") == 0
    assert "There is no store" in served.reasons("/readyz")[0]


def test_the_probes_tell_a_silent_worker_and_a_stuck_process(settings: Settings, serve: Serve) -> None:
    fill(settings)  # its worker was heard of long ago
    stuck = serve("stuck", turned_at=lambda: -1000.0, reasons=lambda: ["worker w is frozen"])
    (still,) = stuck.reasons("/livez")
    silent, frozen = stuck.reasons("/readyz")
    assert "has not turned for" in still
    assert "no heartbeat for" in silent
    assert frozen == "worker w is frozen"
    assert len(stuck.reasons("/healthz")) == 3


def test_the_health_of_alerts_and_their_series(settings: Settings, serve: Serve) -> None:
    fill(settings)
    served = serve()
    wait_until(lambda: served.value("chaperone_exporter_leader") == 1)
    status, _, body = served.get("/healthz/alerts")
    assert (status, json.loads(body)["healthy"]) == (200, None), "none sent is unknown, and no fault"
    facts = {"type": "job_stuck", "subject": "a", "severity": "error", "priority": "normal", "status": "firing", "fingerprint": "f"}
    with contextlib.closing(open_store(settings, create=False)) as store:

        def deliver(result: str) -> None:
            now = time.time()
            key = alerts.raise_new(store, {**facts, "is_point": False, "labels": {}, "evidence": {}}, now)
            deliveries.add(store, "mail", [(key, "firing")], now, route="r", notice="new", result=deliveries.SENDING)
            deliveries.finish(store, deliveries.of_alert(store, key)[0], result, now, seconds=0.2)

        store.transact(lambda: deliver("failed"))
        status, _, body = served.get("/healthz/alerts")
        assert (status, json.loads(body)["failure_rate"]) == (503, 100.0)
        for _ in range(20):
            store.transact(lambda: deliver("sent"))
    status, _, body = served.get("/healthz/alerts")
    assert (status, json.loads(body)["healthy"]) == (200, True)
    assert served.value("chaperone_alerts_firing", type="job_stuck", severity="error") == 21
    assert served.value("chaperone_alerts_opened_total", type="job_stuck") == 21
    assert served.value("chaperone_alert_deliveries_total", channel="mail", result="sent") == 20
    assert served.value("chaperone_alert_delivery_duration_seconds_count", channel="mail") == 21
