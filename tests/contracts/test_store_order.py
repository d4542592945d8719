"""The order of reports: whatever the interleaving of processes, and whatever their clocks say, the outcome is the same.

A scenario is a message's life as several processes report it; its reports are cut into slices and applied in a random
interleaving that keeps only each process's own order.  A plain model, which knows the whole life at once, says what has
to come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from dramatiq_chaperone.store import Store, counters, open_store
from tests.contracts.conftest import NOW, StoreSettings, ended, enqueued, origin, started
from tests.scaling import scaled

CRASH = ("crash",)


@dataclass
class Life:
    """What happens to a message, run by run."""

    #: For each number of retries: what becomes of each run of it: completed, failed, retry, crash, open (it is not over yet).
    runs: list[list[str]]
    skews: list[float]
    #: How the reports of each process are cut, and who is next: seeds of the interleaving.
    cuts: list[int]
    turns: list[int]


@dataclass
class Stream:
    """The reports of one process, in their order."""

    name: str
    slices: list[list[tuple[Any, ...]]] = field(default_factory=list)
    crashes: bool = False


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Up to two retries; in each delivery crashes, redeliveries, zombies that end after all, and verdicts."""
    retries = draw(st.integers(0, 2))
    runs = []
    for number in range(retries + 1):
        last = number == retries
        # Where a retry follows one run said so; others of that delivery crashed, or failed into the same retry.
        ends = st.sampled_from(["crash", "completed", "failed", "open"] if last else ["crash", "retry"])
        group = draw(st.lists(ends, min_size=1, max_size=3))
        if not last and "retry" not in group:
            group.append("retry")
        runs.append(group)
    return Life(
        runs,
        skews=draw(st.lists(st.sampled_from([-3600.0, 0.0, 3600.0]), min_size=10, max_size=10)),
        cuts=draw(st.lists(st.integers(1, 4), min_size=30, max_size=30)),
        turns=draw(st.lists(st.integers(0, 100), min_size=40, max_size=40)),
    )


def streams(life: Life, job_id: str) -> list[Stream]:
    """What each process writes.  A run that crashes has a process of its own; those that end share two."""
    producer = Stream("producer")
    found = [producer]
    shared = {name: Stream(name) for name in ("w-even", "w-odd")}
    reports: dict[str, list[tuple[Any, ...]]] = {"producer": [enqueued(job_id, at=NOW + life.skews[0])], "w-even": [], "w-odd": []}
    number = 0
    for retries, group in enumerate(life.runs):
        for outcome in group:
            number += 1
            run, at = f"{job_id}-run{number}", NOW + number + life.skews[number % 10]
            name = f"w-{number}" if outcome in {"crash", "open"} else ("w-even", "w-odd")[number % 2]
            entries = reports.setdefault(name, [])
            entries.append(started(job_id, run, at=at, retries=retries))
            if outcome in {"crash", "open"}:
                found.append(Stream(name, crashes=outcome == "crash"))
            elif outcome == "retry":
                entries.append(enqueued(job_id, at=at, retries=retries + 1, payload=None))
                entries.append(ended(job_id, run, at=at, retries=retries, outcome="failed", status=None))
            else:
                done = {"completed": "succeeded", "failed": "failed"}[outcome]
                entries.append(ended(job_id, run, at=at, retries=retries, outcome=done, status=outcome))
    found += [stream for stream in shared.values() if reports[stream.name]]
    cuts = iter(life.cuts)
    for stream in found:
        rest = reports[stream.name]
        while rest:
            size = next(cuts)
            stream.slices.append(rest[:size])
            rest = rest[size:]
    return found


def expected(life: Life) -> dict[str, Any]:
    """What the row must say once every report has come: read off the whole life, with no order at all."""
    outcomes = [outcome for group in life.runs for outcome in group]
    last = life.runs[-1]
    if "completed" in last:
        status = "completed"
    elif "failed" in last:
        status = "failed"
    elif "open" in last:
        status = "running"
    else:
        status = "lost"
    return {
        "status": status,
        "retries": len(life.runs) - 1,
        "attempt": len(outcomes),
        "deliveries": len(outcomes),
        "crashes": outcomes.count("crash"),
        "errors": len([outcome for outcome in outcomes if outcome in {"crash", "failed", "retry"}]),
        "counted": {status: 1} if status in {"completed", "failed"} else {},
    }


