"""Jobs that need a service: while its circuit breaker is open they wait, and what becomes of them says how the service is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from dramatiq import Actor
from dramatiq.common import q_name

from ..circuits import waiting_for
from ..service import internal_error
from .admission import GiveBack, PutOff, Verdict
from .jobs import Job
from .policy import Policy, services_of
from .slots import RunningJobs, Slot

#: By whom a queue is paused in which everything waits.
BY: Final = "breaker"

_OPTION: Final = "breaker"


class Breakers(Protocol):
    """The breakers of this process: the module :mod:`dramatiq_chaperone.breakers.needs`."""

    def prepare(self, services: Sequence[str]) -> None:
        """Jobs of this process will need them.  Once this returns it is known how they are, unless whoever knows takes too long."""

    def wait_s(self, service: str) -> float:
        """Seconds until a job may be let through, as far as is known without asking; 0: now, or it has to be asked for."""

    def is_open(self, service: str) -> bool:
        """Whether no call is let through, not even a trial."""

    def admit(self, service: str) -> Any:
        """What the job holds while it runs; or, a float, in how many seconds it may ask again."""

    def dismiss(self, held: Sequence[Any]) -> None:
        """The job did not run after all."""

    def hold(self, held: Sequence[Any]) -> None:
        """The job begins, in this context."""

    def settle(self, held: Sequence[Any], error: BaseException | None) -> None:
        """It has ended, in the same context."""


class Pausing(Protocol):
    """How queues of this worker are paused: :class:`dramatiq_chaperone.brokers.Pausing`."""

    @property
    def paused(self) -> Mapping[str, frozenset[str]]:
        """Who has paused which queue."""

    def resume(self, *queues: str, by: str) -> None:
        """Fetch from them again."""


class Needs:
    """Keeps messages back whose services are left alone; a check of :class:`~.admission.Admission`.

    A queue in which everything waits, as far as this worker knows its actors, is paused instead, and looked at again each turn.

    Parameters:
      load: gives the breakers; called when the first message or actor needs one.
      policy: gives the policy of an actor by its name and queue.
      actors: those that the broker knows.
      pausing: None where queues cannot be paused.

    Attributes:
      paused_for: the queues that are paused here, and what everything in them waits for.
      is_in_use: whether an actor, or a message that came by, needs a service.
    """

    def __init__(
        self,
        running: RunningJobs,
        load: Callable[[], Breakers],
        policy: Callable[[str, str], Policy],
        actors: Callable[[], Iterable[Actor[Any, Any]]],
        pausing: Pausing | None = None,
    ) -> None:
        self._running, self._load, self._policy, self._actors, self._pausing = running, load, policy, actors, pausing
        self._loaded: Breakers | None = None
        self._is_prepared = False
        self.paused_for: dict[str, str] = {}
        self.is_in_use = any(services_of(actor.options.get(_OPTION)) for actor in actors())

    @property
    def breakers(self) -> Breakers:
        """Those of this process."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def __call__(self, message: Any, policy: Policy) -> Verdict:
        """Two looks for the option, for a job that needs nothing."""
        services = services_of(message.options[_OPTION]) if _OPTION in message.options else policy.services
        if not services:
            return None
        self.is_in_use = True
        return self._verdict(message, services)

    def _verdict(self, message: Any, services: tuple[str, ...]) -> Verdict:
        breakers = self.breakers
        held: list[Any] = []
        for service in services:  # what is known already, first: no permit is taken in vain
            if wait_s := breakers.wait_s(service):
                return self._keep_back(message, service, wait_s)
        for service in services:
            answer = breakers.admit(service)
            if isinstance(answer, float):
                breakers.dismiss(held)
                return self._keep_back(message, service, answer)
            held.append(answer)
        slot = self._running.slot()
        slot.held = tuple(held)
        return None

    def _keep_back(self, message: Any, service: str, wait_s: float) -> Verdict:
        reason = waiting_for(service)
        put_off = PutOff(time.time() + wait_s, reason, service)
        if self._pausing is not None and self._is_all_waiting(q_name(message.queue_name), service):
            self.paused_for[q_name(message.queue_name)] = reason
            return GiveBack(reason, BY, put_off)
        return put_off

    def _is_all_waiting(self, queue: str, refused: str = "") -> bool:
        """Whether every actor of *queue* has to wait just now; who needs the service *refused* has to in any case."""
        actors = [actor for actor in list(self._actors()) if actor.queue_name == queue]
        return bool(actors) and all(self._is_waiting(actor, refused) for actor in actors)

    def _is_waiting(self, actor: Actor[Any, Any], refused: str) -> bool:
        policy = self._policy(actor.actor_name, actor.queue_name)
        return policy.supervised and any(name == refused or self.breakers.wait_s(name) > 0 for name in policy.services)

    def prepare(self) -> None:
        """At the boot, before the first job: it must not call what others have found dead."""
        if self.is_in_use and not self._is_prepared:
            self._is_prepared = True
            services = {name: None for actor in self._actors() for name in services_of(actor.options.get(_OPTION))}
            self._guarded(lambda: self.breakers.prepare(list(services)))

    def turn(self) -> None:
        """Resume the queues that have something to do again: once a second, on the sampler's side."""
        if not self.is_in_use:
            return
        self.prepare()
        if self._pausing is not None:
            for queue, holders in list(self._pausing.paused.items()):
                if BY in holders:
                    self._consider(queue, self._pausing)

    def _consider(self, queue: str, pausing: Pausing) -> None:
        try:
            is_over = not self._is_all_waiting(queue)
        except Exception as error:  # noqa: BLE001 - whatever it is: a queue must not stay paused for it
            internal_error("breakers", error)
            is_over = True
        if is_over:
            self.paused_for.pop(queue, None)
            pausing.resume(queue, by=BY)

    def open_for(self, job: Job) -> tuple[str, ...]:
        """The services that a running job needs, and whose breakers are open."""
        if not self.is_in_use or job.message is None:
            return ()
        options = job.message.options
        services = services_of(options[_OPTION]) if _OPTION in options else self._policy(job.actor_name, job.queue).services
        return tuple(service for service in services if self.breakers.is_open(service))

    def dismiss(self, slot: Slot) -> None:
        """The message of *slot* was let through, and does not run."""
        held, slot.held = slot.held, None
        if held:
            self._guarded(self.breakers.dismiss, held)

    def hold(self, held: Sequence[Any]) -> None:
        """The job that was let through with *held* begins, in this thread."""
        self._guarded(self.breakers.hold, held)

    def settle(self, held: Sequence[Any], error: BaseException | None) -> None:
        """It has ended."""
        self._guarded(self.breakers.settle, held, error)

    @staticmethod
    def _guarded(step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
        except Exception as error:  # noqa: BLE001 - supervision may fail, the job must not notice
            internal_error("breakers", error)
