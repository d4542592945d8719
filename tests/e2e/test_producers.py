"""Processes that only send: whatever becomes of them, each message that reached the broker is on record, once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.conftest import StartProcess
from tests.e2e.conftest import Fleet
from tests.processes import ROOT, Process
from tests.servers import free_port
from tests.waiting import wait_until

#: Forking with threads is what these tests are about; Python 3.12 warns of it.
LENIENT = {"PYTHONWARNINGS": "default"}


def in_broker(fleet: Fleet) -> Counter[str]:
    """The messages in Redis, by id."""
    with contextlib.closing(redis.Redis.from_url(fleet.env["BROKER_URL"])) as client:
        return Counter(json.loads(each)["message_id"] for name in ("", ".DQ") for each in client.hvals(f"dramatiq:default{name}.msgs"))  # type: ignore[union-attr]


def on_record(fleet: Fleet) -> Counter[str]:
    """The pending jobs in the store, by id."""
    return Counter(row[0] for row in fleet.sql("SELECT job_id FROM supervised_jobs WHERE status = 'pending' AND payload IS NOT NULL"))


def journals(fleet: Fleet) -> list[str]:
    """What is left of journals."""
    return [name.name for folder in (fleet.state_dir / "journal").glob("*") for name in folder.iterdir()]


def expect(fleet: Fleet, number: int) -> None:
    """All *number* messages are on record now, and nothing is left in a journal."""
    assert on_record(fleet) == in_broker(fleet)
    assert len(on_record(fleet)) == number
    assert journals(fleet) == []


def watch(fleet: Fleet) -> None:
    """Start a watcher, of workers that listen to another queue."""
    fleet.start("--queues", "other", processes=1).wait_for_log("Fork process 'dramatiq_chaperone.runtime:watch' is ready")


def wait_for(fleet: Fleet, number: int) -> None:
    """All *number* messages are on record soon, and the watcher keeps nothing but the journal of its worker."""
    wait_until(
        lambda: len(on_record(fleet)) == number and len(journals(fleet)) == 1, timeout_s=20, interval_s=0.1, what=f"{number} jobs on record"
    )
    assert on_record(fleet) == in_broker(fleet)


class TestAlone:
    def test_a_script_of_ten_lines(self, fleet: Fleet) -> None:
        fleet.run("for number in range(10): work.send()")
        expect(fleet, 10)

    def test_a_script_that_fails(self, fleet: Fleet) -> None:
        assert fleet.run("work.send()\nraise SystemExit(3)", check=False).returncode == 3
        assert "ZeroDivisionError" in fleet.run("work.send()\n1 / 0", check=False).stderr
        expect(fleet, 2)

    def test_a_script_that_only_sends_later(self, fleet: Fleet) -> None:
        fleet.run("work.send_with_options(delay=600_000)")
        expect(fleet, 1)
        ((eta,),) = fleet.sql("SELECT eta IS NOT NULL FROM supervised_jobs")
        assert eta

    def test_a_script_that_lives_on_is_on_record_while_it_lives(self, fleet: Fleet, start_process: StartProcess) -> None:
        script = start_process(
            sys.executable, "-c", "from tests.e2e.fleet_app import *\nwork.send()\ntime.sleep(60)", env=fleet.env, cwd=ROOT
        )
        wait_until(lambda: len(on_record(fleet)) == 1, timeout_s=15)
        assert script.is_running

    def test_many_threads_send(self, fleet: Fleet) -> None:
        fleet.run(
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(8) as pool: list(pool.map(lambda number: work.send(), range(500)))"
        )
        expect(fleet, 500)

    def test_it_forks_after_sending_and_both_send(self, fleet: Fleet) -> None:
        fleet.run(
            "work.send()\nchild = os.fork()\nfor number in range(5): work.send()\nif child: assert os.waitpid(child, 0)[1] == 0",
            **LENIENT,
        )
        expect(fleet, 11)

    def test_it_forks_again_and_again(self, fleet: Fleet) -> None:
        fleet.run(
            "work.send()\nfor number in range(4):\n    child = os.fork()\n    work.send()\n    if child: os.waitpid(child, 0)",
            **LENIENT,
        )
        expect(fleet, 1 + sum(2 * 2**number for number in range(4)))

    @pytest.mark.parametrize(
        "end",
        [
            "os._exit(0)",
            "os.kill(os.getpid(), __import__('signal').SIGTERM)",
            "os.kill(os.getpid(), __import__('signal').SIGKILL)",
            "os.execv('/bin/true', ['true'])",
        ],
        ids=["_exit", "SIGTERM", "SIGKILL", "exec"],
    )
    def test_one_that_ends_at_once_is_recorded_by_the_next_process_of_the_host(self, fleet: Fleet, end: str) -> None:
        fleet.run(f"for number in range(10): work.send()\n{end}", check=False)
        assert len(in_broker(fleet)) == 10
        assert len(on_record(fleet)) == 0
        fleet.run("work.send()")
        expect(fleet, 11)

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_children_of_multiprocessing(self, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory, method: str) -> None:
        """Their parent sends nothing, and leaves nothing to be done by others."""
        fleet.run(
            "import multiprocessing\n"
            "from tests.e2e.producer_child import send\n"
            f"context = multiprocessing.get_context({method!r})\n"
            "children = [context.Process(target=send, args=(5,)) for _ in range(3)]\n"
            "for child in children: child.start()\n"
            "for child in children: child.join(); assert child.exitcode == 0",
            **LENIENT,
        )
        expect(fleet, 15)

    def test_a_pool_of_processes_and_its_parent(self, fleet: Fleet) -> None:
        """multiprocessing.Pool ends its processes with a signal: what they wrote is taken over by their parent."""
        fleet.run(
            "import multiprocessing\n"
            "from tests.e2e.producer_child import send\n"
            "work.send()\n"
            "with multiprocessing.get_context('fork').Pool(3) as pool: pool.map(send, [5, 5, 5])\n"
            "work.send()",
            **LENIENT,
        )
        expect(fleet, 17)


class TestWithAWatcher:
    """There is a fleet on the host."""

    def test_it_writes_for_the_producer_which_never_loads_a_database(self, fleet: Fleet) -> None:
        watch(fleet)
        done = fleet.run(
            "import sys\n"
            "work.send()\n"
            "journal = broker.middleware[0]._runtime._sending.journal\n"
            "deadline = time.monotonic() + 10\n"
            "while not journal.has_writer() and time.monotonic() < deadline: time.sleep(0.01)\n"
            "for number in range(20): work.send()\n"
            "broker.middleware[0].close()\n"
            "print('peewee' in sys.modules, 'sqlite3' in sys.modules)"
        )
        assert done.stdout.split() == ["False", "False"]
        wait_for(fleet, 21)

    @pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), 9)"], ids=["exit", "_exit", "SIGKILL"])
    def test_it_writes_what_a_short_life_has_left(self, fleet: Fleet, end: str) -> None:
        watch(fleet)
        fleet.run(f"for number in range(10): work.send()\n{end}", check=False)
        wait_for(fleet, 10)


def get(port: int) -> int | None:
    """The pid of the process that answered; None while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
            return int(response.read())
    except (urllib.error.URLError, ConnectionError):
        return None


