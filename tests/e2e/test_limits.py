"""Limits under the dramatiq command, from the job to the store, and what ``chaperone`` says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dramatiq_chaperone.models import ResourceViolation, SupervisedJob
from dramatiq_chaperone.store.models import using
from tests.conftest import StartWorker
from tests.processes import ROOT
from tests.waiting import wait_until

APP = "tests.e2e.limits_app"


class Site:
    """One worker process, its store, and the ``chaperone`` command."""

    def __init__(self, start_worker: StartWorker, path: Path, broker_url: str) -> None:
        self._start_worker = start_worker
        self.hold = path / "hold"
        self.hold.touch()
        self.url = f"sqlite:///{path}/state/chaperone.sqlite3"
        self.env = {
            "BROKER_URL": broker_url,
            "HOLD": str(self.hold),
            "CHAPERONE_STATE_DIR": str(path / "state"),
            "CHAPERONE_EXPORTER_PORT": "0",
        }

    def start(self, *, threads: int, **env: str) -> None:
        self._start_worker(APP, processes=1, threads=threads, env={**self.env, **env}, cwd=ROOT)

    def send(self, call: str) -> None:
        environment = {**os.environ, **self.env, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", f"from {APP} import *\n{call}"], env=environment, cwd=ROOT, check=True, timeout=60)

    def chaperone(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("chaperone")), *arguments]
        return subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, check=False, timeout=60)

    def health(self) -> Any:
        done = self.chaperone("health", "--all", "--format", "json")
        return json.loads(done.stdout) if done.returncode == 0 else None


@pytest.fixture
def site(start_worker: StartWorker, tmp_path: Path, redis_url: str) -> Site:
    return Site(start_worker, tmp_path, redis_url)


def wait_for_job(site: Site, condition: Callable[[SupervisedJob], bool]) -> None:
    """Wait until the only job of the store is like that."""
    with using(site.url):
        wait_until(lambda: any(condition(job) for job in SupervisedJob.select()), timeout_s=60, interval_s=0.1)


@pytest.mark.parametrize("watcher", ["1", "0"])
def test_a_job_that_is_interrupted_at_its_memory_limit(site: Site, watcher: str) -> None:
    site.start(threads=1, CHAPERONE_WATCHER=watcher, CHAPERONE_ON_MEMORY="interrupt")
    site.send("hoard.send()")
    wait_until(lambda: Path(site.url.removeprefix("sqlite:///")).exists(), timeout_s=60)
    wait_for_job(site, lambda job: job.is_failed())
    with using(site.url):
        (job,) = SupervisedJob.select()
        assert [(each.outcome, each.exception) for each in job.errors] == [
            ("interrupted", "dramatiq_chaperone.errors.MemoryLimitExceeded")
        ] * 2
        assert [(each.type, each.limit, each.attribution) for each in job.resource_violations] == [("memory", 150e6, "exact")] * 2
        assert all(each.actual > 300e6 for each in job.resource_violations)


def test_health_of_jobs_that_are_not_well(site: Site) -> None:
    site.start(threads=1)
    site.send("hoard.send()")
    wait_until(lambda: Path(site.url.removeprefix("sqlite:///")).exists(), timeout_s=60)
    wait_for_job(site, lambda job: job.is_unhealthy())
    with using(site.url):
        (job,) = SupervisedJob.unhealthy()
        assert (job.is_degraded(), job.is_stuck(), job.is_healthy()) == (False, False, False)
    failing = site.chaperone("health", "--fail")
    assert failing.returncode == 1
    assert "memory over its limit" in failing.stdout
    site.hold.unlink()
    wait_for_job(site, lambda job: job.is_completed())
    assert site.chaperone("health", "--fail").returncode == 0


def test_two_jobs_share_a_reading_and_a_users_check_is_asked(site: Site) -> None:
    site.start(threads=2, CHAPERONE_ON_MEMORY="interrupt")
    site.send("import_rows.send()")
    wait_until(lambda: Path(site.url.removeprefix("sqlite:///")).exists(), timeout_s=60)
    wait_for_job(site, lambda job: job.is_degraded())
    site.send("hoard.send()")
    with using(site.url):
        violation = wait_until(ResourceViolation.get_or_none, timeout_s=60, interval_s=0.1)
        assert (violation.job, violation.attribution, violation.limit) == (None, "shared", 150e6)
        job = SupervisedJob.degraded().get()
        assert (job.actor_name, job.health_checks[0].reason) == ("import_rows", "every second row is refused")
    counts = site.health()["counts"]
    assert counts == {"healthy": 1, "degraded": 1, "unhealthy": 0, "unknown": 0}
    site.hold.unlink()
    with using(site.url):
        wait_until(lambda: SupervisedJob.completed().count() == 2, timeout_s=60, interval_s=0.1)
        assert ResourceViolation.select().count() == 1


def test_a_timeout_of_ours(site: Site) -> None:
    site.start(threads=1)
    site.send("spin.send()")
    wait_until(lambda: Path(site.url.removeprefix("sqlite:///")).exists(), timeout_s=60)
    wait_for_job(site, lambda job: job.is_failed())
    with using(site.url):
        (job,) = SupervisedJob.select()
        assert [(each.exception, each.outcome) for each in job.errors] == [("dramatiq_chaperone.errors.TimeoutExceeded", "interrupted")]
        assert [(each.type, each.limit) for each in job.resource_violations] == [("timeout", 1.0)]
        assert (job.timeout_at - job.started_at).total_seconds() == pytest.approx(1.0, abs=0.01)
