"""Where it is measured: real workers, in fresh processes, on a Redis of their own, and what they used.

The speed of a machine changes from second to second, more so where others use it too.  So what is compared lives at
the same time and works in turns, a burst of messages each: a pair of bursts, one bare and one ours, is a second or two
apart, and what counts is the median of the pairs.  Only one of them works at a time: there may be two cores only, and
Redis and the watcher need one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from tests import servers
from tests.environment import TEST_SETTINGS
from tests.processes import ROOT, WorkerProcess
from tests.waiting import wait_until

APP = "tests.benchmarks.app"
THREADS = 8
#: Messages of a burst before the clock starts.
WARM = 100


def scale() -> float:
    """How much is measured: CHAPERONE_TEST_SCALE, all of it by default; 0.05 is a quick look, on SQLite alone."""
    return min(1.0, float(TEST_SETTINGS.get("CHAPERONE_TEST_SCALE") or 1.0))


def rounds(full: int) -> int:
    """How often a comparison is repeated."""
    return max(1, round(full * scale()))


def messages(full: int) -> int:
    """How many messages one measurement takes, in hundreds: a worker notes what it has used at each."""
    return round(max(full / 4, full * scale()) / 100) * 100


def is_quick() -> bool:
    """Whether this is a quick look."""
    return scale() < 0.5


class Variant(NamedTuple):
    """One way to run a worker or a sender."""

    label: str
    middleware: str
    database: str | None = None
    watcher: bool = False


BARE = Variant("bare Dramatiq", "bare")
PROMETHEUS = Variant("Dramatiq's Prometheus", "prometheus")
ADMIN = Variant("django_dramatiq's AdminMiddleware", "admin")


def chaperones() -> list[Variant]:
    """Chaperone with everything on, in each way that it can write."""
    databases = ["sqlite"] if is_quick() else ["sqlite", "postgres"]
    names = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
    return [
        Variant(f"{'with a watcher' if watcher else 'without a watcher'}, {names[database]}", "chaperone", database, watcher)
        for watcher in (True, False)
        for database in databases
    ]


class Lab:
    """Makes what is measured.

    Parameters:
      path: a folder for state, logs and notes.
      server: a Redis that nobody else uses.
      database: ``database("postgres")`` is a context manager with the URL of an empty database.
    """

    def __init__(self, path: Path, server: servers.RedisServer, database: Callable[[str], contextlib.AbstractContextManager[str]]) -> None:
        self._path, self._server, self._database = path, server, database
        self._client = server.client()
        self._client.config_set("appendonly", "no")
        self._shelves: set[str] = set()
        self._number = 0

    @contextlib.contextmanager
    def worker(
        self, variant: Variant, *, queue: str = "default", actors: int = 1, prefetch: int | None = None, **more: str
    ) -> Iterator[Worker]:
        """A worker process that is ready, with *more* in its environment."""
        with self._place(variant) as (folder, env):
            env |= {**more, "NOTES": str(folder / "notes"), "ACTORS": str(actors)}
            if prefetch is not None:
                env["dramatiq_queue_prefetch"] = str(prefetch)
            process = WorkerProcess(APP, "--queues", queue, processes=1, threads=THREADS, log=folder / "log", env=env, cwd=ROOT)
            try:
                process.wait_ready()
                yield Worker(self, process, folder, env)
            finally:
                process.end(grace_s=0)  # all that matters is written; nobody looks at what follows

    @contextlib.contextmanager
    def _place(self, variant: Variant) -> Iterator[tuple[Path, dict[str, str]]]:
        """A folder, and the environment of a process of this variant."""
        self._number += 1
        folder = self._path / str(self._number)
        folder.mkdir()
        env = {
            "MIDDLEWARE": variant.middleware,
            "BROKER_URL": self._server.url,
            "NAMESPACE": f"bench-{self._number}",
            "PYTHONWARNINGS": "ignore",
            "CHAPERONE_STATE_DIR": str(folder / "state"),
            "CHAPERONE_WATCHER": str(int(variant.watcher)),
            "ADMIN_DATABASE": str(folder / "admin.sqlite3"),
            "dramatiq_prom_db": str(folder / "prometheus"),
            "dramatiq_prom_port": str(servers.free_port()),
            "dramatiq_prom_host": "127.0.0.1",
        }
        with contextlib.ExitStack() as stack:
            if variant.database == "sqlite":
                env["CHAPERONE_DATABASE_URL"] = f"sqlite:///{folder}/chaperone.sqlite3"
            elif variant.database is not None:
                env["CHAPERONE_DATABASE_URL"] = stack.enter_context(self._database(variant.database))
                env["CHAPERONE_AUTO_MIGRATE"] = "1"
            yield folder, env
            for key in self._client.scan_iter(f"{env['NAMESPACE']}:*"):
                self._client.delete(key)

    def feed(self, namespace: str, turn: int, count: int, actors: int) -> None:
        """Put *count* messages into the default queue, at once: they were sent before and lie on a shelf, others for each turn."""
        shelf = f"shelf-{turn}-{count}-{actors}"
        if shelf not in self._shelves:
            self._fill(shelf, count, actors)
        for part in ("default.msgs", "default"):
            self._client.copy(f"{shelf}:{part}", f"{namespace}:{part}", replace=True)

    def waiting(self, namespace: str) -> int:
        """How many messages the default queue has, those included that a worker has taken and not acknowledged."""
        return int(self._client.hlen(f"{namespace}:default.msgs"))

    def _fill(self, shelf: str, count: int, actors: int) -> None:
        self._shelves.add(shelf)
        broker = RedisBroker(url=self._server.url, namespace=shelf)
        with contextlib.closing(broker):
            broker.declare_queue("default")
            for number in range(count):
                broker.enqueue(Message("default", f"noop_{number % actors}", (number, "name@example.org"), {}, {}))

    @contextlib.contextmanager
    def sender(self, variant: Variant) -> Iterator[Sender]:
        """A process that sends; its journal is being written, by a watcher or by itself."""
        with contextlib.ExitStack() as stack:
            if variant.watcher:
                worker = stack.enter_context(self.worker(variant, queue="elsewhere"))
                worker.wait_store()
                folder, env = worker.folder, worker.env
            else:
                folder, env = stack.enter_context(self._place(variant))
            environment = {**os.environ, **env, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", APP]
            with subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as process:
                yield Sender(process, env)
            assert process.returncode == 0

    def close(self) -> None:
        """Let go of the Redis."""
        self._client.close()


class Sender:
    """A process that sends when it is told to."""

    def __init__(self, process: subprocess.Popen[str], env: dict[str, str]) -> None:
        self._process, self._env = process, env
        self._sent = 0
        self.send(1)

    def send(self, count: int) -> float:
        """The seconds that *count* sends took.  Afterwards all of them are in the store, where there is one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(count, file=self._process.stdin, flush=True)
        seconds = float(self._process.stdout.readline())
        self._sent += count
        if "CHAPERONE_DATABASE_URL" in self._env:
            wait_until(lambda: rows(self._env, "supervised_jobs") == self._sent, timeout_s=60, interval_s=0.2, what=f"{self._sent} rows")
        return seconds


