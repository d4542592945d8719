"""The contract: the messages that a worker holds, where the broker keeps a list of them that outlives the worker.

RabbitMQ gives the messages of a connection that ended back by itself, and the Stub broker's end with their process; so
only Redis has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from dramatiq import Broker

from .inspector import made


class Held(NamedTuple):
    """A message in the hands of a worker."""

    #: The queue, or delay queue, that it was taken from, and its key there.
    queue: str
    key: str
    #: None where the message is gone: it was acknowledged.
    job_id: str | None
    actor: str = ""
    #: Seconds, by the clock of its sender.
    made_at: float = 0.0
    #: Its own max_crashes, None where it has none.
    max_crashes: int | None = None

    @property
    def is_delayed(self) -> bool:
        """Whether it waits for its time: it cannot run before it is sent again."""
        return self.queue.endswith(".DQ")


class Leases(Protocol):
    """What workers of one broker hold.  Any thread may use it."""

    #: Seconds without a sign of life after which the broker gives a worker's messages to others.
    lease_s: float

    def held(self, broker_id: str, queues: Iterable[str]) -> list[Held] | None:
        """What the worker of this broker object holds of these queues and their delay queues, the oldest of each first.

        None: this broker does not know it: it never fetched anything here, or all of it has gone back.

        Raises:
          Exception: the broker does not answer; whatever its library raises.
        """

    def give_back(self, broker_id: str, held: Sequence[Held], *, is_dead: bool) -> int | None:
        """Put these messages back to the front of their queues, each that is still held and was not acknowledged.

        Parameters:
          is_dead: its death was seen.  Else nothing happens unless its leases have run out.

        Returns how many went back; None: it lives.
        """

    def forget(self, broker_id: str) -> bool:
        """Nobody holds anything under this name any more, if that is so; whether it is."""

    def renew(self, queues: Iterable[str]) -> frozenset[str]:
        """Say that this process lives, and only then look at what it holds itself: the keys of its messages."""


def leases_of(broker: Broker) -> Leases | None:
    """The leases of a broker or of a subclass of it; None where the broker takes care of everything, or is not known here."""
    found: Leases | None = made(broker, "leases")
    return found


def lease_of(broker: Broker) -> float | None:
    """Seconds without a sign of life after which others get a worker's messages; None where nobody else can, or it is not known."""
    found: float | None = made(broker, "lease_s")
    return found
