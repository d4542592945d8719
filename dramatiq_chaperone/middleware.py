"""``Chaperone``, the one line that a user adds.  Its hooks only call the :class:`~dramatiq_chaperone.runtime.Runtime`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dramatiq import Actor, Broker, Worker
from dramatiq.middleware import Middleware, Retries

from .errors import SettingsError
from .runtime import Runtime, watch
from .service import internal_error
from .settings import Settings
from .supervision.policy import CHECKED, OPTIONS
from .supervision.sending import check_options
from .supervision.tracebacks import hide_ours


class Chaperone(Middleware):
    """Watches over every job of a broker: ``broker.add_middleware(Chaperone())``.

    Add it before the actors are declared; they may carry its options (``timeout``, ``heartbeat_interval``, …) then.
    It finds its place in the list of middleware by itself: first, to see each verdict after everyone else, and its
    :class:`Gate` last.

    Parameters:
      arguments: any setting of docs/settings.md; they go before the environment and chaperone.toml.

    Raises:
      SettingsError: a setting is unknown, of the wrong type, out of its range, or contradicts another.
    """

    def __init__(self, **arguments: object) -> None:
        self.settings = Settings.load(arguments)
        self.gate = Gate()
        self._broker: Broker | None = None
        self._runtime: Runtime | None = None
        self._has_booted_by_cli = False

    @property
    def actor_options(self) -> set[str]:
        """Options that actors may carry."""
        return set(OPTIONS)

    @property
    def forks(self) -> list[Callable[[], int]]:
        """The watcher, which the ``dramatiq`` command runs beside its workers."""
        if not (self.settings.enabled and self.settings.watcher):
            return []
        return [watch] if self._guarded(Runtime.announce, self.settings) else []

    # Placement: each hook that brings the broker is an opportunity, the first one is taken.

    def before_declare_queue(self, broker: Broker, queue_name: str) -> None:
        self._place(broker)

    def after_declare_queue(self, broker: Broker, queue_name: str) -> None:
        self._place(broker)

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        self._place(broker)
        check_options(f"actor {actor.actor_name}", actor.options)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        self._place(broker)
        if (runtime := self._runtime) is not None and (execution := runtime.execution) is not None:
            self._guarded(execution.wrap, actor)

    def _place(self, broker: Broker) -> None:
        """Observer first, and in a worker the gate last; always in a new list: changing the one in use makes Dramatiq miss hooks."""
        if broker is self._broker:
            return
        if any(isinstance(entry, Chaperone) and entry is not self for entry in broker.middleware):
            raise SettingsError("This broker already has a Chaperone; add it once.", field=None)
        self._broker = broker
        broker.middleware = [self, *self._others(broker)]
        if self.settings.enabled:
            self._runtime = self.gate.runtime = Runtime(self.settings, broker)
            self._default_retries(broker)

    def _others(self, broker: Broker) -> list[Middleware]:
        return [entry for entry in broker.middleware if entry is not self and entry is not self.gate]

    def _default_retries(self, broker: Broker) -> None:
        """Dramatiq's Retries stays the only retry loop; it takes our numbers only where the user has set them."""
        settings = self.settings
        for entry in broker.middleware:
            if isinstance(entry, Retries):
                if settings.is_set("max_retries"):
                    entry.max_retries = settings.max_retries
                if settings.is_set("retry_delay"):
                    entry.min_backoff = int(settings.retry_delay * 1000)

    # The life of a process.

    def after_process_boot(self, broker: Broker) -> None:
        self._has_booted_by_cli = True

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._place(broker)
        if self._runtime is not None:
            broker.middleware = [self, *self._others(broker), self.gate]
            self._guarded(self._runtime.start_worker, worker, expects_watcher=self._has_booted_by_cli and self.settings.watcher)

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if self._runtime is not None:
            self._guarded(self._runtime.worker_booted)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._runtime is not None:
            self._guarded(self._runtime.stop_worker)

    def close(self) -> None:
        """Bring everything that this process has recorded to the store.  Happens by itself at the end of the process."""
        if self._runtime is not None:
            self._runtime.close()

    # The life of a message.

    def before_enqueue(self, broker: Broker, message: Any, delay: int | None) -> None:
        if not CHECKED.isdisjoint(message.options):
            check_options(f"message {message.message_id}", message.options)

    def after_enqueue(self, broker: Broker, message: Any, delay: int | None) -> None:
        if (runtime := self._runtime) is not None:
            try:
                runtime.enqueued(message)
            except Exception as error:  # noqa: BLE001 - supervision may fail, the job must not notice
                internal_error("observer", error, job_id=message.message_id)

    def before_process_message(self, broker: Broker, message: Any) -> None:
        if (runtime := self._runtime) is not None and (execution := runtime.execution) is not None:
            try:
                execution.received(message)
            except Exception as error:  # noqa: BLE001 - as above
                internal_error("observer", error, job_id=message.message_id)

    def after_process_message(self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        if (runtime := self._runtime) is not None and (execution := runtime.execution) is not None:
            try:
                execution.ended(message, exception)
            except Exception as error:  # noqa: BLE001 - as above
                internal_error("observer", error, job_id=message.message_id)

    def after_skip_message(self, broker: Broker, message: Any) -> None:
        if (runtime := self._runtime) is not None and (execution := runtime.execution) is not None:
            try:
                execution.skipped(message)
            except Exception as error:  # noqa: BLE001 - as above
                internal_error("observer", error, job_id=message.message_id)

    def after_nack(self, broker: Broker, message: Any) -> None:
        if (runtime := self._runtime) is not None and (execution := runtime.execution) is not None:
            try:
                execution.nacked(broker, message)
            except Exception as error:  # noqa: BLE001 - as above
                internal_error("observer", error, job_id=message.message_id)

    @staticmethod
    def _guarded(step: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Whether *step* went well; what goes wrong there must not stop a worker."""
        try:
            step(*args, **kwargs)
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            internal_error("runtime", error)
            return False
        return True


class Gate(Middleware):
    """The last middleware of all: admission, after every other one has had its say; the first to hear of a run's end."""

    runtime: Runtime | None = None

    def before_process_message(self, broker: Broker, message: Any) -> None:
        if (runtime := self.runtime) is not None and (admission := runtime.admission) is not None:
            admission.admit(message)

    def after_process_message(self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        if exception is not None:
            try:
                hide_ours(exception)
            except Exception as error:  # noqa: BLE001 - as above
                internal_error("gate", error, job_id=message.message_id)
