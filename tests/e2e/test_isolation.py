"""Isolated actors with the ``dramatiq`` command, Redis and a store."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dramatiq_chaperone.limits import MB
from tests.conftest import StartProcess
from tests.e2e.conftest import Fleet
from tests.processes import WorkerProcess
from tests.waiting import wait_until

Job = dict[str, object]


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet], redis_url: str) -> Fleet:
    fleet = make_fleet(redis_url)
    fleet.app = "tests.e2e.isolated_app"
    return fleet


def started(fleet: Fleet, *, times: int = 1) -> list[int]:
    """The processes in which jobs have begun, once there are so many."""

    def pids() -> list[int]:
        lines = fleet.ledger.read_text().splitlines() if fleet.ledger.exists() else []
        return [int(line.split()[2]) for line in lines if line.startswith("start ")]

    wait_until(lambda: len(pids()) >= times, timeout_s=30)
    return pids()


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def worker_of(child: int) -> psutil.Process:
    """The worker process of an isolated job: the parent of its zygote."""
    return psutil.Process(child).parents()[1]


def job_row(fleet: Fleet, columns: str) -> tuple[object, ...]:
    (row,) = fleet.sql(f"SELECT {columns} FROM supervised_jobs")
    return row


def test_a_result(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    done = fleet.run("print(add.send(1, 2).get_result(backend=backend, block=True, timeout=30_000))")
    assert done.stdout.strip() == "3"
    (pid,) = started(fleet)
    assert pid not in {child.pid for child in worker.children()}
    fleet.wait_for(completed=1)
    assert worker.stop() == 0
    memory, attribution, cpu = job_row(fleet, "memory_peak, memory_attribution, cpu_seconds")
    assert 10 << 20 < int(str(memory)) < 200 << 20
    assert attribution == "exact"
    assert 0 < float(str(cpu)) < 5


def test_a_failure_is_retried_and_recorded(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("fall.send()")
    fleet.wait_for(failed=1)
    rows = fleet.sql("SELECT exception, message, trace, context, outcome FROM supervised_job_errors ORDER BY attempt")
    assert [row[:2] + row[4:] for row in rows] == [("LookupError", "nothing there", "failed")] * 2
    assert "ValueError: the reason" in rows[0][2]
    assert 'raise LookupError("nothing there")' in rows[0][2]
    assert "isolated_app.py" in rows[0][3]
    assert len(set(started(fleet))) == 2
    assert worker.stop() == 0


def test_reports_and_logs(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("report.send()")
    fleet.wait_for(completed=1)
    assert job_row(fleet, "progress, progress_current, progress_total, phase") == (50, 100, 200, "half")
    assert fleet.sql("SELECT count(*) FROM heartbeats WHERE kind = 'progress'")[0][0] > 0
    assert fleet.sql("SELECT count(*) FROM heartbeats WHERE kind = 'manual'")[0][0] == 1
    assert "[app] [WARNING] a line of the job" in worker.log()
    assert worker.stop() == 0


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_messages_that_it_sends(broker: str, make_fleet: Callable[..., Fleet], request: pytest.FixtureRequest) -> None:
    if broker == "redis":
        fleet = make_fleet(request.getfixturevalue("redis_url"))
    else:
        fleet = make_fleet(request.getfixturevalue("rabbitmq_url"), QUEUE=request.getfixturevalue("rabbitmq_queue")())
    fleet.app = "tests.e2e.isolated_app"
    worker = fleet.start(processes=1)
    fleet.send("send.send(20)")
    fleet.wait_for(completed=21)
    (parent,) = fleet.sql("SELECT job_id FROM supervised_jobs WHERE actor_name = 'send'")
    children = fleet.sql("SELECT parent_job_id, payload IS NOT NULL FROM supervised_jobs WHERE actor_name = 'work'")
    assert children == [(parent[0], 1)] * 20
    assert worker.stop() == 0


def test_a_killed_worker_takes_it_along_in_c_code(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("grind.send()")
    (child,) = started(fleet)
    process = worker_of(child)
    zygote = psutil.Process(child).ppid()
    process.kill()
    began = time.monotonic()
    wait_until(lambda: is_gone(child) and is_gone(zygote), timeout_s=2.0)
    print(f"gone {time.monotonic() - began:.3f} s after it")
    assert worker.wait() != 0


def test_a_killed_zygote_is_replaced(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("grind.send()")
    (child,) = started(fleet)
    psutil.Process(child).parent().kill()  # type: ignore[union-attr]  # it has one
    fleet.wait_for(failed=1)
    assert is_gone(child)
    fleet.send("add.send(1, 2)")
    fleet.wait_for(failed=1, completed=1)
    assert worker.stop() == 0


def test_a_crash_is_one_failed_run(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("crash.send()")
    fleet.wait_for(failed=1)
    rows = fleet.sql("SELECT exception, message FROM supervised_job_errors")
    assert rows == [("dramatiq_chaperone.errors.JobProcessDied", "The process of the job ended before it could report: SIGABRT.")] * 2
    assert worker.stop() == 0


def test_memory_limit(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("leak.send()")
    fleet.wait_for(failed=1)
    ((exception, peak),) = fleet.sql("SELECT exception, memory_peak FROM supervised_job_errors")
    assert exception == "dramatiq_chaperone.errors.MemoryLimitExceeded"
    assert 150 * MB < peak < 400 * MB
    assert worker.stop() == 0


class MemoryCgroup:
    """A memory cgroup of our own, of either version.  Raises OSError where none can be made."""

    def __init__(self, name: str) -> None:
        first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        self.is_first = first.is_dir()
        root = first if self.is_first else second
        self._path, self._home = root / name, root / self._home_of_ours()
        self._path.mkdir()
        if not (self._path / self._file("limit_in_bytes", "max")).exists():
            self._path.rmdir()
            raise OSError(f"{root} does not limit memory")

    def _file(self, first: str, second: str) -> str:
        return f"memory.{first if self.is_first else second}"

    def _home_of_ours(self) -> str:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if ("memory" in controllers.split(",")) == self.is_first:
                return path.strip("/")
        raise OSError("this process is in no memory cgroup")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What is started meanwhile is in it."""
        (self._path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._home / "cgroup.procs").write_text(str(os.getpid()))

    def leave_room(self, size: int) -> None:
        """Let it use so many bytes more than it does now."""
        used = int((self._path / self._file("usage_in_bytes", "current")).read_text())
        (self._path / self._file("limit_in_bytes", "max")).write_text(str(used + size))

    def close(self) -> None:
        """Take it away, once it is empty."""
        wait_until(lambda: not (self._path / "cgroup.procs").read_text(), timeout_s=20, what="its processes to end")
        self._path.rmdir()


