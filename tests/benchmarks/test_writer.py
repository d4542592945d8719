"""How fast the journals go into the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.benchmarks.figures import Table
from tests.benchmarks.lab import is_quick, median, messages, rounds, rows
from tests.processes import ROOT

pytestmark = pytest.mark.benchmark

DATABASES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mysql": "MySQL or MariaDB"}


def test_writer_alone(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whole jobs from a journal that is there, its decoding included; nothing else runs."""
    count = messages(40_000)
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    kinds = ["sqlite"] if is_quick() else list(DATABASES)
    for number in range(rounds(3)):
        for kind in kinds:
            folder = tmp_path / f"{kind}-{number}"
            folder.mkdir()
            with _database(request, kind, folder) as url:
                used = _write(folder, url, count)
                rates[kind].append(count / used["seconds"])
                cpu[kind].append(used["cpu"] / count * 1e6)
    table = Table("writer", "figure", "jobs a second", "CPU of the writer per job", "budget")
    for kind in kinds:
        table.add(
            f"whole jobs written, {DATABASES[kind]}", f"{median(rates[kind]):,.0f}", f"{median(cpu[kind]):.1f} µs", "20,000 jobs a second"
        )
    table.publish()


def _database(request: pytest.FixtureRequest, kind: str, folder: Path) -> AbstractContextManager[str]:
    if kind == "sqlite":
        return nullcontext(f"sqlite:///{folder}/chaperone.sqlite3")
    make: Callable[[], AbstractContextManager[str]] = request.getfixturevalue(kind).database
    return make()


def _write(folder: Path, url: str, count: int) -> dict[str, float]:
    own = {"CHAPERONE_STATE_DIR": str(folder / "state"), "CHAPERONE_DATABASE_URL": url, "CHAPERONE_AUTO_MIGRATE": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.writing", str(count)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), **own}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    if not url.startswith("mysql"):
        assert rows(own, "supervised_jobs", "status = 'completed'") == count
    used: dict[str, float] = json.loads(done.stdout)
    return used
