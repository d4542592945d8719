"""A command asked of a worker, through the store, with a watcher between and without."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import commands, open_store
from tests.e2e.conftest import Fleet
from tests.waiting import wait_until


@pytest.mark.parametrize("watcher", ["1", "0"])
def test_the_stack_of_a_running_job_within_three_seconds(fleet: Fleet, tmp_path: Path, watcher: str) -> None:
    fleet.start(processes=1, CHAPERONE_WATCHER=watcher)
    fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
    fleet.wait_for(running=1)
    ((job_id, worker_id),) = fleet.sql("SELECT job_id, worker_id FROM supervised_jobs")
    store = open_store(Settings.load({"database_url": fleet.database_url}, environ={}), create=False)
    try:
        began = time.monotonic()
        asked = commands.issue(store, worker_id, "stack", {"job_id": job_id}, issued_by="test")
        answer = wait_until(lambda: (found := commands.answer(store, asked)).outcome and found)
        took = time.monotonic() - began
        assert answer.outcome == "done"
        assert any("in hold" in line for line in answer.detail["stacks"][job_id])
        assert took < 3.5

        refused = commands.issue(store, worker_id, "stack", {"job_id": "other"}, issued_by="test")
        unknown = commands.issue(store, worker_id, "explode", {}, issued_by="test")
        for command in (refused, unknown):
            assert wait_until(lambda command=command: commands.answer(store, command).outcome) == "refused"
    finally:
        store.close()
    (tmp_path / "go").touch()
    fleet.wait_for(completed=1)
