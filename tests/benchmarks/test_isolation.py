"""What a process of its own costs a job."""

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

MB = 1 << 20


def test_isolation(state_dir: Path) -> None:
    """The way of a job to its first line, in a thread and in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAPERONE_STATE_DIR": str(state_dir)}
    command = [sys.executable, "-m", "tests.benchmarks.isolated", str(messages(1000))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    thread, isolated = found["thread"], found["isolated"]
    table = Table("isolation", "figure", "in a thread", "isolated", "isolated, 95 %", "budget")
    for name, label, budget in (("begun", "from send() to the first line of the actor", "20 ms"), ("ended", "from send() to its end", "–")):
        table.add(label, f"{thread[name]:.1f} ms", f"{isolated[name]:.1f} ms", f"{isolated[f'{name} 95 %']:.1f} ms", budget)
    table.add("jobs a second, four threads", "–", f"{found['rate']:.0f}", "–", "–")
    table.add("CPU of all processes per job", "–", f"{found['cpu']:.1f} ms", "–", "–")
    memory = f"{found['rss'] / MB:.0f} MB, {found['uss'] / MB:.0f} MB of it its own"
    table.add("memory of the zygote", f"{found['worker'] / MB:.0f} MB (worker)", memory, "–", "–")
    table.publish()
