"""The models that users query: a test for each line of the specification's table, on every database."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import peewee
import pytest

from dramatiq_chaperone.errors import CommandRefused, SchemaError, SettingsError, StoreUnavailable
from dramatiq_chaperone.models import (
    CircuitBreaker,
    DeadLetterJob,
    Heartbeat,
    JobHealthCheck,
    ResourceViolation,
    SupervisedJob,
    SupervisedJobError,
    Worker,
    using,
)
from dramatiq_chaperone.records import STATUS_RANK
from dramatiq_chaperone.store import Store, audit, commands, open_store
from dramatiq_chaperone.store.models import bound
from tests.contracts.conftest import Process, StoreSettings, drop_tables, ended, enqueued, started

NOW = datetime.now(UTC)
SCOPES = ("pending", "running", "completed", "failed", "healthy", "degraded", "unhealthy")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The store that the models read: with the names that they were made with."""
    with contextlib.closing(open_store(StoreSettings(database_url, table_prefix=""), create=True)) as store:
        try:
            with bound(store):
                yield store
        finally:
            drop_tables(store)


def job(job_id: str = "j1", **columns: Any) -> Any:
    known = {"status": "completed", "actor_name": "work", "queue": "default", "created_at": NOW, "updated_at": NOW}
    return SupervisedJob.create(**{**known, "job_id": job_id, **columns})


def worker(worker_id: str = "w1", **columns: Any) -> Any:
    known = {"status": "running", "created_at": NOW, "updated_at": NOW, "started_at": NOW, "last_heartbeat_at": datetime.now(UTC)}
    return Worker.create(**{**known, "worker_id": worker_id, **columns})


def ids(query: Any) -> list[str]:
    return sorted(each.job_id if hasattr(each, "job_id") else each.worker_id for each in query)


