"""Thresholds: each says something above its number, and nothing at it, below it, or switched off."""

from __future__ import annotations

from typing import Any

import pytest

from dramatiq_chaperone.alerts.thresholds import TYPES, Readings, Runs, found
from dramatiq_chaperone.records import BUCKETS
from dramatiq_chaperone.settings import THRESHOLDS, Settings

NUMBERS = {name: default for name, (_, default) in THRESHOLDS.items()}


def load(**arguments: Any) -> Settings:
    return Settings.load(arguments, environ={"HOME": "/nonexistent"})


def types(settings: Settings | None = None, numbers: dict[str, float] | None = None, **readings: Any) -> list[str]:
    return [each.type for each in found(Readings(**readings), settings or load(), {**NUMBERS, **(numbers or {})})]


def runs(total: int = 100, failed: int = 0, duration_s: float = 10.0, wait_s: float = 0.0, fast: int | None = None) -> list[Runs]:
    buckets = [0] * (len(BUCKETS) + 1)
    buckets[BUCKETS.index(1.0)], buckets[-1] = (total, 0) if fast is None else (fast, total - fast)
    return [Runs(queue="q", actor="a", total=total, failed=failed, duration_s=duration_s, wait_s=wait_s, buckets=buckets)]


@pytest.mark.parametrize(
    ("type_", "above", "at"),
    [
        ("queue_length", {"queues": {"q": 1001}}, {"queues": {"q": 1000}}),
        ("oldest_waiting", {"oldest_s": {"q": 900.0}}, {"oldest_s": {"q": 899.0}}),
        ("error_rate", {"runs": runs(failed=11)}, {"runs": runs(failed=10)}),
        ("response_time", {"runs": runs(duration_s=30_100)}, {"runs": runs(duration_s=30_000)}),
        ("dead_letters", {"dead_letters": {"q": 51}}, {"dead_letters": {"q": 50}}),
        ("breaker_open_long", {"open_s": {"s": 1800.0}}, {"open_s": {"s": 1799.0}}),
        ("crash_loop", {"crashes": {"h": 5}}, {"crashes": {"h": 4}}),
    ],
)
def test_a_threshold(type_: str, above: dict[str, Any], at: dict[str, Any]) -> None:
    assert types(**above) == [type_]
    assert types(**at) == []
    assert type_ in TYPES


def test_a_queue_that_nobody_serves() -> None:
    waiting = {"oldest_s": {"q": 61.0}, "queues": {"q": 1}}
    assert types(**waiting, served=frozenset()) == ["no_worker"]
    assert types(**waiting, served=frozenset({"q"})) == []
    assert types(**waiting, served=None) == [], "not known is not guessed"


def test_what_waits_for_a_breaker_or_the_disk_does_not_wait_too_long() -> None:
    assert types(oldest_s={"q": 5000.0}, held=frozenset({"q"})) == []


def test_a_few_runs_say_nothing() -> None:
    assert types(runs=runs(total=19, failed=19)) == []


@pytest.mark.parametrize("name", ["alert_queue_length", "alert_error_rate", "alert_response_time"])
def test_zero_switches_a_setting_off(name: str) -> None:
    assert types(load(**{name: 0}), queues={"q": 10**6}, runs=runs(failed=100, duration_s=1e6)) == [
        each for each in ("queue_length", "error_rate", "response_time") if f"alert_{each}" != name
    ]


@pytest.mark.parametrize("name", ["oldest_waiting", "dead_letters", "breaker_open", "crashes", "no_worker"])
def test_zero_switches_a_number_off(name: str) -> None:
    every = {"oldest_s": {"q": 1e6}, "dead_letters": {"q": 1000}, "open_s": {"s": 1e6}, "crashes": {"h": 100}}
    kinds = {
        "oldest_waiting": "oldest_waiting",
        "dead_letters": "dead_letters",
        "breaker_open": "breaker_open_long",
        "crashes": "crash_loop",
    }
    left = types(numbers={name: 0}, **every)
    assert kinds.get(name) not in left
    assert len(left) == 4 - (name in kinds)


def test_objectives() -> None:
    sla = {"name": "checkout", "queue": "q*", "duration": 1.0, "wait": 30.0, "objective": 99, "severity": "critical"}
    settings = load(alerts={"sla": [sla]})
    assert types(settings, runs=runs(fast=99)) == []
    (missed,) = found(Readings(runs=runs(fast=98)), settings, NUMBERS)
    assert (missed.type, missed.subject, missed.severity) == ("sla", "checkout", "critical")
    assert dict(missed.details)["Duration"].startswith("98.0 % of 100 runs took at most 1 s")
    (late,) = found(Readings(runs=runs(wait_s=3100.0)), settings, NUMBERS)
    assert dict(late.details) == {"Wait": "31 s on average; wanted 30 s"}
    assert types(load(alerts={"sla": [{**sla, "queue": "other"}]}), runs=runs(fast=0)) == []
