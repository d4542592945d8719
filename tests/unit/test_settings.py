from __future__ import annotations

import contextlib
import json
import logging
import pickle
import stat
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone.errors import SettingsError
from dramatiq_chaperone.settings import Settings, default_state_dir, mask_url, sources

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_explained", set())


def load(arguments=None, toml=None, **environ):
    if toml is not None:
        Path("chaperone.toml").write_text(toml)
    return Settings.load(arguments, environ={"HOME": "/home/ada", **environ})


def refused(arguments=None, toml=None, **environ):
    with pytest.raises(SettingsError) as raised:
        load(arguments, toml, **environ)
    return raised.value


# --- defaults and precedence


def test_the_defaults_need_no_server_and_no_setting():
    settings = load()
    assert settings.state_dir == Path("/home/ada/.local/state/chaperone")
    assert settings.database_url == "sqlite:////home/ada/.local/state/chaperone/chaperone.sqlite3"
    assert (settings.timeout, settings.memory_limit, settings.cpu_limit, settings.heartbeat_interval) == (3600, 512, 80, 60)
    assert (settings.max_retries, settings.retry_delay, settings.missed_heartbeats, settings.worker_heartbeat) == (3, 60, 3, 5)
    assert (settings.on_timeout, settings.on_memory, settings.on_cpu, settings.on_stuck) == ("interrupt", "record", "record", "record")
    assert (settings.retention_completed, settings.retention_failed, settings.dlq_retention_days) == (7, 30, 30)
    assert (settings.exporter_host, settings.exporter_port) == ("127.0.0.1", 9292)
    assert (settings.primary_key_type, settings.table_prefix, settings.table_names["dead_letter_jobs"]) == ("id", "", "dead_letter_jobs")
    assert settings.config is None
    assert settings.watcher
    assert settings.enabled
    assert not settings.auto_migrate
    assert set(settings.origins.values()) == {"default"}


def test_an_argument_wins_over_the_environment_that_over_the_file_that_over_the_default():
    toml = "timeout = 10\nmemory_limit = 10\ncpu_limit = 10\n"
    settings = load({"timeout": 30}, toml, CHAPERONE_TIMEOUT="20", CHAPERONE_MEMORY_LIMIT="20")
    assert (settings.timeout, settings.memory_limit, settings.cpu_limit, settings.kill_grace) == (30, 20, 10, 10)
    assert settings.origins["timeout"] == "argument timeout"
    assert settings.origins["memory_limit"] == "environment CHAPERONE_MEMORY_LIMIT"
    assert settings.origins["cpu_limit"] == "chaperone.toml cpu_limit"
    assert settings.origins["kill_grace"] == "default"
    assert settings.config == Path("chaperone.toml").absolute()
    assert [settings.is_set(name) for name in ("timeout", "memory_limit", "cpu_limit", "kill_grace")] == [True, True, True, False]


def test_none_is_no_argument_and_an_empty_variable_is_no_variable():
    settings = load({"timeout": None}, CHAPERONE_TIMEOUT="  ", CHAPERONE_WATCHER="")
    assert settings.timeout == 3600
    assert not settings.is_set("timeout")
    assert settings.watcher


def test_an_explicit_default_counts_as_set():
    assert load({"timeout": 3600}).is_set("timeout")


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        load().timeout = 1


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_STATE_HOME": "/var/state"}, "/var/state/chaperone"),
        ({"XDG_STATE_HOME": "relative"}, "/home/ada/.local/state/chaperone"),
        ({"CHAPERONE_STATE_DIR": "/srv/x", "XDG_STATE_HOME": "/var/state"}, "/srv/x"),
    ],
)
def test_the_state_directory(environ, expected):
    settings = load(**environ)
    assert settings.state_dir == Path(expected) == default_state_dir({"HOME": "/home/ada", **environ})
    assert settings.database_url == f"sqlite:///{expected}/chaperone.sqlite3"


def test_the_state_directory_of_the_environment_knows_no_argument(tmp_path):
    assert load({"state_dir": tmp_path}).state_dir == tmp_path
    assert default_state_dir({"HOME": "/home/ada"}) == Path("/home/ada/.local/state/chaperone")


# --- types


