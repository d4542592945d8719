"""The ``chaperone`` command.

Its exit codes are in ``EXIT_CODES`` of :mod:`.options`, and in docs/cli.md.  What is heavy (the store, rich) is
imported by the command that needs it, when it runs.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final, NoReturn

import click

from dramatiq_chaperone import __version__
from dramatiq_chaperone.errors import ChaperoneError, SettingsError

from .alerts import alerts
from .breakers import breakers
from .completion import completion
from .config import config
from .db import db
from .deadletters import dead_letters
from .demo import demo
from .events import events
from .exporter import exporter
from .health import health
from .jobs import job, jobs
from .kill import kill
from .monitor import monitor
from .options import FAILED, INTERRUPTED, OK, PIPE_CLOSED, USAGE, store_options
from .prune import prune
from .queues import queues
from .stack import stack
from .status import status
from .stuck import stuck
from .test_alerts import test_alerts
from .workers import workers

__all__ = ["main"]

_EPILOG = """\b
Examples:
  chaperone demo                          a worker at work, in this terminal
  chaperone status                        how things are
  chaperone jobs --status failed --since 1d
  chaperone job 4f9e                      everything about one job
  chaperone stack 4f9e                    where it is in its code, now
  chaperone stuck                         what does not move, and why

Exit codes: 0 done; 1 a problem, or nothing found; 2 wrong usage or a wrong setting.
The store is that of CHAPERONE_DATABASE_URL, else of chaperone.toml, else a SQLite file in the state directory.
"""


class _Commands(click.Group):
    """A group whose reader may go away."""

    def invoke(self, ctx: click.Context) -> Any:
        """Click would end with 1, which is for problems."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes once more at exit, and would complain then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        return result


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=_EPILOG)
@click.version_option(__version__, prog_name="chaperone")
@store_options
def commands() -> None:
    """Look after the jobs of a Dramatiq installation."""


_COMMANDS: Final = (
    *(status, monitor, jobs, job, health, stack, stuck, kill, dead_letters, events, workers, queues, breakers),
    *(alerts, test_alerts, exporter, config, prune, db, demo, completion),
)
for _command in _COMMANDS:
    commands.add_command(_command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command with these arguments, by default those of the process, and exit."""
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        code: Any = commands.main(arguments, prog_name="chaperone", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SettingsError as error:
        return _say(error, USAGE)
    except ChaperoneError as error:
        return _say(error, FAILED)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else OK


def _say(error: Exception, code: int) -> int:
    click.echo(f"chaperone: {error}", err=True)
    return code
