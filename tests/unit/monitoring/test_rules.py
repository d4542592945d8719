"""The rules are well-formed, each alert is tested and has a runbook, and promtool's tests of them hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from dramatiq_chaperone import cli
from grafana.parts import RUNBOOKS, TITLES
from tests import servers
from tests.unit.monitoring.metrics import TYPES, metrics_in

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "grafana" / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RUNBOOK = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
every_alert = pytest.mark.parametrize("name", ALERTS)


def promtool(*arguments: str) -> str:
    found = shutil.which("promtool")
    if found is None:
        servers.missing("promtool", "it is not installed (Debian: prometheus)")
    done = subprocess.run([str(found), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_the_rules_right_and_its_tests_hold() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "rules.yaml")
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yaml")


@every_alert
def test_an_alert_is_tested_for_firing_for_not_firing_and_for_its_end(name: str) -> None:
    cases = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    courses = [[bool(each["exp_alerts"]) for each in case["alert_rule_test"] if each["alertname"] == name] for case in cases]
    assert [False, True, False] in courses


@every_alert
def test_an_alert_says_what_it_is_and_where_to_look(name: str) -> None:
    rule = ALERTS[name]
    assert re.fullmatch(r"Chaperone([A-Z][a-z]+)+", name)
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes["summary"].endswith(".")
    assert "{{" not in notes["summary"]
    assert notes["description"].endswith(".")
    dashboard = re.fullmatch(r"https://grafana\.example\.com/d/([\w-]+)(\?.*)?", notes["dashboard_url"])
    assert dashboard is not None
    assert dashboard[1] in TITLES
    assert notes["runbook_url"] == f"{RUNBOOKS}#{name.lower()}"


@every_alert
def test_an_alert_has_a_runbook(name: str) -> None:
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", RUNBOOK, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    assert re.findall(r"^\*\*(.+?)\.\*\*", section[1], flags=re.MULTILINE) == ["What it means", "How to look", "What to do"]


def test_no_runbook_is_without_an_alert() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, flags=re.MULTILINE) == list(ALERTS)


def test_commands_in_the_runbooks_are_there() -> None:
    told = re.findall(r"`chaperone ([^`]+)`", RUNBOOK)
    assert told
    for words in told:
        command: Any = cli.commands
        for word in words.split():
            if word.startswith("--"):
                assert any(word in option.opts for option in command.params), words
            elif isinstance(command, click.Group):
                assert word in command.commands, words
                command = command.commands[word]


def test_rules_are_made_of_metrics_that_there_are() -> None:
    records = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        assert set(re.findall(r"job_[\w:]+", rule["expr"])) - {"job_queue", "job_queue_actor"} <= records
        metrics_in(rule["expr"])
        for name in re.findall(r"(?<![\w:])(chaperone_\w+_total)\b", rule["expr"]):
            assert TYPES[name] == "counter"
            assert re.search(rf"increase\({name}(\{{[^}}]*\}})?\[", rule["expr"]), rule["expr"]


def test_what_grafana_reads_at_its_start_is_what_the_guide_says() -> None:
    guide = (ROOT / "docs" / "grafana.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "grafana" / "provisioning").rglob("*.yaml")):
        found = yaml.safe_load(path.read_text())
        assert found["apiVersion"] == 1
        assert str(path.relative_to(ROOT)) in guide
        for provider in found.get("providers", ()):
            assert f"cp grafana/dashboards/*.json {provider['options']['path']}/" in guide
    assert f"`{RULES[-1]['alert']}`" in guide
    assert [rule["record"] in guide for rule in RULES if rule.get("record", "").endswith("p95_5m")] == [True, True]


def test_what_an_alert_is_made_of_is_recorded_before_it_in_its_group() -> None:
    """Groups are evaluated beside each other, in any order."""
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]:
        known: set[str] = set()
        for rule in group["rules"]:
            assert set(re.findall(r"job_\w+:[\w:]+", rule["expr"])) <= known, rule
            known.add(rule.get("record", ""))
