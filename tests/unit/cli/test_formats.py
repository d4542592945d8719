from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone.cli import formats
from dramatiq_chaperone.records import JobStatus

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (-3, "0 ms"),
        (0.0044, "4 ms"),
        (12.34, "12.3 s"),
        (60, "1 m 0 s"),
        (200, "3 m 20 s"),
        (7500, "2 h 5 m"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert formats.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 B"), (512, "512 B"), (999, "999 B"), (61_000_000, "61.0 MB"), (999_999, "1.0 MB"), (3e15, "3000.0 TB")],
)
def test_sizes(value: float | None, text: str) -> None:
    assert formats.size(value) == text


@given(st.floats(0, 1e8), st.floats(0, 1e15))
def test_columns_stay_narrow(duration: float, memory: float) -> None:
    assert len(formats.seconds(duration)) <= 11
    assert len(formats.size(memory)) <= 9


def test_times_are_in_the_zone_of_the_reader() -> None:
    india = timezone(timedelta(hours=5, minutes=30))

    assert formats.clock(NOON, india) == "2026-01-31 17:30:00"
    assert formats.clock_ms(NOON + timedelta(microseconds=4_999), india) == "17:30:00.004"


def test_the_date_of_today_goes_without_saying() -> None:
    assert formats.clock_near(NOON, NOON, UTC) == "12:00:00"
    assert formats.clock_near(NOON - timedelta(days=1), NOON, UTC) == "2026-01-30 12:00:00"
    assert formats.clock_near(None, NOON, UTC) == "–"


def test_how_long_ago() -> None:
    assert formats.ago(NOON, NOON + timedelta(minutes=2)) == "2 m 0 s ago"
    assert formats.ago(NOON, NOON - timedelta(seconds=3)) == "in 3.0 s"
    assert formats.ago(None, NOON) == "–"


def test_a_uuid_is_cut_and_another_id_is_not() -> None:
    assert formats.short_id("4f9e2b61-0d0c-4f0e-9d51-3a0c6f3a2b11") == "4f9e2b61"
    assert formats.short_id("import-2026-01-31") == "import-2026-01-31"


@given(st.one_of(st.none(), st.floats(-50, 150)), st.integers(1, 60))
def test_a_bar_has_its_width(share: float | None, width: int) -> None:
    assert len(formats.bar(share, width)) == (0 if share is None else width)


@given(st.lists(st.floats(0, 1e6), max_size=50), st.integers(1, 40))
def test_a_sparkline_has_a_mark_for_each_value(values: list[float], width: int) -> None:
    assert len(formats.sparkline(values, width)) == min(len(values), width)


def test_a_sparkline_is_full_at_its_highest_value() -> None:
    assert formats.sparkline([0, 5, 10], 3) == "▁▅█"
    assert formats.sparkline([0, 0], 2) == "▁▁"


def test_text_is_one_line() -> None:
    assert formats.text("a\n\tb") == "a b"
    assert formats.text("") == formats.NOTHING
    assert formats.cut("abcdef", 4) == "abc…"


class Point(NamedTuple):
    at: datetime
    status: JobStatus


def test_data_has_times_in_utc_and_names() -> None:
    data = formats.as_data({"points": [Point(NOON.astimezone(timezone(timedelta(hours=-8))), JobStatus.LOST)], 1: {"a"}, "x": object})

    assert data["points"] == [{"at": "2026-01-31T12:00:00Z", "status": "lost"}]
    assert data["1"] == ["a"]
    json.dumps(data)
