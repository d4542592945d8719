"""Fixtures for every test.  Servers: tests/servers.py; processes: tests/processes.py; waiting: tests/waiting.py."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests import environment, servers
from tests.processes import Process, WorkerProcess
from tests.proxy import Proxy
from tests.waiting import wait_until

PROCESSES = pytest.StashKey[list[Process]]()


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: none may see the settings of the person who runs the tests."""
    environment.isolate()
    environment.TEST_SETTINGS.update(getattr(config, "workerinput", {}).get("test_settings", {}))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A process of pytest-xdist starts without what was taken out of the environment."""
    node.workerinput["test_settings"] = dict(environment.TEST_SETTINGS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of its processes to the report of a test that failed; in CI, where everything is there, a skip is a failure."""
    report = yield
    _refuse_skip(report)
    if report.failed:
        for process in item.stash.get(PROCESSES, []):
            report.sections.append((f"log of {' '.join(process.command)}", process.tail()))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if environment.is_ci() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and nothing may be skipped in CI: {report.longrepr}"


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """A test that leaves one of our threads behind has failed."""
    before = set(threading.enumerate())
    yield

    def leaked() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name.startswith("chaperone-") and each not in before]

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not leaked(), timeout_s=1.0)
    assert not leaked(), "threads left behind"


@pytest.fixture(autouse=True, scope="session")
def home_untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The default state directory is in a temporary folder, for our own processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state-home")))
        yield


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty state directory."""
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def chaperone_env(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> Callable[..., None]:
    """``chaperone_env(WATCHER=0)`` sets CHAPERONE_WATCHER for this test.

    CHAPERONE_STATE_DIR is *state_dir* from the start; nothing else is set.
    """
    for name in [name for name in os.environ if name.startswith("CHAPERONE_")]:
        monkeypatch.delenv(name)

    def set_variables(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"CHAPERONE_{name}", str(value))

    set_variables(STATE_DIR=state_dir)
    return set_variables


# Redis


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[servers.RedisServer]:
    with contextlib.closing(servers.RedisServer()) as server:
        yield server


@pytest.fixture
def redis_url(_redis_server: servers.RedisServer) -> str:
    """An empty Redis, shared by the session's tests; one that a test may stop or kill is redis_server."""
    with contextlib.closing(_redis_server.client()) as client:
        client.flushall()
    return _redis_server.url


@pytest.fixture
def redis_server() -> Iterator[servers.RedisServer]:
    """A Redis of the test's own: stop, kill, restart, pause; port and data stay."""
    with contextlib.closing(servers.RedisServer()) as server:
        yield server


# RabbitMQ


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """The machine's RabbitMQ, skipped where none answers (failed in CI); use rabbitmq_queue for names."""
    return servers.rabbitmq_url()


@pytest.fixture
def rabbitmq_queue(rabbitmq_url: str) -> Iterator[Callable[[], str]]:
    """``rabbitmq_queue()`` is a queue name that nobody else uses; the queue, its ``.DQ`` and ``.XQ`` are deleted at the end."""
    names: list[str] = []

    def unique_name() -> str:
        names.append(f"chaperone-test-{secrets.token_hex(6)}")
        return names[-1]

    yield unique_name
    servers.delete_rabbitmq_queues(rabbitmq_url, *names)


# Databases


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """Makes databases: ``with postgres.database() as url``."""
    with contextlib.closing(servers.Postgres()) as server:
        yield server


@pytest.fixture(scope="session")
def mysql() -> Iterator[servers.MySQL]:
    """Makes databases: ``with mysql.database() as url``.  Skipped where no MySQL or MariaDB answers (failed in CI)."""
    with contextlib.closing(servers.MySQL()) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: servers.Postgres) -> Iterator[str]:
    """A database of the session's own; for a fresh one use postgres."""
    with postgres.database() as url:
        yield url


@pytest.fixture(scope="session")
def mysql_url(mysql: servers.MySQL) -> Iterator[str]:
    """A database of the session's own; for a fresh one use mysql."""
    with mysql.database() as url:
        yield url


@pytest.fixture
def postgres_server() -> Iterator[servers.PostgresServer]:
    """A PostgreSQL of the test's own: stop, kill, restart; port and data stay.  Takes two seconds to make."""
    with contextlib.closing(servers.PostgresServer()) as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[Callable[[str, int], Proxy]]:
    """``proxy(host, port)`` stands in front of a server that the test cannot stop: cut, restore, freeze, thaw."""
    with contextlib.ExitStack() as stack:
        yield lambda host, port: stack.enter_context(Proxy(host, port))


# Processes


class StartProcess(Protocol):
    """Starts any command."""

    def __call__(self, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process: ...


class StartWorker(Protocol):
    """Starts ``python -m dramatiq``."""

    def __call__(
        self,
        module: str,
        *arguments: str,
        processes: int = 1,
        threads: int = 4,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: bool = True,
    ) -> WorkerProcess: ...


@pytest.fixture
def _processes(request: pytest.FixtureRequest) -> Iterator[list[Process]]:
    running: list[Process] = []
    request.node.stash[PROCESSES] = running
    yield running
    for process in reversed(running):
        process.end()


@pytest.fixture
def start_process(_processes: list[Process], tmp_path: Path) -> StartProcess:
    """``start_process(sys.executable, "app.py", env=..., cwd=...)``: it runs in *cwd*, by default tmp_path, and is ended with the test."""

    def start(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
        log = tmp_path / f"process-{len(_processes)}.log"
        _processes.append(Process(command, log=log, env=env or {}, cwd=cwd or tmp_path))
        return _processes[-1]

    return start


@pytest.fixture
def start_worker(_processes: list[Process], tmp_path: Path) -> StartWorker:
    """``start_worker("app", "--queues", "a", processes=2, threads=4)`` runs the module ``app`` of *cwd*, by default tmp_path.

    It returns when every worker process is ready (``ready=False``: at once).  With the test it gets SIGTERM, then its group SIGKILL.
    """

    def start(
        module: str,
        *arguments: str,
        processes: int = 1,
        threads: int = 4,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: bool = True,
    ) -> WorkerProcess:
        log = tmp_path / f"process-{len(_processes)}.log"
        worker = WorkerProcess(module, *arguments, processes=processes, threads=threads, log=log, env=env or {}, cwd=cwd or tmp_path)
        _processes.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    return start
