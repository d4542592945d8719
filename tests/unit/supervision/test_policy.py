"""What applies to an actor, and in which order it is decided."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone.errors import SettingsError
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision.policy import OPTIONS, Policy, is_supervised, policy_of
from dramatiq_chaperone.supervision.sending import check_options


def policy(arguments: dict[str, object] | None = None, **options: Any) -> Policy:
    broker = StubBroker(middleware=[])
    broker.actor_options |= OPTIONS | {"time_limit"}

    def pay(card: str, amount: int, *, note: str = "") -> None: ...

    actor = dramatiq.actor(pay, broker=broker, queue_name="payments", priority=7, **options)
    return policy_of(actor, Settings.load(arguments or {}, environ={}))


class TestFilter:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, True),
            ({"supervised_queues": ["pay*"]}, True),
            ({"supervised_queues": ["reports"]}, False),
            ({"excluded_queues": ["pay*"]}, False),
            ({"supervised_queues": ["pay*"], "excluded_queues": ["payments"]}, False),
            ({"excluded_queues": ["PAY*"]}, True),
            ({"supervised_actors": ["p?y"]}, True),
            ({"supervised_actors": ["other"]}, False),
            ({"excluded_actors": ["p*"], "supervised_queues": ["payments"]}, False),
        ],
    )
    def test_excluded_wins_and_patterns_are_case_sensitive(self, arguments: dict[str, object], expected: bool) -> None:
        assert is_supervised("pay", "payments", Settings.load(arguments, environ={})) is expected

    def test_an_actor_may_ask_for_itself(self) -> None:
        assert policy({"excluded_queues": ["payments"]}, supervised=True).supervised
        assert not policy(supervised=False).supervised


class TestTimeout:
    """Message timeout, message time_limit, actor timeout, actor time_limit, setting, TimeLimit's own."""

    @pytest.mark.parametrize(
        ("setting", "actor", "message", "expected"),
        [
            (None, {}, {}, None),
            (60, {}, {}, 60.0),
            (60, {"time_limit": 5000}, {}, None),
            (60, {"timeout": 30}, {}, 30.0),
            (60, {"timeout": 30}, {"time_limit": 5000}, None),
            (60, {"timeout": 30}, {"timeout": 10}, 10.0),
            (60, {"time_limit": 5000}, {"timeout": 10}, 10.0),
            (60, {}, {"time_limit": 5000}, None),
            (60, {"timeout": 0}, {}, inf),
            (60, {"timeout": 30}, {"timeout": 0}, inf),
            (0, {}, {}, inf),
        ],
    )
    def test_precedence(self, setting: float | None, actor: dict[str, Any], message: dict[str, Any], expected: float | None) -> None:
        arguments: dict[str, object] = {} if setting is None else {"timeout": setting}
        assert policy(arguments, **actor).timeout_s(message) == expected

    def test_both_at_one_level_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="time_limit=5000") as caught:
            check_options("actor pay", {"timeout": 5, "time_limit": 5000})
        assert caught.value.field == "timeout"
        assert caught.value.value == 5

    @pytest.mark.parametrize(("name", "value"), [("timeout", "abc"), ("timeout", -1), ("memory_limit", True), ("heartbeat_interval", [1])])
    def test_what_is_no_number_is_refused_where_it_is_set(self, name: str, value: Any) -> None:
        with pytest.raises(SettingsError, match=f"{name}=.* of message m1 must be a number, 0 or more") as caught:
            check_options("message m1", {name: value})
        assert (caught.value.field, caught.value.value) == (name, value)

    def test_none_and_zero_switch_off(self) -> None:
        check_options("actor pay", {"timeout": 0, "memory_limit": None})


class TestLimits:
    def test_only_what_was_set_is_recorded(self) -> None:
        assert policy().limits is None
        assert json.loads(policy(memory_limit=100, timeout=5).limits or "") == {"timeout": 5, "memory_limit": 100}

    def test_the_message_goes_before_its_actor(self) -> None:
        mixed = policy(memory_limit=100, cpu_limit=50).limits_of({"memory_limit": 200, "retries": 1})
        assert json.loads(mixed or "") == {"memory_limit": 200, "cpu_limit": 50}

    def test_the_heartbeat_promise(self) -> None:
        assert policy().heartbeat_interval_s({}) is None
        assert policy(heartbeat_interval=30).heartbeat_interval_s({}) == 30
        assert policy(heartbeat_interval=30).heartbeat_interval_s({"heartbeat_interval": 5}) == 5
        assert policy(heartbeat_interval=30).heartbeat_interval_s({"heartbeat_interval": 0}) is None


def test_positional_parameters_are_known_by_name() -> None:
    found = policy()
    assert found.parameters == ("card", "amount")
    assert (found.queue, found.priority) == ("payments", 7)
