"""`chaperone config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from . import formats
from .options import format_option, load_settings, store_options
from .output import Column, write_json, write_table

if TYPE_CHECKING:
    from dramatiq_chaperone.settings import SettingRow

_MARKS: Final = {
    "¹": "It is read and checked, but what it controls is not part of this release.",
    "²": "It takes effect once it is set; until then Dramatiq's own applies.",
}
_EPILOG = """\b
Examples:
  chaperone config
  chaperone config --set          without the defaults
  chaperone config --format json
"""


@click.command(epilog=_EPILOG)
@click.option("--set", "is_set_only", is_flag=True, help="Only what somebody has set.")
@store_options
@format_option
def config(is_set_only: bool, output: str) -> None:
    """Print the effective settings and where each comes from; secrets are masked.

    These are the settings of this command, here. A worker may have others: arguments of Chaperone(...) count there,
    and its own environment.
    """
    settings = load_settings()
    rows = [row for row in settings.public_rows() if not is_set_only or settings.is_set(row.name)]
    if output == "json":
        write_json({"settings": [row._asdict() for row in rows]})
        return
    columns = [Column("Setting", is_firm=True), Column("", is_firm=True), Column("Value"), Column("Unit"), Column("Origin")]
    write_table(columns, [(row.name, mark(row), formats.text(row.value), row.unit or "", row.origin) for row in rows])
    marks = {mark(row) for row in rows}
    for sign, meaning in _MARKS.items():
        if sign in marks:
            click.echo(f"{sign} {meaning}", err=True)


def mark(row: SettingRow) -> str:
    """The mark of a setting that has no effect."""
    return "" if row.in_effect else "²" if row.in_use else "¹"
