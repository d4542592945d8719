from __future__ import annotations

import io

from rich.console import Console

from dramatiq_chaperone.cli.output import Column, fitting, plain_table, rich_table

COLUMNS = [Column("Actor"), Column("Runs", is_number=True)]
ROWS = [("import_orders", "7"), ("mail", "1,204")]


def test_a_plain_table_is_aligned_and_has_no_box() -> None:
    assert plain_table(COLUMNS, ROWS) == ["ACTOR           RUNS", "import_orders      7", "mail           1,204"]


def test_a_plain_table_without_rows_has_its_titles() -> None:
    assert plain_table(COLUMNS, []) == ["ACTOR  RUNS"]


def test_data_is_never_taken_for_markup() -> None:
    console = Console(file=io.StringIO(), record=True, width=60, force_terminal=True)
    console.print(rich_table(COLUMNS, [("[red]x[/nonsense]", ":smile:")]))

    text = console.export_text()
    assert "[red]x[/nonsense]" in text
    assert ":smile:" in text


def test_a_narrow_terminal_gets_no_extra_columns() -> None:
    columns = [Column("Job"), Column("Queue", is_extra=True), Column("Status"), Column("Worker", is_extra=True)]
    rows = [("4f9e2b61", "default", "running", "host-4711-0a0a0a0a")]

    assert fitting(columns, rows, 80) == [0, 1, 2, 3]
    assert fitting(columns, rows, 40) == [0, 1, 2]
    assert fitting(columns, rows, 25) == [0, 2]
    assert fitting(columns, rows, 5) == [0, 2]
    assert fitting(columns, [], 80) == [0, 1, 2, 3]