def test_text_from_the_environment_is_parsed():
    settings = load(
        CHAPERONE_TIMEOUT="1.5",
        CHAPERONE_MAX_RETRIES=" 4 ",
        CHAPERONE_WATCHER="Off",
        CHAPERONE_AUTO_MIGRATE="yes",
        CHAPERONE_SUPERVISED_QUEUES=" mail* , ,default ",
        CHAPERONE_ALERT_URLS="mailto://a:b@c?to=x,y, slack://t/o/k",
        CHAPERONE_STATE_DIR="~/x",
    )
    assert (settings.timeout, settings.max_retries, settings.watcher, settings.auto_migrate) == (1.5, 4, False, True)
    assert settings.supervised_queues == ("mail*", "default")
    assert settings.alert_urls == ("mailto://a:b@c?to=x,y", "slack://t/o/k")
    assert settings.state_dir == Path("~/x").expanduser()


def test_lists_may_be_any_collection_of_text_or_text_with_commas():
    for value in (["a", "b"], ("a", "b"), {"b", "a"}, "a, b"):
        assert load({"excluded_queues": value}).excluded_queues == ("a", "b")


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("timeout", "30", "a number of seconds, 0 to 31,536,000"),
        ("timeout", True, "a number of seconds"),
        ("timeout", -1, "0 to"),
        ("timeout", float("nan"), "a number"),
        ("timeout", float("inf"), "a number"),
        ("timeout", 10**400, "a number"),
        ("max_retries", 1.5, "a whole number"),
        ("watcher", 1, "true or false"),
        ("on_cpu", "explode", "one of record, interrupt, kill"),
        ("exporter_port", 65_536, "0 to 65,535"),
        ("memory_limit", -0.1, "at least 0"),
        ("broker", "app broker", "module:attribute"),
        ("dashboard_url", "ftp://x", "http"),
        ("supervised_queues", [1], "a list of text"),
        ("supervised_queues", 3, "a list of text"),
        ("redactor", "x", "callable"),
        ("state_dir", 3, "a path"),
        ("dlq_cleanup_schedule", "daily", "cron"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_name_value_bound_and_origin(name, value, bound):
    error = refused({name: value})
    assert (error.field, error.origin) == (name, f"argument {name}")
    assert error.value is value
    assert str(error).startswith(f"{name} must be ")
    assert bound in str(error)
    assert f"(argument {name})" in str(error)


@pytest.mark.parametrize(
    ("name", "text"), [("timeout", "abc"), ("timeout", "-1"), ("watcher", "perhaps"), ("max_retries", "1.5"), ("primary_key_type", "int")]
)
def test_a_wrong_variable_is_refused_with_its_origin(name, text):
    variable = f"CHAPERONE_{name.upper()}"
    error = refused(**{variable: text})
    assert (error.field, error.value, error.origin) == (name, text, f"environment {variable}")


@given(
    name=st.sampled_from([f.name for f in fields(Settings) if f.name != "origins"]),
    value=st.one_of(st.none(), st.text(), st.floats(), st.integers(), st.lists(st.text()), st.binary(), st.booleans()),
)
def test_whatever_is_given_it_is_taken_or_refused_with_a_settings_error(name, value):
    text = str(value).replace("\0", "")
    with contextlib.suppress(SettingsError):
        Settings.load({name: value}, environ={"HOME": "/home/ada"})
    with contextlib.suppress(SettingsError):
        Settings.load(environ={"HOME": "/home/ada", f"CHAPERONE_{name.upper()}": text})


# --- names


def test_an_unknown_argument_is_refused_with_a_suggestion():
    error = refused({"timout": SECRET})
    assert "did you mean timeout?" in str(error)
    assert error.field == "timout"
    assert SECRET not in repr(error.__dict__) + str(error)


def test_an_unknown_variable_is_a_warning_once_and_stops_nothing(caplog):
    for _ in range(2):
        load(CHAPERONE_TIMOUT="3", CHAPERONE_TEST_SCALE="2")
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "did you mean CHAPERONE_TIMEOUT?" in caplog.text


def test_names_that_do_not_carry_over_are_explained_once(caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        load({"morph_type": "string"}, "[horizon]\nenabled = true", CHAPERONE_PULSE_ENABLED="true", CHAPERONE_LOG_CHANNEL="stack")
    assert len(caplog.records) == 4
    assert "CHAPERONE_PULSE_ENABLED has no effect" in caplog.text


@pytest.mark.parametrize("name", ["primary_key_type", "table_prefix", "jobs_table", "dlq_table"])
def test_what_names_tables_cannot_be_an_argument(name):
    error = refused({name: "x"})
    assert f"CHAPERONE_{name.upper()}" in str(error)
    assert "chaperone.toml" in str(error)


def test_the_redactor_is_an_argument_only(caplog):
    assert load({"redactor": repr}).redactor is repr
    assert refused(toml='redactor = "x"').field == "redactor"
    Path("chaperone.toml").unlink()
    load(CHAPERONE_REDACTOR="x")
    assert "CHAPERONE_REDACTOR" in caplog.text


def test_retention_is_also_read_under_its_old_names():
    assert load(WATCHTOWER_RETENTION_COMPLETED="3").retention_completed == 3
    assert load(WATCHTOWER_RETENTION_COMPLETED="3", CHAPERONE_RETENTION_COMPLETED="4").retention_completed == 4


# --- chaperone.toml


def test_tables_of_the_file_are_the_beginning_of_a_name():
    settings = load(toml='timeout = 5\n[circuit_breaker]\nthreshold = 9\n[alert]\nurls = ["json://x"]\n[alert.group]\nwait = 1')
    assert (settings.timeout, settings.circuit_breaker_threshold, settings.alert_urls, settings.alert_group_wait) == (
        5,
        9,
        ("json://x",),
        1,
    )
    assert settings.origins["alert_group_wait"] == "chaperone.toml alert.group.wait"


def test_the_file_may_name_the_tables():
    settings = load(toml='table_prefix = "ch_"\njobs_table = "runs"\nprimary_key_type = "ulid"')
    assert settings.table_names["supervised_jobs"] == "ch_runs"
    assert settings.table_names["workers"] == "ch_workers"
    assert settings.primary_key_type == "ulid"


def test_the_file_can_be_elsewhere(tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("timeout = 7")
    Path("chaperone.toml").write_text("timeout = 8")
    assert load(CHAPERONE_CONFIG=str(other)).timeout == 7
    assert load({"config": other}).origins["timeout"] == "other.toml timeout"
    assert load().timeout == 8


def test_faults_of_the_file_are_told():
    assert "did you mean timeout?" in str(refused(toml="timout = 3"))
    assert refused(toml="timout = 3").origin == "chaperone.toml timout"
    assert "set twice" in str(refused(toml="alert_error_rate = 3\n[alert]\nerror_rate = 4"))
    assert "line 1" in str(refused(toml="timeout = = 3"))
    assert refused(CHAPERONE_CONFIG="/nowhere/x.toml").origin == "environment CHAPERONE_CONFIG"
    assert refused(toml='config = "x"').field == "config"
    assert refused(toml='timeout = "5"').origin == "chaperone.toml timeout"


# --- databases


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("sqlite:////srv/x.db", "sqlite:////srv/x.db"),
        ("sqlite:////srv/x.db?timeout=3", "sqlite:////srv/x.db?timeout=3"),
        ("postgres://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql+psycopg://u:p@h/db?sslmode=require", "postgresql://u:p@h/db?sslmode=require"),
        ("PostgreSQL://h/db", "postgresql://h/db"),
        ("mariadb://h/db", "mysql://h/db"),
        ("mysql+pymysql://h/db", "mysql://h/db"),
    ],
)
def test_database_urls_are_normalised(given_, expected):
    assert load({"database_url": given_}).database_url == expected


def test_a_relative_sqlite_path_is_the_same_for_every_process(tmp_path):
    assert load({"database_url": "sqlite:///x.db"}).database_url == f"sqlite:///{tmp_path}/x.db"


@pytest.mark.parametrize("url", ["redis://x", "x.db", "sqlite:x", "", "postgresql:/x", f"oracle://u:{SECRET}@h/db"])
def test_other_databases_are_refused_without_showing_the_url(url):
    error = refused({"database_url": url})
    assert error.field == "database_url"
    assert error.value == "***"
    assert SECRET not in str(error)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    assert "several processes" in str(refused({"database_url": url}))


def test_the_journal_belongs_to_the_database_and_the_prefix_but_not_to_the_password():
    one = load({"database_url": "postgres://u:a@h/db"})
    assert one.journal_dir.parent == one.state_dir / "journal"
    assert one.journal_dir == load({"database_url": "postgresql://u:b@h/db"}).journal_dir
    assert one.journal_dir != load({"database_url": "postgresql://u:a@h/other"}).journal_dir
    assert one.journal_dir != load({"database_url": "postgres://u:a@h/db"}, CHAPERONE_TABLE_PREFIX="x_").journal_dir


def test_contradictions_are_refused():
    assert "one name" in str(refused(CHAPERONE_JOBS_TABLE="workers"))
    assert refused({"circuit_breaker_success_threshold": 4}).origin == "argument circuit_breaker_success_threshold"
    assert refused(CHAPERONE_TABLE_PREFIX="a-b").field == "table_prefix"
    assert refused(CHAPERONE_JOBS_TABLE="x; drop table").field == "jobs_table"


# --- secrets


def test_secrets_show_nowhere(caplog):
    settings = load(
        {"slack_webhook_url": f"https://hooks/{SECRET}", "alert_urls": [f"json://u:{SECRET}@h"], "pagerduty_routing_key": SECRET},
        CHAPERONE_DATABASE_URL=f"postgresql://u:{SECRET}@h/db?sslpassword={SECRET}",
        CHAPERONE_OPSGENIE_API_KEY=SECRET,
    )
    shown = f"{settings} {settings!r} {settings.public_rows()} {settings.safe_database_url} {caplog.text}"
    assert SECRET not in shown
    assert "postgresql://u:***@h/db?sslpassword=***" in shown
    assert settings.slack_webhook_url == f"https://hooks/{SECRET}"


@pytest.mark.parametrize("name", [f.name for f in fields(Settings) if f.metadata.get("secret")])
def test_an_error_about_a_secret_does_not_show_it(name):
    error = refused({name: SECRET.encode()})
    assert error.value == "***"
    assert SECRET not in str(error)
    assert error.__cause__ is None


@pytest.mark.parametrize("password", ["x", "a@b", "a/b@c", "a?b", "a#b", "ä:ö", "%40"])
def test_passwords_in_urls_are_masked(password):
    assert mask_url(f"postgresql://u:{password}@host/db").startswith("postgresql://u:***@")
    assert password not in mask_url(f"postgresql://u:{password}@host/db").removeprefix("postgresql://u:***@host/db")


# --- showing and handing over


def test_every_setting_is_a_public_row_with_origin_and_help():
    rows = load({"timeout": 5, "excluded_queues": ["a", "b"], "redactor": load}).public_rows()
    by_name = {row.name: row for row in rows}
    assert len(by_name) == len(fields(Settings)) - 1
    assert by_name["timeout"][:4] == ("timeout", "5.0", "argument timeout", "seconds")
    assert by_name["excluded_queues"].value == "a, b"
    assert by_name["redactor"].value == "load"
    assert all(row.help.endswith(".") or row.help for row in rows)
    json.dumps(rows)


def test_settings_go_through_a_private_file_and_through_pickle(tmp_path):
    settings = load(
        {"database_url": f"postgres://u:{SECRET}@h/db", "redactor": lambda key, value: value, "supervised_queues": ["a"], "timeout": 5},
        CHAPERONE_TABLE_PREFIX="x_",
    )
    path = tmp_path / "forks" / "settings.json"
    settings.to_file(path)
    settings.to_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    for copy in (Settings.from_file(path), pickle.loads(pickle.dumps(settings))):
        assert copy.redactor is None
        for each in fields(Settings):
            if each.name != "redactor":
                assert getattr(copy, each.name) == getattr(settings, each.name), each.name
        assert copy.journal_dir == settings.journal_dir


def test_importing_settings_loads_no_toml_and_no_database():
    code = "import sys, dramatiq_chaperone.settings as s; s.Settings.load(); assert not {'tomllib', 'peewee', 'psutil'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_every_setting_is_declared_whole():
    for each in fields(Settings):
        if each.name != "origins":
            assert each.metadata["help"].strip().endswith((".", "`.")), each.name
            assert "low" not in each.metadata or each.metadata["low"] <= each.default
