"""What importing the package costs everyone who only sends messages."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"apprise", "click", "fastapi", "peewee", "prometheus_client", "psycopg", "pymysql", "rich"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_library_that_only_some_processes_need() -> None:
    loaded = run("import sys, dramatiq_chaperone; print(*sys.modules)").split()

    assert HEAVY.isdisjoint(loaded)


def test_import_starts_no_thread() -> None:
    assert run("import threading, dramatiq_chaperone; print(threading.active_count())").strip() == "1"
