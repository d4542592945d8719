"""The queues of a RedisBroker, and the leases of its workers.

Source: dramatiq/brokers/redis/dispatch.lua.  A queue is a list of ids, taken from its head, beside a hash of messages,
which holds those too that a worker has and has not acknowledged.  What a worker has stands in a set of ids for each queue,
named after the id of its broker object; a sorted set says when each of these was last heard of.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from dramatiq import DramatiqError, Message
from dramatiq.common import dq_name, xq_name

from .inspector import BrokerLetter, QueueReading, letter_of, made_at, queues_of
from .leases import Held

#: Ids in one call of a script; Lua's stack bears some thousands.
_CHUNK: Final = 500

#: One step, so that of any number of processes that do this at once one puts each message back.  An id whose message is
#: gone was acknowledged; a set is deleted with its last id.
_GIVE_BACK: Final = """
local namespace, broker_id, queue, heard_before = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if heard_before ~= '' then
    local heard = redis.call('zscore', namespace .. ':__heartbeats__', broker_id)
    if heard and tonumber(heard) > tonumber(heard_before) then
        return -1
    end
end
local leases = namespace .. ':__acks__.' .. broker_id .. '.' .. queue
local list = namespace .. ':' .. queue
local count = 0
for i = #ARGV, 4, -1 do
    if redis.call('srem', leases, ARGV[i]) == 1 and redis.call('hexists', list .. '.msgs', ARGV[i]) == 1 then
        redis.call('lpush', list, ARGV[i])
        count = count + 1
    end
end
return count
"""

#: One step: a lease that is there after the sign of life stays, for nobody takes this worker for dead any more.
_RENEW: Final = """
redis.call('zadd', KEYS[1] .. ':__heartbeats__', ARGV[2], ARGV[1])
local found = {}
for i = 3, #ARGV do
    for _, id in ipairs(redis.call('smembers', KEYS[1] .. ':__acks__.' .. ARGV[1] .. '.' .. ARGV[i])) do
        table.insert(found, id)
    end
end
return found
"""


def make(broker: Any) -> RedisInspector:
    """The inspector of this broker."""
    return RedisInspector(broker)


class RedisInspector:
    """Two round trips for all queues, over a connection of the broker's own pool."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def readings(self, more: Iterable[str] = ()) -> list[QueueReading]:
        """See :class:`.Inspector`."""
        queues = queues_of(self._broker, more)
        with self._broker.client.pipeline(transaction=False) as pipeline:
            for queue in queues:
                pipeline.llen(self._key(queue))
                pipeline.hlen(f"{self._key(dq_name(queue))}.msgs")
                pipeline.zcard(self._key(xq_name(queue)))
                pipeline.lindex(self._key(queue), 0)
            found = pipeline.execute() if queues else []
            rows = [tuple(found[at : at + 4]) for at in range(0, len(found), 4)]
            heads = [(queue, head) for queue, (*_, head) in zip(queues, rows, strict=True) if head is not None]
            for queue, head in heads:
                pipeline.hget(f"{self._key(queue)}.msgs", head)
            bodies = dict(zip((queue for queue, _ in heads), pipeline.execute(), strict=True)) if heads else {}
        return [
            QueueReading(queue, ready, delayed, dead, made_at(bodies.get(queue)))
            for queue, (ready, delayed, dead, _) in zip(queues, rows, strict=True)
        ]

    def dead_letters(self, queue: str, *, limit: int) -> list[BrokerLetter] | None:
        """See :class:`.Inspector`."""
        dead = self._key(xq_name(queue))
        ids = self._broker.client.zrevrange(dead, 0, limit - 1)
        found = self._broker.client.hmget(f"{dead}.msgs", ids) if ids else []
        return [letter for letter in (letter_of(data, queue) for data in found) if letter is not None]

    def _key(self, name: str) -> str:
        return f"{self._broker.namespace}:{name}"

    def close(self) -> None:
        """The pool has its connection back already."""