@pytest.fixture
def memory_cgroup() -> Iterator[MemoryCgroup | None]:
    try:
        made = MemoryCgroup(f"chaperone-test-{os.getpid()}")
    except OSError:  # only root can, and not in every container
        yield None
        return
    yield made
    made.close()


def test_the_system_takes_the_job_and_not_the_worker(fleet: Fleet, memory_cgroup: MemoryCgroup | None) -> None:
    with contextlib.nullcontext() if memory_cgroup is None else memory_cgroup.entered():
        worker = fleet.start(processes=1)
    if memory_cgroup is None:  # then it has to do that the job is what the system would take first
        fleet.send("sleep.send(60)")
        (child,) = started(fleet)
        assert Path(f"/proc/{child}/oom_score_adj").read_text().strip() == "1000"
        assert Path(f"/proc/{worker_of(child).pid}/oom_score_adj").read_text().strip() != "1000"
        psutil.Process(child).kill()
        fleet.wait_for(failed=1)
        assert worker.stop() == 0
        return
    fleet.run("print(add.send(1, 2).get_result(backend=backend, block=True, timeout=30_000))")  # all that is needed is loaded
    memory_cgroup.leave_room(100 << 20)
    fleet.send("leak.send_with_options(memory_limit=0)")
    fleet.wait_for(completed=1, failed=1)
    ((exception, cause, peak),) = fleet.sql("SELECT exception, exit_cause, memory_peak FROM supervised_job_errors")
    assert exception == "dramatiq_chaperone.errors.JobProcessDied"
    assert fleet.sql("SELECT message FROM supervised_job_errors") == [
        ("The process of the job ended before it could report: SIGKILL (out of memory).",)
    ], (cause, peak)
    assert fleet.run("print(add.send(3, 4).get_result(backend=backend, block=True, timeout=30_000))").stdout.strip() == "7"
    assert worker.is_running
    assert worker.stop() == 0
    assert fleet.sql("SELECT status FROM workers") == [("stopped",)]


