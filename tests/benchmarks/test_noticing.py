"""How soon the death of a worker is on record, and what it held runs elsewhere; and how soon a stuck job is on record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.figures import Table
from tests.benchmarks.lab import median, rounds
from tests.conftest import StartWorker
from tests.e2e.conftest import Fleet
from tests.e2e.test_crashes import dies_beside_another
from tests.e2e.test_stuck import how_late_it_is_told

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

TIMES = rounds(20)


def test_noticing(start_worker: StartWorker, tmp_path: Path, redis_url: str) -> None:
    def fleet(name: str) -> Fleet:
        path = tmp_path / name
        path.mkdir()
        return Fleet(start_worker, path, redis_url, None)

    doomed = fleet("doomed")
    deaths = [dies_beside_another(doomed, redis_url, doomed.path / f"go-{number}") for number in range(TIMES)]
    stuck = fleet("stuck")
    stuck.app = "tests.e2e.stuck_app"
    stuck.env["SOCKET"] = "0"
    table = Table("noticing", "figure", "median", "worst", "of", "budget", "aim")
    for what, seconds, budget, aim in (
        ("kill -9 of a worker → its runs on record as lost", [recorded for recorded, _ in deaths], "3 s", "1 s"),
        ("kill -9 of a worker → its messages run on another master", [running for _, running in deaths], "10 s", "5 s"),
        ("third heartbeat missed → JobStuck on record", how_late_it_is_told(stuck, TIMES), "–", "–"),
    ):
        table.add(what, f"{median(seconds):.2f} s", f"{max(seconds):.2f} s", str(len(seconds)), budget, aim)
    table.publish()
