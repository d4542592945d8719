"""What a scrape of a large fleet takes: it depends on the series, not on the jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, open_store
from tests.benchmarks.figures import Table
from tests.contracts.conftest import NOW, Process, StoreSettings, ended, enqueued, started
from tests.processes import ROOT

pytestmark = pytest.mark.benchmark

ACTORS, QUEUES, HOSTS = 200, 10, 20
#: Jobs on record at first, and how many times as many then.
JOBS, TIMES = 20_000, 4
#: What is measured, in a process of its own: the median of seven scrapes in seconds, and the bytes that they added.
MEASURE = """
import json, statistics, sys, time
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from dramatiq_chaperone import host
from dramatiq_chaperone.metrics.collector import Reading, StoreCollector
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.store.readings import read_totals, read_workers
from tests.contracts.conftest import StoreSettings
store = open_store(StoreSettings(sys.argv[1], ""), create=False)
registry = CollectorRegistry(auto_describe=False)
registry.register(StoreCollector(lambda: Reading(is_up=True, totals=read_totals(store), workers=read_workers(store, None))))
before, seconds = host.rss_bytes(), []
for _ in range(7):
    began = time.perf_counter()
    text = generate_latest(registry)
    seconds.append(time.perf_counter() - began)
found = {"median": statistics.median(seconds), "bytes": host.rss_bytes() - before, "lines": text.count(b"\\n")}
print(json.dumps(found))
"""


def fill(store: Store, jobs: int) -> None:
    """So many jobs of all actors, where there are some already the rest of them; and four more workers on each host."""
    there = int(store.rows("SELECT COUNT(*) FROM {supervised_jobs}")[0][0])
    workers = []
    for number in range(4 * HOSTS):
        process = Process(store, f"host{number % HOSTS}-{there}{number:02}-aaaa")
        process.origin = process.origin._replace(host=f"host{number % HOSTS}", pid=number + 1)
        gauges = json.dumps({"consumers_alive": QUEUES, "open_files": 20, "journal_segments": 1, "running": 4})
        queues = json.dumps([f"queue{each}" for each in range(QUEUES)])
        process.writes(
            (records.WORKER, NOW, "RedisBroker", f"broker{number}", queues, 8, None, "{}"),
            (records.BEAT, NOW, 1, 50_000_000, 20.0, 0, 0, gauges),
        )
        workers.append(process)
    for first in range(there, jobs, 2000):
        entries = []
        for number in range(first, min(jobs, first + 2000)):
            of = {"actor": f"actor{number % ACTORS}", "queue": f"queue{number % QUEUES}"}
            job, run, duration_s = f"j{number}", f"r{number}", 0.003 * (1 + number % 1000)
            entries += [enqueued(job, **of), started(job, run, waited_s=duration_s, **of), ended(job, run, duration_s=duration_s, **of)]
        workers[0].writes(*entries)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_scrape(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path / 'chaperone.sqlite3'}" if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    store = open_store(StoreSettings(url, ""), create=True)
    found = []
    for jobs in (JOBS, JOBS * TIMES):
        fill(store, jobs)
        done = subprocess.run([sys.executable, "-c", MEASURE, url], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    store.close()
    few, many = found
    table = Table("scrape", "figure", f"with {JOBS:,} jobs", f"with {JOBS * TIMES:,} jobs", "budget")
    table.add(f"series of {ACTORS} actors, {QUEUES} queues, {HOSTS} hosts", f"{few['lines']:,}", f"{many['lines']:,}", "")
    table.add(f"scrape, {kind}", *(f"{1000 * each['median']:.0f} ms" for each in found), "300 ms")
    table.add("memory that seven scrapes added", *(f"{each['bytes'] / 1e6:.1f} MB" for each in found), "50 MB")
    print(f"\n\n{table}")
    assert many["lines"] == few["lines"]
    assert many["bytes"] < 50e6
