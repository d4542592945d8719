"""The tables in docs/ are made from the code.

After a change: REFRESH_DOCS=1 pytest tests/unit/test_docs.py writes them anew.
"""

from __future__ import annotations

import os
import re
from dataclasses import fields
from itertools import groupby
from pathlib import Path

import pytest

from dramatiq_chaperone import events
from dramatiq_chaperone.settings import Settings, bound

DOCS = Path(__file__).parents[2] / "docs"
DEFAULTS = {"state_dir": "–", "database_url": "–"}


def shown(value):
    if value is True or value is False:
        return "on" if value else "off"
    if value is None or value in {"", ()}:
        return "–"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def setting_row(each):
    facts = each.metadata
    note = "" if facts.get("in_use", True) else "¹"
    where = "" if facts.get("argument", True) else " Not an argument." if facts.get("variable", True) else ""
    where = where if facts.get("variable", True) else " Only an argument."
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


TABLES = {"settings": ("settings.md", settings_table), "events": ("events.md", events_table)}


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
