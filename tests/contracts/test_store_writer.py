"""WriteBehind: real journals of real processes, brought into the store."""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.errors import StoreUnavailable
from dramatiq_chaperone.journal import Journal, JournalDirectory, JournalReader
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.store import Store, counters, queries, upgrade
from dramatiq_chaperone.store.turns import StoreTurns
from dramatiq_chaperone.store.writer import PATIENCE_BYTES, WriteBehind
from tests.contracts.conftest import NOW, StoreSettings, booted, drop_tables, ended, enqueued, origin, started, totals
from tests.waiting import wait_until


@pytest.fixture
def settings(make_settings: Callable[..., StoreSettings]) -> Any:
    return make_settings()


@pytest.fixture
def read(settings: StoreSettings) -> Any:
    """The store, for looking; its tables are dropped at the end."""
    store = Store(settings)
    yield store
    drop_tables(store)
    store.close()


def writer(folder: Path, settings: StoreSettings, **more: Any) -> WriteBehind:
    return WriteBehind(JournalDirectory(folder), settings, takes=lambda name: True, **more)


def live_and_die(folder: Path, name: str, jobs: int, finished: int, stops: bool) -> None:
    journal = Journal(folder, origin(name))
    journal.append(booted())
    for n in range(jobs):
        journal.append(enqueued(f"{name}-{n}"))
        journal.append(started(f"{name}-{n}", f"{name}-run-{n}"))
        if n < finished:
            journal.append(ended(f"{name}-{n}", f"{name}-run-{n}"))  # type: ignore[arg-type]
    if stops:
        journal.append((records.WORKER_STOPPED, NOW))
        journal.close()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def process(*arguments: Any) -> None:
    child = multiprocessing.get_context("spawn").Process(target=live_and_die, args=arguments)
    child.start()
    child.join(60)


def test_a_dead_workers_journal(read: Store, settings: StoreSettings, tmp_path: Path) -> None:
    process(tmp_path, "host-1-dead", 3000, 2990, False)
    process(tmp_path, "host-2-done", 10, 10, True)
    assert writer(tmp_path, settings, exit_of=lambda worker_id: (-9, "SIGKILL")).finish(timeout_s=60)
    jobs = queries.status_summary(read)["jobs"]
    assert (jobs["completed"], jobs["lost"]) == (3000, 10)
    assert {row["worker_id"]: row["status"] for row in queries.list_workers(read)} == {"host-1-dead": "lost", "host-2-done": "stopped"}
    assert totals(read, counters.RUNS) == {"succeeded": 3000, "lost": 10}
    assert JournalDirectory(tmp_path).names() == []


def test_as_a_service(read: Store, settings: StoreSettings, tmp_path: Path) -> None:
    journal = Journal(tmp_path, origin())
    service = writer(tmp_path, settings, interval_s=0.05)
    service.start()
    try:
        journal.append(enqueued())
        wait_until(lambda: _status(read) == "pending", timeout_s=30)
        journal.append(started())
        journal.append(ended())
        wait_until(lambda: _status(read) == "completed", timeout_s=30)
        assert list(service.held()) == [journal.origin.worker_id]
    finally:
        assert service.stop(timeout_s=30)
        assert service.finish(timeout_s=30)
        journal.close()
    assert service.held() == {}


def test_one_writer_after_another(read: Store, settings: StoreSettings, tmp_path: Path) -> None:
    journal = Journal(tmp_path, origin())
    for n in range(5):
        journal.append(enqueued(f"j{n}"))
        journal.append(started(f"j{n}", f"r{n}"))
        journal.append(ended(f"j{n}", f"r{n}"))
        assert writer(tmp_path, settings).finish(timeout_s=30)
    journal.close()
    assert totals(read, counters.JOBS) == {"completed": 5}


def _status(store: Store) -> str | None:
    try:
        rows = store.rows("SELECT status FROM {supervised_jobs}")
    except Exception:
        return None
    return rows[0][0] if rows else None