@pytest.mark.usefixtures("store")
class TestSupervisedJob:
    def test_scopes_and_predicates_agree(self) -> None:
        """A name that is a scope of the class is, on a row, whether it belongs there."""
        for status in STATUS_RANK:
            for health in (None, "healthy", "degraded", "unhealthy", "unknown"):
                job(f"{status} {health}", status=status, health=health)
        every = list(SupervisedJob.select())
        for name in SCOPES:
            found = ids(getattr(SupervisedJob, name)())
            assert found == ids(each for each in every if getattr(each, name)())
            assert found
        assert {each.status for each in SupervisedJob.running()} == {"running", "stalled"}
        assert ids(SupervisedJob.healthy()) == ["running None", "running healthy", "running unknown"]
        assert ids(SupervisedJob.degraded()) == ["running degraded"]
        assert len(ids(SupervisedJob.unhealthy())) == 6

    def test_scopes_are_queries(self) -> None:
        job("small", status="running", memory_usage=10)
        job("large", status="running", memory_usage=20, queue="mail")
        assert ids(SupervisedJob.running().where(SupervisedJob.memory_usage > 15)) == ["large"]
        assert SupervisedJob.running().count() == 2
        assert SupervisedJob.running().order_by(SupervisedJob.memory_usage.desc()).first().job_id == "large"
        assert not SupervisedJob.failed().exists()

    def test_where(self) -> None:
        for number in range(3):
            job(
                f"j{number}", actor_name=f"a{number}", queue=f"q{number}", timeout_at=NOW + timedelta(hours=number),
                memory_usage=number, cpu_usage=number, started_at=NOW - timedelta(hours=number),
            )  # fmt: skip
        model = SupervisedJob
        for condition in (
            model.actor_name == "a1", model.queue == "q1", model.timeout_at == NOW + timedelta(hours=1), model.memory_usage == 1,
            model.cpu_usage == 1.0, model.started_at.between(NOW - timedelta(hours=1.5), NOW - timedelta(hours=0.5)),
        ):  # fmt: skip
            assert ids(model.select().where(condition)) == ["j1"]

    def test_today(self) -> None:
        noon = datetime(2026, 3, 2, 12, tzinfo=UTC)
        for name, started_at in (
            ("today", noon),
            ("midnight", noon.replace(hour=0)),
            ("yesterday", noon - timedelta(hours=13)),
            ("no", None),
        ):
            job(name, created_at=noon - timedelta(days=1), started_at=started_at)
        assert ids(SupervisedJob.today(noon)) == ["midnight", "today"]
        assert ids(SupervisedJob.today()) == []

    def test_scopes_of_watchtower(self) -> None:
        for number, status in enumerate(("pending", "completed", "failed")):
            job(status, status=status, queue=f"q{number}", created_at=NOW + timedelta(seconds=number))
        assert ids(SupervisedJob.with_status("failed")) == ["failed"]
        assert ids(SupervisedJob.with_status("failed", "pending")) == ["failed", "pending"]
        assert ids(SupervisedJob.on_queue("q1")) == ["completed"]
        assert [each.job_id for each in SupervisedJob.recent()] == ["failed", "completed", "pending"]
        assert [each.job_id for each in SupervisedJob.recent(limit=1)] == ["failed"]

    def test_recent_is_a_hundred(self) -> None:
        SupervisedJob.insert_many(
            [{"job_id": f"j{n}", "status": "completed", "created_at": NOW, "updated_at": NOW} for n in range(101)]
        ).execute()
        assert len(list(SupervisedJob.recent())) == 100

    def test_attributes(self) -> None:
        job(
            started_at=NOW, ended_at=NOW + timedelta(seconds=3), completed_at=NOW + timedelta(seconds=3),
            enqueued_at=NOW - timedelta(seconds=2),
            memory_usage=1, cpu_usage=2.5, progress=100, payload={"args": [1]}, metadata={"ü": None},
        )  # fmt: skip
        found = SupervisedJob.get(SupervisedJob.job_id == "j1")
        assert (found.job_class, found.actor_name, found.get_job_class(), found.queue, found.status) == (
            "work",
            "work",
            "work",
            "default",
            "completed",
        )
        assert (found.started_at, found.completed_at) == (NOW, NOW + timedelta(seconds=3))
        assert (found.duration, found.get_duration(), found.queue_wait) == (3.0, 3.0, 2.0)
        assert (found.memory_usage, found.cpu_usage, found.progress) == (1, 2.5, 100)
        assert (found.payload, found.metadata) == ({"args": [1]}, {"ü": None})

    def test_duration(self) -> None:
        assert job("waits", status="pending").duration is None
        assert job("runs", status="running", started_at=datetime.now(UTC) - timedelta(seconds=60)).duration == pytest.approx(60, abs=30)
        assert job("lost", status="lost", started_at=NOW, updated_at=NOW + timedelta(seconds=5)).get_duration() == 5

    @pytest.mark.parametrize(
        ("status", "answers"),
        [
            ("pending", "is_pending"),
            ("running", "is_running is_healthy"),
            ("completed", "is_completed"),
            ("failed", "is_failed"),
            ("stalled", "is_running is_stuck is_unhealthy"),
        ],
    )
    def test_predicates(self, status: str, answers: str) -> None:
        found = job(status=status)
        names = ("is_pending", "is_running", "is_completed", "is_failed", "is_stuck", "is_degraded", "is_unhealthy")
        assert {name for name in names if getattr(found, name)()} == set(answers.split()) - {"is_healthy"}
        assert found.is_healthy() == (status not in {"failed", "stalled"})
        assert found.is_final() == (status in {"completed", "failed"})
        assert (found.completed(), found.failed()) == (status == "completed", status == "failed")

    def test_relations(self) -> None:
        mine, other = job(), job("j2")
        for number in range(2):
            Heartbeat.create(
                job=mine, created_at=NOW + timedelta(seconds=number), heartbeat_id=f"h{number}", kind="manual", metadata={"n": number}
            )
        SupervisedJobError.create(
            job=mine, created_at=NOW, run_id="r1", attempt=1, outcome="failed", exception="ValueError", message="no", context={"line": 1}
        )
        ResourceViolation.create(job=mine, created_at=NOW, type="memory", limit=1.5, actual=2.5)
        JobHealthCheck.create(job=mine, created_at=NOW, status="degraded", reason="memory")
        assert mine.heartbeats.order_by(Heartbeat.created_at.desc()).first().metadata == {"n": 1}
        assert mine.heartbeats.exists()
        assert not other.heartbeats.exists()
        assert (mine.errors.get().message, mine.errors.get().context) == ("no", {"line": 1})
        assert mine.resource_violations.get().actual == 2.5
        assert mine.health_checks.get().status == "degraded"
        assert mine.heartbeats.first().job == mine

    def test_worker(self) -> None:
        worker("w1")
        assert job("j1", worker_id="w1").worker.worker_id == "w1"
        assert job("j2", worker_id="gone").worker is None
        assert job("j3").worker is None

    def test_a_row_outlives_its_job(self) -> None:
        """Pruned between two queries, or in an old row that was kept."""
        mine = job()
        beat = Heartbeat.create(job=mine, created_at=NOW, kind="manual")
        letter = DeadLetterJob.create(job=mine, job_id="j1", created_at=NOW, failed_at=NOW)
        beat, letter_before = Heartbeat.get_by_id(beat.id), DeadLetterJob.find(letter.id)
        mine.delete_instance()
        assert beat.job is None
        assert letter_before is not None
        assert letter_before.job is None
        letter_after = DeadLetterJob.find(letter.id)
        assert letter_after is not None
        assert (letter_after.job, letter_after.job_id) == (None, "j1")
        assert list(mine.heartbeats) == []


