"""Routes, priorities, silences, inhibition; and the configurations of docs/alerting.md, which have to work as they stand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dramatiq_chaperone.alerts import messages, routing
from dramatiq_chaperone.alerts.channels import channels_of, refuse_unknown
from dramatiq_chaperone.alerts.kinds import KINDS, Alert, fingerprint
from dramatiq_chaperone.circuits import waiting_for
from dramatiq_chaperone.errors import SettingsError
from dramatiq_chaperone.settings import THRESHOLDS, Settings
from tests.unit.alerts.test_lifecycle import alert

DOCS = Path(__file__).parents[3] / "docs" / "alerting.md"


def load(path: Path | None = None, **arguments: Any) -> Settings:
    return Settings.load({"config": None if path is None else str(path), **arguments}, environ={"HOME": "/nonexistent"})


def ways(settings: Settings, it: Alert) -> list[tuple[str, tuple[str, ...]]]:
    """Where an alert goes: route and channels."""
    found = channels_of(settings)
    routes = routing.routes_of(settings, found.default, found.tags)
    for route in routes:
        refuse_unknown([*route.channels, *route.escalate_to], found)
    return [(route.name, tuple(found.expanded(route.channels))) for route, _ in routing.routed(it, routes)]


def scenarios() -> dict[str, str]:
    """Heading to configuration."""
    text = DOCS.read_text(encoding="utf-8").partition("## Scenarios")[2].partition("\n## ")[0]
    return dict(re.findall(r"### ([^\n]+)\n.*?```toml\n(.*?)```", text, flags=re.DOTALL))


WANTED: dict[str, list[tuple[dict[str, Any], list[tuple[str, tuple[str, ...]]]]]] = {
    "Mail": [({}, [("default", ("mail",))])],
    "Slack, with mail where it fails": [({}, [("default", ("slack", "mail"))])],
    "Discord": [({}, [("default", ("discord",))])],
    "On call: PagerDuty for what is critical, Slack for the rest": [
        ({"severity": "critical"}, [("on call", ("pagerduty",)), ("rest", ("slack",))]),
        ({}, [("rest", ("slack",))]),
    ],
    "Opsgenie, when nobody has looked after it for a quarter of an hour": [({}, [("all", ("slack",))])],
    "Each team its own": [
        ({"labels": {"queue": "payments-eu"}}, [("payments", ("payments",))]),
        ({"labels": {"actor": "import_feed"}}, [("etl", ("data",))]),
        ({}, [("default", ("payments", "data"))]),
    ],
    "Fewer messages": [({"severity": "warning"}, [("noisy", ("json",))]), ({}, [("loud", ("json",))])],
    "Runbooks": [({}, [("default", ("json",))])],
    "Maintenance every time the same": [({}, [("default", ("json",))])],
    "Who watches the watcher": [({}, [("default", ("json",))])],
}


@pytest.mark.parametrize("title", scenarios())
def test_a_scenario_of_the_documentation(title: str, tmp_path: Path) -> None:
    path = tmp_path / "chaperone.toml"
    path.write_text(scenarios()[title])
    settings = load(path)
    for changed, wanted in WANTED[title]:
        assert ways(settings, alert("a", **changed)) == wanted
    assert channels_of(settings, check=True).wrong == {}


def test_every_scenario_is_there() -> None:
    assert sorted(scenarios()) == sorted(WANTED)


def test_the_documentation_has_every_type_and_every_threshold() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        assert re.search(rf"^\| `{name}` \| {kind.severity} \|", text, flags=re.MULTILINE), name
        assert kind.is_point == bool(re.search(rf"^\| `{name}` .*\| – \|$", text, flags=re.MULTILINE)), name
    shown = tomllib.loads(re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)[0])["alerts"]["thresholds"]
    assert shown == {name: default for name, (_, default) in THRESHOLDS.items()}


def test_routes_of_one_name_are_two() -> None:
    channels = {name: {"urls": f"json://{name}"} for name in "ab"}
    routes = [{"preset": "digest", "match": {"queue": name}, "channels": [name]} for name in "ab"]
    settings = load(alerts={"channels": channels, "routes": routes})
    assert ways(settings, alert("x", labels={"queue": "a"})) == [("digest", ("a",))]
    assert ways(settings, alert("x", labels={"queue": "b"})) == [("digest 2", ("b",))]


def test_the_presets_are_those_of_the_specification() -> None:
    routes = [{"preset": "digest", "continue": True}, {"preset": "grouped", "continue": True}, {"preset": "escalating"}]
    digest, grouped, escalating = routing.routes_of(load(alerts={"routes": routes}), ["log"], {})[:3]
    assert (digest.group_by, digest.group_wait, digest.group_limit) == (("type",), 300, 10)
    assert (grouped.group_by, grouped.group_wait, grouped.group_limit) == (("actor",), 600, 5)
    assert escalating.repeat == (300, 900, 1800, 3600)


@pytest.mark.parametrize(
    ("actor", "wanted"),
    [
        ("ChargePayment", "high"),
        ("place_order", "high"),
        ("cleanup_tmp", "low"),
        ("ArchiveLogs", "low"),
        ("import", "normal"),
        ("vip_sync", "critical"),
    ],
)
def test_priorities(actor: str, wanted: str) -> None:
    assert routing.priority_of(actor, load(critical_jobs=["vip_*"])) == wanted
    assert routing.priority_of(actor, load(), is_critical=True) == "critical"


def test_a_silence_matches_by_all_of_its_labels() -> None:
    silence = routing.Silence("1", {"actor": ["import_*", "export_*"], "severity": ["error"]}, 100.0, 200.0)
    it = alert("a", labels={"actor": "import_feed"})
    assert routing.silenced(it, [silence], 150.0) is silence
    assert routing.silenced(it, [silence], 99.0) is None
    assert routing.silenced(it, [silence], 200.0) is None
    assert routing.silenced(it._replace(severity="critical"), [silence], 150.0) is None
    assert routing.silenced(alert("a"), [silence], 150.0) is None


def test_inhibition() -> None:
    lost = alert("w", type="worker_lost", evidence={"key": "w1"})
    opened = alert("b", type="circuit_breaker", evidence={"key": "payments"})
    mine = alert("a", type="job_stuck", labels={"worker": "w1"})
    other = alert("a", type="job_stuck", labels={"worker": "w2"})
    queue = alert("q", type="queue_length", labels={"queue": "pay"})
    assert routing.inhibited(mine, [lost], {}) is lost
    assert routing.inhibited(other, [lost], {}) is None
    assert routing.inhibited(lost, [lost], {}) is None
    assert routing.inhibited(queue, [opened], {"pay": frozenset({waiting_for("payments")})}) is opened
    assert routing.inhibited(queue, [opened], {"mail": frozenset({waiting_for("payments")})}) is None
    assert routing.inhibited(mine, [opened], {}) is None


def test_the_runbook_of_an_actor_goes_before_that_of_its_type() -> None:
    settings = load(alerts={"runbooks": {"job_stuck": "https://type", "charge_*": "https://actor"}})
    assert routing.runbook_of("job_stuck", "charge_card", settings) == "https://actor"
    assert routing.runbook_of("job_stuck", "import", settings) == "https://type"
    assert routing.runbook_of("job_failed", "import", settings) == ""


@pytest.mark.parametrize(
    ("alerts", "words"),
    [
        ({"routes": [{"grup_by": ["type"]}]}, "did you mean group_by"),
        ({"routes": [{"group_by": ["typ"]}]}, "did you mean type"),
        ({"routes": [{"match": {"actr": "x"}}]}, "did you mean actor"),
        ({"routes": [{"group_wait": -1}]}, "alerts.routes\\[1\\].group_wait must be a number, 0 to 31,536,000, not -1"),
        ({"routes": {}}, "alerts.routes must be a list of tables"),
        ({"channels": {"ops": {"urls": 3}}}, "alerts.channels.ops.urls must be text"),
        ({"channels": {"ops": {"fallback": "ops"}}}, "must be another channel"),
        ({"thresholds": {"window": 5}}, "alerts.thresholds.window must be a number, 60 to 3,600, not 5"),
        ({"sla": [{"objective": 101}]}, "1 to 100"),
        ({"maintenance": [{"start": "soon"}]}, "a date and time"),
        ({"chanels": {}}, "did you mean channels"),
    ],
)
def test_what_is_wrong_is_named(alerts: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load(alerts=alerts)


def test_a_route_to_a_channel_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="There is no channel 'slak'"):
        refuse_unknown(["slak"], channels_of(load()))


@pytest.mark.parametrize("alerts", [{"channels": {"ops": "slack://s3cr3t-t0ken"}}, {"watchdog_url": ["https://s3cr3t-t0ken"]}])
def test_no_error_shows_a_secret(alerts: Any) -> None:
    with pytest.raises(SettingsError) as raised:
        load(alerts=alerts)
    assert "s3cr3t" not in str(raised.value)


def test_no_setting_shows_a_secret() -> None:
    secret = "s3cr3t-t0ken"
    settings = load(alert_urls=f"json://{secret}", mail_password=secret, alerts={"channels": {"ops": {"urls": f"json://{secret}"}}})
    assert secret not in repr(settings)
    assert secret not in str(settings.public_rows())


def test_fingerprints_tell_types_apart() -> None:
    assert fingerprint("job_stuck", "j1") != fingerprint("job_timeout", "j1")


def test_the_first_line_of_a_message_stays_the_same() -> None:
    settings = load()
    texts = [
        messages.make([(alert("a", number=number, last_seen_at=float(number)), "firing")], settings, now=1.0).text("text")
        for number in (1, 9)
    ]
    assert texts[0].splitlines()[0] == texts[1].splitlines()[0] == "Circuit Breaker Opened: a"
    assert texts[0] != texts[1]
