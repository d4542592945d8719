"""Asks the store something on behalf of a worker thread, which waits for the answer for a short time only."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import StoreError, StoreUnavailable
from ..service import Service, unforkable

if TYPE_CHECKING:
    from ..settings import Settings
    from ..store import Store

T = TypeVar("T")

#: So long a worker thread waits for an answer, in seconds; longer while the store is being opened for the first time.
ANSWER_S: Final = 0.25
OPEN_S: Final = 3.0
#: After a store that did not answer nobody waits for it for so long, in seconds.
REST_S: Final = 5.0
#: The connection is closed when nobody has asked for so long, in seconds.
IDLE_S: Final = 10.0


class StoreDesk(Service):
    """One thread with one connection.  It is started by the first question, or before it by :meth:`open`.

    What it is asked is rare: about messages that a dead worker held.
    """

    name = "desk"

    def __init__(self, settings: Settings) -> None:
        super().__init__(interval_s=IDLE_S)
        self._settings = settings
        self._questions: deque[_Question] = deque()
        self._store: Store | None = None
        self._rests_until = 0.0
        self._asked_at = 0.0

    def open(self) -> None:
        """There will be questions soon."""
        if self._store is None and not self.is_running:
            self.start()

    def ask(self, question: Callable[[Store], T]) -> T:
        """The answer to a question.

        Raises:
          StoreError: there was none in time; the question may still be carried out.
        """
        now = time.monotonic()
        if now < self._rests_until:
            raise StoreUnavailable
        limit_s = ANSWER_S if self._store is not None or self._rests_until else OPEN_S
        asked = _Question(question)
        self._questions.append(asked)
        self._go_on()
        if not asked.answered.wait(limit_s):
            self._rests_until = time.monotonic() + REST_S
            raise StoreUnavailable(f"The store did not answer within {limit_s:g} s.")
        if asked.error is not None:
            if isinstance(asked.error, StoreError):
                self._rests_until = time.monotonic() + REST_S
            raise asked.error
        answer: T = asked.answer
        return answer

    def put(self, task: Callable[[Store], object]) -> None:
        """Have *task* done soon, and do not wait for it; without a store it is left out."""
        self._questions.append(_Question(lambda store: self._guarded(functools.partial(task, store))))
        self._go_on()

    def _go_on(self) -> None:
        if self.is_running:
            self.wake()
        else:
            self.start()

    def run_once(self) -> None:
        """Answer what was asked; close the connection when that is long ago."""
        if self._store is None:
            self._open()
        while self._questions:
            self._asked_at = time.monotonic()
            self._questions.popleft().put_to(self._store)
        if self._store is not None and time.monotonic() - self._asked_at >= IDLE_S:
            self._store.close()

    def _open(self) -> None:
        with unforkable:
            from ..store import crashes, open_store  # noqa: F401  # the import is what takes its time
        try:
            self._store = open_store(self._settings, create=False)
        except StoreError as error:
            while self._questions:
                self._questions.popleft().refuse(error)

    def forked(self) -> None:
        """Nothing of the parent's is used."""
        self._questions, self._store = deque(), None

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            if self._store is not None:
                self._guarded(self._store.close)  # here, for the connection is this thread's


class _Question:
    def __init__(self, question: Callable[[Store], Any]) -> None:
        self._question = question
        self.answered = threading.Event()
        self.answer: Any = None
        self.error: Exception | None = None

    def put_to(self, store: Store | None) -> None:
        try:
            if store is None:
                raise StoreUnavailable
            self.answer = self._question(store)
        except Exception as error:  # noqa: BLE001 - it is the asker's
            self.error = error
        self.answered.set()

    def refuse(self, error: Exception) -> None:
        self.error = error
        self.answered.set()
