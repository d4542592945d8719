"""`chaperone completion`, and what the shell is offered."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError
from dramatiq_chaperone.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: Who presses the tab key waits no longer than that for a store, in seconds.
_LIMIT_S: Final = 1.0

_EPILOG = """\b
Examples:
  eval "$(chaperone completion bash)"                        in ~/.bashrc
  eval "$(chaperone completion zsh)"                         in ~/.zshrc
  chaperone completion fish > ~/.config/fish/completions/chaperone.fish
"""


@click.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which a shell completes commands, options, states, queues and actors."""
    from click import shell_completion

    kind = shell_completion.get_completion_class(shell)
    if kind is not None:
        click.echo(kind(context.find_root().command, {}, "chaperone", "_CHAPERONE_COMPLETE").source())


def names_of(column: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Offer the queues (``queue``) or actors (``actor_name``) that jobs are known of; nothing where there is no store."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        # What a driver waits for has no common limit; the shell has its prompt back in any case.
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
        try:
            return [name for name in _names(context, column) if name.startswith(incomplete)]
        except ChaperoneError:
            return []
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return complete


def _give_up(*_: Any) -> None:
    os._exit(0)


def _names(context: click.Context, column: str) -> list[str]:
    from dramatiq_chaperone.store import open_store, queries

    store = open_store(Settings.load(context.ensure_object(dict)), create=False)
    try:
        return queries.names(store, column)
    finally:
        store.close()
