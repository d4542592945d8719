"""`chaperone exporter`."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from .options import OK, USAGE, load_settings, store_options

if TYPE_CHECKING:
    from dramatiq_chaperone.metrics.exporter import Exporter

#: Seconds between two looks at whether it listens by now.
_TURN_S = 0.25

_REMOTE = (
    "{host} can be reached from other machines, and nobody is asked for a password: the metrics name your queues and actors.\n"
    "Say --allow-remote if that is what you want, or leave --host away and put a proxy before it."
)


@click.command(
    epilog="\b\nExamples:\n  chaperone exporter\n  chaperone exporter --port 9400\n  chaperone exporter --host 0.0.0.0 --allow-remote"
)
@store_options
@click.option("--host", help="The address to listen on; else that of the setting exporter_host.")
@click.option("--port", type=click.IntRange(1, 65_535), help="The port; else that of the setting exporter_port.")
@click.option("--allow-remote", is_flag=True, help="Listen on an address that other machines reach; nobody is asked for a password.")
def exporter(host: str | None, port: int | None, allow_remote: bool) -> int:
    """Serve the metrics of the whole fleet for Prometheus, until Ctrl-C. The watchers leave the totals to it."""
    settings = load_settings()
    settings = replace(settings, exporter_host=host or settings.exporter_host, exporter_port=port or settings.exporter_port)
    if settings.exporter_port == 0:
        raise click.UsageError("The setting exporter_port is 0, for none; give --port.")
    if not is_loopback(settings.exporter_host):
        if not allow_remote:
            click.echo(f"chaperone: {_REMOTE.format(host=settings.exporter_host)}", err=True)
            return USAGE
        click.echo(f"Warning: whoever reaches {settings.exporter_host}:{settings.exporter_port} can read the metrics.", err=True)
    from dramatiq_chaperone.host import new_worker_id
    from dramatiq_chaperone.metrics.exporter import Exporter
    from dramatiq_chaperone.store.turns import StoreTurns

    served = Exporter(settings, new_worker_id(), wake=lambda: turns.wake(), has_precedence=True)  # noqa: PLW0108 - it comes below
    turns = StoreTurns(settings, [served.reader], away=served.reader.away)
    turns.start()
    served.start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _serve(served)
    finally:
        served.stop()
        turns.stop()
    return OK


def _serve(served: Exporter) -> None:
    """Until Ctrl-C, or SIGTERM, which means the same here."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    is_told = False
    while True:
        address = served.address
        if address is not None and not is_told:
            click.echo(f"Metrics are served on {url(*address)}/metrics")
            is_told = True
        time.sleep(_TURN_S)


def url(host: str, port: int) -> str:
    """Where a server can be reached."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches *host*; a name other than localhost may be anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
