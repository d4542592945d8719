"""The tables in docs/ are made from the code.

After a change: REFRESH_DOCS=1 pytest tests/unit/test_docs.py writes them anew.
"""

from __future__ import annotations

import os
import re
from dataclasses import fields
from itertools import groupby
from pathlib import Path

import click
import pytest

from dramatiq_chaperone import cli, events
from dramatiq_chaperone.metrics.names import SERIES
from dramatiq_chaperone.settings import Settings, bound

DOCS = Path(__file__).parents[2] / "docs"
DEFAULTS = {"state_dir": "–", "database_url": "–", "breakers": "–", "alerts": "–"}


def shown(value):
    if value is True or value is False:
        return "on" if value else "off"
    if value is None or value in {"", ()}:
        return "–"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def setting_row(each):
    facts = each.metadata
    note = "¹" if not facts.get("in_use", True) else "²" if facts.get("once_set") else ""
    where = "" if facts.get("argument", True) else " Not an argument." if facts.get("variable", True) else ""
    where = where if facts.get("variable", True) else " No variable." if facts.get("file") else " Only an argument."
    default = DEFAULTS.get(each.name) or shown(each.default)
    return f"| `{each.name}`{note} | {default} | {bound(each)} | {facts['help']}{where} |"


def settings_table():
    declared = [each for each in fields(Settings) if each.name != "origins"]
    lines = []
    for part, members in groupby(declared, key=lambda each: each.metadata["part"]):
        lines += ["", f"### {part}", "", "| setting | default | value | what it does |", "|---|---|---|---|", *map(setting_row, members)]
    return "\n".join([*lines[1:], ""])


def events_table():
    shared = {each.name for each in fields(events.JobEvent)}
    lines = ["| event | when | fields | stored |", "|---|---|---|---|"]
    for kind, stored in events.EVENTS.items():
        own = [each.name for each in fields(kind) if not (issubclass(kind, events.JobEvent) and each.name in shared)]
        lines.append(f"| `{kind.__name__}` | {kind.__doc__} | {', '.join(f'`{name}`' for name in own)} | {'yes' if stored else 'no'} |")
    return "\n".join([*lines, ""])


def metrics_table():
    lines = ["| series | type | unit | labels | what it says | source |", "|---|---|---|---|---|---|"]
    for each in SERIES:
        labels = ", ".join(f"`{name}`" for name in each.labels) or "–"
        lines.append(f"| `{each.name}` | {each.type} | {each.unit} | {labels} | {each.help} | {each.source} |")
    return "\n".join([*lines, ""])


def commands(group=cli.commands, path="chaperone"):
    """Each command as (what is typed, the command)."""
    for name, command in group.commands.items():
        typed = f"{path} {name}"
        yield from commands(command, typed) if isinstance(command, click.Group) else [(typed, command)]


@pytest.mark.parametrize(("typed", "command"), list(commands()))
def test_every_command_and_its_options_stand_in_the_documentation(typed, command):
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{typed}[ `].*$", text, flags=re.MULTILINE)
    assert row is not None, f"docs/cli.md has no row for {typed}"
    everywhere = {"--config", "--database-url", "--format"}
    for option in command.params:
        name = option.opts[0]
        if isinstance(option, click.Option) and not option.hidden:
            assert re.search(rf"[` ]{name}[` ]", text if name in everywhere else row[0]), f"{name} of {typed}"


def test_no_command_in_the_documentation_is_made_up():
    known = {typed for typed, _ in commands()}
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(chaperone(?: [a-z]+(?:-[a-z]+)*)+)", text, flags=re.MULTILINE)
    assert sorted(rows) == sorted(known)


TABLES = {"settings": ("settings.md", settings_table), "events": ("events.md", events_table), "metrics": ("metrics.md", metrics_table)}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_in_the_documentation_is_that_of_the_code(name):
    file, render = TABLES[name]
    path = DOCS / file
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    text = path.read_text(encoding="utf-8")
    wanted = pattern.sub(lambda found: f"{found[1]}{render()}{found[2]}", text)
    if os.environ.get("REFRESH_DOCS"):
        path.write_text(wanted, encoding="utf-8")
        text = wanted
    assert pattern.search(text)
    assert text == wanted, "run REFRESH_DOCS=1 pytest tests/unit/test_docs.py, and commit what it wrote"


def test_every_section_of_settings_is_in_one_place():
    parts = [part for part, _ in groupby(fields(Settings)[:-1], key=lambda each: each.metadata["part"])]
    assert len(parts) == len(set(parts))