class TestCommands:
    """What kill() and retry() leave behind."""

    def row(self, store: Store, command_id: str) -> tuple[Any, ...]:
        (target, name, arguments, by), *_ = store.rows(
            "SELECT target, command, arguments, issued_by FROM {commands} WHERE id = ?", (command_id,)
        )
        return target, name, json.loads(arguments) if isinstance(arguments, str) else arguments, by

    def test_kill(self, store: Store) -> None:
        key = job(status="running", worker_id="w1").kill(issued_by="ann")
        assert self.row(store, key) == ("w1", "kill", {"job_id": "j1", "by": "ann", "reason": "", "force": False}, "ann")
        (entry,) = audit.entries(store)
        assert (entry.who, entry.what, entry.target, entry.origin) == ("ann", "kill", "j1", "models")
        assert commands.answer(store, key).outcome is None
        assert [each.name for each in commands.claim(store, ["w1"])] == ["kill"]

    @pytest.mark.parametrize("columns", [{"status": "completed", "worker_id": "w1"}, {"status": "pending"}, {"status": "running"}])
    def test_kill_needs_a_worker(self, store: Store, columns: dict[str, Any]) -> None:
        with pytest.raises(CommandRefused, match="j1"):
            job(**columns).kill()
        assert store.rows("SELECT COUNT(*) FROM {commands}") == [(0,)]
        assert audit.entries(store) == []

    def test_retry(self, store: Store) -> None:
        key = job(status="failed").retry()
        assert self.row(store, key) == (
            commands.FLEET,
            "retry",
            {"job_id": "j1", "queue": "default", "by": "models", "origin": "models"},
            "models",
        )
        with pytest.raises(CommandRefused, match="running"):
            job("j2", status="running").retry()
        with pytest.raises(CommandRefused, match="completed"):
            job("j3", status="completed").retry()

    def test_retry_of_a_dead_letter(self, store: Store) -> None:
        letter = DeadLetterJob.create(job_id="j1", created_at=NOW, failed_at=NOW, queue="mail")
        key = letter.retry(issued_by="ann")
        told = {"job_id": "j1", "dead_letter": str(letter.id), "queue": "mail", "by": "ann", "origin": "models"}
        assert self.row(store, key) == (commands.FLEET, "retry", told, "ann")
        letter.retried_at, letter.retried_as = NOW, "j2"
        with pytest.raises(CommandRefused, match="j2"):
            letter.retry()


@pytest.mark.usefixtures("store")
class TestDeadLetterJob:
    def test_all_find_delete(self) -> None:
        for number in range(3):
            DeadLetterJob.create(job_id=f"j{number}", created_at=NOW, failed_at=NOW + timedelta(days=number), actor_name="work")
        assert [each.job_id for each in DeadLetterJob.all()] == ["j2", "j1", "j0"]
        letter = DeadLetterJob.all().first()
        assert DeadLetterJob.find(letter.id) == letter
        assert DeadLetterJob.find(4711) is None
        assert DeadLetterJob.delete().where(DeadLetterJob.failed_at < NOW + timedelta(days=1)).execute() == 1
        letter.delete_instance()
        assert [each.job_id for each in DeadLetterJob.all()] == ["j1"]


