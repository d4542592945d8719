"""Sending dead letters again, in a process that has the user's broker and actors.

A retry is a message with a new id.  The claim is in the row before it is sent: at most once, whoever dies when.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dramatiq import Broker, Message
from dramatiq.message import generate_unique_id

from .errors import CommandRefused, StoreError
from .records import PASSED, Command
from .service import Service, internal_error
from .store import Store, deadletters, open_store

if TYPE_CHECKING:
    from .store import StoreSettings

#: Options that say how far a message had come, and are not its sender's.
_BOOKKEEPING: Final = frozenset({"retries", "traceback", "redis_message_id", "eta", "requeue_timestamp", "deferrals", "deferral"})
#: Options of Chaperone's own bookkeeping begin like this.
_OURS: Final = "chaperone_"

#: Sends a message on behalf of the retry of a job.
Send = Callable[[Message[Any], str], None]


class Retried(NamedTuple):
    """What became of some dead letters."""

    #: The key of each that was sent, to the id of its new job.
    retried: dict[str, str]
    #: The key of each that was not, to the reason.
    refused: dict[str, str]
    #: Those whose actor is not known here.
    unknown: dict[str, str]


def retry(store: Store, broker: Broker, send: Send, letters: Iterable[str], *, who: str, origin: str, again: bool = False) -> Retried:
    """Send these dead letters again, each once.

    Parameters:
      send: puts a message into the broker; gets the id of the job that is retried too.
      letters: keys of their rows.
      who, origin: for the audit log.
      again: renew claims of which no message ever showed up.

    Raises StoreUnavailable, SchemaError.
    """
    done = Retried({}, {}, {})
    for letter in letters:
        try:
            actor = deadletters.actor_of(store, letter)
            if actor is not None and actor not in broker.actors:
                done.unknown[letter] = f"there is no actor {actor} here"
                continue
            claim = deadletters.claim(store, letter, new_id=generate_unique_id(), who=who, origin=origin, again=again)
        except CommandRefused as refusal:
            done.refused[letter] = str(refusal)
            continue
        try:
            send(message_of(broker, claim), claim.job_id)
            done.retried[letter] = claim.new_id
        except Exception as error:  # noqa: BLE001 - whatever a broker raises; the others are sent all the same
            internal_error("dead letters", error, job_id=claim.job_id)
            told = f"{type(error).__name__}: {error}"
            done.refused[letter] = f"it was claimed as job {claim.new_id}, and the broker failed, so that it may or may not be sent: {told}"
    return done


def message_of(broker: Broker, claim: deadletters.Claim) -> Message[Any]:
    """The message that a claim is for: the arguments and options of its sender, in the same queue where that is still there."""
    options = {name: value for name, value in claim.options.items() if name not in _BOOKKEEPING and not name.startswith(_OURS)}
    queue = claim.queue if claim.queue in broker.get_declared_queues() else broker.get_actor(claim.actor).queue_name
    return Message(
        queue_name=queue,
        actor_name=claim.actor,
        args=tuple(claim.args),
        kwargs=claim.kwargs,
        options=options,
        message_id=claim.new_id,
    )


class Answer(Protocol):
    """Takes what came of a command."""

    def __call__(self, command: Command, outcome: str, detail: dict[str, Any]) -> None: ...  # noqa: D102


class Retrier(Service):
    """Carries out the command ``retry`` in a worker, on a thread of its own: the store and the broker may take their time.

    Its arguments: ``dead_letters`` (keys) or ``dead_letter`` (one) or ``job_id``; ``by``, ``origin``, ``again``.

    Parameters:
      settings: of the store; it is open only while there is something to do.
      close: gives the thread's connection to the broker back, at the end.
    """

    name = "retries"

    def __init__(
        self,
        settings: StoreSettings,
        broker: Broker,
        worker_id: str,
        *,
        send: Send,
        answer: Answer,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(interval_s=threading.TIMEOUT_MAX)
        self._settings, self._broker, self._worker_id = settings, broker, worker_id
        self._send, self._answer, self._close = send, answer, close
        self._waiting: deque[Command] = deque()

    def put(self, command: Command) -> None:
        """Carry it out soon."""
        self._waiting.append(command)
        if self.is_running:
            self.wake()
        else:
            self.start()

    def run_once(self) -> None:
        """Carry out what waits."""
        if not self._waiting:
            return
        store: Store | None = None
        try:
            while self._waiting and not self._stop.is_set():
                command = self._waiting.popleft()
                try:
                    store = store or open_store(self._settings, create=False)
                    self._answer(command, *self._carried_out(store, command.arguments))
                except CommandRefused as refusal:
                    self._answer(command, "refused", {"reason": str(refusal)})
                except (StoreError, ValueError, TypeError) as error:
                    self._answer(command, "failed", {"reason": f"{type(error).__name__}: {error}"})
        finally:
            if store is not None:
                store.close()

    def _carried_out(self, store: Store, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        letters = [str(each) for each in arguments.get("dead_letters") or ()]
        if not letters and arguments.get("dead_letter") is not None:
            letters = [str(arguments["dead_letter"])]
        if not letters:
            letters = [deadletters.letter_of(store, str(arguments.get("job_id")))]
        who, origin = str(arguments.get("by") or "unknown"), str(arguments.get("origin") or "models")
        done = retry(store, self._broker, self._send, letters, who=who, origin=origin, again=bool(arguments.get("again")))
        if done.unknown and not (done.retried or done.refused):
            return PASSED, {"reason": next(iter(done.unknown.values())), "workers": [self._worker_id]}
        detail = {"retried": done.retried, "refused": {**done.refused, **done.unknown}}
        if not done.retried:
            return "refused", {"reason": next(iter(detail["refused"].values()), "there is nothing to retry"), **detail}
        return "done", detail

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            self._guarded(self._close)  # here, for a connection is this thread's