def play(stores: list[Store], life: Life, job_id: str) -> None:
    """Apply a life's reports in its interleaving, over several connections."""
    waiting = [(origin(f"{job_id}-{stream.name}"), steps(stream)) for stream in streams(life, job_id)]
    positions: dict[str, int] = {}
    turn = 0
    while waiting:
        at = life.turns[turn % len(life.turns)] % len(waiting)
        who, remaining = waiting[at]
        step = next(remaining, None)
        if step is None:
            del waiting[at]
            turn += 1
            continue
        store = stores[turn % len(stores)]
        turn += 1
        if step is CRASH:
            store.worker_lost(who, at=NOW + 100, exit_code=-9, exit_cause="SIGKILL")
            continue
        start = positions.get(who.worker_id, 0)
        assert store.apply(who, step, start=start, end=start + 1).is_new
        positions[who.worker_id] = start + 1


def steps(stream: Stream) -> Iterator[Any]:
    """A process's slices; then, if it crashed, the loss."""
    yield from stream.slices
    if stream.crashes:
        yield CRASH


def outcome_of(store: Store, job_id: str) -> dict[str, Any]:
    """The same facts as :func:`expected`, from the store."""
    names = ("status", "retries", "attempt", "deliveries", "crashes")
    row = store.rows(f"SELECT {', '.join(names)} FROM {{supervised_jobs}} WHERE job_id = ?", (job_id,))[0]
    text = "SELECT COUNT(*) FROM {supervised_job_errors} e JOIN {supervised_jobs} j ON j.id = e.supervised_job_id WHERE j.job_id = ?"
    ended_by = store.rows("SELECT status, ended_by FROM {supervised_jobs} WHERE job_id = ?", (job_id,))[0]
    counted = {ended_by[0]: 1} if ended_by[1] is not None else {}
    return {**dict(zip(names, row, strict=True)), "errors": store.rows(text, (job_id,))[0][0], "counted": counted}


@pytest.fixture
def three(store: Store, make_settings: Callable[..., StoreSettings]) -> Iterator[list[Store]]:
    """Three connections to one set of tables."""
    prefix = store.names["supervised_jobs"].removesuffix("supervised_jobs")
    others = [open_store(make_settings(table_prefix=prefix), create=True) for _ in range(2)]
    yield [store, *others]
    for each in others:
        each.close()


numbers = iter(range(10**9))
SETTINGS = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


def test_any_interleaving_comes_out_the_same(three: list[Store]) -> None:
    @settings(SETTINGS, max_examples=scaled(10_000, at_least=60))
    @given(lives())
    def check(life: Life) -> None:
        job_id = f"job{next(numbers)}"
        play(three, life, job_id)
        assert outcome_of(three[0], job_id) == expected(life)

    check()
    jobs = three[0].rows("SELECT status, COUNT(*) FROM {supervised_jobs} WHERE ended_by IS NOT NULL GROUP BY status")
    from tests.contracts.conftest import totals

    assert sum(totals(three[0], counters.JOBS).values()) == sum(count for _, count in jobs)
    assert three[0].rows("SELECT COUNT(*) FROM {open_runs} r JOIN {supervised_jobs} j ON j.job_id = r.job_id WHERE j.crashes < 0") == [(0,)]


def test_without_the_order_it_does_not(three: list[Store]) -> None:
    for each in three:
        each.ordered = False

    def goes_wrong(life: Life) -> bool:
        job_id = f"job{next(numbers)}"
        play(three, life, job_id)
        return outcome_of(three[0], job_id) != expected(life)

    try:
        find(lives(), goes_wrong, settings=settings(SETTINGS, max_examples=300, phases=[Phase.generate]))
    except NoSuchExample:
        pytest.fail("without the order condition everything comes out the same: the test above proves nothing")
