"""The fixtures' own promises: a server that goes away comes back with its port and its data."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import dramatiq
import psycopg
import pymysql
import pytest
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from tests.conftest import StartWorker
from tests.proxy import Proxy
from tests.servers import PostgresServer, RedisServer
from tests.waiting import wait_until

APP = """
import dramatiq, os
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))

@dramatiq.actor
def write(path):
    with open(path, "w") as file:
        file.write("done")
"""


def test_redis_keeps_port_and_data_over_restart_and_kill(redis_server: RedisServer) -> None:
    with contextlib.closing(redis_server.client(socket_timeout=0.2, retry=None)) as client:
        client.set("key", "value")
        url = redis_server.url

        redis_server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        redis_server.start()
        redis_server.restart()

        assert redis_server.url == url
        assert client.get("key") == b"value"


def test_redis_that_is_paused_does_not_answer(redis_server: RedisServer) -> None:
    with contextlib.closing(redis_server.client(socket_timeout=0.1, retry=None)) as client:
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.resume()

        assert client.ping()


def test_postgres_keeps_port_and_data_over_restart_and_kill(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS answer")

    postgres_server.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres_server.url)
    postgres_server.start()
    postgres_server.restart()

    with psycopg.connect(postgres_server.url) as connection:
        assert connection.execute("SELECT answer FROM t").fetchone() == (42,)


def test_databases_are_empty_and_writable(postgres_url: str, mysql_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        connection.execute("CREATE TEMPORARY TABLE t (id integer)")

    url = urlsplit(mysql_url)
    assert url.hostname
    assert url.port
    options = {"host": url.hostname, "port": url.port, "user": url.username, "password": url.password, "database": url.path[1:]}
    with contextlib.closing(pymysql.connect(**options)) as connection, connection.cursor() as cursor:
        assert cursor.execute("SHOW TABLES") == 0
        cursor.execute("CREATE TEMPORARY TABLE t (id integer)")


def test_proxy_goes_away_and_comes_back(redis_url: str, proxy: Callable[[str, int], Proxy]) -> None:
    between = proxy("127.0.0.1", urlsplit(redis_url).port or 0)
    with contextlib.closing(redis.Redis(port=between.port, socket_timeout=0.2, retry=None)) as client:
        assert client.ping()

        between.cut()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        between.restore()
        assert client.ping()

        between.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        between.thaw()
        assert client.ping()


def test_rabbitmq_queue_is_usable(rabbitmq_url: str, rabbitmq_queue: Callable[[], str]) -> None:
    queue = rabbitmq_queue()
    with contextlib.closing(RabbitmqBroker(url=rabbitmq_url)) as broker:
        actor = dramatiq.actor(lambda: None, actor_name="nothing", queue_name=queue, broker=broker)

        actor.send()

        wait_until(lambda: broker.get_queue_message_counts(queue)[0] == 1, what="the message to be counted")


def test_worker_runs_a_job_and_ends_in_order(redis_url: str, start_worker: StartWorker, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    worker = start_worker("app", processes=2, threads=1, env={"REDIS_URL": redis_url})
    with contextlib.closing(RedisBroker(url=redis_url)) as broker:
        broker.enqueue(dramatiq.Message("default", "write", (str(tmp_path / "out"),), {}, {}))
    wait_until((tmp_path / "out").exists, what="the job")

    assert len(worker.children()) == 2
    assert worker.stop() == 0
    assert "Worker has been shut down" in worker.log()


def test_worker_that_ignores_everything_is_ended_all_the_same(start_worker: StartWorker, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    worker = start_worker("app", env={"REDIS_URL": redis_url})
    worker.send_signal(signal.SIGSTOP)
    worker.end(grace_s=0.1)

    assert not worker.is_running
