from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone.cli.charts import chart, columns

POINTS = [(float(at), float(at)) for at in range(11)]


def drawn(points: list[tuple[float, float]], **more: float) -> list[str]:
    return chart(points, width=20, height=3, label="{:.0f}".format, ends=("12:00", "12:10"), **more)  # type: ignore[arg-type]


def test_a_chart_has_its_highest_and_lowest_value_and_its_times() -> None:
    lines = drawn(POINTS)

    assert lines[0].startswith("10 ┤")
    assert lines[2].startswith(" 0 ┤▁")
    assert lines[0].endswith("█")
    assert lines[3].split() == ["12:00", "12:10"]
    assert max(map(len, lines)) == 20


def test_the_axis_may_be_given() -> None:
    lines = drawn([(0, 50.0), (1, 50.0)], low=0, high=100)

    assert lines[0] == "100 ┤"
    assert set(lines[1].split("┤")[1]) == {"▄"}
    assert set(lines[2].split("┤")[1]) == {"█"}


def test_what_does_not_change_is_a_line() -> None:
    assert set(drawn([(0, 7.0), (5, 7.0)])[-2].split("┤")[1]) == {"▁"}


def test_nothing_is_no_chart() -> None:
    assert drawn([]) == []


def test_a_column_has_its_highest_value_and_a_gap_the_last_one() -> None:
    assert columns([(0, 1.0), (0.1, 5.0), (10, 2.0)], 4) == [5.0, 5.0, 5.0, 2.0]
    assert columns([(3, 1.0)], 3) == [1.0, 1.0, 1.0]


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e12)), min_size=1, max_size=50).map(sorted), st.integers(30, 200), st.integers(2, 8)
)
def test_a_chart_stays_inside_its_width_and_height(points: list[tuple[float, float]], width: int, height: int) -> None:
    lines = chart(points, width=width, height=height, label="{:.3g}".format, ends=("12:00:00", "12:00:10"))

    assert len(lines) == height + 1
    assert max(map(len, lines)) <= max(width, 40)
