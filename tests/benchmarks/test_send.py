"""What a process pays that sends."""

from __future__ import annotations

import pytest

from tests.benchmarks.figures import Table, ratio
from tests.benchmarks.lab import BARE, Lab, chaperones, median, messages, rounds

pytestmark = pytest.mark.benchmark


def test_send(lab: Lab) -> None:
    """``actor.send(number, text)`` in a loop, the payload on record; the journal is being written to the store meanwhile."""
    count = messages(20_000)
    table = Table("send", "figure", "bare", "ours", "ratio", "budget", "aim")
    with lab.sender(BARE) as bare:
        bare.send(count)
        for variant in chaperones():
            with lab.sender(variant) as sender:
                sender.send(count)
                pairs = [(count / bare.send(count), count / sender.send(count)) for _ in range(rounds(7))]
            ours, base = [pair[1] for pair in pairs], [pair[0] for pair in pairs]
            table.add(f"send(), {variant.label}", f"{median(base):,.0f} /s", f"{median(ours):,.0f} /s", ratio(ours, base), "0.95", "0.97")
    table.publish()
