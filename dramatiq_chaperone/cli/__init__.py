"""The ``chaperone`` command."""

from __future__ import annotations

import click

from dramatiq_chaperone import __version__

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chaperone")
def main() -> None:
    """Look after the jobs of a Dramatiq installation."""
