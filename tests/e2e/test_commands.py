"""A command asked of a worker, through the store, with a watcher between and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
        assert took < 3

        refused = commands.issue(store, worker_id, "stack", {"job_id": "other"}, issued_by="test")
        unknown = commands.issue(store, worker_id, "explode", {}, issued_by="test")
        for command in (refused, unknown):
            assert wait_until(lambda command=command: commands.answer(store, command).outcome) == "refused"
    finally:
        store.close()
    (tmp_path / "go").touch()
    fleet.wait_for(completed=1)


def test_a_worker_is_paused_and_resumed(fleet: Fleet) -> None:
    fleet.start(processes=1)
    fleet.send("work.send()")
    fleet.wait_for(completed=1)
    ((worker_id,),) = fleet.sql("SELECT worker_id FROM workers WHERE status = 'running'")
    store = open_store(Settings.load({"database_url": fleet.database_url}, environ={}), create=False)

    def ask(name: str) -> dict[str, object]:
        asked = commands.issue(store, worker_id, name, {}, issued_by="test")
        answer = wait_until(lambda: (found := commands.answer(store, asked)).outcome and found)
        assert answer.outcome == "done"
        return dict(answer.detail)

    try:
        assert ask("pause") == {"paused": {"default": ["operator"]}}
        fleet.send("work.send()", 20)
        fleet.wait_for(completed=1, pending=20)
        assert ask("resume") == {"paused": {}}
    finally:
        store.close()
    fleet.wait_for(completed=21)
    assert set(fleet.notes("start").values()) == {1}


def test_chaperone_stack_shows_where_a_job_is(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start(processes=1)
    fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
    fleet.wait_for(running=1)
    ((job_id,),) = fleet.sql("SELECT job_id FROM supervised_jobs")
    command = [str(Path(sys.executable).with_name("chaperone")), "stack", job_id[:8]]

    def ask(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], env={**os.environ, **fleet.env}, capture_output=True, text=True, timeout=60, check=False)

    began = time.monotonic()
    done = ask()
    took = time.monotonic() - began
    assert (done.returncode, done.stderr) == (0, "")
    assert "fleet_app.py" in done.stdout
    assert "in hold" in done.stdout
    print(f"answered within {took:.1f} s")
    assert took < 3.5, "the start of the command included"
    told = json.loads(ask("--format", "json").stdout)
    assert (told["job_id"], told["actor_name"], told["status"]) == (job_id, "hold", "running")
    assert any("in hold" in line for line in told["stack"])

    (tmp_path / "go").touch()
    fleet.wait_for(completed=1)
    over = ask()
    assert (over.returncode, over.stdout) == (1, "")
    assert "it is completed" in over.stderr
