"""`chaperone queues`, as a process: with what is on record, and with a broker."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from dramatiq_chaperone import records
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store
from tests.e2e.test_cli import Chaperone, chaperone, enqueued, origin, started
from tests.servers import RedisServer, free_port

__all__ = ["chaperone"]

APP = """
import os
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq_chaperone import Chaperone

broker = RedisBroker(url=os.environ["BROKER_URL"], socket_timeout=2, middleware=[])
number = 7
class Named:
    broker = broker
@dramatiq.actor(queue_name="mail", broker=broker)
def send(): pass
"""


@pytest.fixture
def app(tmp_path: Path) -> None:
    """Modules in the working directory of the command: ``bare`` declares no broker, ``app`` has one, ``declared`` sets it."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "declared.py").write_text("import app, dramatiq\ndramatiq.set_broker(app.broker)\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")


@pytest.fixture
def recorded(state_dir: Path) -> float:
    """A store in which two queues were read 40 s ago, and a third is known by its jobs.  Gives the time of the reading."""
    now = time.time()
    at = now - 40
    store = open_store(Settings.load({"database_url": f"sqlite:///{state_dir}/chaperone.sqlite3"}, environ={"HOME": "/"}), create=True)

    def read(queue: str, ready: int, oldest_at: float | None) -> tuple[object, ...]:
        return tuple(records.QueueRead(records.QUEUE_READ, at, "RedisBroker", queue, ready, 2, 3, oldest_at))

    entries: list[Any] = [read("default", 1234, at - 80), read("mail", 0, None), *(enqueued(f"job{n}", now - 30) for n in range(10))]
    entries += [started("job0", now - 20), records.Enqueued(*enqueued("other", now - 7200))._replace(queue="reports")]  # type: ignore[arg-type]
    store.apply(origin(), [tuple(entry) for entry in entries], start=0, end=10)
    store.close()
    return at


def rows(done: Any) -> dict[str, dict[str, Any]]:
    found = json.loads(done.stdout)
    assert list(found) == ["queues"]
    return {row["queue"]: row for row in found["queues"]}


def test_the_last_reading_and_its_age(chaperone: Chaperone, recorded: float) -> None:
    done = chaperone("queues")
    assert (done.returncode, done.stderr) == (0, "")
    title, default, mail, reports = done.stdout.splitlines()
    assert title.split() == ["QUEUE", "READY", "DELAYED", "DEAD", "OLDEST", "IN/MIN", "OUT/MIN", "SUPERVISED", "READ", "BROKER"]
    assert re.match(r"default +1,234 +2 +3 +2 m \d s +[12]\.\d +0\.0 +yes +4\d(\.\d)? s ago +RedisBroker$", default)
    assert re.match(r"mail +0 +2 +3 +– ", mail)
    assert re.match(r"reports +– +– +– +– +0\.0 +0\.0 +yes +–", reports)


def test_as_json(chaperone: Chaperone, recorded: float) -> None:
    found = rows(chaperone("queues", "--format", "json", CHAPERONE_EXCLUDED_QUEUES="mail"))
    default = found["default"]
    assert {name: default[name] for name in ("broker", "ready", "delayed", "dead", "supervised")} == {
        "broker": "RedisBroker", "ready": 1234, "delayed": 2, "dead": 3, "supervised": True,
    }  # fmt: skip
    assert 120 <= default["oldest_age"] < 180
    assert 2.0 <= default["in_per_minute"] <= 2.5
    assert default["out_per_minute"] == 0
    assert default["read_at"].endswith("Z")
    assert found["mail"]["supervised"] is False
    assert found["reports"]["ready"] is None


def test_there_is_none(chaperone: Chaperone, state_dir: Path) -> None:
    assert "no store yet" in chaperone("queues").stderr
    assert chaperone("db", "upgrade").returncode == 0
    done = chaperone("queues")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No queue on record" in done.stderr


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("place", ["app:broker", "app:Named.broker", "declared"])
def test_a_broker_is_asked_itself(chaperone: Chaperone, recorded: float, redis_url: str, place: str) -> None:
    broker = RedisBroker(url=redis_url)  # type: ignore[no-untyped-call]
    for queue in ("mail", "reports"):
        broker.enqueue(dramatiq.Message(queue_name=queue, actor_name="send", args=(), kwargs={}, options={}))
    broker.close()
    for done in (
        chaperone("queues", "--broker", place, "--format", "json", BROKER_URL=redis_url),
        chaperone("queues", "--format", "json", BROKER_URL=redis_url, CHAPERONE_BROKER=place),
    ):
        assert (done.returncode, done.stderr) == (0, "")
        found = rows(done)
        # Those that are on record are asked for too: the module need not have every actor.
        assert {queue: row["ready"] for queue, row in found.items()} == {"default": 0, "mail": 1, "reports": 1}
        assert found["mail"]["oldest_age"] < 30
        assert found["default"]["in_per_minute"] > 1


@pytest.mark.usefixtures("app")
def test_a_broker_can_be_asked_without_a_store(chaperone: Chaperone, redis_url: str) -> None:
    done = chaperone("queues", "--broker", "app:broker", "--format", "json", BROKER_URL=redis_url)
    assert done.returncode == 0
    assert "no store yet" in done.stderr
    assert (rows(done)["mail"]["ready"], rows(done)["mail"]["in_per_minute"]) == (0, None)


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "cannot be imported: ModuleNotFoundError"),
        ("broken", "cannot be imported: ZeroDivisionError"),
        ("app:nothing", "cannot be imported: AttributeError"),
        ("app:number", "is no broker, but a int"),
        ("app", "does not call dramatiq.set_broker"),
        ("no module", "a module, or module:attribute"),
    ],
)
def test_what_is_no_broker_is_wrong_usage(chaperone: Chaperone, redis_url: str, recorded: float, place: str, said: str) -> None:
    done = chaperone("queues", "--broker", place, BROKER_URL=redis_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("app")
def test_a_broker_that_does_not_answer(chaperone: Chaperone, recorded: float, redis_server: RedisServer) -> None:
    done = chaperone("queues", "--broker", "app:broker", BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "The broker app:broker does not answer: ConnectionError" in done.stderr
    redis_server.pause()
    try:
        done = chaperone("queues", "--broker", "app:broker", BROKER_URL=redis_server.url)
    finally:
        redis_server.resume()
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not answer" in done.stderr
