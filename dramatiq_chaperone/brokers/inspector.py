"""The contract: what a broker says of its queues."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol

from dramatiq import Broker


class QueueReading(NamedTuple):
    """One queue at one moment.  Messages that a worker holds, running or prefetched, are not counted as ready."""

    queue: str
    #: Messages that a worker can fetch now.
    ready: int
    #: Messages with a time before which they do not run.  Those that a worker has fetched and keeps until then are
    #: counted on Redis and by the Stub broker; RabbitMQ cannot tell them from those that run.
    delayed: int
    #: Dead letters that the broker keeps: 7 days, unless it was told otherwise; the Stub broker for ever.
    dead: int
    #: Unix seconds at which the message that is fetched next was made, as its sender's clock says; a retry keeps the time of
    #: the first.  None where nothing is ready, and on RabbitMQ, which cannot tell.
    oldest_at: float | None


class BrokerLetter(NamedTuple):
    """A dead letter that the broker keeps."""

    job_id: str
    actor: str
    queue: str
    #: Unix seconds at which the message was made.
    made_at: float | None


class Inspector(Protocol):
    """Reads the queues of one broker.  It is used and closed by one thread, which has its own connection by that."""

    def readings(self, more: Iterable[str] = ()) -> list[QueueReading]:
        """Every queue that the broker object has declared, and *more*, by name; one that is not there yet is empty.

        The work does not grow with the length of a queue.  It takes as long as the broker's own timeouts let it.

        Raises:
          Exception: the broker does not answer; whatever its library raises.
        """

    def dead_letters(self, queue: str, *, limit: int) -> list[BrokerLetter] | None:
        """Dead letters of a queue that the broker keeps, the last to come first, at most *limit*; None where it cannot be asked for them.

        What cannot be decoded here is left out.  It costs one look at each message.

        Raises:
          Exception: as above.
        """

    def close(self) -> None:
        """Give the connection back.  It may be used again, with another."""


#: Class of a broker to the name of the modules that are about it; by name, so that no broker's library is imported for it.
_KINDS: Final = {
    "dramatiq.brokers.redis.RedisBroker": "redis",
    "dramatiq.brokers.rabbitmq.RabbitmqBroker": "rabbitmq",
    "dramatiq.brokers.stub.StubBroker": "stub",
}


def kind_of(broker: Broker) -> str | None:
    """``'redis'``, ``'rabbitmq'`` or ``'stub'``, for a subclass too; None for a class that is not known here."""
    return next((kind for each in type(broker).__mro__ if (kind := _KINDS.get(f"{each.__module__}.{each.__qualname__}"))), None)


def inspector_of(broker: Broker) -> Inspector | None:
    """The inspector of a broker or of a subclass of it; None for a class that is not known here."""
    inspector: Inspector | None = made(broker, "make")
    return inspector


def made(broker: Broker, maker: str) -> Any:
    """What the function *maker* of the broker's module makes for it; None where there is no such module or function."""
    kind = kind_of(broker)
    make = None if kind is None else getattr(import_module(f"{__package__}.{kind}"), maker, None)
    return None if make is None else make(broker)


def tells_redelivery(broker: Broker) -> bool:
    """Whether the broker's messages say in ``redelivered`` that they were delivered before."""
    return kind_of(broker) == "rabbitmq"


def queues_of(broker: Any, more: Iterable[str]) -> list[str]:
    """The names to read, sorted; no delay queue is one of its own."""
    return sorted({*broker.get_declared_queues(), *more} - broker.delay_queues)


def letter_of(data: bytes | None, queue: str) -> BrokerLetter | None:
    """What an encoded message says of itself; None where it is gone, or cannot be read here."""
    from dramatiq import DramatiqError, Message

    if data is None:
        return None
    try:
        message = Message.decode(data)
        return BrokerLetter(str(message.message_id), str(message.actor_name), queue, float(message.message_timestamp) / 1000)
    except (DramatiqError, TypeError, ValueError):  # it was encoded in another way
        return None


def made_at(data: bytes | None) -> float | None:
    """When an encoded message was made, in Unix seconds; None where it is gone, or cannot be read here."""
    from dramatiq import DramatiqError, Message

    if data is None:
        return None
    try:
        return float(Message.decode(data).message_timestamp) / 1000
    except (DramatiqError, TypeError, ValueError):  # it was encoded in another way
        return None
