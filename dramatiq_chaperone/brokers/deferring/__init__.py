"""Putting a message off, so that it comes back later without using a retry; the same contract for each broker."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from dramatiq import Broker
from dramatiq.common import dq_name, q_name

from ..inspector import kind_of

#: How often a message has been put off: an option of its copy.
NUMBER = "deferrals"
#: The name of the message itself among its copies.
ORIGINAL = "original"


class Deferrer(Protocol):
    """Puts messages of one broker off.  Called in the thread that would run the message, before its acknowledgement.

    Attributes:
      leaves_doubt: whether a worker that dies may leave a message and its copy; then :meth:`contender` tells them apart.
    """

    leaves_doubt: bool

    def contender(self, proxy: Any) -> str | None:
        """The name by which this message has to claim its run, for there may be another copy; None: there is no other."""

    def put_off(self, proxy: Any, eta_ms: int, number: int) -> bool:
        """Put a copy of the message into its delay queue; what is left for the caller is to skip the message.

        The copy has the message's id, arguments, time and options; its option ``deferrals`` is *number*.  Before and
        after it the hooks of an enqueue are called, as for each delayed message.

        Parameters:
          proxy: the message as the worker got it.
          eta_ms: not before, in Unix milliseconds.
          number: how often it has been put off, this time included.

        Returns False, with nothing put, where the message is not this worker's any more: it lost its lease, and another
        worker has the message.

        Raises:
          Exception: the broker does not answer; whatever its library raises.
        """


def deferrer_of(broker: Broker) -> Deferrer | None:
    """The deferrer of a broker or of a subclass of it; None for a class that is not known here."""
    kind = kind_of(broker)
    if kind is None:
        return None
    deferrer: Deferrer = import_module(f"{__package__}.{kind}").make(broker)
    return deferrer


def copy_of(message: Any, eta_ms: int, number: int) -> Any:
    """The message that waits in the delay queue."""
    return message.copy(queue_name=dq_name(q_name(message.queue_name)), options={"eta": eta_ms, NUMBER: number})
