from __future__ import annotations

import io

from rich.console import Console

from dramatiq_chaperone.cli.output import Column, plain_table, rich_table

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