class Burst(NamedTuple):
    """What a burst of messages took: jobs a second, and CPU microseconds for each of the worker and of its watcher."""

    rate: float
    cpu_us: float
    watcher_us: float


class Worker:
    """A worker process, with its watcher if it has one.

    Attributes:
      pid, watcher_pid: of the two; None without a watcher.
    """

    def __init__(self, lab: Lab, process: WorkerProcess, folder: Path, env: dict[str, str]) -> None:
        self._lab, self._process = lab, process
        self.folder, self.env = folder, env
        self._turn = self._fed = 0
        has_watcher = env["MIDDLEWARE"] == "chaperone" and env["CHAPERONE_WATCHER"] == "1"
        # The master starts its workers first, then its forks.
        children = wait_until(lambda: len(found := process.children()) > has_watcher and found, what="the children of the master")
        self.pid = children[0].pid
        self.watcher_pid = children[1].pid if has_watcher else None

    @property
    def _writes(self) -> bool:
        """Whether the worker process brings its journal into the store itself."""
        return "CHAPERONE_DATABASE_URL" in self.env and self.watcher_pid is None

    def burst(self, count: int) -> Burst:
        """Run *count* messages, a multiple of 100, and wait until all is written."""
        watcher = cpu_seconds(self.watcher_pid) if self.watcher_pid is not None else 0.0
        worker = cpu_seconds(self.pid)
        self.feed(count)
        began, ended = self._note(self._fed - count + WARM), self._note(self._fed)
        self.wait_written()
        rate = (count - WARM) / (ended["at"] - began["at"])
        if self.watcher_pid is not None:
            watcher = cpu_seconds(self.watcher_pid) - watcher
        if self._writes:  # what it writes after the last job is a cost too
            return Burst(rate, (cpu_seconds(self.pid) - worker) / count * 1e6, 0.0)
        return Burst(rate, (ended["cpu"] - began["cpu"]) / (count - WARM) * 1e6, watcher / count * 1e6)

    def wait_store(self) -> None:
        """Wait until somebody brings the journal into the store, where there is one."""
        if "CHAPERONE_DATABASE_URL" in self.env:
            wait_until(lambda: rows(self.env, "workers"), timeout_s=30, interval_s=0.1, what=f"the worker's row\n{self._process.tail()}")

    def feed(self, count: int, *, actors: int = 1) -> None:
        """Give it *count* messages that it has not had yet."""
        self._lab.feed(self.env["NAMESPACE"], self._turn, count, actors)
        self._turn += 1
        self._fed += count

    def _note(self, run: int) -> dict[str, float]:
        """What the worker noted at its *run*-th message, which is waited for."""
        path = self.folder / "notes"

        def found() -> dict[str, float] | None:
            lines = path.read_text().splitlines() if path.exists() else []
            return next((note for note in map(json.loads, lines) if note["run"] == run), None)

        note = wait_until(found, timeout_s=120, interval_s=0.05, what=f"message {run}")
        assert note is not None
        assert note["pid"] == self.pid
        return note

    def wait_empty(self) -> None:
        """Wait until its queue has no message left, taken or not."""
        wait_until(lambda: self._lab.waiting(self.env["NAMESPACE"]) == 0, timeout_s=120, interval_s=0.1, what="an empty queue")

    def wait_written(self) -> None:
        """Wait until all that was fed is completed in the store, where there is one."""
        if "CHAPERONE_DATABASE_URL" in self.env:
            wait_until(
                lambda: rows(self.env, "supervised_jobs", "status = 'completed'") == self._fed,
                timeout_s=120,
                interval_s=0.1,
                what="all rows",
            )


def rows(env: dict[str, str], table: str, condition: str = "1 = 1") -> int:
    """How many rows a table of the store has; 0 while there is none."""
    url, query = env["CHAPERONE_DATABASE_URL"], f"SELECT count(*) FROM {table} WHERE {condition}"
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        if not path.exists():
            return 0
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
            try:
                return int(connection.execute(query).fetchone()[0])
            except sqlite3.OperationalError:
                return 0
    import psycopg

    with psycopg.connect(url) as database:
        try:
            row = database.execute(query.encode()).fetchone()
        except psycopg.errors.UndefinedTable:
            return 0
    return int(row[0]) if row else 0


def cpu_seconds(pid: int) -> float:
    """The CPU time of another process; to the nanosecond where the system has a clock for it."""
    if sys.platform == "linux":
        clock = ctypes.c_int()
        if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)) == 0:
            return time.clock_gettime(clock.value)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def rss_mb(pid: int) -> float:
    """Resident memory in MB."""
    return psutil.Process(pid).memory_info().rss / 1e6


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)
