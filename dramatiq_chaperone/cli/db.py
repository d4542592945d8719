"""`chaperone db`: the tables of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dramatiq_chaperone.errors import SchemaError

from .options import FAILED, OK, format_option, is_missing, load_settings, store_options, told
from .output import write_json

if TYPE_CHECKING:
    from dramatiq_chaperone.settings import Settings


@click.group()
@store_options
def db() -> None:
    """Look after the tables of the store."""


@db.command("upgrade", epilog="\b\nExamples:\n  chaperone db upgrade --database-url postgresql://localhost/jobs")
@store_options
def upgrade() -> int:
    """Create the tables, or bring them to the version of this release.

    Any number of processes may do so at once: one does it. Nothing is lost, and running workers go on; those of an
    older release may have to be restarted, and say so.
    """
    settings = load_settings()
    from dramatiq_chaperone.store import upgrade as upgrade_store
    from dramatiq_chaperone.store.migrations import VERSION

    with told(settings):
        steps = upgrade_store(settings)
    did = f"upgraded, {steps} step{'' if steps == 1 else 's'}" if steps else "nothing to do"
    click.echo(f"{settings.safe_database_url}: {did}; the tables are of version {VERSION}.")
    return OK


@db.command("status", epilog="\b\nExamples:\n  chaperone db status || chaperone db upgrade")
@store_options
@format_option
def status(output: str) -> int:
    """Tell the version of the tables. Exit code 1 unless it is the one that this release needs."""
    settings = load_settings()
    from dramatiq_chaperone.store.migrations import VERSION

    found = _version(settings)
    if output == "json":
        write_json({"database_url": settings.safe_database_url, "version": found, "wanted": VERSION, "current": found == VERSION})
    elif found is None:
        what = "there is no store yet" if is_missing(settings) else "there are no tables of Chaperone"
        click.echo(f"{settings.safe_database_url}: {what}; run `chaperone db upgrade`.")
    elif found == VERSION:
        click.echo(f"{settings.safe_database_url}: the tables are of version {found}, as they should be.")
    else:
        advice = "run `chaperone db upgrade`" if found < VERSION else "update dramatiq-chaperone"
        click.echo(f"{settings.safe_database_url}: the tables are of version {found}, this release needs {VERSION}; {advice}.")
    return OK if found == VERSION else FAILED


def _version(settings: Settings) -> int | None:
    from dramatiq_chaperone.store import open_store
    from dramatiq_chaperone.store.migrations import VERSION

    if is_missing(settings):
        return None
    with told(settings):
        try:
            open_store(settings, create=False).close()
        except SchemaError as error:
            return error.found
    return VERSION
