"""Charts for the terminal, drawn with the characters that fill a cell from below.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"


def chart(
    points: Sequence[tuple[float, float]],
    *,
    width: int,
    height: int = 5,
    label: Callable[[float], str],
    ends: tuple[str, str],
    low: float | None = None,
    high: float | None = None,
) -> list[str]:
    """The lines of a chart, the highest value above; none without a point.

    Parameters:
      points: (time in seconds, value), oldest first; where several fall into one column the highest is drawn, and a
        column without one goes on with the last.
      width: of the whole, labels included, in characters.
      label: what stands beside the axis for its highest and its lowest value.
      ends: what stands below the first and the last column.
      low, high: the ends of the axis; by default the lowest and the highest value.
    """
    if not points:
        return []
    values = [value for _, value in points]
    bottom, top = min(values) if low is None else low, max(values) if high is None else high
    labels = [label(top), *[""] * (height - 2), label(bottom)]
    margin = max(map(len, labels))
    cells = max(1, width - margin - 2)
    levels = [_level(value, bottom, top, height) for value in columns(points, cells)]
    lines = []
    for number, text in enumerate(labels):
        below = (height - 1 - number) * 8
        bar = "".join(_EIGHTHS[max(0, min(8, level - below))] for level in levels)
        lines.append(f"{text:>{margin}} ┤{bar}".rstrip())
    first, last = ends
    lines.append(" " * (margin + 2) + first + last.rjust(max(len(last) + 2, cells - len(first))))
    return lines


def columns(points: Sequence[tuple[float, float]], number: int) -> list[float]:
    """One value for each of *number* equal spans of time."""
    began, ended = points[0][0], points[-1][0]
    span = (ended - began) or 1.0
    found: list[float | None] = [None] * number
    for at, value in points:
        place = max(0, min(number - 1, int((at - began) / span * number)))
        known = found[place]
        found[place] = value if known is None else max(known, value)
    drawn, last = [], points[0][1]
    for each in found:
        last = last if each is None else each
        drawn.append(last)
    return drawn


def _level(value: float, bottom: float, top: float, height: int) -> int:
    """How many eighths of a cell are filled; the lowest value has one, to be seen."""
    if top <= bottom:
        return 1
    return max(1, round(max(0.0, min(1.0, (value - bottom) / (top - bottom))) * height * 8))
