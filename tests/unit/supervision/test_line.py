"""Places in line."""

from __future__ import annotations

import threading

import pytest

from dramatiq_chaperone.supervision.line import Line

UNTIL = 1_700_000_000.0


def test_each_comes_one_step_after_the_one_before() -> None:
    line = Line(per_s=50)
    assert [line.place(UNTIL) - UNTIL for _ in range(4)] == pytest.approx([0, 0.02, 0.04, 0.06], abs=1e-6)


def test_who_comes_slowly_does_not_wait_for_the_line() -> None:
    line = Line(per_s=50)
    assert [line.place(UNTIL + second) - UNTIL for second in range(3)] == [0, 1, 2]


def test_a_later_opening_moves_the_line_on_and_an_earlier_one_overtakes_nobody() -> None:
    line = Line(per_s=10)
    assert line.place(UNTIL) == UNTIL
    assert line.place(UNTIL + 60) == UNTIL + 60
    assert line.place(UNTIL) == pytest.approx(UNTIL + 60.1)


def test_a_line_that_is_over_is_forgotten() -> None:
    line = Line(per_s=10)
    line.place(UNTIL + 60)
    line.clear()
    assert line.place(UNTIL) == UNTIL


def test_two_threads_never_get_the_same_place() -> None:
    line, places = Line(per_s=1000), []

    def take() -> None:
        places.extend(line.place(UNTIL) for _ in range(500))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places)) == 2000
    assert max(places) - UNTIL == pytest.approx(1.999, abs=1e-3)
