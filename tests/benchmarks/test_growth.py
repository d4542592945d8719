"""A worker does not grow with the jobs that it has run, nor with the actors that it knows."""

from __future__ import annotations

import pytest

from tests.benchmarks.figures import Table
from tests.benchmarks.lab import Lab, Variant, rss_mb
from tests.scaling import scaled

JOBS = 100_000
ACTORS = 1_000
#: The part of the jobs in which caches, pools and buffers may find their size.
FIRST = 0.1
#: A process that writes to the store itself holds a slice of its journal as Python objects; how large one is depends on the moment.
LIMITS_MB = {True: 2.0, False: 12.0}


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "variant",
    [Variant("with a watcher", "chaperone", "sqlite", watcher=True), Variant("without a watcher", "chaperone", "sqlite")],
    ids=["watcher", "in-process"],
)
def test_jobs_do_not_grow_a_worker(lab: Lab, variant: Variant) -> None:
    jobs = scaled(JOBS, at_least=8 * ACTORS)
    first = max(4 * ACTORS, round(jobs * FIRST))
    with lab.worker(variant, actors=ACTORS, prefetch=200) as worker:
        sizes = []
        for count in (first, jobs - first):
            worker.wait_store()
            worker.feed(count, actors=ACTORS)
            worker.wait_empty()
            worker.wait_written()
            sizes.append([rss_mb(pid) for pid in (worker.pid, worker.watcher_pid) if pid is not None])
    table = Table("growth", "figure", f"after {first:,} jobs", f"after {jobs:,}")
    for label, before, after in zip(("worker", "watcher"), *sizes, strict=False):
        table.add(f"RSS of the {label}, {variant.label}", f"{before:.1f} MB", f"{after:.1f} MB")
    print(f"\n\n{table}")
    assert sizes[1][0] - sizes[0][0] < LIMITS_MB[variant.watcher]
