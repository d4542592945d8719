"""The schema: who makes it, who only looks; prefixes and key types; and the models that users query."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.errors import SchemaError, StoreUnavailable
from dramatiq_chaperone.store import Store, migrations, open_store, queries, upgrade
from tests.contracts.conftest import NOW, Process, StoreSettings, booted, drop_tables, ended, enqueued, job, started


def boot(settings: StoreSettings, barrier: Any, results: Any) -> None:
    """A process that opens the store at the same moment as others."""
    barrier.wait(60)
    try:
        taken = upgrade(settings)
        open_store(settings, create=True).close()
    except BaseException as e:
        results.put(repr(e))
    else:
        results.put(taken)


def test_sixteen_processes_upgrade_once(make_settings: Callable[..., StoreSettings], kind: str) -> None:
    settings = make_settings()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(16), context.Queue()
    processes = [context.Process(target=boot, args=(settings, barrier, results)) for _ in range(16)]
    for process in processes:
        process.start()
    found = [results.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(30)
    store = Store(settings)
    try:
        assert sorted(found, key=str) == [0] * 15 + [migrations.VERSION]
        assert store.rows("SELECT version FROM {schema} ORDER BY version") == [(n,) for n in range(1, migrations.VERSION + 1)]
    finally:
        drop_tables(store)
        store.close()


def test_a_reader_makes_nothing(make_settings: Callable[..., StoreSettings], tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as caught:
        open_store(make_settings(), create=False)
    assert (caught.value.found, caught.value.wanted) == (None, migrations.VERSION)
    assert not (tmp_path / "chaperone.sqlite3").exists()


def test_a_server_is_not_touched_unasked(make_settings: Callable[..., StoreSettings], kind: str) -> None:
    settings = make_settings(auto_migrate=False)
    if kind == "sqlite":
        open_store(settings, create=True).close()
        return
    with pytest.raises(SchemaError, match="chaperone db upgrade"):
        open_store(settings, create=True)
    assert upgrade(settings) == migrations.VERSION
    store = open_store(settings, create=True)
    drop_tables(store)
    store.close()


def test_another_version_is_refused(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    store.execute("UPDATE {schema} SET version = 99 WHERE version = ?", (migrations.VERSION,))
    with pytest.raises(SchemaError) as caught:
        migrations.check(store)
    assert (caught.value.found, caught.value.wanted) == (99, migrations.VERSION)


@pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])
def test_key_types(make_store: Callable[..., Store], key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), started("j2", "r2"))
    beat = (records.HEARTBEAT, NOW, "j1", "r1", "h", "manual", None, None, None, None, True)
    worker.writes(beat, ended(outcome="failed", status="failed"), (records.EVENT, NOW, "JobStuck", "j1", None, None, "{}"))
    assert worker.dies() == ["j2"]
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert {"id": int, "ulid": str}.get(key_type, object) in {type(detail["id"]), object}
    assert (len(detail["errors"]), len(detail["heartbeats"]), len(detail["events"])) == (1, 1, 1)
    first, after = queries.list_jobs(store, limit=1)
    second, end = queries.list_jobs(store, limit=1, after=after)
    assert {first[0]["job_id"], second[0]["job_id"]} == {"j1", "j2"}
    assert end is None


MODELS = """
import sys
from dramatiq_chaperone import models
job = models.SupervisedJob.failed().get()
assert job.errors.get().message == "no", job.errors.get().message
assert job.heartbeats.count() == 1
assert job.resource_violations.count() == 0
print(job.job_id, type(job.id).__name__, job.started_at.isoformat(), job.duration, job.queue_wait, job.is_healthy(), job.payload["args"])
assert models.Worker.running().get().jobs.count() == 1
assert models.SupervisedJob.get(models.SupervisedJob.started_at >= job.started_at).job_id == job.job_id
assert models.DeadLetterJob.all().get().job.job_id == job.job_id
assert models.DeadLetterJob.find(models.DeadLetterJob.all().get().id) is not None
for name in models.__all__:
    if name != "using":
        list(getattr(models, name).select())  # every column is there
