"""What single calls cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.figures import Table
from tests.benchmarks.lab import messages
from tests.processes import ROOT

pytestmark = pytest.mark.benchmark

BUDGETS = {"report_progress": "2 µs"}
LABELS = {
    "report_progress": "report_progress(n, total) in a tight loop",
    "heartbeat": "heartbeat() in a tight loop",
    "heartbeat with data": "heartbeat(row=n) in a tight loop",
    "append": "one entry into the journal",
}


def test_calls(state_dir: Path) -> None:
    """Calls of an actor, and what the hooks do most."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAPERONE_STATE_DIR": str(state_dir)}
    command = [sys.executable, "-m", "tests.benchmarks.calls", str(messages(400_000))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    table = Table("calls")
    for name, label in LABELS.items():
        cost = (found[name] - found["empty"]) / 1000
        table.add(label, f"{found['empty'] / 1000:.2f} µs", f"{found[name] / 1000:.2f} µs", f"{cost:+.2f} µs", BUDGETS.get(name, "–"), "–")
    table.publish()
