"""The user's broker, for the commands that ask it.

It is never made up: ``dramatiq.get_broker()`` would give a broker on localhost to everyone who has declared none.
"""

from __future__ import annotations

import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dramatiq import Broker


def load_broker(place: str) -> Broker:
    """Import the broker at ``module:attribute``, or the one that ``module`` made the global one.

    Raises:
      click.BadParameter: the module cannot be imported, or there is no broker.
    """
    from dramatiq import Broker, broker

    module, _, attribute = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
        found = attrgetter(attribute)(found) if attribute else broker.global_broker
    except Exception as error:
        raise _refused(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    if attribute and not isinstance(found, Broker):
        raise _refused(f"{place} is no broker, but a {type(found).__name__}.")
    if not isinstance(found, Broker):
        raise _refused(f"{module} does not call dramatiq.set_broker(...); name the broker, as {module}:broker.")
    return found


def _refused(text: str) -> click.BadParameter:
    return click.BadParameter(text, param_hint="--broker")
