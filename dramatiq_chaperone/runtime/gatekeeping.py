"""What decides in a worker whether a message runs now, and what it does with the messages of workers that are dead."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dramatiq import Message

from ..brokers import deferrer_of, lease_of, leases_of, pausing_of, tells_redelivery
from ..brokers.handback import HandBack
from ..brokers.reading import STOP_S
from ..journal import JournalDirectory
from ..service import unforkable
from ..supervision.admission import SKIPS, Admission, is_news
from ..supervision.claims import RunClaims
from ..supervision.desk import StoreDesk
from ..supervision.disk import DiskCheck
from ..supervision.gaps import DelayQueues, Gaps
from ..supervision.needs import Needs
from ..supervision.poison import Suspicion

if TYPE_CHECKING:
    from dramatiq import Broker, Worker

    from ..settings import Settings
    from ..supervision.needs import Breakers
    from ..supervision.recorder import Recorder
    from ..supervision.slots import RunningJobs


class Gatekeeping:
    """The gate's checks, and whatever they rest on.

    Attributes:
      admission: what the gate asks.
      gaps: knows which messages others have taken while this process was stopped; None on a broker without leases.
      pausing: pauses queues; None on a broker of another kind, and where the worker has fetched already.
    """

    def __init__(self, settings: Settings, broker: Broker, worker: Worker, recorder: Recorder, running: RunningJobs) -> None:
        self._worker, self._policy = worker, recorder.policy
        self.desk = StoreDesk(settings)
        redelivery = tells_redelivery(broker)
        directory = JournalDirectory(settings.journal_dir)
        self.suspicion = Suspicion(running, recorder, self.desk, tells_redelivery=redelivery, unrecorded=lambda: set(directory.orphans()))
        leases, lease_s = leases_of(broker), lease_of(broker)
        self.gaps: Gaps | None = None
        if lease_s is not None:
            own, queues = recorder.origin.worker_id, broker.get_declared_queues
            self.gaps = Gaps(own, self.desk, lease_s=lease_s, leases=leases, queues=queues, waiting=self._fetched)
        self._hand_back = (
            None if leases is None else HandBack(settings, broker, leases, suspected=self.suspicion.add, max_crashes=self._max_crashes)
        )
        self._claims = RunClaims(settings)
        self.admission = Admission(running, recorder, deferrer_of(broker), self._claims, gaps=self.gaps, tells_redelivery=redelivery)
        self.pausing = None if worker.consumers else pausing_of(broker, worker)
        if self.pausing is not None:
            self.pausing.install()
            self.admission.pauses = self.pausing
            if self.gaps is not None and self.gaps.is_certain:
                self.pausing.sieve = DelayQueues(self.gaps, lambda queue: worker.consumers[queue]).sift
        self.disk = DiskCheck(settings, recorder, lambda: [actor.options for actor in list(broker.actors.values())])
        self.disk.turn(time.monotonic())
        self.needs = Needs(running, _breakers, recorder.policy, lambda: list(broker.actors.values()), self.pausing)
        # Suspicion may have to wait for seconds, and must not do so with a trial permit in its hands.  That a suspect has begun
        # it writes down when nothing can put it off any more: else it would be charged with a death of this worker.
        self.admission.checks = (self.disk, self.suspicion.check, self.needs)
        self.admission.begin = self.suspicion.begin
        self.admission.dismiss = self.needs.dismiss
        self.admission.is_in_use = lambda: self.disk.is_in_use or self.needs.is_in_use
        logging.getLogger(SKIPS).addFilter(is_news)

    def give_back(self, dead: Sequence[dict[str, Any]]) -> None:
        """Put the messages of dead workers back into their queues."""
        if self._hand_back is not None:
            self._hand_back.ask(dead)

    def _fetched(self) -> list[Any]:
        """The messages that this process has fetched and not begun."""
        work_queue = self._worker.work_queue
        with work_queue.mutex:
            fetched = [item.message._message for item in work_queue.queue]
        for thread in list(self._worker.consumers.values()):
            fetched += map(Message.decode, list(getattr(thread.consumer, "message_cache", ())))
        return fetched

    def _max_crashes(self, actor_name: str) -> int:
        return self.suspicion.limit_of(self._policy(actor_name, ""), {})

    def stop(self) -> None:
        """End what was begun, and take off what was put on."""
        if self._hand_back is not None:
            self._hand_back.stop(timeout_s=STOP_S)
        self.desk.stop()
        self._claims.stop(timeout_s=STOP_S)
        logging.getLogger(SKIPS).removeFilter(is_news)
        if self.pausing is not None:
            self.pausing.uninstall()


def _breakers() -> Breakers:
    """pybreaker is imported where a job needs it."""
    with unforkable:
        from ..breakers import needs

    return needs
