"""The examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT


def test_breakers(state_dir: Path) -> None:
    env = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(ROOT), "CHAPERONE_STATE_DIR": str(state_dir)}
    command = [sys.executable, str(ROOT / "examples" / "breakers" / "app.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^opened after \d+ failures: HTTPError", done.stdout, flags=re.MULTILINE)
    numbers = {words: int(number) for words, number in re.findall(r"^(.*): (\d+)$", done.stdout, flags=re.MULTILINE)}
    # The threshold, those that were on their way, and a trial each half second.
    assert numbers["while it is down"] <= 3 + 4 + 6
    assert numbers["served"] > 50
    assert done.stdout.endswith("closed again\n") or "at the end it is closed" in done.stdout
