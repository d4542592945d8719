"""What a guarded call costs, beside plain pybreaker."""

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


def test_guards(state_dir: Path, redis_url: str) -> None:
    """A closed breaker that shares its circuit through SQLite."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAPERONE_STATE_DIR": str(state_dir)}
    command = [sys.executable, "-m", "tests.benchmarks.guards", str(messages(400_000)), redis_url]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    def added(name: str) -> str:
        return f"+{found[name] - found['bare']:.2f} µs"

    table = Table(
        "breakers",
        "a call through a closed breaker",
        "ours, shared by all processes",
        "pybreaker, one process",
        "pybreaker with Redis",
        "budget",
        "aim",
    )
    table.add("`call(function)`", added("ours, call"), added("pybreaker, call"), added("pybreaker with Redis, call"), "3 µs", "2 µs")
    table.add("`with`", added("ours, with"), added("pybreaker, calling()"), "–", "3 µs", "2 µs")
    table.add('`with breaker("payments")`', added("ours, by name"), "–", "–", "3 µs", "2 µs")
    table.add("decorated", added("ours, decorated"), added("pybreaker, decorated"), "–", "3 µs", "2 µs")
    eight = [f"{found[name]:.2f} s" for name in ("ours, eight", "pybreaker, eight")]
    table.add("8 threads, each 0.25 s", *eight, "–", "8 at once", "–")
    table.publish()
