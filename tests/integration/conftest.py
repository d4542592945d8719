"""A broker and a worker in the test's own process, and what they write into the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import Chaperone, records
from dramatiq_chaperone.journal import JournalDirectory, JournalReader
from tests.waiting import wait_until


class Tape:
    """Stands where the watcher stands: it holds the lock of every journal, and keeps what it reads."""

    def __init__(self, path: Path) -> None:
        self._directory = JournalDirectory(path)
        self._readers: dict[str, tuple[JournalReader, int]] = {}
        self._entries: list[Any] = []

    def entries(self, kind: int | None = None, job_id: str | None = None) -> list[Any]:
        """All entries so far as their NamedTuples, oldest first."""
        for name in self._directory.names():
            if name not in self._readers and (reader := self._directory.take(name)) is not None:
                self._readers[name] = (reader, 0)
        for name, (reader, before) in self._readers.items():
            found, after = reader.read(before)
            self._readers[name] = (reader, after)
            self._entries.extend(records.ENTRY_TYPES[entry[0]](*entry) for entry in found)
        return [
            entry for entry in self._entries if kind in (None, entry.kind) and (job_id is None or getattr(entry, "job_id", None) == job_id)
        ]

    def one(self, kind: int, job_id: str | None = None) -> Any:
        """The only entry of its kind, waited for."""
        wait_until(lambda: self.entries(kind, job_id), what=records.ENTRY_TYPES[kind].__name__)
        (entry,) = self.entries(kind, job_id)
        return entry

    def close(self) -> None:
        for reader, _ in self._readers.values():
            reader.release()


class Bench:
    """One supervised broker, with workers in this process."""

    def __init__(self, broker: StubBroker, chaperone: Chaperone) -> None:
        self.broker = broker
        self.chaperone = chaperone
        self.tape = Tape(chaperone.settings.journal_dir)
        self._workers: list[Worker] = []

    def actor(self, fn: Callable[..., Any] | None = None, **options: Any) -> Any:
        """``dramatiq.actor`` on this broker."""
        return dramatiq.actor(fn, broker=self.broker, **options) if fn is not None else dramatiq.actor(broker=self.broker, **options)

    def work(self, *, threads: int = 2) -> Worker:
        """Start a worker."""
        worker = Worker(self.broker, worker_timeout=50, worker_threads=threads)
        worker.start()
        self._workers.append(worker)
        self.tape.entries()
        return worker

    def join(self, queue: str = "default") -> None:
        """Wait until everything that was sent has run."""
        self.broker.join(queue, fail_fast=False)
        for worker in self._workers:
            worker.join()

    def close(self) -> None:
        self.tape.entries()
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        self.tape.entries()
        self.chaperone.close()
        self.broker.close()
        self.tape.close()


@pytest.fixture
def make_bench(chaperone_env: Callable[..., None], state_dir: Path) -> Iterator[Callable[..., Bench]]:
    """``make_bench(middleware=[...], timeout=5)``: a Stub broker with that middleware, and Chaperone with those settings."""
    benches: list[Bench] = []

    def make(*, middleware: list[Any] | None = None, **settings: object) -> Bench:
        chaperone = Chaperone(state_dir=str(state_dir), **settings)
        broker = StubBroker(middleware=middleware)
        broker.add_middleware(chaperone)
        chaperone.after_process_boot(broker)  # as in the dramatiq command: the journal is left to a watcher, here the tape
        broker.declare_queue("default")
        benches.append(Bench(broker, chaperone))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """A supervised Stub broker with Dramatiq's default middleware."""
    return make_bench()
