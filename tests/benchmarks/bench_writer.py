"""How fast the writer is alone, on each database: ``python tests/benchmarks/bench_writer.py [sqlite|postgres|mysql] ...``.

A row is a job with its whole life, sent, started and ended, read from a real journal and written in slices as the watcher
does it.  Slow and fast are told apart by the CPU time, which other work on the machine does not change.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from dramatiq_chaperone.journal import Journal, JournalDirectory
from dramatiq_chaperone.store import Store, open_store
from tests.contracts.conftest import KINDS, NOW, StoreSettings, drop_tables, ended, enqueued, origin, started

JOBS = 40_000
pytestmark = pytest.mark.benchmark


def measure(url: str, actors: int) -> tuple[float, float]:
    """Rows a second, and microseconds of this process's CPU a row."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), origin())
        for n in range(JOBS):
            names = {"actor": f"actor{n % actors}"}
            job, run, at = f"{n:08x}-4a5b-4c5d-8e9f-{n:012x}", f"run-{n:012x}", NOW + n / 1000
            journal.append(enqueued(job, at=at, **names))
            journal.append(started(job, run, at=at, **names))
            journal.append(ended(job, run, at=at, **names))  # type: ignore[arg-type]
        store = open_store(StoreSettings(url), create=True)
        try:
            return _drain(store, folder, journal)
        finally:
            journal.close()
            drop_tables(store)
            store.close()


def _drain(store: Store, folder: str, journal: Journal) -> tuple[float, float]:
    reader = JournalDirectory(Path(folder)).take(journal.origin.worker_id)
    assert reader is not None
    position = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while True:
        entries, end = reader.read(position, max_bytes=4 << 20)
        if not entries:
            break
        assert store.apply(reader.origin, entries, start=position, end=end).is_new
        position = end
    spent = time.perf_counter() - wall, time.process_time() - cpu
    reader.release()
    assert store.rows("SELECT COUNT(*) FROM {supervised_jobs} WHERE status = 'completed'") == [(JOBS,)]
    return JOBS / spent[0], spent[1] / JOBS * 1e6


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_writer_alone(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.sqlite3'}" if kind == "sqlite" else str(request.getfixturevalue(f"{kind}_url"))
    report(kind, url)


def report(kind: str, url: str) -> None:
    for actors in (10, 1000):
        rates: list[Any] = sorted(measure(url, actors) for _ in range(3))
        rate, cpu = rates[1]
        print(f"{kind:9} {actors:5} actors: {rate:8,.0f} job rows a second, {cpu:5.1f} µs of CPU a row (median of 3)")


if __name__ == "__main__":
    import contextlib

    from tests import servers

    for kind in sys.argv[1:] or KINDS:
        with contextlib.ExitStack() as stack:
            if kind == "sqlite":
                url = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/bench.sqlite3"
            else:
                server = stack.enter_context(contextlib.closing({"postgres": servers.Postgres, "mysql": servers.MySQL}[kind]()))
                url = stack.enter_context(server.database())
            report(kind, url)
