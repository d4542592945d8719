"""The tables of docs/performance.md.

REFRESH_DOCS=1 writes those that were measured into the file, between their markers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from statistics import quantiles

from tests.benchmarks.lab import median
from tests.processes import ROOT

PAGE = ROOT / "docs" / "performance.md"


class Table:
    """A table of figures: what was measured, without us, with us, and what was wanted."""

    def __init__(self, name: str, *columns: str) -> None:
        self.name = name
        self._rows = [columns or ("figure", "bare", "ours", "ratio or difference", "budget", "aim")]

    def add(self, *cells: str) -> None:
        """One row."""
        assert len(cells) == len(self._rows[0])
        self._rows.append(cells)

    def __str__(self) -> str:
        widths = [max(len(row[column]) for row in self._rows) for column in range(len(self._rows[0]))]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in self._rows]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], ""])

    def publish(self) -> None:
        """Print it, and write it into the documentation if that was asked for."""
        print(f"\n\n{self}", flush=True)
        if os.environ.get("REFRESH_DOCS"):
            text = PAGE.read_text(encoding="utf-8")
            pattern = re.compile(rf"(<!-- figures: {self.name} -->\n).*?(<!-- end -->)", re.DOTALL)
            assert pattern.search(text), f"docs/performance.md has no place for {self.name}"
            PAGE.write_text(pattern.sub(lambda found: f"{found[1]}{self}{found[2]}", text), encoding="utf-8")


def ratio(ours: Sequence[float], bare: Sequence[float]) -> str:
    """The median of the ratios of pairs, and where the middle half of them lies."""
    return _spread([mine / base for mine, base in zip(ours, bare, strict=True)], "{:.3f}")


def difference(ours: Sequence[float], bare: Sequence[float], unit: str) -> str:
    """The median of the differences of pairs, and where the middle half of them lies."""
    return _spread([mine - base for mine, base in zip(ours, bare, strict=True)], "{:+.1f}", unit)


def _spread(values: list[float], form: str, unit: str = "") -> str:
    text = form.format(median(values)) + (f" {unit}" if unit else "")
    if len(values) < 4:
        return text
    low, _, high = quantiles(values, n=4)
    return f"{text} ({form.format(low)} to {form.format(high)})"
