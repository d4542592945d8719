"""What a process pays that sends."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.benchmarks.figures import Table, ratio
from tests.benchmarks.lab import BARE, Lab, Variant, chaperones, interleaved, median, messages, rounds

pytestmark = pytest.mark.benchmark


def test_send(lab: Lab) -> None:
    """``actor.send(number, text)`` in a loop, the payload on record; the journal is being written to the store meanwhile."""
    count = messages(8000)
    rates: dict[Variant, list[float]] = defaultdict(list)
    for _, variant in interleaved([BARE, *chaperones()], rounds(5)):
        rates[variant].append(count / lab.send(variant, count)["seconds"])
    table = Table("send", "figure", "bare", "ours", "ratio", "budget", "aim")
    for variant in chaperones():
        pair = f"{median(rates[BARE]):,.0f} /s", f"{median(rates[variant]):,.0f} /s"
        table.add(f"send(), {variant.label}", *pair, ratio(rates[variant], rates[BARE]), "0.95", "0.97")
    table.publish()