def test_timeout_in_c_code(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("grind.send_with_options(timeout=1, kill_grace=1)")
    (child,) = started(fleet)
    fleet.wait_for(failed=1)
    assert is_gone(child)
    ((exception, outcome),) = fleet.sql("SELECT exception, outcome FROM supervised_job_errors")
    assert (exception, outcome) == ("dramatiq_chaperone.errors.TimeoutExceeded", "killed")
    assert worker.stop() == 0


def test_what_runs_is_finished_before_the_worker_stops(fleet: Fleet) -> None:
    worker = fleet.start(processes=1)
    fleet.send("sleep.send(2)")
    started(fleet)
    assert worker.stop() == 0
    assert fleet.notes("end").total() == 1
    fleet.wait_for(completed=1)


def test_at_a_hard_end_it_dies(fleet: Fleet) -> None:
    """A worker that does not wait any longer leaves no process behind; the message is delivered again."""
    worker = fleet.start("--worker-shutdown-timeout", "500", processes=1, HEARTBEAT_TIMEOUT="1000")
    fleet.send("sleep.send(60)")
    (child,) = started(fleet)
    worker.send_signal(signal.SIGTERM)
    worker.wait()
    wait_until(lambda: is_gone(child), timeout_s=2.0)
    assert not fleet.notes("end")


def test_many_jobs(fleet: Fleet) -> None:
    """None is lost, none runs twice, and nothing is left behind."""
    worker = fleet.start(processes=1, threads=4)
    fleet.send("add.send(1, 2)", times=1000)
    fleet.wait_for(completed=1000)
    assert set(fleet.notes("end").values()) == {1}
    pids = started(fleet, times=1000)
    assert len(set(pids)) == 1000
    (process,) = (
        child for child in worker.children() if any("import json, sys" in part for each in child.children() for part in each.cmdline())
    )
    (zygote,) = process.children()
    assert not zygote.children()
    assert process.num_fds() < 60
    assert zygote.num_fds() < 15
    assert worker.stop() == 0
    assert is_gone(zygote.pid)
    assert "ResourceWarning" not in worker.log()
    assert "Internal error" not in worker.log()


BROKER = """
import os, dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq_chaperone import Chaperone

def make_broker():
    broker = RedisBroker(url=os.environ["BROKER_URL"])
    broker.add_middleware(Chaperone())
    dramatiq.set_broker(broker)
    return broker
"""
TASKS = """
import os, dramatiq
from pathlib import Path

@dramatiq.actor(isolate=True)
def hello(path):
    Path(path).write_text(str(os.getppid()))
"""
SEND = "import setup_app; setup_app.make_broker(); import tasks; tasks.hello.send({path!r})"


def test_modules_are_imported_as_the_worker_imports_them(fleet: Fleet, start_process: StartProcess, tmp_path: Path) -> None:
    """The broker is made by a function, and the tasks, which need it, are in a module of their own."""
    (tmp_path / "setup_app.py").write_text(BROKER)
    (tmp_path / "tasks.py").write_text(TASKS)
    command = [sys.executable, "-m", "dramatiq", "setup_app:make_broker", "tasks", "-p", "1", "-t", "1"]
    worker = start_process(*command, env=fleet.env)
    worker.wait_for_log(WorkerProcess.READY)
    path = tmp_path / "hello"
    sender = start_process(sys.executable, "-c", SEND.format(path=str(path)), env=fleet.env)
    assert sender.wait() == 0
    wait_until(lambda: path.exists() and path.read_text(), timeout_s=30)
    assert worker_of_zygote(int(path.read_text())).pid in {child.pid for child in worker.children()}
    assert worker.stop() == 0


def worker_of_zygote(zygote: int) -> psutil.Process:
    parent = psutil.Process(zygote).parent()
    assert parent is not None
    return parent
