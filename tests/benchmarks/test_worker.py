"""What a worker process pays for each message."""

from __future__ import annotations

import importlib.util
from collections import defaultdict

import pytest

from tests.benchmarks.figures import Table, difference, ratio
from tests.benchmarks.lab import ADMIN, BARE, PROMETHEUS, WARM, Lab, Variant, chaperones, cpu_seconds, interleaved, median, messages, rounds

pytestmark = pytest.mark.benchmark


def test_throughput_of_a_worker(lab: Lab) -> None:
    """No-op jobs, one process of eight threads, Dramatiq's default prefetch."""
    rates: dict[Variant, list[float]] = defaultdict(list)
    others = [PROMETHEUS, *([ADMIN] if importlib.util.find_spec("django_dramatiq") else [])]
    for _, variant in interleaved([BARE, *chaperones(), *others], rounds(5)):
        rates[variant].append(_rate(lab, variant))
    table = Table("worker-throughput", "figure", "bare", "ours", "ratio", "budget", "aim")
    for variant in [*chaperones(), *others]:
        wanted = ("0.95", "0.98") if variant.middleware == "chaperone" else ("–", "–")
        pair = f"{median(rates[BARE]):,.0f} jobs/s", f"{median(rates[variant]):,.0f} jobs/s"
        table.add(f"throughput, {variant.label}", *pair, ratio(rates[variant], rates[BARE]), *wanted)
    table.publish()


def _rate(lab: Lab, variant: Variant) -> float:
    count, warm = (messages(6000), WARM) if variant is not ADMIN else (messages(400), 50)
    with lab.worker(variant, marks=(warm, warm + count)) as worker:
        worker.wait_store()
        worker.feed(warm + count)
        began, ended = worker.note(warm), worker.note(warm + count)
        worker.wait_written()
        return count / (ended["at"] - began["at"])


def test_cpu_of_a_worker_per_message(lab: Lab) -> None:
    """The same with a prefetch of 200, so that the worker does not wait for Redis; CPU time of the worker process alone, boot excluded."""
    worker: dict[Variant, list[float]] = defaultdict(list)
    watcher: dict[Variant, list[float]] = defaultdict(list)
    for _, variant in interleaved([BARE, *chaperones()], rounds(5)):
        mine, beside = _cpu_us(lab, variant)
        worker[variant].append(mine)
        watcher[variant].append(beside)
    table = Table("worker-cpu", "figure", "bare", "ours", "added", "budget", "aim")
    for variant in chaperones():
        pair = f"{median(worker[BARE]):.1f} µs", f"{median(worker[variant]):.1f} µs"
        wanted = ("25 µs", "12 µs") if variant.watcher else ("–", "–")
        table.add(f"CPU of the worker per message, {variant.label}", *pair, difference(worker[variant], worker[BARE], "µs"), *wanted)
        if variant.watcher:
            table.add(f"CPU of the watcher per message, {variant.label}", "–", f"{median(watcher[variant]):.1f} µs", "–", "–", "–")
    table.publish()


def _cpu_us(lab: Lab, variant: Variant) -> tuple[float, float]:
    """CPU microseconds for each message: of the worker, and of its watcher."""
    count = messages(16_000)
    with lab.worker(variant, marks=(WARM, WARM + count), prefetch=200) as worker:
        worker.wait_store()
        beside = cpu_seconds(worker.watcher_pid) if worker.watcher_pid is not None else 0.0
        worker.feed(WARM + count)
        began, ended = worker.note(WARM)["cpu"], worker.note(WARM + count)["cpu"]
        worker.wait_written()
        if worker.watcher_pid is not None:
            beside = cpu_seconds(worker.watcher_pid) - beside
        elif variant.database is not None:  # what it wrote to the store after the last job is a cost too
            ended = cpu_seconds(worker.pid)
        return (ended - began) / count * 1e6, beside / (WARM + count) * 1e6
