"""WriteBehind: brings journals into the store, in the watcher or in the process that writes them."""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Final

from .. import host
from ..errors import JournalError, SchemaError, StoreUnavailable
from ..journal import thin
from ..service import Service, internal_error
from . import Store, open_store

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Protocol

    from ..journal import JournalDirectory, JournalReader
    from ..records import Origin
    from . import StoreSettings

    class _Settings(StoreSettings, Protocol):
        @property
        def safe_database_url(self) -> str: ...


logger = logging.getLogger("dramatiq_chaperone.store")

INTERVAL_S: Final = 1.0
#: How much of a journal goes into one transaction: a larger slice is faster by row and takes more memory.  A process that has
#: jobs to run beside takes small ones.
SLICE_BYTES: Final = 1 << 20
SMALL_SLICE_BYTES: Final = 256 << 10
#: A process that sends gives so much of each second to this, and takes so much at once.
GENTLE_S: Final = 0.020
GENTLE_BYTES: Final = 32 << 10
#: Where more than so much comes in a second it could not keep up: what is sent then waits for the pause, until there is too much of it.
BURST_BYTES: Final = 128 << 10
PATIENCE_BYTES: Final = 4 << 20
#: At the end a statement may take as long as is left, but so long in any case.
_LEAST_LIMIT_S: Final = 0.5
_PEEK_BYTES: Final = 1 << 20
#: Seconds between two tries while the store is away; with the tables missing the longest at once.
BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0)
#: What waits is made smaller once there is so much of it, at most so often.
CROWDED_BYTES: Final = 16 << 20
OVERFULL_BYTES: Final = 256 << 20
_THIN_EVERY_S: Final = 30.0
_KEEP_EVERY_S: Final = 6 * 3600.0


class _Held:
    """A journal that is ours to write."""

    def __init__(self, reader: JournalReader) -> None:
        self.reader = reader
        #: Up to where it is in the store; None: the store has to be asked, at first and when the reply to a commit was lost.
        self.position: int | None = None
        #: Up to where it was in the store when that was last known.
        self.written = 0
        #: From where to read on: what lies between held no entries.  None: the store was never asked.
        self.offset: int | None = None
        #: Up to where entries were seen.
        self.seen = 0
        #: When something new was in it last, monotonic.
        self.heard_at = time.monotonic()


