"""What it costs to wait: messages that are put off, and a queue that is paused."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.figures import Table
from tests.benchmarks.lab import messages
from tests.processes import ROOT
from tests.servers import RedisServer

pytestmark = pytest.mark.benchmark

MODES = {"mixed": "a mixed queue: put off", "own": "a queue of their own: paused"}


def test_waiting(tmp_path: Path, rabbitmq_url: str, rabbitmq_queue: Callable[[], str]) -> None:
    """CPU of the worker's process, and commands of Redis, beyond what the same messages take to run; over one opening of a minute."""
    count = messages(10_000)
    table = Table("waiting", f"{count:,} messages wait", "CPU in all", "CPU a message", "Redis commands in all", "Redis commands a message")
    with contextlib.closing(RedisServer()) as server:
        for broker, url in (("Redis", server.url), ("RabbitMQ", rabbitmq_url)):
            found = {mode: _measure(tmp_path, url, mode, count, rabbitmq_queue()) for mode in ("run", *MODES)}
            for mode, label in MODES.items():
                assert found[mode]["ran"] == count
                cpu_s = found[mode]["cpu_s"] - found["run"]["cpu_s"]
                more = found[mode]["commands"] - found["run"]["commands"]
                commands = (f"{more:,}", f"{more / count:.2f}") if broker == "Redis" else ("–", "–")
                table.add(f"{broker}, {label}", f"{cpu_s:.2f} s", f"{cpu_s / count * 1000:.2f} ms", *commands)
    table.publish()


def _measure(path: Path, url: str, mode: str, count: int, queue: str) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAPERONE_STATE_DIR": str(path / f"{mode}-{queue}")}
    command = [sys.executable, "-m", "tests.benchmarks.waiting", url, mode, str(count), queue]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))