for scope in ("pending", "running", "completed", "failed", "today", "healthy", "unhealthy", "degraded"):
    list(getattr(models.SupervisedJob, scope)())
"""


@pytest.mark.parametrize("key_type", ["id", "uuid"])
def test_models_read_what_the_environment_names(
    make_store: Callable[..., Store], make_settings: Callable[..., StoreSettings], key_type: str
) -> None:
    store = make_store(primary_key_type=key_type, table_prefix=f"m{key_type}_")
    worker = Process(store)
    beat = (records.HEARTBEAT, NOW, "j1", "r1", "h", "manual", None, None, None, None, True)
    dead = (records.DEAD, NOW, "j1", 0, "work", "default", NOW, "rejected", "ValueError", "no", "trace", None, False)
    worker.writes(booted(), enqueued(), started(at=NOW + 2), beat)
    worker.writes(ended(at=NOW + 5, started_at=NOW + 2, outcome="failed", status="failed"), dead)
    env = {
        **os.environ,
        "CHAPERONE_DATABASE_URL": make_settings().database_url,
        "CHAPERONE_TABLE_PREFIX": f"m{key_type}_",
        "CHAPERONE_PRIMARY_KEY_TYPE": key_type,
    }
    done = subprocess.run([sys.executable, "-c", MODELS], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    type_ = {"id": "int", "uuid": "str"}[key_type]
    assert done.stdout.split() == ["j1", type_, datetime.fromtimestamp(NOW + 2, UTC).isoformat(), "3.0", "2.0", "False", "[1]"]


@pytest.mark.parametrize("key_type", ["id", "uuid"])
def test_the_hours_begin_with_what_the_minutes_have(make_store: Callable[..., Store], key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), ended(at=NOW), started("j2", "r2"))
    worker.writes(ended("j2", "r2", at=NOW + 3600, outcome="failed", status="failed"), ended("j3", "r3", at=NOW + 3600))
    text = "SELECT hour_at, SUM(completed), SUM(failed) FROM {hours} GROUP BY hour_at ORDER BY hour_at"
    written = store.rows(text)
    store.execute("DELETE FROM {hours}")
    store.execute("DELETE FROM {schema} WHERE version > 1")
    assert migrations.upgrade(store, store.key_type) == migrations.VERSION - 1
    assert store.rows(text) == written
    assert [(completed, failed) for _, completed, failed in written] == [(1, 0), (1, 1)]


def test_errors_never_carry_the_password() -> None:
    settings = StoreSettings("postgresql://someone:hunter2secret@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable) as caught:
        open_store(settings, create=True)
    assert "hunter2secret" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        open_store(StoreSettings("mysql://someone:hunter2secret@127.0.0.1:1/none"), create=True)


def test_a_lost_connection_is_renewed(store: Store) -> None:
    worker = Process(store)
    worker.writes(enqueued())
    connection = store.database.connection()
    connection.close()
    with pytest.raises(StoreUnavailable):
        worker.writes(started())
    worker.writes(started())
    assert job(store)["status"] == "running"


def _in_a_child(store: Store, results: Any) -> None:
    Process(store, "child").writes(enqueued("from-child"))
    results.put(store.rows("SELECT COUNT(*) FROM {supervised_jobs}"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_has_a_connection_of_its_own(store: Store) -> None:
    Process(store, "parent").writes(enqueued("from-parent"))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_in_a_child, args=(store, results))
    child.start()
    assert results.get(timeout=30) == [(2,)]
    child.join(30)
    assert child.exitcode == 0
    assert store.rows("SELECT COUNT(*) FROM {supervised_jobs}") == [(2,)]


def test_each_thread_has_a_connection_of_its_own(store: Store) -> None:
    found: list[bool] = []

    def look() -> None:
        found.append(store.database.connection() is mine)
        store.close()

    mine = store.database.connection()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join(30)
    assert found == [False]
