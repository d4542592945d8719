"""Writes the dashboards."""

from __future__ import annotations

from pathlib import Path

from . import actors, breakers, overview, queues, workers
from .parts import text_of

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = {module.__name__.rpartition(".")[2]: module.dashboard for module in (overview, actors, workers, queues, breakers)}


def rendered() -> dict[str, str]:
    """Every dashboard: the name of its file to its text."""
    return {f"{name}.json": text_of(make()) for name, make in DASHBOARDS.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in rendered().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
