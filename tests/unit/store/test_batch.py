from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone import records
from dramatiq_chaperone.store import counters, times
from dramatiq_chaperone.store.batch import Batch, clean, clean_json, clean_key
from dramatiq_chaperone.store.columns import CORE, JOB, POSITION, level_of
from tests.contracts.conftest import NOW, ended, enqueued, started


def fold(*entries: tuple[Any, ...]) -> Batch:
    batch = Batch(worker_id="w", broker="RedisBroker", flush=7)
    batch.add(entries)
    batch.finish()
    return batch


def only(batch: Batch) -> dict[str, Any]:
    (row,) = batch.job_rows()
    return {name: row[position] for name, position in POSITION.items() if position < len(row)}


def test_a_whole_life_is_one_narrow_row() -> None:
    batch = fold(enqueued(), started(at=NOW + 1), ended(at=NOW + 2, started_at=NOW + 1))
    row = only(batch)
    assert len(batch.job_rows()[0]) == len(CORE)
    assert (row["status"], row["level"], row["attempt"]) == ("completed", level_of(0, "completed"), 1)
    assert (row["created_at"], row["updated_at"], row["started_at"], row["ended_at"]) == (NOW, NOW + 2, NOW + 1, NOW + 2)
    assert (row["flush"], row["ended_by"]) == (7, 7)


def test_a_sample_makes_it_wide() -> None:
    batch = fold(started(), (records.SAMPLED, NOW, "j1", "r1", 5, 9, "exact", 1.0, 0.5, False, None))
    assert len(batch.job_rows()[0]) == len(JOB)
    assert only(batch)["memory_usage"] == 5
    assert batch.heartbeats == []


def test_an_end_that_a_retry_follows() -> None:
    row = only(fold(enqueued(retries=1, retry_at=NOW + 9), ended(outcome="failed", status=None)))
    assert (row["status"], row["retries"], row["run_retries"], row["retry_at"], row["ended_by"]) == ("pending", 1, 0, NOW + 9, None)


def test_a_second_run_in_one_process_puts_the_first_aside() -> None:
    batch = fold(started(), started(run="r2"))
    assert only(batch)["run_id"] == "r2"
    assert batch.open_runs["r1"][:4] == ["r1", "j1", "w", 0]
    assert fold(started(), started(run="r2"), ended()).open_runs.keys() == {"r2"}


def test_a_run_after_success_is_told() -> None:
    assert only(fold(started(), ended(), started(run="r2")))["twice_by"] == 7


def test_rows_are_sorted_by_key() -> None:
    batch = fold(*(enqueued(f"j{n}") for n in (3, 1, 2)))
    assert [row[0] for row in batch.job_rows()] == ["j1", "j2", "j3"]


def test_sums_and_buckets() -> None:
    found = counters.increments(fold(enqueued(), started(waited_s=0.02), ended(duration_s=3.0)).statistics)
    labels = (("actor", "work"), ("queue", "default"))
    assert found[counters.RUNS, (*labels, ("outcome", "succeeded"))] == 1
    assert found[f"{counters.DURATION}_bucket", (*labels, ("le", "5"))] == 1
    assert found[f"{counters.WAIT}_bucket", (*labels, ("le", "0.025"))] == 1
    assert (found[f"{counters.DURATION}_sum", labels], found[f"{counters.DURATION}_count", labels]) == (3.0, 1)


@pytest.mark.parametrize("entry", [(), (99,), (records.STARTED, NOW), enqueued(job=None)])  # type: ignore[arg-type]
def test_nonsense_is_counted(entry: tuple[Any, ...]) -> None:
    batch = fold(enqueued("a"), entry, enqueued("b"))
    assert batch.broken == 1
    assert batch.jobs.keys() == {"a", "b"}


@given(st.text(), st.integers(1, 50))
def test_clean_text(text: str, width: int) -> None:
    cleaned = clean(text, width)
    assert len(cleaned) <= width
    assert "\0" not in cleaned
    cleaned.encode()


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=200), st.text(alphabet=st.characters(codec="utf-8"), min_size=200))
def test_long_keys_stay_apart(one: str, other: str) -> None:
    assert len(clean_key(one)) <= 191
    assert (clean_key(one) == clean_key(other)) == (one.replace("\0", "\ufffd") == other.replace("\0", "\ufffd"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(VALUES)
def test_clean_json_is_json(value: Any) -> None:
    text = clean_json(json.dumps(value))
    json.loads(text)
    assert "\\u0000" not in text
    text.encode()


@given(st.floats(0, 200_000_000_000))
def test_times_as_text_sort_as_times_do(at: float) -> None:
    assert len(times.iso(at)) == 32
    assert times.unix_time(times.iso(at)) == pytest.approx(at, abs=1e-4)
    assert times.iso(at) < times.iso(at + 1)
