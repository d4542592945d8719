"""What stays when there is nothing to do: memory, and the CPU of an idle process."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict

import pytest

from tests.benchmarks.figures import Table, difference
from tests.benchmarks.lab import BARE, Lab, Variant, Worker, chaperones, cpu_seconds, is_quick, median, messages, rss_mb

pytestmark = pytest.mark.benchmark

IDLE_S = 5.0 if is_quick() else 10.0
#: Budget and aim for what a worker grows by, with and without a watcher.
MEMORY = {
    (True, "sqlite"): ("10 MB", "6 MB"),
    (True, "postgres"): ("10 MB", "6 MB"),
    (False, "sqlite"): ("25 MB", "20 MB"),
    (False, "postgres"): ("35 MB", "28 MB"),
}


def test_memory_and_idle_cpu(lab: Lab) -> None:
    """Workers, and their watchers, that have run some thousand jobs and now wait for more."""
    memory: dict[tuple[Variant, str], list[float]] = defaultdict(list)
    cpu: dict[tuple[Variant, str], list[float]] = defaultdict(list)
    for _ in range(1 if is_quick() else 2):
        with contextlib.ExitStack() as stack:
            workers = {variant: stack.enter_context(lab.worker(variant)) for variant in [BARE, *chaperones()]}
            for worker in workers.values():
                _work(worker)
            used = {(variant, part): cpu_seconds(pid) for variant, part, pid in _parts(workers)}
            time.sleep(IDLE_S)  # this is what is measured: a stretch of time in which nothing happens
            for variant, part, pid in _parts(workers):
                cpu[variant, part].append((cpu_seconds(pid) - used[variant, part]) / IDLE_S * 100)
                memory[variant, part].append(rss_mb(pid))
    _publish_memory(memory)
    _publish_cpu(cpu)


def _work(worker: Worker) -> None:
    count = messages(4000)
    worker.wait_store()
    worker.feed(count)
    worker.wait_empty()
    worker.wait_written()


def _parts(workers: dict[Variant, Worker]) -> list[tuple[Variant, str, int]]:
    found = [(variant, "worker", worker.pid) for variant, worker in workers.items()]
    return found + [(variant, "watcher", worker.watcher_pid) for variant, worker in workers.items() if worker.watcher_pid is not None]


def _publish_memory(memory: dict[tuple[Variant, str], list[float]]) -> None:
    table = Table("memory", "figure", "bare", "ours", "added", "budget", "aim")
    bare = memory[BARE, "worker"]
    for variant in chaperones():
        ours = memory[variant, "worker"]
        wanted = MEMORY[variant.watcher, variant.database or ""]
        table.add(
            f"RSS of a worker, {variant.label}", f"{median(bare):.1f} MB", f"{median(ours):.1f} MB", difference(ours, bare, "MB"), *wanted
        )
    for variant in chaperones():
        if variant.watcher:
            table.add(
                f"RSS of a watcher, {variant.label.rpartition(' ')[2]}",
                "–",
                f"{median(memory[variant, 'watcher']):.1f} MB",
                "–",
                "60 MB",
                "45 MB",
            )
    table.publish()


def _publish_cpu(cpu: dict[tuple[Variant, str], list[float]]) -> None:
    table = Table("idle", "figure", "bare", "ours", "added", "budget", "aim")
    bare = cpu[BARE, "worker"]
    for variant in chaperones():
        ours = cpu[variant, "worker"]
        added = f"{median([mine - base for mine, base in zip(ours, bare, strict=True)]):+.2f} %"
        table.add(f"CPU of an idle worker, {variant.label}", f"{median(bare):.2f} %", f"{median(ours):.2f} %", added, "0.5 %", "0.3 %")
    for variant in chaperones():
        if variant.watcher:
            table.add(
                f"CPU of its watcher, {variant.label.rpartition(' ')[2]}", "–", f"{median(cpu[variant, 'watcher']):.2f} %", "–", "–", "–"
            )
    table.publish()
