"""The tables of docs/performance.md.

REFRESH_DOCS=1 writes those that were measured into the file, between their markers.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
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
        publish(self.name, str(self))


def publish(name: str, text: str) -> None:
    """Print *text*, and put it in its place in the documentation if that was asked for."""
    print(f"\n\n{text}", flush=True)
    if os.environ.get("REFRESH_DOCS"):
        page = PAGE.read_text(encoding="utf-8")
        pattern = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(page), f"docs/performance.md has no place for {name}"
        PAGE.write_text(pattern.sub(lambda found: f"{found[1]}{text}{found[2]}", page), encoding="utf-8")


def machine() -> str:
    """Where this is measured, and how busy it was before."""
    names = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    versions = ", ".join(f"{package} {version(package)}" for package in ("dramatiq", "redis", "peewee"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({names[0] if names else platform.machine()}), {platform.system()}, "
        f"Python {platform.python_version()}, {versions}; load before the first measurement: {os.getloadavg()[0]:.1f}.\n"
    )


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


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