@pytest.mark.usefixtures("store")
class TestWorker:
    def test_scopes(self) -> None:
        old = datetime.now(UTC) - timedelta(seconds=45)
        worker("fresh", supervisor="a")
        worker("silent", last_heartbeat_at=old)
        worker("paused", status="paused", last_heartbeat_at=None)
        worker("stopped", status="stopped", last_heartbeat_at=old)
        assert ids(Worker.running()) == ["fresh", "paused", "silent"]
        assert ids(Worker.running()) == ids(each for each in Worker.select() if each.running())
        assert ids(Worker.with_status("stopped")) == ["stopped"]
        assert ids(Worker.with_status("stopped", "paused")) == ["paused", "stopped"]
        assert ids(Worker.for_supervisor("a")) == ["fresh"]
        assert ids(Worker.stale()) == ["paused", "silent"]
        assert ids(Worker.stale(seconds=120)) == ["paused"]

    def test_predicates(self) -> None:
        names = ("is_running", "is_paused", "is_stopped")
        for status, answer in (("running", "is_running"), ("paused", "is_paused"), ("stopped", "is_stopped"), ("lost", "is_stopped")):
            found = worker(status, status=status)
            assert [name for name in names if getattr(found, name)()] == [answer]
        old = worker("old", last_heartbeat_at=datetime.now(UTC) - timedelta(seconds=45))
        assert (old.is_healthy(), old.is_healthy(120)) == (False, True)
        assert worker("fresh").is_healthy()
        assert not worker("new", last_heartbeat_at=None).is_healthy()
        assert not worker("ended", status="stopped").is_healthy()

    def test_figures(self) -> None:
        started_at = datetime.now(UTC) - timedelta(seconds=60)
        assert worker("w1", started_at=started_at).get_uptime() == pytest.approx(60, abs=30)
        assert worker("w2", status="stopped", started_at=started_at, stopped_at=started_at + timedelta(seconds=5)).get_uptime() == 5
        assert worker("w3", started_at=None).get_uptime() is None
        counts = worker("w4", jobs_processed=5, jobs_failed=2)
        assert (counts.get_jobs_processed_count(), counts.get_jobs_failed_count()) == (5, 2)

    def test_jobs(self) -> None:
        job("j1", worker_id="w1")
        job("j2", worker_id="w2")
        assert ids(worker("w1").jobs) == ["j1"]


@pytest.mark.usefixtures("store")
class TestCircuitBreaker:
    def test_columns(self) -> None:
        CircuitBreaker.create(service="mail", state="open", mode="auto", failure_count=5, created_at=NOW, updated_at=NOW, opened_at=NOW)
        found = CircuitBreaker.get(CircuitBreaker.service == "mail")
        assert (found.state, found.failure_count, found.success_count, found.opened_at) == ("open", 5, 0, NOW)


class TestThreads:
    def test_a_thread_pool(self, store: Store) -> None:
        for number in range(20):
            job(f"j{number}")
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: SupervisedJob.completed().count(), range(50))) == [20] * 50
        assert SupervisedJob.completed().count() == 20

    def test_a_thread_that_ends_leaves_no_connection(self, store: Store) -> None:
        """Drivers complain about those that nobody closed; here that is a failure."""
        connections: list[Any] = []

        def look() -> None:
            SupervisedJob.completed().count()
            connections.append(store.database.connection())

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(each) for each in connections}) == 4
        for connection in connections:
            with pytest.raises(Exception, match=r"(?i)clos|interface|0"):
                connection.cursor().execute("SELECT 1")
        connections.clear()
        gc.collect()

    def test_a_lost_connection_is_one_error(self, store: Store) -> None:
        job()
        store.database.connection().close()
        with pytest.raises(StoreUnavailable):
            SupervisedJob.completed().count()
        assert SupervisedJob.completed().count() == 1


SCRIPT = """
from concurrent.futures import ThreadPoolExecutor
from dramatiq_chaperone.models import SupervisedJob, using
count = lambda *_: SupervisedJob.failed().count()
assert count() == 1
pool = ThreadPoolExecutor(4)
assert list(pool.map(count, range(8))) == [1] * 8
with using({url!r}):
    job = SupervisedJob.create(job_id="j2", status="failed", created_at={at!r}, updated_at={at!r})
    assert SupervisedJob.get_by_id(job.id).job_id == "j2"
    assert count() == 2
print("done")
"""


