"""The settings: declared in one table, the fields of :class:`Settings`; read and validated once; frozen.

An argument of ``Chaperone(...)`` wins over the environment, that over chaperone.toml, that over the default.  This
package alone reads the environment.
"""

# ruff: noqa: RUF009 - the functions that are called here declare fields, as dataclasses.field does
from __future__ import annotations

import hashlib
import json
import os
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dramatiq_chaperone.errors import SettingsError

from .alerting import LABELS, PRESETS, SEVERITIES, THRESHOLDS, checked_matcher
from .masks import mask_url
from .services import BREAKER_OPTIONS, checked_option
from .sources import default_state_dir, from_arguments, from_config, from_environment, read_config
from .values import DEFAULT, NAMED_TABLES, bound, checked, shown, thawed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BREAKER_OPTIONS",
    "LABELS",
    "PRESETS",
    "SEVERITIES",
    "SettingRow",
    "Settings",
    "THRESHOLDS",
    "bound",
    "checked_matcher",
    "checked_option",
    "default_state_dir",
    "mask_url",
]

#: The tables whose names cannot be set one by one.
_OTHER_TABLES: Final = (
    *("workers", "queues", "commands", "events", "alerts", "alert_groups", "alert_deliveries", "silences"),
    *("counters", "rollups", "hours", "open_runs", "flushes", "leases", "audit_log"),
    *("suspects", "returns"),
)


def _setting(part: str, default: object, help_: str, **facts: object) -> Any:
    """Declare a setting of *part*.

    Facts: unit; low and high (bounds, inclusive); choices; secret (True, or 'url': only its password); argument
    (False: not in ``Chaperone(...)``); variable (False: only there); in_use (False: accepted, its feature is to come);
    once_set (True: the default is Dramatiq's until somebody sets it);
    file (True: also in chaperone.toml, though it is no variable).
    """
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"part": part, "help": help_, **facts})
    return field(default=default, metadata={"part": part, "help": help_, **facts})


def _general(default: object, help_: str, **facts: object) -> Any:
    return _setting("General", default, help_, **facts)


def _store(default: object, help_: str, **facts: object) -> Any:
    return _setting("Store", default, help_, **facts)


def _table(default: str) -> Any:
    return _setting("Store", default, f"Name of the table `{default}`, without the prefix.", argument=False)


def _limit(default: object, help_: str, **facts: object) -> Any:
    return _setting("Supervision", default, help_, **{"low": 0, **facts})


def _action(default: str, what: str, **facts: object) -> Any:
    return _setting("Supervision", default, f"What is done {what}.", choices=("record", "interrupt", "kill"), **facts)


def _patterns(help_: str) -> Any:
    return _setting("Supervision", (), help_)


def _record(default: object, help_: str, **facts: object) -> Any:
    return _setting("Records", default, help_, **facts)


def _breaker(default: object, help_: str, **facts: object) -> Any:
    return _setting("Circuit breakers", default, help_, **facts)