def test_gently(read: Store, settings: StoreSettings, tmp_path: Path) -> None:
    journal = Journal(tmp_path, origin(role="producer"))
    service = writer(tmp_path, settings, sent=journal.position)
    sent = itertools.count()

    def written_after(messages: int) -> int:
        for number in itertools.islice(sent, messages):
            journal.append(enqueued(f"j{number}"))
        service.run_once()
        return int(read.rows("SELECT COUNT(*) FROM {supervised_jobs}")[0][0])

    service.run_once()
    assert written_after(50) == 50, "few are written as they come"
    assert written_after(5_000) == 50, "many wait for a pause"
    assert written_after(0) == 5_050
    burst = PATIENCE_BYTES // 100
    written = written_after(burst)
    assert 5_050 < written < 5_050 + burst, "too many do not"
    assert written_after(1) < 5_051 + burst
    wait_until(lambda: written_after(0) == 5_051 + burst, timeout_s=60)
    service.finish(timeout_s=30)
    journal.close()


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_until_somebody_upgrades(settings: StoreSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unasked = replace(settings, auto_migrate=False)
    journal = Journal(tmp_path, origin())
    journal.append(enqueued())
    service = writer(tmp_path, unasked)
    with caplog.at_level(logging.WARNING, logger="dramatiq_chaperone"):
        for _ in range(3):
            service._try_again_at = 0.0
            service.run_once()
        assert [record.message.count("chaperone db upgrade") > 0 for record in caplog.records] == [True]
    upgrade(unasked)
    read = Store(unasked)
    try:
        assert service.finish(timeout_s=30)
        assert _status(read) == "pending"
    finally:
        drop_tables(read)
        read.close()
        journal.close()


def test_the_server_goes_away_and_comes_back(postgres_server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = StoreSettings(postgres_server.url)
    journal = Journal(tmp_path, origin())
    service = writer(tmp_path, settings, interval_s=0.05)
    service.run_once()
    assert service.backlog_bytes() == 0
    postgres_server.stop()
    journal.append(enqueued())
    journal.append(started())
    with caplog.at_level(logging.WARNING, logger="dramatiq_chaperone"):
        for _ in range(3):
            service._try_again_at = 0.0
            service.run_once()
        waiting = service.backlog_bytes()
        assert 0 < waiting < 4096
        postgres_server.restart() if hasattr(postgres_server, "restart") else postgres_server.start()
        assert service.finish(timeout_s=60)
    journal.close()
    said = [record.message for record in caplog.records]
    assert [" is away" in message for message in said] == [True, False]
    assert "is back" in said[1]
    store = Store(settings)
    assert _status(store) == "running"
    store.close()


@pytest.mark.parametrize("kind", ["postgres"])
class TestAServerInTrouble:
    def test_two_never_write_one_journal(self, read: Store, settings: Any, tmp_path: Path) -> None:
        """A stop that could not wait for the writer's turn leaves the journal to the next who takes it."""
        import psycopg

        upgrade(settings)
        journal = Journal(tmp_path, origin("host-1-slow"))
        journal.append(enqueued("j1"))
        service = writer(tmp_path, settings)
        with psycopg.connect(settings.database_url) as blocker:
            blocker.execute(f'LOCK TABLE "{read.names["supervised_jobs"]}" IN ACCESS EXCLUSIVE MODE')  # type: ignore[call-overload]
            service.start()
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE ?"
            wait_until(lambda: read.rows(waiting, (f"%{read.names['supervised_jobs']}%",)))
            journal.append(enqueued("j2"))
            journal.append((records.WORKER_STOPPED, NOW))
            journal.close()
            assert not service.stop(timeout_s=0.1)
            assert not service.finish(timeout_s=5.0)
        assert service.stop(timeout_s=10.0)
        assert service.finish(timeout_s=10.0)
        assert queries.status_summary(read)["jobs"]["pending"] == 2
        assert [row["status"] for row in queries.list_workers(read)] == ["stopped"]

    @pytest.mark.parametrize("is_nested", [False, True])
    def test_a_connection_that_is_lost_in_a_transaction(self, read: Store, settings: Any, is_nested: bool) -> None:
        import contextlib

        import psycopg

        upgrade(settings)

        def work() -> None:
            ((pid,),) = read.rows("SELECT pg_backend_pid()")
            with psycopg.connect(settings.database_url, autocommit=True) as killer:
                killer.execute("SELECT pg_terminate_backend(%s)", (pid,))
                gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
                wait_until(lambda: killer.execute(gone, (pid,)).fetchone() == (0,))
            with read.savepoint() if is_nested else contextlib.nullcontext():
                read.execute("SELECT 1")

        with pytest.raises(StoreUnavailable):
            read.transact(work)
        assert read.rows("SELECT 1") == [(1,)]

    def test_a_server_that_holds_the_line_and_says_nothing(
        self, settings: Any, read: Store, proxy: Callable[[str, int], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from urllib.parse import urlsplit

        from dramatiq_chaperone.store import database

        monkeypatch.setattr(database, "_READ_TIMEOUT_S", 1)
        parts = urlsplit(settings.database_url)
        between = proxy(parts.hostname or "127.0.0.1", parts.port or 5432)
        user = f"{parts.username}@" if parts.username else ""
        store = Store(replace(settings, database_url=parts._replace(netloc=f"{user}127.0.0.1:{between.port}").geturl()))
        assert store.rows("SELECT 1") == [(1,)]
        between.freeze()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            store.rows("SELECT 1")
        between.thaw()
        assert wait_until(lambda: store.rows("SELECT 1")) == [(1,)]
        store.close()

    def test_the_last_turn_does_not_wait_for_a_lock(self, read: Store, settings: Any, tmp_path: Path) -> None:
        import psycopg

        upgrade(settings)
        journal = Journal(tmp_path, origin())
        journal.append(enqueued())
        service = writer(tmp_path, settings)
        with psycopg.connect(settings.database_url) as blocker:
            blocker.execute(f'LOCK TABLE "{read.names["supervised_jobs"]}" IN ACCESS EXCLUSIVE MODE')  # type: ignore[call-overload]
            begun = time.monotonic()
            assert not service.finish(timeout_s=1.0)
            assert time.monotonic() - begun < 5.0
        assert service.finish(timeout_s=30.0)
        assert _status(read) == "pending"
        journal.close()


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_an_upgrade_has_no_limit(settings: Any, read: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from dramatiq_chaperone.store import migrations

    limits: list[Any] = []

    def step(connections: Any, key_type: str) -> None:
        limits.append(connections.limit_s)
        connections.execute("SELECT pg_sleep(1)" if connections.kind == "postgres" else "SELECT SLEEP(1)")

    monkeypatch.setattr(migrations, "STEPS", (migrations.create_tables, step))
    monkeypatch.setattr(migrations, "VERSION", 2)
    read.limit(0.5)
    migrations.upgrade(read, read.key_type)
    assert (limits, read.limit_s) == ([None], 0.5)
    with pytest.raises(StoreUnavailable):
        read.rows("SELECT pg_sleep(5)" if read.kind == "postgres" else "SELECT SLEEP(5)")
    read.limit(None)  # its tables have to be dropped


def test_what_is_held_is_known_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dramatiq_chaperone.store.writer.CROWDED_BYTES", 0)
    journal = Journal(tmp_path, origin("host-1-first"))
    journal.append(enqueued())
    service = writer(tmp_path, StoreSettings("postgresql://nobody@127.0.0.1:1/nothing"))
    folded: list[int] = []
    monkeypatch.setattr(JournalReader, "compact", lambda self, position, fold: folded.append(position))
    service.run_once()
    assert list(service.held()) == ["host-1-first"]
    assert JournalDirectory(tmp_path).take("host-1-first") is None
    assert folded == []
    later = Journal(tmp_path, origin("host-2-later"))
    service.run_once()  # the store is not asked again yet
    assert sorted(service.held()) == ["host-1-first", "host-2-later"]
    assert service.backlog_bytes() > 0
    assert not service.finish(timeout_s=0.1)
    journal.close()
    later.close()


@pytest.mark.parametrize("kind", ["sqlite"])
def test_trouble_with_one_journal(read: Store, settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journals = [Journal(tmp_path / "journals", origin(name)) for name in ("host-1-bad", "host-2-good")]
    for journal in journals:
        journal.append(enqueued(journal.origin.worker_id))
    read_journal = JournalReader.read

    def read_some(self: JournalReader, position: int, **more: Any) -> Any:
        if self.name == "host-1-bad":
            raise ValueError("what nobody thought of")
        return read_journal(self, position, **more)

    service = writer(tmp_path / "journals", settings)
    with monkeypatch.context() as patch:
        patch.setattr(JournalReader, "read", read_some)
        service.run_once()
        assert read.rows("SELECT job_id FROM {supervised_jobs}") == [("host-2-good",)]
        assert internal_errors.pop("writer") == 1
        assert not service.finish(timeout_s=0.2)  # not everything is in the store
    internal_errors.pop("writer")
    assert service.finish(timeout_s=30)
    assert read.rows("SELECT COUNT(*) FROM {supervised_jobs}") == [(2,)]
    for journal in journals:
        journal.close()


@pytest.mark.parametrize("kind", ["postgres"])
def test_the_end_does_not_wait_for_an_upgrade(settings: StoreSettings, tmp_path: Path) -> None:
    journal = Journal(tmp_path, origin())
    journal.append(enqueued())
    begun = time.monotonic()
    assert not writer(tmp_path, replace(settings, auto_migrate=False)).finish(timeout_s=30)
    assert time.monotonic() - begun < 10
    journal.close()


@pytest.mark.parametrize("kind", ["postgres"])
def test_the_duties_close_their_connection(settings: StoreSettings, read: Store) -> None:
    upgrade(settings)
    pids: list[int] = []

    class Duty:
        def turn(self, store: Store) -> None:
            pids[:] = [store.rows("SELECT pg_backend_pid()")[0][0]]

        def leave(self, store: Store) -> None:
            pass

    duties = StoreTurns(settings, [Duty()])
    gc.disable()  # else it may close what we forgot
    try:
        duties.start()
        wait_until(lambda: pids)
        connection = duties._store.database._state  # type: ignore[union-attr]
        assert duties.stop(timeout_s=10)
        wait_until(lambda: not read.rows("SELECT 1 FROM pg_stat_activity WHERE pid = ?", (pids[0],)))
    finally:
        gc.enable()
        del connection
