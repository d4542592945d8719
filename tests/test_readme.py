"""README.md keeps its word: its example runs as it stands, and its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import StartProcess, StartWorker
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_example_runs(start_worker: StartWorker, start_process: StartProcess, redis_url: str, state_dir: Path, tmp_path: Path) -> None:
    example = next(each for each in snippets("python") if "__main__" in each)
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    (tmp_path / "app.py").write_text(example)
    env = {"REDIS_URL": redis_url, "CHAPERONE_STATE_DIR": str(state_dir)}

    worker = start_worker("app", env=env)
    assert start_process(sys.executable, "app.py", env=env).wait() == 0
    worker.wait_for_log(" lines")

    def completed() -> list[dict[str, object]]:
        command = [Path(sys.executable).with_name("chaperone"), "jobs", "--status", "completed", "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env}, cwd=tmp_path)
        return json.loads(done.stdout)["jobs"] if done.returncode == 0 else []

    (job,) = wait_until(completed, timeout_s=30, interval_s=0.2, what="the job of the example on record")
    assert job["actor_name"] == "count_lines"
    assert job["progress"] == 100
    assert job["initiator_type"] == "user"


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)

    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links
    assert not missing


def test_commands_are_there() -> None:
    from dramatiq_chaperone.cli import commands

    named = set(re.findall(r"^ +chaperone (\w+)", README, flags=re.MULTILINE))
    targets = set(re.findall(r"^ +make (\w+)", README, flags=re.MULTILINE))

    assert named <= set(commands.commands)
    assert named
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)
