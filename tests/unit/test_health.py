"""How a job is, and who says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dramatiq_chaperone import health, health_check
from dramatiq_chaperone.health import WELL, Checks, Finding, HealthStatus, JobFacts, assess, remove_health_check
from dramatiq_chaperone.service import internal_errors


def facts(**known: Any) -> JobFacts:
    return JobFacts(**{"job_id": "j1", "actor_name": "work", "queue": "default", "retries": 0, "age_s": 5.0, **known})


@pytest.fixture(autouse=True)
def no_checks_left() -> Iterator[None]:
    before = health._checks
    yield
    health._checks = before


@pytest.mark.parametrize(
    ("known", "status", "codes"),
    [
        ({}, "healthy", ()),
        ({"zones": {"memory": "near"}}, "degraded", ("memory_near_limit",)),
        ({"zones": {"memory": "over"}}, "unhealthy", ("memory_over_limit",)),
        ({"zones": {"memory": "near", "cpu": "over"}}, "unhealthy", ("cpu_over_limit", "memory_near_limit")),
        ({"zones": {"timeout": "over"}}, "unhealthy", ("timeout_over_limit",)),
        ({"missed_heartbeats": 1}, "degraded", ("missed_heartbeat",)),
        ({"missed_heartbeats": 2}, "degraded", ("stale_heartbeat",)),
        ({"missed_heartbeats": 3, "is_stuck": True}, "unhealthy", ("stuck",)),
        ({"unseen_s": 29}, "healthy", ()),
        ({"unseen_s": 31}, "unknown", ("not_seen",)),
        ({"unseen_s": 31, "zones": {"memory": "near"}}, "degraded", ("memory_near_limit", "not_seen")),
        ({"open_circuits": ("payments",)}, "degraded", ("circuit_open",)),
        ({"metadata": {"errors": 10}, "progress": 3, "memory_is_shared": True, "age_s": 1e6}, "healthy", ()),
    ],
)
def test_verdicts(known: dict[str, Any], status: str, codes: tuple[str, ...]) -> None:
    found = assess(facts(**known))
    assert (found.status, found.codes) == (status, codes)
    assert (found.reason is None) == (not codes)


def test_what_a_check_finds_counts_beside_the_rest() -> None:
    found = assess(facts(zones={"memory": "near"}), (Finding(HealthStatus.UNHEALTHY, "errors", "every second row is refused"),))
    assert (found.status, found.codes) == ("unhealthy", ("errors", "memory_near_limit"))
    assert found.reason == "every second row is refused; memory at 80 % of its limit or more"


class TestChecks:
    def test_answers(self) -> None:
        answers: dict[str, Any] = {
            "nothing": None, "well": "healthy", "bare": "degraded", "full": ("unhealthy", "too many errors"), "named": HealthStatus.UNKNOWN,
        }  # fmt: skip
        for name, answer in answers.items():
            health_check(name=name)(lambda facts, answer=answer: answer)
        found = Checks().ask(facts(), 0.0, {})
        assert found == {
            "bare": Finding(HealthStatus.DEGRADED, "bare", "bare"),
            "full": Finding(HealthStatus.UNHEALTHY, "full", "too many errors"),
            "named": Finding(HealthStatus.UNKNOWN, "named", "named"),
        }

    def test_a_decorated_function_stays_what_it_is_and_has_its_own_name(self) -> None:
        @health_check
        def error_rate(job: JobFacts) -> tuple[str, str] | None:
            rate = job.metadata.get("errors", 0) / max(1, job.metadata.get("rows", 0))
            return ("degraded", f"{rate:.0%} of the rows refused") if rate > 0.01 else None

        assert error_rate(facts()) is None
        assert Checks().ask(facts(metadata={"errors": 3, "rows": 100}), 0.0, {})["error_rate"].reason == "3% of the rows refused"
        remove_health_check(error_rate)
        assert not Checks()

    @pytest.mark.parametrize("answer", [7, "ill", ("ill", "why"), True, ("degraded", "a", "b")])
    def test_nonsense_is_counted_and_no_verdict(self, answer: Any) -> None:
        health_check(name="nonsense")(lambda facts: answer)
        component = f"health check {__name__}.nonsense"
        before = internal_errors[component]
        assert Checks().ask(facts(), 0.0, {}) == {}
        assert internal_errors[component] == before + 1

    def test_what_one_raises_does_not_keep_the_others_from_their_turn(self) -> None:
        @health_check
        def broken(job: JobFacts) -> None:
            raise OSError("no")

        health_check(name="fine")(lambda facts: "degraded")
        assert set(Checks().ask(facts(), 0.0, {})) == {"fine"}

    def test_a_slow_check_is_left_alone_for_as_long_as_its_budget_says(self) -> None:
        ticks = iter([0.0, 0.5, 1.0, 1.0005, 2.0, 2.0])
        checks, calls = Checks(lambda: next(ticks)), []

        @health_check
        def slow(job: JobFacts) -> str:
            calls.append(job)
            return "degraded"

        first = checks.ask(facts(), 100.0, {})
        assert checks.ask(facts(), 149.0, first) == first, "what it found before"
        assert len(calls) == 1
        checks.ask(facts(), 150.0, first)
        checks.ask(facts(), 150.1, first)
        assert len(calls) == 3, "half a millisecond is free"

    def test_what_is_no_plain_function_is_refused(self) -> None:
        async def check(job: JobFacts) -> None: ...

        with pytest.raises(TypeError):
            health_check(check)
        with pytest.raises(TypeError):
            health_check(name="x")("no function")  # type: ignore[type-var]


def test_a_job_that_is_well_has_no_reason() -> None:
    assert (WELL.status, WELL.reason, WELL.codes) == ("healthy", None, ())