@pytest.mark.parametrize("key_type", ["id", "uuid", "ulid"])
def test_a_script_that_closes_nothing(database_url: str, key_type: str) -> None:
    """Not one warning, with every key type; a notebook and a web server end no other way."""
    settings = StoreSettings(database_url, primary_key_type=key_type)
    store = open_store(settings, create=True)
    try:
        Process(store).writes(enqueued(), started(), ended(outcome="failed", status="failed"))
        env = {
            **os.environ,
            "CHAPERONE_DATABASE_URL": database_url,
            "CHAPERONE_TABLE_PREFIX": settings.table_prefix,
            "CHAPERONE_PRIMARY_KEY_TYPE": key_type,
        }
        command = [sys.executable, "-W", "default::ResourceWarning", "-c", SCRIPT.format(url=database_url, at=NOW.isoformat())]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.stderr) == ("done\n", "")
    finally:
        drop_tables(store)
        store.close()


def test_a_web_server_with_a_thread_for_each_request(store: Store) -> None:
    job(status="running", progress=50)
    connections: list[Any] = []

    def view(environ: Any, start_response: Any) -> list[bytes]:
        found = SupervisedJob.get(SupervisedJob.job_id == environ["PATH_INFO"][1:])
        connections.append(store.database.connection())
        start_response("200 OK", [])
        return [str(found.progress).encode()]

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = False

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with make_server("127.0.0.1", 0, view, Server, Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for _ in range(3):
            with urlopen(f"http://127.0.0.1:{server.server_port}/j1", timeout=30) as answer:
                assert answer.read() == b"50.0"
        server.shutdown()
        thread.join()
    assert len({id(each) for each in connections}) == 3
    connections.clear()
    gc.collect()


class TestUsing:
    @pytest.fixture
    def urls(self, tmp_path: Path) -> list[str]:
        found = [f"sqlite:///{tmp_path}/{name}.sqlite3" for name in ("first", "second")]
        for number, url in enumerate(found):
            with contextlib.closing(open_store(StoreSettings(url, table_prefix=""), create=True)), using(url):
                job(f"of store {number}", status="failed")
        return found

    def test_nested(self, store: Store, urls: list[str]) -> None:
        job("of the process", status="failed")
        query = SupervisedJob.failed
        with using(urls[0]):
            assert ids(query()) == ["of store 0"]
            with using(urls[1]):
                assert ids(query()) == ["of store 1"]
            assert ids(query()) == ["of store 0"]
        assert ids(query()) == ["of the process"]

    def test_an_error_inside_restores(self, store: Store, urls: list[str]) -> None:
        with pytest.raises(KeyError), using(urls[0]):
            raise KeyError
        assert ids(SupervisedJob.failed()) == []

    def test_two_stores_in_one_thread_pool(self, store: Store, urls: list[str]) -> None:
        job("of the process", status="failed")
        meet = threading.Barrier(3, timeout=30)

        def look(url: str | None) -> list[str]:
            with using(url) if url else contextlib.nullcontext():
                meet.wait()
                return ids(SupervisedJob.failed())

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(look, [urls[0], None, urls[1]]))
        assert found == [["of store 0"], ["of the process"], ["of store 1"]]

    def test_a_copied_context(self, store: Store, urls: list[str]) -> None:
        look: Callable[[], list[str]] = lambda: ids(SupervisedJob.failed())  # noqa: E731
        with using(urls[1]), ThreadPoolExecutor(1) as pool:
            assert pool.submit(contextvars.copy_context().run, look).result() == ["of store 1"]
            assert pool.submit(look).result() == []

    def test_what_is_wrong_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(SchemaError, match="no store"), using(f"sqlite:///{tmp_path}/none.sqlite3"):
            pass
        with pytest.raises(SettingsError), using("oracle://x"):
            pass


def test_rows_have_the_types_of_the_store(store: Store) -> None:
    job(started_at=NOW.replace(tzinfo=None))
    assert SupervisedJob.get().started_at == NOW
    with pytest.raises(peewee.DoesNotExist):
        SupervisedJob.get(SupervisedJob.job_id == "none")
