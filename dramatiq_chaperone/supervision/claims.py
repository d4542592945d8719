"""Which of several copies of one message may run, where a broker can leave more than one.

On RabbitMQ a message is put off in two steps: its copy is published, then it is acknowledged.  A worker that dies between
them leaves both, and either may be put off again.  Before a copy runs, or a message that was delivered again, it claims the
run in the store under a name of its own; who comes later is dropped, and who was delivered again has its claim still.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from ..errors import StoreError
from ..service import Service, internal_error, unforkable
from ..settings import Settings

if TYPE_CHECKING:
    from ..store import Store

#: A message waits so long for the answer, in seconds; longer for the first, which has to load and open the store.
ANSWER_S: Final = 0.25
FIRST_ANSWER_S: Final = 5.0
#: A store that did not answer is left alone for so many seconds.
AWAY_S: Final = 5.0
#: No copy comes later than this, in seconds.
KEPT_S: Final = 30 * 86_400.0
#: The name of a claim begins so in the table of leases.
PREFIX: Final = "run:"


class RunClaims(Service):
    """Asks the store from a thread of its own, so that one that hangs keeps no message waiting for long.

    A store that does not answer in time lets the message run: it may run twice then, but is never lost.
    """

    name = "claims"

    def __init__(self, settings: Settings) -> None:
        super().__init__(interval_s=threading.TIMEOUT_MAX)
        self._settings = settings
        self._store: Store | None = None
        self._asked: deque[_Question] = deque()
        self._away_until = 0.0

    def prepare(self) -> None:
        """Open the store soon: a copy will come back."""
        if not self.is_running:
            self.start()

    def claim(self, job_id: str, retries: int, holder: str) -> bool:
        """Whether *holder* may run this retry of the message; once it may, it always may, and nobody else."""
        if time.monotonic() < self._away_until:
            return True
        question = _Question(f"{PREFIX}{retries}:{job_id}", holder)
        limit_s = FIRST_ANSWER_S if self._store is None else ANSWER_S
        self._asked.append(question)
        self.prepare()
        self.wake()
        if not question.answered.wait(limit_s):
            self._away_until = time.monotonic() + AWAY_S
            internal_error("claims", TimeoutError("The store does not answer in time."), job_id=job_id)
            return True
        return question.may_run

    def run_once(self) -> None:
        """Answer what was asked."""
        from ..store import leases, open_store

        is_asked = bool(self._asked)
        try:
            if self._store is None:
                with unforkable:
                    self._store = open_store(self._settings, create=False)
            while self._asked:
                with self._asked.popleft() as question:
                    question.may_run = leases.acquire(self._store, question.name, question.holder, seconds=KEPT_S) is not None
        except StoreError as error:
            self._away_until = time.monotonic() + AWAY_S
            if is_asked:
                internal_error("claims", error)
            if self._store is not None:
                self._store.close()
            while self._asked:
                self._asked.popleft().answered.set()

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            store, self._store = self._store, None
            if store is not None:
                store.close()  # here, for a connection is this thread's


class _Question:
    """One claim, and its answer: it may run, unless the store says otherwise."""

    __slots__ = ("answered", "holder", "may_run", "name")

    def __init__(self, name: str, holder: str) -> None:
        self.name, self.holder = name, holder
        self.may_run = True
        self.answered = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.answered.set()