def lease_s(broker: Any) -> float:
    """Seconds after which maintenance takes a worker that was not heard of for dead."""
    return float(broker.heartbeat_timeout) / 1000


def leases(broker: Any) -> RedisLeases:
    """The leases of this broker's workers."""
    return RedisLeases(broker)


class RedisLeases:
    """See :class:`.Leases`."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self.lease_s = lease_s(broker)
        self._give_back = broker.client.register_script(_GIVE_BACK)
        self._renew = broker.client.register_script(_RENEW)

    def held(self, broker_id: str, queues: Iterable[str]) -> list[Held] | None:
        """See :class:`.Leases`."""
        client, namespace = self._broker.client, self._broker.namespace
        names = _with_delayed(queues)
        with client.pipeline(transaction=False) as pipeline:
            pipeline.zscore(f"{namespace}:__heartbeats__", broker_id)
            for name in names:
                pipeline.smembers(f"{namespace}:__acks__.{broker_id}.{name}")
            heard, *sets = pipeline.execute()
            if heard is None and not any(sets):
                return None
            keys = [(name, key) for name, found in zip(names, sets, strict=True) for key in sorted(found)]
            for name, key in keys:
                pipeline.hget(f"{namespace}:{name}.msgs", key)
            bodies = pipeline.execute() if keys else []
        found = [_held(name, key.decode() if isinstance(key, bytes) else key, body) for (name, key), body in zip(keys, bodies, strict=True)]
        return sorted(found, key=lambda each: (each.queue, each.made_at))

    def give_back(self, broker_id: str, held: Sequence[Held], *, is_dead: bool) -> int | None:
        """See :class:`.Leases`."""
        heard_before = "" if is_dead else int((time.time() - self.lease_s) * 1000)
        count = 0
        for queue in sorted({each.queue for each in held}) or [""]:
            keys = [each.key for each in held if each.queue == queue]
            # The last chunk first: each goes before those that are in the list already.  Without any key it is asked whether it lives.
            for first in reversed(range(0, len(keys) or 1, _CHUNK)):
                arguments = [broker_id, queue, heard_before, *keys[first : first + _CHUNK]]
                done = int(self._give_back(keys=[self._broker.namespace], args=arguments))
                if done < 0:
                    return None
                count += done
        return count

    def forget(self, broker_id: str) -> bool:
        """See :class:`.Leases`.  A set of a queue that nobody named keeps it: maintenance looks for those that have a heartbeat."""
        client, namespace = self._broker.client, self._broker.namespace
        for _ in client.scan_iter(match=f"{_literal(namespace)}:__acks__.{_literal(broker_id)}.*", count=1000):
            return False
        client.zrem(f"{namespace}:__heartbeats__", broker_id)
        return True

    def renew(self, queues: Iterable[str]) -> frozenset[str]:
        """See :class:`.Leases`."""
        arguments = [self._broker.broker_id, int(time.time() * 1000), *_with_delayed(queues)]
        found = self._renew(keys=[self._broker.namespace], args=arguments)
        return frozenset(key.decode() if isinstance(key, bytes) else key for key in found)


def _with_delayed(queues: Iterable[str]) -> list[str]:
    return [name for queue in sorted(set(queues)) for name in (queue, dq_name(queue))]


def _literal(text: str) -> str:
    """Text that stands for itself in a pattern."""
    return "".join(f"\\{each}" if each in "*?[]^\\" else each for each in text)


def _held(queue: str, key: str, body: bytes | None) -> Held:
    """A message that cannot be read here goes back all the same."""
    if body is None:
        return Held(queue, key, None)
    try:
        message: Any = Message.decode(body)
        limit = message.options.get("max_crashes")
        return Held(queue, key, message.message_id, message.actor_name, message.message_timestamp / 1000, limit)
    except (DramatiqError, TypeError, ValueError, AttributeError):
        return Held(queue, key, None)