def _alert(default: object, help_: str, **facts: object) -> Any:
    return _setting("Alerts and metrics", default, help_, **facts)


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """Every setting, as it is in effect.  Made by :meth:`load`; its repr masks what is secret."""

    enabled: bool = _general(True, "Off: the middleware does nothing at all.")
    config: Path | None = _general(None, "The chaperone.toml to read; else the one in the working directory, if there is one.")
    state_dir: Path = _general(
        None, "Folder of the journals, and of the default database; else `$XDG_STATE_HOME/chaperone`, else `~/.local/state/chaperone`."
    )
    watcher: bool = _general(True, "Start a watcher process beside the workers, which writes their journals to the store.")
    broker: str | None = _general(None, "Where commands find your broker, as `module` or `module:attribute`.")
    journal_max_mb: int = _general(
        1024, "Disk space that the journal of one process may take while the store is away.", unit="MB", low=4, high=65_536
    )

    database_url: str = _store(
        "",
        "The store: `sqlite:///path`, `postgresql://…` or `mysql://…`; else `chaperone.sqlite3` in `state_dir`.",
        secret="url",  # noqa: S106 - how it is masked
    )
    auto_migrate: bool = _store(False, "Let a worker create and upgrade the tables of a PostgreSQL or MySQL database.")
    primary_key_type: str = _store("id", "Type of all keys.", choices=("id", "ulid", "uuid"), argument=False)
    table_prefix: str = _store("", "Put before every table's name, for a database that is shared with others.", argument=False)
    jobs_table: str = _table("supervised_jobs")
    errors_table: str = _table("supervised_job_errors")
    heartbeats_table: str = _table("heartbeats")
    circuit_breakers_table: str = _table("circuit_breakers")
    resource_violations_table: str = _table("resource_violations")
    job_health_checks_table: str = _table("job_health_checks")
    dlq_table: str = _table("dead_letter_jobs")
    retention_completed: int = _store(7, "Days that jobs which ended well are kept; 0: for ever.", unit="days", low=0, high=36_500)
    retention_failed: int = _store(30, "Days that all other ended jobs are kept; 0: for ever.", unit="days", low=0, high=36_500)
    dlq_enabled: bool = _store(True, "Keep dead-lettered messages in the store.")
    dlq_retention_days: int = _store(30, "Days that they are kept; 0: for ever.", unit="days", low=0, high=36_500)
    dlq_cleanup_schedule: str = _store("0 2 * * *", "When they are cleaned up, as a cron line.", in_use=False)
    connection_pool_limit: int = _store(10, "Database connections of one process, at most.", low=1, high=1000, in_use=False)

    timeout: float = _limit(3600.0, "How long a job may run; 0: no limit.", unit="seconds", high=31_536_000, once_set=True)
    memory_limit: float = _limit(512.0, "Memory of a job; 0: no limit.", unit="MB")
    cpu_limit: float = _limit(80.0, "CPU of a job, in percent of one core; 0: no limit.", unit="percent", high=100_000)
    disk_space_threshold: float = _limit(
        1024.0, "Free disk space below which jobs wait, if you set it; the default is only written down. 0: off.", unit="MB"
    )
    disk_path: Path | None = _setting(
        "Supervision", None, "Where the free space is read; else in `state_dir` and in the folder of temporary files."
    )
    file_descriptor_limit: int = _limit(1024, "Open files of a process; 0: no limit.")
    address_space_limit: float = _limit(0.0, "Address space of an isolated job, which the system keeps; 0: no limit.", unit="MB")
    heartbeat_interval: float = _limit(60.0, "How often a job that sends heartbeats has to; 0: as it likes.", unit="seconds", high=86_400)
    missed_heartbeats: int = _limit(3, "So many missed in a row make it stuck.", low=1, high=1000)
    worker_heartbeat: float = _limit(5.0, "How often a worker process says that it lives.", unit="seconds", low=0.1, high=60)
    on_timeout: str = _action("interrupt", "at a timeout that you set")
    on_memory: str = _action("record", "at a memory limit that you set")
    on_cpu: str = _action("record", "at a CPU limit that you set")
    on_stuck: str = _action("record", "with a job that is stuck")
    kill_grace: float = _limit(
        10.0, "So long after its interrupt a job that still runs has ignored it; where it is killed, its process ends then.",
        unit="seconds", high=3600,
    )  # fmt: skip
    replaceable: bool = _setting(
        "Supervision", False, "A worker process may be ended to kill a job: something starts another (`-p 1` under systemd, a container)."
    )
    max_crashes: int = _limit(3, "After so many lost runs a message is dead-lettered instead of run; 0: never.", high=1000)
    max_retries: int = _limit(3, "Given to Dramatiq's Retries if you set it: 3 is 4 runs.", high=1_000_000, once_set=True)
    retry_delay: float = _limit(
        60.0, "Given to Dramatiq's Retries as min_backoff if you set it.", unit="seconds", high=604_800, once_set=True
    )
    supervised_queues: tuple[str, ...] = _patterns("Patterns of the queues to supervise; none: all.")
    excluded_queues: tuple[str, ...] = _patterns("Patterns of the queues to leave alone; they win.")
    supervised_actors: tuple[str, ...] = _patterns("Patterns of the actors to supervise; none: all.")
    excluded_actors: tuple[str, ...] = _patterns("Patterns of the actors to leave alone; they win.")

    record_errors: bool = _record(True, "Keep a row for each run that did not complete.")
    error_max_bytes: int = _record(32_768, "Longest traceback that is kept whole.", unit="bytes", low=256, high=262_144)
    include_payload: bool = _record(True, "Keep the arguments of jobs.")
    payload_max_bytes: int = _record(16_384, "Largest payload that is kept whole.", unit="bytes", low=256, high=262_144)
    redact: tuple[str, ...] = _record(
        (), "More patterns of keys whose values are left out; `!pattern` keeps them. The last that matches decides."
    )
    redactor: Callable[[str, Any], Any] | None = _record(
        None, "`redactor(key, value)` gives what is kept of each named value, after the patterns.", variable=False
    )

    circuit_breaker_enabled: bool = _breaker(True, "Off: every call goes through.")
    circuit_breaker_threshold: int = _breaker(5, "Failures in a row that open a breaker.", low=1, high=1_000_000)
    circuit_breaker_success_threshold: int = _breaker(2, "Trial calls in a row that must succeed to close it.", low=1, high=1000)
    circuit_breaker_timeout: float = _breaker(300.0, "How long it stays open before a trial call.", unit="seconds", low=0, high=86_400)
    circuit_breaker_half_open_attempts: int = _breaker(3, "Trial calls while it is half open, at most.", low=1, high=1000)

    breakers: Mapping[str, Mapping[str, Any]] = _breaker(
        {}, "Options of single services, by their names: `[breakers.payments]`; see breakers.md.", variable=False, file=True
    )

    exporter_host: str = _alert("127.0.0.1", "Address on which the metrics are served.")
    exporter_port: int = _alert(9292, "Port of the metrics; 0: none.", low=0, high=65_535)
    dashboard_url: str | None = _alert(None, "Where the dashboard is reached, for the links in alerts.")
    alerting_enabled: bool = _alert(True, "Raise and send alerts.")
    alert_urls: tuple[str, ...] = _alert((), "Where alerts go: Apprise URLs; see alerting.md.", secret=True)
    alert_channels: tuple[str, ...] = _alert((), "Names of the channels that alerts go to; none: all.")
    alert_recipients: tuple[str, ...] = _alert((), "E-mail addresses that alerts go to, through `mail_host`.")
    alert_error_rate: float = _alert(10.0, "Alert when more of the runs fail; 0: never.", unit="percent", low=0, high=100)
    alert_response_time: float = _alert(300.0, "Alert when runs take longer on average; 0: never.", unit="seconds", low=0)
    alert_queue_length: int = _alert(1000, "Alert when more messages wait in a queue; 0: never.", low=0)
    alert_group_wait: float = _alert(
        30.0, "How long the first alert of a group waits for others; one that is critical does not.", unit="seconds", low=0, high=86_400
    )
    alert_group_interval: float = _alert(300.0, "Shortest time between two messages of a group.", unit="seconds", low=0, high=604_800)
    alert_repeat_interval: float = _alert(14_400.0, "When an alert that still fires is sent again.", unit="seconds", low=0, high=31_536_000)
    slack_webhook_url: str | None = _alert(None, "A Slack webhook that alerts go to.", secret=True)
    discord_webhook_url: str | None = _alert(None, "A Discord webhook that alerts go to.", secret=True)
    pagerduty_routing_key: str | None = _alert(None, "A PagerDuty integration that alerts go to.", secret=True)
    opsgenie_api_key: str | None = _alert(None, "An Opsgenie integration that alerts go to.", secret=True)
    mail_host: str | None = _alert(None, "The SMTP server for `alert_recipients`.")
    mail_port: int = _alert(587, "Its port.", low=1, high=65_535)
    mail_encryption: str = _alert("tls", "How it is spoken to: tls is STARTTLS, ssl from the first byte.", choices=("tls", "ssl", "none"))
    mail_username: str | None = _alert(None, "Its user.")
    mail_password: str | None = _alert(None, "The user's password.", secret=True)
    mail_from_address: str | None = _alert(None, "Who sends; else `alerts@` and the name of the server, or the first recipient.")
    mail_from_name: str = _alert("Chaperone Alerts", "The name of who sends.")
    critical_jobs: tuple[str, ...] = _alert((), "Patterns of the actors whose alerts are critical.")
    alerts: Mapping[str, Any] = _alert(
        {}, "Channels, routes, thresholds and the rest: `[alerts]`; see alerting.md.", variable=False, file=True, secret=True
    )

    #: Where each value came from, by name: 'default', 'environment CHAPERONE_X', 'argument x', 'chaperone.toml x'.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, arguments: Mapping[str, object] | None = None, *, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check all settings; None as an argument's value is the same as no argument.

        Raises:
          SettingsError: a value is not valid, or an argument or a name in chaperone.toml is unknown.  An unknown
            environment variable is a warning: a stray one must not stop anybody's workers.
        """
        environ = os.environ if environ is None else environ
        given = from_arguments(_FIELDS, {} if arguments is None else arguments)
        variables = from_environment(_FIELDS, environ)
        path, table = read_config(_FIELDS["config"], given.get("config") or variables.get("config"))
        found = {**from_config(_FIELDS, path, table), **variables, **given}
        values = {name: checked(_FIELDS[name], each) for name, each in found.items()}
        origins = {name: found[name].origin if name in found else DEFAULT for name in _FIELDS}
        values.update(_resolved(values, path, environ))
        settings = cls(**values, origins=origins)
        _refuse_contradictions(settings)
        return settings

    @classmethod
    def from_file(cls, path: Path) -> Settings:
        """What :meth:`to_file` wrote; the redactor, a callable, is missing.  Raises OSError or ValueError."""
        data = json.loads(path.read_text(encoding="utf-8"))
        values = {name: thawed(_FIELDS[name].type, value) for name, value in data["values"].items()}
        return cls(**values, origins=data["origins"])

    @staticmethod
    def more_of(path: Path) -> dict[str, Any]:
        """What :meth:`to_file` was given beside the settings.  Raises OSError or ValueError."""
        more: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("more", {})
        return more

    def to_file(self, path: Path, **more: Any) -> None:
        """Write all settings, secrets too, into *path*, which only this user can read.  For a process that cannot see the arguments.

        Parameters:
          more: what else it has to know, as JSON has it.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        values = {name: getattr(self, name) for name in _FIELDS if name != "redactor"}
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"values": values, "origins": dict(self.origins), "more": more}, file, default=str)
        new.replace(path)

    def is_set(self, name: str) -> bool:
        """Whether somebody set *name*: it is not a default."""
        return self.origins.get(name, DEFAULT) != DEFAULT

    @property
    def safe_database_url(self) -> str:
        """The database URL with its password masked."""
        return mask_url(self.database_url)

    @property
    def table_names(self) -> Mapping[str, str]:
        """The name of each table in the database, prefix included, by its logical name."""
        named = {table: getattr(self, name) for table, name in NAMED_TABLES.items()}
        return {table: self.table_prefix + name for table, name in {**named, **{t: t for t in _OTHER_TABLES}}.items()}

    @property
    def journal_dir(self) -> Path:
        """Where the journals of this store lie.  A new password does not move them."""
        key = json.dumps([self.safe_database_url, self.table_prefix])
        return self.state_dir / "journal" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def public_rows(self) -> list[SettingRow]:
        """Every setting with its origin, in the order of declaration; secrets masked."""
        return [self._row(name, each.metadata) for name, each in _FIELDS.items()]

    def _row(self, name: str, facts: Mapping[str, Any]) -> SettingRow:
        in_use = facts.get("in_use", True)
        in_effect = in_use and (self.is_set(name) or not facts.get("once_set", False))
        return SettingRow(name, self._public(name), self.origins.get(name, DEFAULT), facts.get("unit"), facts["help"], in_use, in_effect)

    def _public(self, name: str) -> str:
        return shown(_FIELDS[name], getattr(self, name))

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={self._public(name)}' for name in _FIELDS if self.is_set(name))})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "redactor": None}


