"""Gives a dead worker's messages back, in a process that has the user's broker object."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from dramatiq import Broker

from ..errors import StoreError
from ..service import Service, unforkable
from .leases import Held, Leases

if TYPE_CHECKING:
    from ..settings import Settings
    from ..store import Store
    from ..store.crashes import Return

logger = logging.getLogger("dramatiq_chaperone")

#: A message that must not run again goes back so much later, in seconds: until then every worker has heard that it is a suspect.
HEAR_S: Final = 3.0
#: A worker that dies may have asked for messages in its last moment; so often they are looked for.
_LOOKS: Final = 3
#: Between two turns that nobody asked for, in seconds.
_LEAST_S: Final = 0.5


class HandBack(Service):
    """Gives back what it is asked for, once; in a thread of its own, started when it is first asked.

    What a dead worker held is read and written into the store as suspects before any of it goes back.

    Parameters:
      suspected: called with the ids of these messages, before they go back: the next to run them may be this process.
      max_crashes: of an actor, by its name.
    """

    name = "handback"

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        leases: Leases,
        *,
        suspected: Callable[[list[str]], None],
        max_crashes: Callable[[str], int],
    ) -> None:
        super().__init__(interval_s=threading.TIMEOUT_MAX)
        self._settings, self._broker, self._leases = settings, broker, leases
        self._suspected, self._max_crashes = suspected, max_crashes
        self._asked: dict[str, dict[str, Any]] = {}
        #: Those whose last messages wait, until when.
        self._waiting: dict[str, float] = {}

    def ask(self, dead: Iterable[dict[str, Any]]) -> None:
        """Give back what these held.

        Parameters:
          dead: the fields of a store.crashes.Return each: it stands in the store, which is not loaded before there is one.
        """
        self._asked.update({each["worker_id"]: each for each in dead})
        if self.is_running:
            self.wake()
        else:
            self.start()

    def run_once(self) -> None:
        """Give back what can be given back now; what is in trouble is asked for again by whoever asked."""
        with unforkable:
            from ..store import open_store
            from ..store.crashes import Return

        asked = [Return(**fields) for fields in list(self._asked.values())]
        if not asked:
            return
        try:
            store = open_store(self._settings, create=False)
        except StoreError:
            return  # who asked has just read it there, and asks again
        try:
            for dead in asked:
                self._try(store, dead)
        finally:
            store.close()
        due = [until for worker_id, until in self._waiting.items() if worker_id in self._asked]
        self.interval_s = max(_LEAST_S, min(due) - time.monotonic()) if due else threading.TIMEOUT_MAX

    def _try(self, store: Store, dead: Return) -> None:
        try:
            self._return(store, dead)
        except StoreError:
            return
        except Exception as error:  # noqa: BLE001 - the broker's library may raise anything; the others' messages go back
            logger.warning("The messages of the dead worker %s could not be given back yet: %s", dead.worker_id, error)

    def _return(self, store: Store, dead: Return) -> None:
        if dead.worker_id not in self._waiting:
            self._asked.pop(dead.worker_id, None)  # what is not done is asked for again
        if dead.broker_id == getattr(self._broker, "broker_id", None):
            return
        given = 0
        for _ in range(_LOOKS):
            held = self._leases.held(dead.broker_id, {*dead.queues, *self._broker.get_declared_queues()})
            if held is None:
                # Another Redis has it, or somebody else has given all of it back, and says so.
                self._waiting.pop(dead.worker_id, None)
                self._asked.pop(dead.worker_id, None)
                return
            ready = self._look(store, dead, held)
            count = self._leases.give_back(dead.broker_id, ready, is_dead=dead.is_certain)
            if count is None:
                return  # it is silent, and its leases count still
            given += count
            if len(ready) < len(held):
                self._waiting.setdefault(dead.worker_id, time.monotonic() + HEAR_S)
                self._asked[dead.worker_id] = dead._asdict()
                break
            if not held:
                break
        if given:
            logger.warning("%d messages that the dead worker %s held are back in their queues.", given, dead.worker_id)
        if dead.worker_id not in self._waiting:
            self._done(store, dead)

    def _look(self, store: Store, dead: Return, held: list[Held]) -> list[Held]:
        """Write down who is a suspect; returns what may go back now."""
        from ..store import crashes

        found = [each for each in held if each.job_id is not None and not each.is_delayed]
        job_ids = [each.job_id for each in found if each.job_id is not None]
        now = time.time()
        store.transact(lambda: crashes.suspect(store, dead.worker_id, job_ids, at=now, unseen=not dead.is_certain))
        if job_ids:
            self._suspected(job_ids)
        until = self._waiting.get(dead.worker_id)
        if until is not None and time.monotonic() >= until:
            del self._waiting[dead.worker_id]
            return held
        counts = crashes.counts(store, job_ids)
        return [each for each in held if not self._is_over(each, counts.get(each.job_id or "", 0))]

    def _is_over(self, held: Held, count: int) -> bool:
        """Whether it has ended so many workers that it must not run again."""
        limit = self._max_crashes(held.actor) if held.max_crashes is None else held.max_crashes
        return bool(limit) and count >= limit

    def _done(self, store: Store, dead: Return) -> None:
        from ..store import crashes

        self._leases.forget(dead.broker_id)
        crashes.given_back(store, dead.worker_id, at=time.time())
        self._asked.pop(dead.worker_id, None)
