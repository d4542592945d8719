"""Every expression of the dashboards and rules, asked of a real Prometheus that scrapes a real fleet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dramatiq_chaperone import records
from dramatiq_chaperone.metrics.names import SERIES
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store
from tests import servers
from tests.conftest import StartProcess
from tests.e2e.conftest import Fleet
from tests.e2e.prometheus import RULES, Prometheus
from tests.e2e.test_fleet import watcher, workers
from tests.unit.monitoring.metrics import metrics_in
from tests.waiting import wait_until

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((RULES.parents[1] / "dashboards").glob("*.json"))}
#: What Grafana puts in for a time range of two minutes and everything selected.
WINDOWS = {"__rate_interval": "20s", "__range": "2m"}
#: Metrics that no panel and no rule shows: for whoever looks for a cause.
RAW: set[str] = set()


class Expression(NamedTuple):
    """One query of a panel."""

    board: str
    panel: str
    legend: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.board}: {self.panel}" + (f", {self.legend}" if re.fullmatch(r"[A-Za-z][\w ]*", self.legend) else "")


def filled(text: str, **windows: str) -> str:
    """What Grafana would ask."""
    for name, window in {**WINDOWS, **windows}.items():
        text = text.replace(f"${name}", window)
    return re.sub(r"\$\w+", ".*", text)


def expressions() -> Iterator[Expression]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield Expression(name, panel["title"], target["legendFormat"], filled(target["expr"]))
        for note in board["annotations"]["list"]:
            yield Expression(name, "annotation", note["name"], filled(note["expr"]))


#: What a fleet that is well and works does not show.
TROUBLE = {
    "actors: Time to recovery": "no job was stuck or lost",
    "actors: Stuck": "no job was stuck",
    "actors: Limits passed": "no limit was passed",
    "actors: Share of the memory limit": "no actor that runs has a limit of its own",
    "workers: Losses of hosts": "no worker was lost",
    "workers: Hosts, Losses": "no worker was lost",
    "workers: Workers lost": "no worker was lost",
    "workers: Runs lost": "no worker was lost",
    "breakers: Firing": "there is nothing to alert of",
    "breakers: Opened": "there is nothing to alert of but some dead letters",
    "breakers: Deliveries": "nobody was told of anything yet",
    "breakers: Duration of deliveries": "nobody was told of anything yet",
    "breakers: Failed deliveries": "no delivery failed",
    "breakers: Not sent on purpose": "nothing was silenced",
    "overview: Errors and losses of Chaperone": "nothing of Chaperone failed or was dropped",
    **{f"{name}: annotation, Worker crashes": "no worker was lost" for name in BOARDS},
}
#: What is not there beside the trouble, and the first test shows.
QUIET = {
    "actors: Retries": "nothing is retried",
    "actors: Actors, Retries": "nothing is retried",
    "overview: Failures, retried": "nothing is retried",
    "actors: Highest memory ever": "no run ends after it was measured",
    "actors: Actors, Highest memory": "no run ends after it was measured",
    "queues: Oldest": "what waits is put off, and not due",
    "queues: Queues, Oldest": "what waits is put off, and not due",
    "breakers: Services, Failed": "the breaker opens with the first call",
    "breakers: Duration of calls": "there is one call",
    "breakers: Services, p95": "there is one call",
}
#: What neither shows for certain, and why.
NEVER = {
    "queues: Dead letters in the broker": "Redis keeps dead letters for some days: the fleet has none before one is dead",
    "queues: Queues, Time to clear": "queues that do not get shorter have no such time",
    "queues: Time to clear": "queues that do not get shorter have no such time",
}


def allowed(name: str, among: dict[str, str]) -> bool:
    return any(name == each or name.startswith(f"{each}, ") for each in among)


def is_empty(prometheus: Prometheus, each: Expression, now: float) -> bool:
    """Whether it shows nothing, at once and over the last minute and a half, as Grafana asks; an error is a failure."""
    at_once = prometheus.ask("query", query=each.text)["result"]
    over_time = prometheus.ask("query_range", query=each.text, start=now - 90, end=now, step="1s")["result"]
    return not at_once and not over_time


def wait_until_all_show(prometheus: Prometheus, *, but: dict[str, str]) -> None:
    """Ask every expression, until all have shown something but those."""
    missing = list(expressions())

    def all_show() -> bool:
        now = float(prometheus.ask("query", query="time()")["result"][1])
        missing[:] = [each for each in missing if is_empty(prometheus, each, now)]
        missing[:] = [each for each in missing if not allowed(each.name, but)]
        return not missing

    try:
        wait_until(all_show, timeout_s=30, interval_s=0.5)
    except AssertionError:
        pytest.fail(f"Nothing is to be seen in {sorted(each.name for each in missing)}")


def healthy_rules(prometheus: Prometheus) -> dict[str, dict[str, Any]]:
    """Every rule by its name; each must have been evaluated without an error."""
    groups = prometheus.ask("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert {rule["health"] for rule in rules.values()} == {"ok"}, rules
    return rules


def states(prometheus: Prometheus) -> dict[str, str]:
    """The alerts that are pending or fire."""
    return {name: rule["state"] for name, rule in healthy_rules(prometheus).items() if rule.get("state", "inactive") != "inactive"}


def rules_of(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def test_every_metric_is_shown_or_is_raw() -> None:
    used = set().union(
        *(metrics_in(each.text) for each in expressions()), *(metrics_in(rule["expr"]) for rule in rules_of(RULES.read_text()))
    )
    known = {each.name for each in SERIES}
    assert known - used == RAW
    assert used <= known


@pytest.fixture
def monitored(make_fleet: Callable[..., Fleet], redis_url: str) -> Fleet:
    fleet = make_fleet(redis_url, CHAPERONE_WORKER_HEARTBEAT="0.5")
    fleet.app = "tests.e2e.monitored_app"
    return fleet


def test_under_load_every_panel_shows_what_the_fleet_does(monitored: Fleet, start_process: StartProcess, tmp_path: Path) -> None:
    fleet, port, go = monitored, servers.free_port(), tmp_path / "go"
    fleet.start(processes=2, threads=4, CHAPERONE_EXPORTER_PORT=str(port))
    prometheus = Prometheus(start_process, tmp_path, port)
    wait_until(lambda: prometheus.value("sum(chaperone_worker_processes)") == 2, timeout_s=30)
    fleet.run(
        "work.send(); report.send(0.01); fail.send()\n"
        "import time; time.sleep(3)\n"  # now the actors are known, and what follows is growth
        "for number in range(40): work.send(fail_first=number % 4 == 0); report.send(0.05)\n"
        "for number in range(4): fail.send()\n"
        "burn.send(2.5)\n"
        "for number in range(2): work.send_with_options(delay=3_600_000)"
    )
    fleet.wait_for(completed=83, failed=5, pending=2)
    fleet.send(f"hold.send({str(go)!r})", 40)  # more than there are threads

    expected = {"completed": 83, "failed": 5}
    wait_until(lambda: prometheus.by_outcome("chaperone_jobs_total") == expected, timeout_s=30)
    wait_until(lambda: prometheus.value("sum(chaperone_jobs_running)") == 8, timeout_s=30)
    wait_until(lambda: prometheus.value("sum(chaperone_worker_jobs)") == 8, timeout_s=30)
    wait_until(lambda: prometheus.query("chaperone_running_memory_peak_bytes"), timeout_s=30)
    wait_until(lambda: prometheus.query("chaperone_queue_delayed > 0"), timeout_s=30)
    wait_until_all_show(prometheus, but={**TROUBLE, **NEVER})

    assert prometheus.by_outcome("chaperone_runs_total") == {"succeeded": 83, "failed": 15}
    assert prometheus.by("actor", "chaperone_retries_total") == {"work": 10}
    assert prometheus.by("queue", "chaperone_enqueued_total") == {"default": 41 + 5 + 1 + 2 + 40, "reports": 41}
    assert prometheus.by("reason", "chaperone_dead_letters_total") == {"retries exhausted": 5}
    assert prometheus.value("sum(chaperone_run_duration_seconds_count)") == 98
    assert prometheus.value("sum(chaperone_queue_wait_seconds_count)") == 98 + 8
    assert prometheus.by("result", "chaperone_circuit_breaker_calls_total") == {"succeeded": 41}
    assert prometheus.value('sum(chaperone_cpu_seconds_total{actor="burn"}) > bool 0.25') == 1
    assert prometheus.by("queue", "chaperone_jobs_pending") == {"default": 2 + 32}
    assert prometheus.by("queue", "chaperone_queue_delayed") == {"default": 2}
    assert prometheus.by("queue", "chaperone_queue_workers") == {"default": 2, "reports": 2}
    assert prometheus.by("broker", "chaperone_broker_read_timestamp_seconds > bool 0") == {"RedisBroker": 1}

    shown = {each.name: each.text for each in expressions()}
    numbers = {
        "overview: Stuck": 0,
        "overview: Lost": 0,
        "overview: Workers lost": 0,
        "overview: Poison messages": 0,
        "overview: Open breakers": 0,
        "overview: Workers": 2,
        "overview: Store": 1,
        "overview: Exporter": 1,
        "overview: Errors of Chaperone": 0,
        "overview: Not recorded": 0,
        "workers: Processes": 2,
        "workers: Running jobs": 8,
        "workers: Busy": 1,
    }
    assert {name: prometheus.value(shown[name]) for name in numbers} == numbers
    shares = prometheus.query(shown["actors: Actors, Failed"])
    assert {
        each["metric"]["actor"]: round(float(each["value"][1]), 3) for each in shares if each["metric"]["actor"] in {"work", "fail"}
    } == {"work": 0, "fail": 1}
    (p50,) = (float(each["value"][1]) for each in prometheus.query(shown["actors: Actors, p50"]) if each["metric"]["actor"] == "report")
    assert 0.025 <= p50 <= 0.1  # in the buckets of 50 ms
    assert states(prometheus) == {}
    records = [name for name in healthy_rules(prometheus) if ":" in name]
    assert len(records) == 5
    for name in records:
        assert prometheus.query(name), name
    go.touch()


def test_in_trouble_the_panels_show_it_and_the_alerts_begin(monitored: Fleet, start_process: StartProcess, tmp_path: Path) -> None:
    fleet, port, go, stay = monitored, servers.free_port(), tmp_path / "go", tmp_path / "stay"
    fleet.env["CHAPERONE_MEMORY_LIMIT"] = "0"
    fleet.env["CHAPERONE_ALERT_URLS"] = f"json://127.0.0.1:{servers.free_port()}"  # where nobody answers
    config = tmp_path / "chaperone.toml"
    config.write_text('[[alerts.maintenance]]\nmatch = { type = "job_timeout" }\n')
    fleet.env["CHAPERONE_CONFIG"] = str(config)
    first = fleet.start(processes=1, threads=4, CHAPERONE_EXPORTER_PORT=str(port))
    watcher(fleet, first)
    prometheus = Prometheus(start_process, tmp_path, port)
    stay.touch()
    fleet.send(f"late.send(); silent.send({str(stay)!r}); hold.send({str(stay)!r})")  # from now on these actors are known
    fleet.wait_for(completed=3)
    wait_until(lambda: prometheus.by_outcome("chaperone_jobs_total") == {"completed": 3}, timeout_s=30)
    stay.unlink()
    fleet.send(f"late.send(); silent.send({str(go)!r})")
    wait_until(lambda: prometheus.by("queue", "chaperone_jobs_stalled") == {"reports": 1}, timeout_s=30)
    wait_until(lambda: prometheus.query("chaperone_running_memory_limit_ratio"), timeout_s=30)
    wait_until(lambda: "ChaperoneJobStuck" in states(prometheus), timeout_s=30)
    go.touch()
    wait_until(lambda: prometheus.value('sum(chaperone_recovery_seconds_count{after="stuck"})') == 1, timeout_s=30)

    fleet.send("letter.send(fails=True)")
    wait_until(lambda: prometheus.by("service", 'chaperone_circuit_breaker_state{state="open"}') == {"mail": 1}, timeout_s=30)
    fleet.send("letter.send()", 3)
    wait_until(lambda: prometheus.by("service", "chaperone_circuit_breaker_jobs_waiting") == {"mail": 3}, timeout_s=30)

    fleet.wait_for(completed=5, failed=1, pending=3)
    fleet.send(f"hold.send({str(stay)!r})")
    wait_until(lambda: prometheus.by("queue", "chaperone_jobs_running") == {"default": 1}, timeout_s=30)
    fleet.send("venom.send()")
    first.wait()  # with one of its workers the master ends
    second = fleet.start(processes=1, threads=4, CHAPERONE_EXPORTER_PORT=str(port))
    watcher(fleet, second)
    wait_until(lambda: prometheus.by("reason", "chaperone_dead_letters_total")["poison"] == 1, timeout_s=40)
    wait_until(lambda: prometheus.value('sum(chaperone_recovery_seconds_count{after="lost"})') == 1, timeout_s=30)
    assert len(workers(second)) == 1
    for number in (1, 2):
        drop(fleet, number)
        wait_until(lambda number=number: prometheus.by("what", "chaperone_dropped_total") == {"Sampled": 5 * number}, timeout_s=30)
    assert prometheus.by("table", "chaperone_unwritable_rows_total") == {"journal": 2}

    wait_until_all_show(prometheus, but=QUIET | NEVER)
    assert prometheus.by("cause", "chaperone_stuck_total").total() == 1
    causes = prometheus.by("cause", "chaperone_lost_total")
    assert causes in [{"SIGKILL": 2}, {"unknown": 2}]  # whoever waits for the worker first takes its exit code away
    assert prometheus.by("cause", "chaperone_workers_lost_total") == dict.fromkeys(causes, 1)
    assert prometheus.by("type", "chaperone_violations_total") == {"timeout": 2}
    wait_until(lambda: {"ChaperonePoisonJob", "ChaperoneBreakerOpen"} <= states(prometheus).keys(), timeout_s=30)
    assert states(prometheus)["ChaperonePoisonJob"] == "firing"
    stay.touch()


def drop(fleet: Fleet, number: int) -> None:
    """What the journal of another process tells that could not keep everything."""
    store = open_store(replace(Settings.load(), database_url=fleet.database_url), create=False)
    try:
        origin = records.Origin("other-1-aaaa", "other", "boot-1", 1, 1.0, "producer")
        store.apply(origin, [(records.DROPPED, 1.0, "Sampled", 5), (records.ENQUEUED, "broken")], start=10 * number - 10, end=10 * number)
    finally:
        store.close()