class SettingRow(NamedTuple):
    """A setting as `chaperone config` shows it."""

    name: str
    #: As text, masked where it is secret.
    value: str
    origin: str
    unit: str | None
    help: str
    #: False: it is read and checked, but what it controls is to come.
    in_use: bool
    #: False too for a default that takes effect only once somebody sets it; until then Dramatiq's own applies.
    in_effect: bool


_FIELDS: Final[dict[str, Field[Any]]] = {each.name: each for each in fields(Settings) if each.name != "origins"}


def _resolved(values: Mapping[str, Any], path: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """The defaults that hang on others."""
    state_dir = values["state_dir"] if "state_dir" in values else default_state_dir(environ)
    return {
        "config": path,
        "state_dir": state_dir,
        "database_url": values.get("database_url") or f"sqlite:///{state_dir}/chaperone.sqlite3",
    }


def _refuse_contradictions(settings: Settings) -> None:
    names = list(settings.table_names.values())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"Two tables cannot have one name: {twice!r}", field=None, value=twice)
    trials, successes = settings.circuit_breaker_half_open_attempts, settings.circuit_breaker_success_threshold
    if successes > trials:
        message = f"circuit_breaker_success_threshold ({successes}) must be at most circuit_breaker_half_open_attempts ({trials})"
        name = "circuit_breaker_success_threshold"
        raise SettingsError(message, field=name, value=successes, origin=settings.origins[name])
