"""Where settings stand: arguments, environment, chaperone.toml.  Chaperone reads the environment here, and nowhere else."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dramatiq_chaperone.errors import SettingsError

from .masks import MASK
from .values import Found, checked, expanded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from dataclasses import Field

    Fields = Mapping[str, Field[Any]]

logger = logging.getLogger("dramatiq_chaperone")

PREFIX: Final = "CHAPERONE_"
#: The settings that are tables: circuit breakers by the names of services, and all about alerts.
TABLES: Final = frozenset({"breakers", "alerts"})

#: Names of the PHP original that mean nothing here: accepted, and explained once in the log.
NOT_CARRIED_OVER: Final = {
    "morph_type": "an initiator is a type and an id, both text: initiated_by('user', 42)",
    "morph_key_map": "an initiator is a type and an id, both text: initiated_by('user', 42)",
    "enforce_morph_key_map": "an initiator is a type and an id, both text: initiated_by('user', 42)",
    "pulse_enabled": "there is no Pulse for Dramatiq; metrics are served for Prometheus",
    "telescope_enabled": "there is no Telescope for Dramatiq; `chaperone job ID` shows a job",
    "horizon_enabled": "there is no Horizon for Dramatiq; workers are recorded by themselves",
    "log_channel": "Chaperone logs with Python's logging, to the logger 'dramatiq_chaperone'",
    "queue_connection": "the connection is that of your Dramatiq broker",
    "mail_mailer": "e-mail goes out by SMTP: set mail_host, or put a mailto:// address into alert_urls",
}
#: Read too, after the names of ours.
_OLD_VARIABLES: Final = {
    "retention_completed": "WATCHTOWER_RETENTION_COMPLETED",
    "retention_failed": "WATCHTOWER_RETENTION_FAILED",
    "mail_host": "MAIL_HOST",
    "mail_port": "MAIL_PORT",
    "mail_encryption": "MAIL_ENCRYPTION",
    "mail_username": "MAIL_USERNAME",
    "mail_password": "MAIL_PASSWORD",
    "mail_from_address": "MAIL_FROM_ADDRESS",
    "mail_from_name": "MAIL_FROM_NAME",
}
_explained: set[str] = set()


def from_arguments(fields: Fields, arguments: Mapping[str, object]) -> dict[str, Found]:
    """The arguments of ``Chaperone(...)``."""
    found = {}
    for name, value in arguments.items():
        origin = f"argument {name}"
        if not _is_known(name, origin, set(fields)):
            continue
        if not fields[name].metadata.get("argument", True):
            way = f"set {PREFIX}{name.upper()}, or put it into chaperone.toml"
            message = f"{name} cannot be an argument ({origin}), for the tables are named at import: {way}"
            raise SettingsError(message, field=name, value=value, origin=origin)
        if value is not None:
            found[name] = Found(value, origin)
    return found


def from_environment(fields: Fields, environ: Mapping[str, str]) -> dict[str, Found]:
    """An empty variable counts as not set."""
    variables = {PREFIX + name.upper(): name for name, each in fields.items() if each.metadata.get("variable", True)}
    found = {}
    for name, old in _OLD_VARIABLES.items():
        if environ.get(old, "").strip():
            found[name] = Found(environ[old].strip(), f"environment {old}", is_text=True)
    for variable in sorted(name for name in environ if name.startswith(PREFIX) and not name.startswith(PREFIX + "TEST_")):
        if variable in variables:
            if environ[variable].strip():
                found[variables[variable]] = Found(environ[variable].strip(), f"environment {variable}", is_text=True)
        elif variable.removeprefix(PREFIX).lower() in NOT_CARRIED_OVER:
            _explain(variable.removeprefix(PREFIX).lower(), variable)
        elif variable not in _explained:
            _explained.add(variable)
            logger.warning("The environment variable %s is not one of Chaperone's%s", variable, _did_you_mean(variable, variables))
    return found


def read_config(spec: Field[Any], config: Found | None) -> tuple[Path | None, dict[str, Any]]:
    """The path of chaperone.toml and what is in it: the one that *config* names, or the one in the working directory."""
    if config is None and not os.access("chaperone.toml", os.R_OK):
        return None, {}
    path = Path("chaperone.toml").absolute() if config is None else checked(spec, config)
    import tomllib

    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        origin = "chaperone.toml" if config is None else config.origin
        message = f"config: {path} cannot be read ({origin}): {e}"
        raise SettingsError(message, field="config", value=str(path), origin=origin) from None


def from_config(fields: Fields, path: Path | None, table: Mapping[str, Any]) -> dict[str, Found]:
    """`[circuit_breaker] timeout` is the setting `circuit_breaker_timeout`."""
    known = {name for name, each in fields.items() if each.metadata.get("variable", True) and name != "config"} | TABLES
    file = path.name if path else ""
    found: dict[str, Found] = {}
    for key, value in _flat(table):
        name, origin = key.replace(".", "_"), f"{file} {key}"
        if name in found:
            raise SettingsError(f"{name} is set twice ({found[name].origin}, {origin})", field=name, value=MASK, origin=origin)
        if _is_known(name, origin, known):
            found[name] = Found(value, origin)
    return found


def _flat(table: Mapping[str, Any], above: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in table.items():
        is_table = isinstance(value, dict) and (above or key not in TABLES)
        pairs += _flat(value, f"{above}{key}.") if is_table else [(above + key, value)]
    return pairs


def _is_known(name: str, origin: str, known: set[str]) -> bool:
    if name in NOT_CARRIED_OVER:
        _explain(name, origin)
        return False
    if name not in known:
        raise SettingsError(f"{name} is not a setting ({origin}){_did_you_mean(name, known)}", field=name, value=MASK, origin=origin)
    return True


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(name: str, origin: str) -> None:
    if name not in _explained:
        _explained.add(name)
        logger.info("%s has no effect: %s.", origin, NOT_CARRIED_OVER[name])


def default_state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The state directory as the environment alone tells it: CHAPERONE_STATE_DIR, else the default.

    A process that sees neither arguments nor chaperone.toml finds here what another one left for it.

    Raises:
      SettingsError: this user has no home directory.
    """
    environ = os.environ if environ is None else environ
    own = environ.get(PREFIX + "STATE_DIR", "").strip()
    if own:
        return expanded(own)
    base = environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "chaperone"
    home = environ.get("HOME") or str(expanded("~"))
    return Path(home) / ".local" / "state" / "chaperone"
