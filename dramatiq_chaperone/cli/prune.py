"""`chaperone prune`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import click

from .formats import number
from .options import load_settings, reading, store_options

_EPILOG = """\b
Examples:
  chaperone prune                    by retention_completed and retention_failed
  chaperone prune --completed 1      ended well more than a day ago
  chaperone prune --all --yes        every job that has ended
"""


class _Limits(NamedTuple):
    """Days; 0: for ever."""

    retention_completed: int
    retention_failed: int
    dlq_retention_days: int


@click.command(epilog=_EPILOG)
@click.option("--completed", type=click.IntRange(0, 36_500), metavar="DAYS", help="Keep jobs that ended well for so long; 0: for ever.")
@click.option("--failed", type=click.IntRange(0, 36_500), metavar="DAYS", help="Keep all other jobs for so long; 0: for ever.")
@click.option("--all", "is_all", is_flag=True, help="Every job that has ended, whatever its age.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@store_options
def prune(completed: int | None, failed: int | None, is_all: bool, is_sure: bool) -> None:
    """Delete old jobs and what belongs to them.

    In small steps, while workers go on. A job that has not ended goes only when it is older than the limit of failed
    ones and no live worker has it. Counters stay.
    """
    settings = load_settings()
    from dramatiq_chaperone.store import retention
    from dramatiq_chaperone.store.queries import FINAL, status_summary

    limits = _Limits(
        settings.retention_completed if completed is None else completed,
        settings.retention_failed if failed is None else failed,
        settings.dlq_retention_days,
    )
    if is_all and not is_sure:
        if not sys.stdin.isatty():
            raise click.UsageError("--all without a terminal needs --yes.")
        click.confirm(f"Delete every job that has ended from {settings.safe_database_url}?", abort=True)
    deleted: Counter[str] = Counter()
    with reading(settings) as store:
        total = sum(status_summary(store)["jobs"][status] for status in FINAL) if is_all else None
        with _progress(total) as advance:
            for table, count in retention.prune(store, limits, everything=is_all):
                deleted[table] += count
                if table == "supervised_jobs":
                    advance(count)
    others = sum(deleted.values()) - deleted["supervised_jobs"]
    click.echo(f"{number(deleted['supervised_jobs'])} jobs deleted, and {number(others)} old rows of other tables.")


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; without a *total* it only moves."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("Deleting"), BarColumn(), TextColumn("{task.completed:,.0f} jobs"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
