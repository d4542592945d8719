from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from dramatiq_chaperone.cli.demo.screen import Failure, RunningJob, Snapshot, Throughput, WorkerState, line, screen, summary

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
SNAPSHOT = Snapshot(
    at=NOON,
    counts={"pending": 120, "running": 2, "completed": 3_204, "failed": 7, "skipped": 1},
    running=[
        RunningJob("index_package", "asyncio", NOON - timedelta(seconds=12), 43.0, "compress", 61_000_000, 97.4, "4711"),
        RunningJob("index_file", "[bold]heapq.py", NOON - timedelta(seconds=1), None, None, None, None, "4712"),
    ],
    failures=[Failure(NOON - timedelta(seconds=4), "read_stub", "retries exhausted", "FileNotFoundError: heapq.pyi")],
    workers=[WorkerState(4711, 61_000_000, 140.0, 2_000, 9), WorkerState(4712, None, None, 1_212, 0)],
)


def drawn(snapshot: Snapshot, *, rows: int = 40, columns: int = 120) -> str:
    console = Console(file=io.StringIO(), record=True, width=columns, height=rows, force_terminal=True, markup=False, emoji=False)
    console.print(screen(snapshot, Throughput(), elapsed_s=65, left_s=5.4, rows=rows))
    return console.export_text()


def test_the_screen_has_everything() -> None:
    text = drawn(SNAPSHOT)

    for part in ("1 m 5 s, 5 s to go", "3,204 completed", "120 pending", "index_package", "43 %", "compress", "12.0 s", "61.0 MB", "97 %"):
        assert part in text
    for part in ("[bold]heapq.py", "4711", "2,000", "read_stub", "FileNotFoundError: heapq.pyi", "4.0 s ago"):
        assert part in text


@pytest.mark.parametrize(("rows", "columns"), [(40, 120), (24, 80), (10, 40)])
def test_the_screen_of_an_empty_store_is_drawn_at_any_size(rows: int, columns: int) -> None:
    assert "0 completed" in drawn(Snapshot(at=NOON), rows=rows, columns=columns)


def test_a_screen_fits_its_terminal() -> None:
    many = Snapshot(at=NOON, running=[SNAPSHOT.running[0]] * 100, failures=[SNAPSHOT.failures[0]] * 100, workers=SNAPSHOT.workers)

    assert len(drawn(many, rows=40).splitlines()) <= 40


def test_a_line_says_it_in_short() -> None:
    assert line(SNAPSHOT, Throughput(), elapsed_s=12.3) == (
        "  12 s: 120 pending, 2 running, 3,204 completed, 7 failed, 1 skipped; 0 jobs/s; index_package asyncio 43 %"
    )
    assert line(Snapshot(at=NOON), Throughput(), elapsed_s=1) == "   1 s: nothing yet; 0 jobs/s"


def test_the_summary_adds_up() -> None:
    assert summary(SNAPSHOT, elapsed_s=10) == [
        "3,334 jobs are on record: 120 pending, 2 running, 3,204 completed, 7 failed, 1 skipped.",
        "3,212 of them ended within 10.0 s, 321 a second.",
        "2 worker processes made 3,212 runs, 9 of which did not succeed.",
    ]


def test_throughput_is_that_of_the_last_ten_seconds() -> None:
    throughput = Throughput()
    for second in range(30):
        throughput.add(1000.0 + second, 10 * second if second < 20 else 200 + 30 * (second - 20))

    assert throughput.per_second == pytest.approx(30, rel=0.15)
    trail = throughput.trail()
    assert len(trail) == 40
    assert trail[-1] == 30
    assert trail[-30] == 0


def test_there_is_no_throughput_at_first() -> None:
    throughput = Throughput()
    assert throughput.trail() == []
    throughput.add(1.0, 5)
    assert throughput.per_second == 0
