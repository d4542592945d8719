"""What killed this worker: the ranking, and its words."""

from __future__ import annotations

from typing import Any

import pytest

from dramatiq_chaperone.store.suspects import RunFacts, growth_bytes, suspects

NOW = 1_790_000_000.0
MB = 1 << 20


def run(name: str, **known: Any) -> RunFacts:
    return RunFacts(**{"job_id": name, "run_id": f"run-{name}", "actor": "work", "started_at": NOW - 600, **known})


def samples(*megabytes: int | None) -> tuple[tuple[float, int | None, float | None], ...]:
    return tuple((NOW - 60 + n, None if mb is None else mb * MB, 10.0) for n, mb in enumerate(megabytes))


def ranked(*runs: RunFacts, exit_cause: str = "unknown") -> list[str]:
    return [each.job_id for each in suspects(runs, at=NOW, exit_cause=exit_cause)]


OOM = "SIGKILL (out of memory)"
GREEDY = run("greedy", samples=samples(100, 300, 900))
BUSY = run("busy", cpu_usage=99.0)
REPEATED = run("repeated", crashes=1)
STUCK = run("stuck", is_stuck=True)
LATE = run("late", timeout_at=NOW - 90)
YOUNG = run("young", started_at=NOW - 0.3)
CALM = run("calm", samples=samples(100, 101, 99), cpu_usage=3.0)


@pytest.mark.parametrize("other", [BUSY, STUCK, LATE, YOUNG, CALM])
def test_memory_that_grew_is_more_suspect_than_most(other: RunFacts) -> None:
    assert ranked(other, GREEDY) == ["greedy", other.job_id]


def test_out_of_memory_makes_it_the_first() -> None:
    assert ranked(REPEATED, GREEDY, exit_cause=OOM) == ["greedy", "repeated"]


def test_more_growth_weighs_more() -> None:
    most = run("most", samples=samples(100, 3000))
    assert ranked(GREEDY, most, exit_cause=OOM) == ["most", "greedy"]


def test_what_died_with_a_worker_before_is_suspect() -> None:
    assert ranked(BUSY, STUCK, REPEATED) == ["repeated", "stuck", "busy"]
    assert ranked(REPEATED, run("thrice", crashes=3)) == ["thrice", "repeated"]


def test_the_memory_of_a_process_that_many_share_weighs_less() -> None:
    shared = run("shared", samples=samples(100, 900), memory_attribution="shared")
    exact = run("exact", samples=samples(100, 900), memory_attribution="exact")
    first, second = suspects([shared, exact], at=NOW, exit_cause="unknown")
    assert (first.job_id, second.job_id) == ("exact", "shared")
    assert second.reasons == ["memory grew by 800 MB while it ran (the process, with other jobs)"]


def test_of_those_that_share_it_the_one_that_came_before_it_grew() -> None:
    memory = tuple((NOW - 60 + n, (100 if n < 30 else 100 + 20 * (n - 29)) * MB, 1.0) for n in range(60))
    old = run("old", started_at=NOW - 59, samples=memory, memory_attribution="shared")
    new = run("new", started_at=NOW - 33, samples=memory[27:], memory_attribution="shared")
    later = run("later", started_at=NOW - 10, samples=memory[50:], memory_attribution="shared")
    found = suspects([old, later, new], at=NOW, exit_cause=OOM)
    assert [each.job_id for each in found] == ["new", "old", "later"]
    assert any(reason.startswith("memory began to grow") for reason in found[0].reasons)


def test_reasons_are_in_words_the_weightiest_first() -> None:
    everything = run("j", samples=samples(10, 510), cpu_usage=97.4, crashes=2, is_stuck=True, timeout_at=NOW - 12, started_at=NOW - 1.5)
    (found,) = suspects([everything], at=NOW, exit_cause="SIGSEGV")
    assert found.reasons == [
        "2 workers died with it before",
        "memory grew by 500 MB while it ran",
        "nothing else ran there",
        "it was stuck",
        "it was 12 s past its timeout",
        "it used 97 % of a core",
        "it had begun 1.5 s before",
    ]


def test_those_against_whom_nothing_speaks_are_in_order() -> None:
    found = suspects([run("b"), run("a"), CALM], at=NOW, exit_cause="SIGTERM")
    assert [(each.job_id, each.score, each.reasons) for each in found] == [("a", 0, []), ("b", 0, []), ("calm", 0, [])]


@pytest.mark.parametrize(
    ("memory", "grown"),
    [((), 0), ((100,), 0), ((300, 100), 0), ((300, 100, 250), 150), ((None, 100, None, 160), 60), ((500, 100, 200, 150), 100)],
)
def test_growth_is_from_the_lowest_to_a_later_one(memory: tuple[int | None, ...], grown: int) -> None:
    assert growth_bytes(run("j", samples=samples(*memory))) == grown * MB


def test_nobody() -> None:
    assert suspects([], at=NOW, exit_cause=OOM) == []
