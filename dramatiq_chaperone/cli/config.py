"""`chaperone config`."""

from __future__ import annotations

import click

from . import formats
from .options import format_option, load_settings, store_options
from .output import Column, write_json, write_table

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
    columns = [Column("Setting", is_firm=True), Column("Value"), Column("Unit"), Column("Origin")]
    write_table(columns, [(row.name, formats.text(row.value), row.unit or "", row.origin) for row in rows])