class TestGunicorn:
    @pytest.fixture
    def serve(self, fleet: Fleet, start_process: StartProcess) -> Callable[..., tuple[Process, int]]:
        """Starts gunicorn, and answers with it and its port."""

        def start(*arguments: str) -> tuple[Process, int]:
            port = free_port()
            command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", *arguments]
            env = {**fleet.env, **LENIENT, "SEND_AT_IMPORT": "1"}
            return start_process(*command, "tests.e2e.web_app:application", env=env, cwd=ROOT), port

        return start

    @pytest.mark.parametrize("arguments", [[], ["--preload"], ["--threads", "4"]], ids=["plain", "preload", "threads"])
    def test_each_request_sends(self, fleet: Fleet, serve: Callable[..., tuple[Process, int]], arguments: list[str]) -> None:
        server, port = serve(*arguments)
        wait_until(lambda: get(port), timeout_s=20)
        with ThreadPoolExecutor(8) as pool:
            pids = set(pool.map(get, [port] * 100))
        assert None not in pids
        wait_until(lambda: len(on_record(fleet)) == len(in_broker(fleet)), timeout_s=15, interval_s=0.1, what="all of it, while it serves")
        assert server.stop() == 0
        imports = 1 if "--preload" in arguments else 2
        expect(fleet, 101 + imports)

    def test_a_killed_process_of_it_loses_nothing(self, fleet: Fleet, serve: Callable[..., tuple[Process, int]]) -> None:
        server, port = serve()
        pid = wait_until(lambda: get(port), timeout_s=20)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: get(port) not in {None, pid}, timeout_s=20, interval_s=0.05)
        assert server.stop() == 0
        expect(fleet, len(in_broker(fleet)))


class TestWithoutAStore:
    def test_a_script_ends_in_time_and_its_messages_wait(self, fleet: Fleet) -> None:
        """The database does not answer; the next process that finds it writes what waits."""
        began = time.monotonic()
        away = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
        done = fleet.run("work.send()", CHAPERONE_DATABASE_URL=away)
        assert time.monotonic() - began < 20
        assert "is away" in done.stderr
        assert len(journals(fleet)) == 1
