"""A paused consumer of a RedisBroker."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import redis
from dramatiq import Message
from dramatiq.errors import ConnectionClosed

#: From the last to the first, each to the head of its queue: as they lay there.
_GIVE_BACK: Final = """
local queue = KEYS[1] .. ":" .. ARGV[2]
local leases = KEYS[1] .. ":__acks__." .. ARGV[1] .. "." .. ARGV[2]
local given = 0
for i = #ARGV, 3, -1 do
    if redis.call("srem", leases, ARGV[i]) > 0 and redis.call("hexists", queue .. ".msgs", ARGV[i]) > 0 then
        redis.call("lpush", queue, ARGV[i])
        given = given + 1
    end
end
return given
"""
#: Ids in one script.
_CHUNK: Final = 1000
_GIVEN_BACK: Final = "is_given_back"


def make(broker: Any, queue_name: str, inner: Any, timeout_s: float) -> RedisHolder:
    """The holder of this consumer."""
    return RedisHolder(broker, queue_name, inner)


class RedisHolder:
    """Any command of the broker refreshes the lease of all that this process has fetched."""

    def __init__(self, broker: Any, queue_name: str, inner: Any) -> None:
        self._broker, self._queue_name, self._inner = broker, queue_name, inner
        self._script = broker.client.register_script(_GIVE_BACK)
        self._refresh_at = 0.0

    def give_back(self, fetched: list[Any]) -> None:
        """See :class:`.Holder`."""
        inner = self._inner
        messages = [*fetched, *(Message.decode(data) for data in inner.message_cache if data is not None)]
        inner.message_cache = []
        ids = [message.options["redis_message_id"] for message in messages]
        try:
            for last in range(len(ids), 0, -_CHUNK):
                arguments = [self._broker.broker_id, self._queue_name, *ids[max(0, last - _CHUNK) : last]]
                self._script(keys=[self._broker.namespace], args=arguments)
        except redis.ConnectionError as error:
            raise ConnectionClosed(error) from None
        for message in messages:
            inner.queued_message_ids.discard(message.message_id)

    def give_back_one(self, message: Any) -> None:
        """See :class:`.Holder`."""
        self._inner.queued_message_ids.discard(message.message_id)
        arguments = [self._broker.broker_id, self._queue_name, message.options["redis_message_id"]]
        self._script(keys=[self._broker.namespace], args=arguments)
        setattr(message, _GIVEN_BACK, True)

    def ack(self, message: Any) -> None:
        """In the place of the consumer's own: one that was given back may be here again, and that acknowledgement would delete it."""
        if not getattr(message, _GIVEN_BACK, False):
            self._inner.ack(message)

    def stay(self, resumed: threading.Event, timeout_s: float) -> None:
        """See :class:`.Holder`."""
        now = time.monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + self._broker.heartbeat_timeout / 4000
            try:
                self._broker.do_qsize(self._queue_name)
            except redis.ConnectionError as error:
                raise ConnectionClosed(error) from None
        resumed.wait(min(timeout_s, max(0.01, self._refresh_at - now)))

    def resume(self) -> None:
        """See :class:`.Holder`."""
