"""`chaperone test-alerts`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import click

from dramatiq_chaperone.errors import StoreError

from . import formats
from .options import FAILED, OK, format_option, is_missing, load_settings, store_options
from .output import Column, write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dramatiq_chaperone.alerts.trial import Trial
    from dramatiq_chaperone.settings import Settings
    from dramatiq_chaperone.store import Store

COLUMNS: Final = (
    Column("Channel", is_firm=True),
    Column("Alert", is_firm=True),
    Column("Result", is_firm=True),
    Column("Took", is_number=True),
    Column("Error"),
)
STYLES: Final = {"sent": "green", "failed": "red"}

_EPILOG = """\b
Examples:
  chaperone test-alerts                             the usual four, to where real ones go
  chaperone test-alerts stuck --channel slack
  chaperone test-alerts circuit-breaker --all       to every channel, whatever the routes say
"""


@click.command("test-alerts", epilog=_EPILOG)
@click.argument("type_", metavar="[TYPE]", required=False)
@click.option("--channel", "channels", multiple=True, metavar="NAME", help="Only to this channel; may be given several times.")
@click.option("--all", "is_everywhere", is_flag=True, help="To every channel, whatever the routes say.")
@store_options
@format_option
def test_alerts(type_: str | None, channels: Sequence[str], is_everywhere: bool, output: str) -> int:
    """Send test alerts, and tell which channels took them.

    They are real messages, marked as tests. TYPE is a type of alert, such as stuck, timeout, circuit-breaker or resource.
    Exit code 1 when one was not delivered, 2 for a type or channel that is not there.
    """
    settings = load_settings()
    from dramatiq_chaperone.alerts.trial import send_test

    if not settings.alerting_enabled:
        click.echo("Alerts are switched off (alerting_enabled): real ones are not sent.", err=True)
    with _record(settings) as store:
        try:
            found = send_test([type_] if type_ else (), channels=channels, everywhere=is_everywhere, settings=settings, store=store)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return show(found, output)


def show(found: Sequence[Trial], output: str) -> int:
    """What came of them, and the exit code."""
    failed = [each for each in found if not each.is_sent]
    if output == "json":
        write_json({"results": [each._asdict() for each in found], "sent": len(found) - len(failed), "failed": len(failed)})
        return FAILED if failed else OK
    if all(each.channel == "log" for each in found):
        click.echo(
            "No channel is configured, so alerts go to the log alone. Set CHAPERONE_ALERT_URLS; docs/alerting.md shows how.", err=True
        )
    rows = []
    for each in found:
        result = "sent" if each.is_sent else "failed"
        rows.append((each.channel, each.type or "any", result, formats.seconds(each.took_s), formats.text(each.error or None)))
    write_table(COLUMNS, rows, styles=STYLES)
    if failed:
        click.echo(f"\n{len(failed)} of {len(found)} test alerts were not delivered.", err=True)
    else:
        click.echo(f"\n✓ {len(found)} test alerts sent.")
    return FAILED if failed else OK


@contextlib.contextmanager
def _record(settings: Settings) -> Iterator[Store | None]:
    """The store, where there is one: a test needs none."""
    from dramatiq_chaperone.store import open_store

    store = None
    if not is_missing(settings):
        with contextlib.suppress(StoreError):
            store = open_store(settings, create=False)
    try:
        yield store
    finally:
        if store is not None:
            store.close()
