"""A fleet: real workers on a real broker, what they wrote down themselves, and what the store says of it.

The store is read with plain SQL here: what is promised is what stands in the tables.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartWorker
from tests.processes import ROOT, WorkerProcess
from tests.waiting import wait_until

APP = "tests.e2e.fleet_app"


class Fleet:
    """Workers, one broker and one store.

    Attributes:
      app: the module that its workers run.
      env: what every process of the fleet gets.
      database_url: of the store.
    """

    def __init__(self, start_worker: StartWorker, path: Path, broker_url: str, database_url: str | None, **env: str) -> None:
        self._start_worker = start_worker
        #: The module with the actors.
        self.app = APP
        self.path = path
        self.ledger = path / "ledger"
        self.state_dir = path / "state"
        self.database_url = database_url or f"sqlite:///{self.state_dir}/chaperone.sqlite3"
        self.env = {"LEDGER": str(self.ledger), "BROKER_URL": broker_url, "CHAPERONE_STATE_DIR": str(self.state_dir)}
        self.env |= {"CHAPERONE_EXPORTER_PORT": "0", **env}  # tests may run beside each other
        # After SIGHUP the master executes whatever `python` is first on the path.
        self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        if database_url is not None:
            self.env["CHAPERONE_DATABASE_URL"] = database_url
            self.env["CHAPERONE_AUTO_MIGRATE"] = "1"

    def start(self, *arguments: str, processes: int = 2, threads: int = 4, ready: bool = True, **env: str) -> WorkerProcess:
        """Start a ``dramatiq`` master with its workers."""
        return self._start_worker(
            self.app, *arguments, processes=processes, threads=threads, env={**self.env, **env}, cwd=ROOT, ready=ready
        )

    def run(self, code: str, *, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run Python *code* in a process of its own, with ``from <app> import *`` before it."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **self.env, **env}
        source = f"from {self.app} import *\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", source], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def send(self, call: str, times: int = 1) -> None:
        """Send ``call``, for example ``work.send(0.1)``, so many times."""
        self.run(f"for number in range({times}): {call}")

    def notes(self, what: str | None = None) -> Counter[str]:
        """What the actors wrote down: how often for each job."""
        if not self.ledger.exists():
            return Counter()
        lines = (line.split() for line in self.ledger.read_text().splitlines())
        return Counter(line[1] for line in lines if len(line) == 3 and what in (None, line[0]))

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query; none while there is no store."""
        if self.database_url.startswith("sqlite"):
            path = Path(self.database_url.removeprefix("sqlite:///"))
            if not path.exists():
                return []
            with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
                try:
                    return connection.execute(query).fetchall()
                except sqlite3.OperationalError as error:
                    if "no such table" in str(error):
                        return []
                    raise
        return _server_rows(self.database_url, query)

    def statuses(self) -> Counter[str]:
        """How many jobs are in each state."""
        return Counter(dict(self.sql("SELECT status, count(*) FROM supervised_jobs GROUP BY status")))

    def wait_for(self, **statuses: int) -> None:
        """Wait until the store has exactly so many jobs in these states, and no other."""
        wait_until(
            lambda: self.statuses() == Counter(statuses) or None, timeout_s=60, interval_s=0.1, what=f"{statuses}, not {self.statuses()}"
        )

    def counter(self, name: str) -> Counter[str]:
        """A counter by outcome, queues and actors added up."""
        found: Counter[str] = Counter()
        for labels, value in self.sql(f"SELECT labels, value FROM counters WHERE name = '{name}'"):
            found[_outcome(labels)] += int(value)
        return found


def _outcome(labels: Any) -> str:
    import json

    return str((labels if isinstance(labels, dict) else json.loads(labels))["outcome"])


def _server_rows(url: str, query: str) -> list[tuple[Any, ...]]:
    if url.startswith("postgres"):
        import psycopg

        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                return connection.execute(query).fetchall()  # type: ignore[call-overload, no-any-return]  # tests make their own queries
        except (psycopg.errors.UndefinedTable, psycopg.OperationalError):
            return []
    from urllib.parse import urlsplit

    import pymysql

    parts = urlsplit(url)
    with (
        contextlib.closing(
            pymysql.connect(
                host=parts.hostname, port=parts.port or 3306, user=parts.username, password=parts.password or "", database=parts.path[1:]
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        try:
            cursor.execute(query)
        except pymysql.err.ProgrammingError:
            return []
        return list(cursor.fetchall())


@pytest.fixture
def make_fleet(start_worker: StartWorker, tmp_path: Path) -> Callable[..., Fleet]:
    """``make_fleet(broker_url, database_url)``."""

    def make(broker_url: str, database_url: str | None = None, **env: str) -> Fleet:
        return Fleet(start_worker, tmp_path, broker_url, database_url, **env)

    return make


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet], redis_url: str) -> Fleet:
    """A fleet on Redis with the default store, SQLite."""
    return make_fleet(redis_url)


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def fleet_on_each_database(request: pytest.FixtureRequest, make_fleet: Callable[..., Fleet], redis_url: str) -> Iterator[Fleet]:
    """The same on every database."""
    if request.param == "sqlite":
        yield make_fleet(redis_url)
        return
    with request.getfixturevalue(request.param).database() as url:
        yield make_fleet(redis_url, url)
