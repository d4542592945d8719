"""docs/guarantees.md names the tests of tests/guarantees: each that it names exists, and it names each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| .+ \| .+ \| (each|[A-Z][A-Za-z, ]+) \| `(test_\w+\.py::test_\w+)` \|$", re.MULTILINE)


def written() -> list[str]:
    found = []
    for module in sorted((ROOT / "tests" / "guarantees").glob("test_*.py")):
        functions = [each for each in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(each, ast.FunctionDef)]
        found += [f"{module.name}::{each.name}" for each in functions if each.name.startswith("test_")]
    return found


def test_the_table_names_every_test_and_no_other() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = [name for _, name in ROW.findall(text)]
    assert len(named) == text.count("| `test_"), "a row has another shape"
    assert sorted(named) == sorted(written())
