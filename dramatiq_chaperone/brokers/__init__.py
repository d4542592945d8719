"""What Dramatiq does not offer for all its brokers alike.

What lies in their queues; what a worker holds, and how it lets go of it; putting a message off; pausing a queue.
"""

from __future__ import annotations

from .deferring import Deferrer, deferrer_of
from .holding import Holding, holding_of
from .inspector import BrokerLetter, Inspector, QueueReading, inspector_of, tells_redelivery
from .leases import Held, Leases, lease_of, leases_of
from .pausing import Pausing, pausing_of

__all__ = [
    "BrokerLetter",
    "Deferrer",
    "Held",
    "Holding",
    "Inspector",
    "Leases",
    "Pausing",
    "QueueReading",
    "deferrer_of",
    "holding_of",
    "inspector_of",
    "lease_of",
    "leases_of",
    "pausing_of",
    "tells_redelivery",
]
