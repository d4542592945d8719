"""Putting a message off on a RedisBroker: one script, which moves it from the lease to the delay queue or does nothing.

Source of the keys: dramatiq/brokers/redis/dispatch.lua.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import uuid4

from dramatiq.common import current_millis

from . import copy_of

#: What is written first is what can be refused for want of memory: then nothing has changed.
_MOVE: Final = """
local prefix, broker_id, queue, id, delay_queue, new_id, data = KEYS[1] .. ":", ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local leases = prefix .. "__acks__." .. broker_id .. "." .. queue
if redis.call("sismember", leases, id) == 0 then
    return 0
end
redis.call("hset", prefix .. delay_queue .. ".msgs", new_id, data)
redis.call("rpush", prefix .. delay_queue, new_id)
redis.call("srem", leases, id)
redis.call("hdel", prefix .. queue .. ".msgs", id)
return 1
"""


def make(broker: Any) -> RedisDeferrer:
    """The deferrer of this broker."""
    return RedisDeferrer(broker)


class RedisDeferrer:
    """One round trip.  The acknowledgement that follows finds no lease, and does nothing."""

    leaves_doubt = False

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._move = broker.client.register_script(_MOVE)

    def contender(self, proxy: Any) -> str | None:
        """See :class:`.Deferrer`."""
        return None

    def put_off(self, proxy: Any, eta_ms: int, number: int) -> bool:
        """See :class:`.Deferrer`.  Asked again after an answer that was lost, it finds no lease, and puts nothing."""
        broker = self._broker
        message = getattr(proxy, "_message", proxy)
        new_id = str(uuid4())
        copy = copy_of(message, eta_ms, number).copy(options={"redis_message_id": new_id})
        delay = max(0, eta_ms - current_millis())
        broker.emit_before("enqueue", copy, delay)
        arguments = [broker.broker_id, message.queue_name, message.options["redis_message_id"], copy.queue_name, new_id, copy.encode()]
        if not self._move(keys=[broker.namespace], args=arguments):
            return False
        broker.emit_after("enqueue", copy, delay)
        return True
