"""Tables and JSON on standard output.  On a terminal rich draws; into a pipe go plain columns, nothing cut, no colours."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .formats import as_data

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: What rich puts around each cell.
_GAP = 3
#: The colour of a state, wherever it is shown.
STATUS_STYLES = {
    "pending": "yellow",
    "running": "cyan",
    "stalled": "magenta",
    "lost": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "bright_black",
    "skipped": "bright_black",
    "stopped": "bright_black",
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "unknown": "bright_black",
}


class Column(NamedTuple):
    """A column of a table."""

    title: str
    #: Numbers stand at the right.
    is_number: bool = False
    #: Is never cut short on a narrow terminal.
    is_firm: bool = False
    #: Is left out on a terminal that is too narrow for all; the last one first.
    is_extra: bool = False


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def console() -> Console:
    """Rich's console for standard output; it takes no markup from data, and knows NO_COLOR."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def write_json(data: object) -> None:
    """*data* as JSON."""
    click.echo(json.dumps(as_data(data), indent=2, ensure_ascii=False))


def write_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, styles: dict[str, str] | None = None) -> None:
    """A table with a line of titles.  *styles* colours whole cells by their text."""
    if is_terminal():
        screen = console()
        shown = fitting(columns, rows, screen.width)
        cells = [[row[place] for place in shown] for row in rows]
        screen.print(rich_table([columns[place] for place in shown], cells, styles=styles))
    else:
        for line in plain_table(columns, rows):
            click.echo(line)


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The places of those columns that fit into *width* characters side by side; only extra ones are left out."""
    needed = [max(len(text) for text in (column.title, *(row[place] for row in rows))) + _GAP for place, column in enumerate(columns)]
    shown = list(range(len(columns)))
    for place in reversed(range(len(columns))):
        if sum(needed[each] for each in shown) > width and columns[place].is_extra:
            shown.remove(place)
    return shown


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: columns two spaces apart, no space at the end."""
    cells = [[column.title.upper() for column in columns], *rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    return ["  ".join(map(_padded, row, widths, columns)).rstrip() for row in cells]


def _padded(cell: str, width: int, column: Column) -> str:
    return cell.rjust(width) if column.is_number else cell.ljust(width)


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, styles: dict[str, str] | None = None) -> RenderableType:
    """The same for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.is_number else "left", no_wrap=column.is_firm or column.is_number, overflow="ellipsis"
        )
    for row in rows:
        table.add_row(*(Text(cell, style=(styles or {}).get(cell, "")) for cell in row))
    return table


def write_heading(title: str) -> None:
    """A line above what follows."""
    if is_terminal():
        console().print(f"\n{title}", style="bold")
    else:
        click.echo(f"\n{title}")


def write_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns; a value of several lines is indented."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        first, *more = value.splitlines() or [""]
        label = click.style(name.ljust(width), dim=True)
        click.echo("\n".join([f"{label}  {first}", *(" " * (width + 2) + line for line in more)]), color=None)


def write_progress(total: int, title: str) -> Any:
    """A progress bar on standard error, drawn on a terminal only; ``with write_progress(...) as bar: bar.update(n)``."""
    return click.progressbar(length=total, label=title, file=sys.stderr, hidden=not sys.stderr.isatty())
