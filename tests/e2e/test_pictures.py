"""Draws the pictures of docs/grafana.md from what a real Prometheus has of a real fleet (make pictures)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.conftest import StartProcess
from tests.e2e.conftest import Fleet
from tests.e2e.prometheus import Prometheus
from tests.e2e.test_dashboards import BOARDS, filled, monitored
from tests.processes import ROOT

SECONDS = float(os.environ.get("PICTURES_SECONDS", "300"))
#: So many processes send, one after the other.
PARTS = 6
FOLDER = ROOT / "docs" / "images"
#: A shop by day: what it sends, how long that takes, how often it fails, and what happens after some minutes.
SHOP = """
import random, time
begin, chance = time.monotonic(), random.Random({begin})
while (at := {begin} + time.monotonic() - begin) < {end}:
    share = at / {seconds}
    for actor, each_s in ((resize, 5), (charge, 4), (notify, 9), (index, 2), (export, 0.25)):
        if chance.random() < each_s * (1 + (0.3 < share < 0.6)) / 20:
            actor.send(min(0.95, chance.random()), is_down=0.45 < share < 0.75)
    time.sleep(0.05)
"""

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]
__all__ = ["monitored"]


def test_pictures(monitored: Fleet, start_process: StartProcess, tmp_path: Path) -> None:
    from grafana.pictures import draw  # it takes a second, and most who collect this test do not run it

    fleet, ports = monitored, (servers.free_port(), servers.free_port())
    fleet.app = "tests.e2e.shop_app"
    for port in ports:
        fleet.start(processes=2, threads=4, CHAPERONE_EXPORTER_PORT=str(port))
    prometheus = Prometheus(start_process, tmp_path, *ports)
    begin = time.time()
    for part in range(PARTS):
        fleet.run(SHOP.format(begin=SECONDS / PARTS * part, end=SECONDS / PARTS * (part + 1), seconds=SECONDS))
    end = time.time()

    def ask(text: str, is_instant: bool) -> Sequence[Any]:
        expr = filled(text, __rate_interval="20s", __range=f"{SECONDS:.0f}s")
        if is_instant:
            found: Sequence[Any] = prometheus.ask("query", query=expr, time=end)["result"]
        else:
            found = prometheus.ask("query_range", query=expr, start=begin + 15, end=end, step=f"{SECONDS / 75:.0f}s")["result"]
        return found

    for name, board in BOARDS.items():
        draw(board, ask, FOLDER / f"{name}.svg")
        draw(board, ask, tmp_path / f"{name}.png")
        assert (FOLDER / f"{name}.svg").stat().st_size < 400_000
