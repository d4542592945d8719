"""What a worker process pays for each message."""

from __future__ import annotations

import importlib.util

import pytest

from tests.benchmarks.figures import Table, difference, ratio
from tests.benchmarks.lab import ADMIN, BARE, PROMETHEUS, Burst, Lab, Worker, chaperones, median, messages, rounds

pytestmark = pytest.mark.benchmark


def test_throughput_of_a_worker(lab: Lab) -> None:
    """No-op jobs, one process of eight threads, Dramatiq's default prefetch."""
    others = [PROMETHEUS, *([ADMIN] if importlib.util.find_spec("django_dramatiq") else [])]
    table = Table("worker-throughput", "figure", "bare", "ours", "ratio", "budget", "aim")
    with lab.worker(BARE) as bare:
        for variant in [*chaperones(), *others]:
            with lab.worker(variant) as worker:
                base, ours = _pairs(bare, worker, messages(2000 if variant is not ADMIN else 800), rounds(8))
            wanted = ("0.95", "0.98") if variant.middleware == "chaperone" else ("–", "–")
            rates, base_rates = [burst.rate for burst in ours], [burst.rate for burst in base]
            pair = f"{median(base_rates):,.0f} jobs/s", f"{median(rates):,.0f} jobs/s"
            table.add(f"throughput, {variant.label}", *pair, ratio(rates, base_rates), *wanted)
    table.publish()


def test_cpu_of_a_worker_per_message(lab: Lab) -> None:
    """The same with a prefetch of 200, so that the worker does not wait for Redis; CPU time of the worker process alone, boot excluded."""
    table = Table("worker-cpu", "figure", "bare", "ours", "added", "budget", "aim")
    with lab.worker(BARE, prefetch=200) as bare:
        for variant in chaperones():
            with lab.worker(variant, prefetch=200) as worker:
                base, ours = _pairs(bare, worker, messages(4000), rounds(10))
            cpu, base_cpu = [burst.cpu_us for burst in ours], [burst.cpu_us for burst in base]
            wanted = ("25 µs", "12 µs") if variant.watcher else ("–", "–")
            pair = f"{median(base_cpu):.1f} µs", f"{median(cpu):.1f} µs"
            table.add(f"CPU of the worker per message, {variant.label}", *pair, difference(cpu, base_cpu, "µs"), *wanted)
            if variant.watcher:
                beside = median([burst.watcher_us for burst in ours])
                table.add(f"CPU of the watcher per message, {variant.label}", "–", f"{beside:.1f} µs", "–", "–", "–")
    table.publish()


def _pairs(bare: Worker, worker: Worker, count: int, pairs: int) -> tuple[list[Burst], list[Burst]]:
    """Bursts without and with us, in turns; the first of each only warms up."""
    worker.wait_store()
    base: list[Burst] = []
    ours: list[Burst] = []
    for number in range(pairs + 1):
        for process, bursts in ((bare, base), (worker, ours)) if number % 2 else ((worker, ours), (bare, base)):
            bursts.append(process.burst(count))
    return base[1:], ours[1:]