class WriteBehind(Service):
    """Takes journals, writes them to the store about once a second, and deletes what is written.

    A journal whose process is gone is written to its end; a worker that did not stop cleanly is recorded as lost; then
    the journal is removed.  While the store is away everything stays where it is.

    Parameters:
      directory: where the journals are.
      settings: of the store; it is opened when first needed, and made and upgraded as the settings allow.
      takes: which journals, by name; asked again each turn for those that are not held.
      sent: how far the journal of this process has got, of one that sends messages: while it does, at most 20 ms of each
        second are used, and nothing at first where it sends many.
      exit_of: exit code and cause of a worker that is gone, by its id, where the caller has seen its end.
      buried: called when a worker that is gone is recorded as such.
    """

    name = "writer"

    def __init__(
        self,
        directory: JournalDirectory,
        settings: _Settings,
        *,
        takes: Callable[[str], bool],
        sent: Callable[[], int] | None = None,
        exit_of: Callable[[str], tuple[int | None, str | None]] = lambda worker_id: (None, None),
        buried: Callable[[], None] = lambda: None,
        interval_s: float = INTERVAL_S,
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        super().__init__(interval_s=interval_s)
        self._directory, self._settings = directory, settings
        self._takes, self._sent, self._exit_of, self._buried = takes, sent, exit_of, buried
        self._slice_bytes = slice_bytes
        #: Where the sender was at the last turn, and how much it has written since all of it was in the store.
        self._sent_before = self._sent_since = 0
        self._store: Store | None = None
        self._held: dict[str, _Held] = {}
        self._failures = 0
        self._try_again_at = 0.0
        self._thinned_at = 0.0
        self._kept_at = self._listened_at = time.monotonic()
        self._trouble: str | None = None

    def held(self) -> dict[str, JournalReader]:
        """The journals that are held, by name."""
        return {name: held.reader for name, held in list(self._held.items())}

    def silent_s(self) -> dict[str, float]:
        """How long nothing new was in each journal that is held, in seconds, at the last look at all of them."""
        return {name: max(0.0, self._listened_at - held.heard_at) for name, held in list(self._held.items())}

    def backlog_bytes(self) -> int:
        """How much was seen in the journals that are held and is not in the store, at the last look at each of them.

        Where the store was never asked what it has, all that is there.
        """
        return sum(
            held.reader.backlog_bytes(0) if held.offset is None else max(0, held.seen - held.written) for held in list(self._held.values())
        )

    def run_once(self) -> None:
        """Take what is free, and write what there is."""
        self._take()
        now = time.monotonic()
        if now < self._try_again_at:
            self._listen()
        elif not self._turn(deadline=None):
            return
        self._listened_at = now  # not the end of the turn: a journal may have been looked at at its beginning

    def forked(self) -> None:
        """The parent's locks are not ours; the store renews its connection by itself."""
        self._held = {}

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        try:
            super()._run(stop, wake)
        finally:
            if self._store is not None:
                self._store.close()  # the connection is this thread's, and nobody else's

    def finish(self, *, timeout_s: float) -> bool:
        """Write all there is, within *timeout_s*, and give every journal up.  For when the thread has been stopped.

        Returns whether everything is in the store; what is not is written by the next who takes the journals.
        """
        if self._thread is not None and self._thread.is_alive():
            return False  # its turn still hangs, and two may not write one journal
        deadline = time.monotonic() + timeout_s
        is_done = False
        try:
            while time.monotonic() < deadline:
                self._take()
                is_done = self._turn(deadline=deadline)
                if is_done or self._trouble == SchemaError.__name__:
                    break  # the tables will not change by themselves
                time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        finally:
            for held in self._held.values():
                held.reader.release()
            self._held = {}
            if self._store is not None:
                self._store.close()
                self._store = None  # its limit is for the end
        return is_done

    # -- a turn

    def _turn(self, deadline: float | None) -> bool:
        """Whether everything that is held is in the store now."""
        try:
            store = self._opened(deadline)
            is_done = self._write(store, deadline)
            self._keep_positions(store)
        except (StoreUnavailable, SchemaError) as e:
            self._away(e)
            return False
        self._back()
        return is_done

    def _keep_positions(self, store: Store) -> None:
        now = time.monotonic()
        if now - self._kept_at >= _KEEP_EVERY_S:
            self._kept_at = now
            store.keep_positions([held.reader.origin.worker_id for held in self._held.values()])

    def _opened(self, deadline: float | None) -> Store:
        limit_s = None if deadline is None else max(_LEAST_LIMIT_S, deadline - time.monotonic())
        if self._store is None:
            self._store = open_store(self._settings, create=True, limit_s=limit_s)
        elif limit_s is not None:
            self._store.limit(limit_s)
        return self._store

    def _take(self) -> None:
        """Before the store is asked for anything: what is held is known also while it does not answer."""
        for name in self._directory.names():
            if name in self._held or not self._takes(name):
                continue
            reader = self._directory.take(name)
            if reader is not None:
                self._held[name] = _Held(reader)

    def _write(self, store: Store, deadline: float | None) -> bool:
        """Slice by slice, one of each journal in turn, until there is no more; gently where we are a guest."""
        size, budget_end = self._slice_bytes, None
        if self._sent is not None and deadline is None and (more := self._more(self._sent())):
            if more > BURST_BYTES and self._sent_since < PATIENCE_BYTES:
                return False
            size, budget_end = GENTLE_BYTES, time.monotonic() + GENTLE_S
        waiting = list(self._held)
        is_done = True
        while waiting:
            for name in list(waiting):
                if self._is_over(deadline, budget_end):
                    return False
                try:
                    has_more = self._write_slice(store, name, size)
                except (StoreUnavailable, SchemaError):
                    raise
                except Exception as e:  # noqa: BLE001 - the other journals have nothing to do with it
                    internal_error(self.name, e)
                    is_done = has_more = False
                if not has_more:
                    waiting.remove(name)
        if is_done:
            self._sent_since = 0
        return is_done

    def _more(self, sent: int) -> int:
        """How much was sent since the last turn."""
        more, self._sent_before = sent - self._sent_before, sent
        self._sent_since += more
        return more

    def _is_over(self, deadline: float | None, budget_end: float | None) -> bool:
        if deadline is not None:
            return time.monotonic() >= deadline
        return self._stop.is_set() or (budget_end is not None and time.monotonic() >= budget_end)

    def _listen(self) -> None:
        """While the store is away: see who still writes."""
        for held in self._held.values():
            _, end = held.reader.read(held.seen, max_bytes=_PEEK_BYTES)
            if end > held.seen:
                held.seen, held.heard_at = end, time.monotonic()

    def _write_slice(self, store: Store, name: str, size: int) -> bool:
        """Write one slice of a journal; whether there may be more."""
        held = self._held[name]
        reader = held.reader
        if held.position is None or held.offset is None:
            held.position = held.offset = held.written = store.position(reader.origin.worker_id)
        is_dead = not reader.owner_alive()  # asked before the reading: after it nothing can come
        entries, end = reader.read(held.offset, max_bytes=size)
        held.offset, held.seen = end, max(held.seen, end)
        if entries:
            held.heard_at = time.monotonic()
            start, held.position = held.position, None
            if store.apply(reader.origin, entries, start=start, end=end).is_new:
                held.position = held.written = end
                reader.free(end)
            return True
        if is_dead:
            self._bury(store, name, held)
        return False

    def _bury(self, store: Store, name: str, held: _Held) -> None:
        """All that a process left is written down: say what became of it, and remove its journal."""
        origin = held.reader.origin
        if origin.role == "worker":
            code, cause = self._exit_of(origin.worker_id)
            lost = store.worker_lost(origin, at=time.time(), exit_code=code, exit_cause=cause, is_certain=_is_gone(origin))
            self._buried()
            if lost:
                logger.warning("The worker %s died; %d jobs that it ran are recorded as lost.", origin.worker_id, len(lost))
        del self._held[name]
        try:
            held.reader.remove()
        except (OSError, JournalError) as e:
            held.reader.release()
            internal_error(self.name, e)

    # -- when the store is away

    def _away(self, error: StoreUnavailable | SchemaError) -> None:
        is_schema = isinstance(error, SchemaError)
        self._try_again_at = time.monotonic() + BACKOFF_S[-1 if is_schema else min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        if is_schema:
            self._store = None  # it has to be opened, and may be upgraded, anew
        trouble = type(error).__name__
        if trouble != self._trouble:
            self._trouble = trouble
            self._say(error, is_schema=is_schema)
        self._thin()

    def _say(self, error: Exception, *, is_schema: bool) -> None:
        where = self._settings.safe_database_url
        if is_schema:
            logger.error(
                "Jobs run, but are not recorded in %s: %s Run `chaperone db upgrade`, or set auto_migrate; "
                "what happens meanwhile waits in the journal.", where, error,
            )  # fmt: skip
        else:
            logger.warning("The store %s is away; what happens meanwhile waits in the journal: %s", where, error)

    def _back(self) -> None:
        self._failures, self._try_again_at = 0, 0.0
        if self._trouble is not None:
            self._trouble = None
            logger.warning("The store %s is back.", self._settings.safe_database_url)

    def _thin(self) -> None:
        """Samples go first, then what went well; failures and losses stay (see journal.thinning)."""
        now = time.monotonic()
        if now - self._thinned_at < _THIN_EVERY_S:
            return
        self._thinned_at = now
        for held in self._held.values():
            if held.offset is None:
                continue  # it may stop in the middle of any segment
            backlog = held.reader.backlog_bytes(held.offset)
            if backlog > CROWDED_BYTES:
                fold = functools.partial(thin, drop_successes=backlog > OVERFULL_BYTES)
                held.reader.compact(held.offset, fold)


def _is_gone(origin: Origin) -> bool:
    """Whether the process is seen to be dead.  One that has closed its journal with jobs in its hands may still run them."""
    return origin.host_identity == host.host_identity() and not host.is_alive(origin.pid, origin.process_started_at)
