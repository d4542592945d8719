"""One object for each name; where its options are from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dramatiq_chaperone import breaker
from dramatiq_chaperone.breakers.sharing import shared
from dramatiq_chaperone.errors import SettingsError
from dramatiq_chaperone.settings import Settings


def test_one_object_and_options_where_it_is_named() -> None:
    svc = breaker("svc")
    assert breaker("svc", timeout=30, storage="memory") is svc
    assert breaker("svc", timeout=30.0, failure_threshold=7) is svc
    assert (svc.policy.timeout, svc.policy.failure_threshold, svc.policy.success_threshold) == (30, 7, 2)
    assert breaker("svc").with_threshold(7).with_timeout(30).with_success_threshold(4).with_half_open_attempts(5) is svc
    assert (svc.policy.success_threshold, svc.policy.half_open_attempts) == (4, 5)
    assert breaker("svc").with_threshold(7).execute(lambda: 1, fallback=2) == 1


def test_two_different_values_are_refused() -> None:
    breaker("svc", timeout=30)
    with pytest.raises(SettingsError, match=r"'svc' has timeout=30.0 already; it cannot be 31.0 too") as caught:
        breaker("svc").with_timeout(31)
    assert caught.value.field == "breakers.svc.timeout"


def test_defaults_are_those_of_the_settings(chaperone_env: Callable[..., None]) -> None:
    chaperone_env(CIRCUIT_BREAKER_THRESHOLD=9, CIRCUIT_BREAKER_TIMEOUT=12.5)
    policy = breaker("svc", storage="memory").policy
    assert (policy.failure_threshold, policy.timeout, policy.half_open_attempts) == (9, 12.5, 3)


def test_a_table_of_its_own_in_the_file(chaperone_env: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "chaperone.toml"
    path.write_text("[breakers.payments]\ntimeout = 30\nfailure_threshold = 2\n['breakers'.'a.b']\ntimeout = 1\n")
    chaperone_env(CONFIG=path)
    policy = breaker("payments", failure_threshold=4, storage="memory").policy
    assert (policy.timeout, policy.failure_threshold) == (30, 4)
    assert breaker("a.b", storage="memory").policy.timeout == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[breakers.payments]\ntimout = 3", "timout is not an option of a circuit breaker .*did you mean timeout"),
        ("[breakers.payments]\ntimeout = -1", "timeout of the breaker 'payments' must be a number, 0 to 86,400"),
        ("[breakers.payments]\nfailure_threshold = 2.5", "must be a whole number"),
        ("breakers = 3", "breakers must be a table for each service"),
        ("[breakers]\npayments = 3", "breakers must be a table for each service"),
    ],
)
def test_mistakes_in_the_file(chaperone_env: Callable[..., None], tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chaperone.toml"
    path.write_text(text)
    chaperone_env(CONFIG=path)
    with pytest.raises(SettingsError, match=message):
        Settings.load()


@pytest.mark.parametrize(
    "options",
    [{"timeout": -1}, {"timeout": True}, {"record_result": 3}, {"storage": "redis"}, {"ignore_exceptions": [int]}, {"timeout": "x"}],
)
def test_mistakes_in_the_call(options: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        breaker("svc", **options)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("service", ["", "x" * 192, "a\0b", 3])
def test_a_name_must_be_one(service: object) -> None:
    with pytest.raises(SettingsError):
        breaker(service)  # type: ignore[arg-type]  # that is the point


def test_the_switch_for_all(chaperone_env: Callable[..., None], state_dir: Path) -> None:
    chaperone_env(CIRCUIT_BREAKER_ENABLED=0)
    svc = breaker("svc", failure_threshold=1)
    for _ in range(3):
        with pytest.raises(OSError, match="no"), svc:
            raise OSError("no")
    assert (svc.status.mode, svc.status.failed) == ("disabled", 0)
    assert not list(state_dir.glob("*.sqlite3"))


def test_a_rate_takes_the_place_of_failures_in_a_row() -> None:
    assert breaker("a", failure_rate_threshold=50, storage="memory").policy.failure_threshold is None
    assert breaker("b", failure_rate_threshold=50, failure_threshold=5, storage="memory").policy.failure_threshold == 5


def test_settings_of_the_middleware_go_first() -> None:
    svc = breaker("svc", storage="memory")
    assert svc.policy.timeout == 300
    shared.use(Settings.load({"circuit_breaker_timeout": 7.0, "breakers": {"svc": {"failure_threshold": 8}}}))
    assert (svc.policy.timeout, svc.policy.failure_threshold) == (7, 8)


def test_a_line_may_be_run_again_and_again() -> None:
    for _ in range(3):
        found = breaker(
            "svc", timeout=30, record_result=lambda value: value == 503, ignore_exceptions=[KeyError, lambda error: not error.args]
        )
    assert found.policy.timeout == 30
    with pytest.raises(SettingsError, match="record_result"):
        breaker("svc", record_result=lambda value: value == 504)


def test_functions_that_were_made_differ_by_what_they_were_made_with() -> None:
    def is_code(code: int) -> Callable[[object], bool]:
        return lambda value: value == code

    for _ in range(2):
        breaker("svc", record_result=is_code(503))
    with pytest.raises(SettingsError, match="record_result"):
        breaker("svc", record_result=is_code(404))
