from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dramatiq_chaperone.cli.options import moment

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("2h", timedelta(hours=2)),
        ("1.5d", timedelta(hours=36)),
        ("1w", timedelta(days=7)),
    ],
)
def test_a_span_counts_back_from_now(text: str, before: timedelta) -> None:
    assert moment(text, NOON) == NOON - before


def test_a_date_is_of_the_reader_s_zone() -> None:
    assert moment("2026-01-30 08:15", NOON) == datetime(2026, 1, 30, 8, 15).astimezone(UTC)
    assert moment("2026-01-30T08:15+02:00", NOON) == datetime(2026, 1, 30, 6, 15, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "soon", "2 hours ago", "-2h", "2026-13-01"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        moment(text, NOON)
