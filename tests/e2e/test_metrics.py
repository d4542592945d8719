"""Metrics of a real fleet, scraped by a real Prometheus."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import StartProcess
from tests.e2e.conftest import Fleet
from tests.e2e.prometheus import Prometheus, get
from tests.e2e.test_fleet import watcher, workers
from tests.processes import ROOT, Process
from tests.waiting import wait_until


def sample(port: int, name: str) -> float | None:
    """The first sample that begins with *name*."""
    found = (line.rpartition(" ")[2] for line in get(port, "/metrics")[1].splitlines() if line.startswith(name))
    return next((float(each) for each in found), None)


def ready(port: int) -> bool:
    return get(port, "/readyz")[0] == 200


def test_the_totals_in_prometheus_are_what_the_actors_wrote_down(fleet: Fleet, start_process: StartProcess, tmp_path: Path) -> None:
    ports = servers.free_port(), servers.free_port()
    first = fleet.start(CHAPERONE_EXPORTER_PORT=str(ports[0]))
    fleet.start(CHAPERONE_EXPORTER_PORT=str(ports[1]))
    prometheus = Prometheus(start_process, tmp_path, *ports)
    fleet.send("work.send(fail_first=number % 5 == 0)", 40)
    fleet.send("fail.send()", 5)
    fleet.wait_for(completed=40, failed=5)

    def agrees() -> bool:
        ended = Counter(completed=len(fleet.notes("end")), failed=5)
        runs = Counter(succeeded=fleet.notes("end").total(), failed=fleet.notes("fail").total())
        return prometheus.by_outcome("chaperone_jobs_total") == ended and prometheus.by_outcome("chaperone_runs_total") == runs

    wait_until(agrees, timeout_s=30, interval_s=0.2)
    count = prometheus.query("sum(chaperone_run_duration_seconds_count)")
    assert int(count[0]["value"][1]) == fleet.notes("start").total()
    assert [each["value"][1] for each in prometheus.query("sum(chaperone_exporter_leader)")] == ["1"]
    wait_until(lambda: [each["value"][1] for each in prometheus.query("sum(chaperone_worker_processes)")] == ["4"], timeout_s=30)

    for process in (*first.children(), first):  # killed, every one of them, and begun anew
        process.kill()
    fleet.start(CHAPERONE_EXPORTER_PORT=str(ports[0]))
    fleet.send("work.send()", 10)
    fleet.wait_for(completed=50, failed=5)
    wait_until(agrees, timeout_s=60, interval_s=0.2)


def test_a_worker_that_is_killed_is_on_record_with_its_cause(fleet: Fleet, tmp_path: Path) -> None:
    port = servers.free_port()
    master = fleet.start(CHAPERONE_EXPORTER_PORT=str(port))
    watcher(fleet, master)
    fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
    wait_until(lambda: sample(port, "chaperone_jobs_running{") == 1, timeout_s=30)
    pids = {int(line.split()[2]) for line in fleet.ledger.read_text().splitlines()}
    victim = next(each for each in workers(master) if each.pid in pids)
    victim.kill()
    wait_until(lambda: fleet.sql("SELECT 1 FROM workers WHERE status = 'lost'"), timeout_s=30)
    (told,) = fleet.sql("SELECT exit_code, exit_cause FROM workers WHERE status = 'lost'")
    assert tuple(told) in {(-9, "SIGKILL"), (None, "unknown")}  # whoever waits for it first takes its code away
    assert fleet.counter("chaperone_runs_total") == {"lost": 1}


def test_a_frozen_worker_is_told_once_and_is_not_ready(fleet: Fleet) -> None:
    port = servers.free_port()
    master = fleet.start(processes=1, CHAPERONE_EXPORTER_PORT=str(port), CHAPERONE_WORKER_HEARTBEAT="0.2")
    wait_until(lambda: ready(port), timeout_s=30)
    (worker,) = workers(master)
    worker.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: "is frozen" in get(port, "/readyz")[1], timeout_s=30)
        assert get(port, "/livez")[0] == 200
    finally:
        worker.send_signal(signal.SIGCONT)
    wait_until(lambda: ready(port), timeout_s=30)
    assert master.log().count("it is frozen.") == 1


def test_a_worker_that_lives_and_fetches_nothing_is_not_ready(fleet: Fleet) -> None:
    port = servers.free_port()
    fleet.start(processes=1, CHAPERONE_EXPORTER_PORT=str(port), CHAPERONE_WORKER_HEARTBEAT="0.2")
    wait_until(lambda: ready(port), timeout_s=30)
    fleet.send("deafen.send()")
    wait_until(lambda: "consumers are dead" in get(port, "/readyz")[1], timeout_s=30)
    assert get(port, "/readyz")[0] == get(port, "/healthz")[0] == 503
    assert get(port, "/livez")[0] == 200
    wait_until(lambda: sample(port, "chaperone_worker_consumers{") == 0, timeout_s=30)


def test_workers_beside_a_watcher_do_not_load_the_library(fleet: Fleet) -> None:
    fleet.start(processes=1, CHAPERONE_EXPORTER_PORT=str(servers.free_port()))
    fleet.send("modules.send()")
    fleet.wait_for(completed=1)
    assert len(fleet.notes("prometheus_client=False")) == 1


def test_a_port_that_is_taken_costs_the_fleet_nothing(fleet: Fleet) -> None:
    port = servers.free_port()
    first, second = (fleet.start(processes=1, CHAPERONE_EXPORTER_PORT=str(port)) for _ in range(2))
    wait_until(lambda: "cannot be listened on" in first.log() + second.log(), timeout_s=30)
    fleet.send("work.send()", 4)
    fleet.wait_for(completed=4)
    loser = first if "cannot be listened on" in first.log() else second
    (second if loser is first else first).stop()
    wait_until(lambda: sample(port, "chaperone_jobs_total{") == 4, timeout_s=30)
    assert loser.log().count("cannot be listened on") == 1


class TestTheCommand:
    def start(self, start_process: StartProcess, fleet: Fleet, *arguments: str) -> Process:
        return start_process(Path(sys.executable).with_name("chaperone"), "exporter", *arguments, env=fleet.env, cwd=ROOT)

    def test_it_takes_the_totals_over_and_gives_them_back(self, fleet: Fleet, start_process: StartProcess) -> None:
        own, port = servers.free_port(), servers.free_port()
        fleet.start(processes=1, CHAPERONE_EXPORTER_PORT=str(own))
        fleet.send("work.send()", 3)
        fleet.wait_for(completed=3)
        wait_until(lambda: sample(own, "chaperone_exporter_leader") == 1, timeout_s=30)
        command = self.start(start_process, fleet, "--port", str(port))
        command.wait_for_log(f"http://127.0.0.1:{port}/metrics")
        wait_until(lambda: sample(port, "chaperone_jobs_total{") == 3, timeout_s=30)
        assert sample(own, "chaperone_exporter_leader") == 0
        assert sample(own, "chaperone_jobs_total{") is None
        command.send_signal(signal.SIGINT)
        assert command.wait() == 0
        assert "Traceback" not in command.log()
        wait_until(lambda: sample(own, "chaperone_exporter_leader") == 1, timeout_s=30)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
    def test_an_address_that_others_reach_has_to_be_allowed(self, fleet: Fleet, start_process: StartProcess, host: str) -> None:
        command = self.start(start_process, fleet, "--host", host, "--port", str(servers.free_port()))
        assert command.wait() == 2
        assert "--allow-remote" in command.log()

    def test_it_may_be_allowed(self, fleet: Fleet, start_process: StartProcess) -> None:
        port = servers.free_port()
        command = self.start(start_process, fleet, "--host", "0.0.0.0", "--port", str(port), "--allow-remote")
        wait_until(lambda: sample(port, "chaperone_up") == 0)
        assert "can read the metrics" in command.log()
