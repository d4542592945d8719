"""The threads on which messages are sent: one a channel, so that one which hangs holds up no other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ..service import Service, internal_error
from ..store.deliveries import Delivery
from .channels import DELIVERY_S, Channel, Sent, masked
from .messages import Message

#: After so long a delivery counts as failed, though its thread still hangs; seconds.
GIVE_UP_S: Final = DELIVERY_S + 5.0


class Result(NamedTuple):
    """What came of a delivery."""

    delivery: Delivery
    sent: Sent
    #: Seconds that it took.
    took_s: float


class _Flight(NamedTuple):
    delivery: Delivery
    since: float
    is_given_up: bool = False


class _Thread(Service):
    """Sends what it is given, to one channel."""

    def __init__(self, channel: Channel, done: Callable[[Delivery, Sent, float], None]) -> None:
        super().__init__(interval_s=60.0)
        self.name = f"alerts-{channel.name}"
        self._channel, self._done = channel, done
        self._waiting: deque[tuple[Delivery, Message]] = deque()

    def put(self, delivery: Delivery, message: Message) -> None:
        self._waiting.append((delivery, message))
        self.start()
        self.wake()

    def run_once(self) -> None:
        while self._waiting:
            delivery, message = self._waiting.popleft()
            began = time.monotonic()
            try:
                sent = self._channel.send(message)
            except Exception as error:  # noqa: BLE001 - a channel of the user's may raise whatever it likes
                internal_error(f"alert channel {self._channel.name}", error)
                sent = Sent(False, masked(f"{type(error).__name__}: {error}", ())[:500], message.title)
            self._done(delivery, sent, time.monotonic() - began)

    def forked(self) -> None:
        self._waiting.clear()


class Senders:
    """All of them.

    Parameters:
      wake: called when a delivery is over.
      clock: monotonic seconds.

    Attributes:
      results: what is over: come back, or given up.  Whoever keeps one takes it away.
    """

    def __init__(self, wake: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._wake, self._clock = wake, clock
        self._threads: dict[str, _Thread] = {}
        self._flights: dict[str, _Flight] = {}
        self._landed: deque[tuple[Delivery, Sent, float]] = deque()
        self.results: deque[Result] = deque()

    def is_busy(self, channel: str) -> bool:
        """Whether the channel's thread has something, perhaps for ever."""
        return channel in self._flights

    def hangs(self, channel: str) -> bool:
        """Whether that has been given up."""
        flight = self._flights.get(channel)
        return flight is not None and flight.is_given_up

    def send(self, channel: Channel, delivery: Delivery, message: Message) -> None:
        """Have *message* sent."""
        thread = self._threads.get(channel.name)
        if thread is None:
            thread = self._threads[channel.name] = _Thread(channel, self._over)
        self._flights[channel.name] = _Flight(delivery, self._clock())
        thread.put(delivery, message)

    def _over(self, delivery: Delivery, sent: Sent, took_s: float) -> None:
        self._landed.append((delivery, sent, took_s))
        self._wake()

    def look(self) -> None:
        """Add to :attr:`results` what is over since the last call."""
        while self._landed:
            delivery, sent, took_s = self._landed.popleft()
            self._flights.pop(delivery.channel, None)
            self.results.append(Result(delivery, sent, took_s))
        now = self._clock()
        for name, flight in self._flights.items():
            if not flight.is_given_up and now - flight.since > GIVE_UP_S:
                self._flights[name] = flight._replace(is_given_up=True)
                self.results.append(Result(flight.delivery, Sent(False, f"no answer for {now - flight.since:.0f} s"), now - flight.since))

    def has(self, key: str) -> bool:
        """Whether the delivery of this id is on its way, or over and not taken away."""
        flying = (flight.delivery.id for flight in self._flights.values() if not flight.is_given_up)
        return key in {*flying, *(delivery.id for delivery, _, _ in self._landed), *(result.delivery.id for result in self.results)}

    def in_flight(self) -> bool:
        """Whether an answer is waited for that may still come."""
        return any(not each.is_given_up for each in self._flights.values())

    def stop(self) -> None:
        """Send nothing more; what hangs is left to end by itself."""
        for thread in self._threads.values():
            thread.stop(timeout_s=0.1)
        self._threads, self._flights = {}, {}
