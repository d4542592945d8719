"""Draws a dashboard from the data that its queries give: a picture for the documentation, by no Grafana."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Json = dict[str, Any]
#: A query of Prometheus over the time that is drawn, and at its end: (expression, whether at its end) to its result.
Ask = Callable[[str, bool], Sequence[Json]]

COLORS: Final = ("#3274d9", "#e0752d", "#2f9e44", "#8f3bb8", "#c4162a", "#0a7e8c", "#b8860b", "#d6409f", "#5c677d", "#7cb305")
THRESHOLDS: Final = {"green": "#2f9e44", "yellow": "#d9930d", "red": "#c4162a", "blue": "#3274d9"}
INK, FAINT, GRID, CARD, PAGE = "#24292f", "#6e7781", "#e7eaee", "#ffffff", "#f3f5f7"
#: Inches of a unit of the grid, across and down, and between panels.
UNIT_X, UNIT_Y, GAP = 0.58, 0.30, 0.10
#: Rows of a table and bars of a ranking that are drawn, and lines that the legend names.
MOST_ROWS, MOST_NAMES = 9, 5
_BYTES: Final = ("B", "kB", "MB", "GB", "TB")

mpl.rcParams.update(
    {"font.family": "DejaVu Sans", "font.size": 7, "svg.fonttype": "none", "svg.hashsalt": "chaperone", "axes.edgecolor": GRID}
)


def draw(board: Json, ask: Ask, path: Path) -> None:
    """Draw a dashboard into a file, whose name says in which format."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = Figure(figsize=(24 * UNIT_X, height * UNIT_Y + 0.5), facecolor=PAGE)
    size = figure.get_size_inches()
    figure.text(0.012, 1 - 0.3 / size[1], board["title"], fontsize=12, weight="bold", color=INK)
    for panel in board["panels"]:
        at = panel["gridPos"]
        left, width = at["x"] * UNIT_X + GAP / 2, at["w"] * UNIT_X - GAP
        top, tall = at["y"] * UNIT_Y + 0.5 + GAP / 2, at["h"] * UNIT_Y - GAP
        box = (left / size[0], 1 - (top + tall) / size[1], width / size[0], tall / size[1])
        if panel["type"] == "row":
            figure.text(box[0] + 0.004, box[1] + box[3] / 4, panel["title"], fontsize=8.5, weight="bold", color=INK)
        else:
            _card(figure, panel, box, tall, ask)
    figure.savefig(path, facecolor=PAGE, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def _card(figure: Figure, panel: Json, box: tuple[float, float, float, float], tall: float, ask: Ask) -> None:
    card = figure.add_axes(box, facecolor=CARD)
    card.set(xticks=[], yticks=[])
    figure.text(box[0] + 0.006, box[1] + box[3] - 0.15 * box[3] / tall, panel["title"], fontsize=7.5, weight="bold", color=INK, va="center")
    found = [(target, series) for target in panel["targets"] for series in ask(target["expr"], _is_instant(target))]
    if not found:
        card.text(0.5, 0.45, panel["fieldConfig"]["defaults"]["noValue"], ha="center", va="center", color=FAINT)
        return
    PAINTERS[panel["type"]](figure, card, panel, found, box, tall)


def _is_instant(target: Json) -> bool:
    return bool(target.get("instant"))


Found = Sequence[tuple[Json, Json]]
Box = tuple[float, float, float, float]


def _lines(figure: Figure, card: Axes, panel: Json, found: Found, box: Box, tall: float) -> None:
    custom, defaults = panel["fieldConfig"]["defaults"]["custom"], panel["fieldConfig"]["defaults"]
    found = sorted(found, key=lambda each: -float(each[1]["values"][-1][1]))
    legend = 0.13 * math.ceil(min(len(found), MOST_NAMES + 1) / 3) + 0.06
    inner = (box[0] + 0.04, box[1] + (legend + 0.22) / tall * box[3], box[2] - 0.05, box[3] * (1 - (legend + 0.57) / tall))
    axes = figure.add_axes(inner, facecolor=CARD)
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    times = sorted({float(at) for _, series in found for at, _ in series["values"]})
    base = dict.fromkeys(times, 0.0)
    for place, (target, series) in enumerate(found):
        color = COLORS[place % len(COLORS)]
        values = {float(at): float(value) for at, value in series["values"]}
        heights = [values.get(at, 0.0 if stacked else math.nan) + (base[at] if stacked else 0.0) for at in times]
        if custom.get("drawStyle") == "bars":
            axes.bar(times, heights, width=(times[-1] - times[0]) / len(times) or 1, color=color, alpha=0.8, label=_name(target, series))
        else:
            axes.plot(times, heights, color=color, linewidth=1, label=_name(target, series))
            if stacked:
                axes.fill_between(times, list(base.values()), heights, color=color, alpha=0.25, linewidth=0)
        if stacked:
            base = dict(zip(times, heights, strict=True))
    highest = max(axes.get_ylim()[1], 1e-9)
    for step in defaults["thresholds"]["steps"][1:]:
        if step["value"] < 1.4 * highest:
            axes.axhline(step["value"], color=THRESHOLDS[step["color"]], linewidth=0.8, linestyle=(0, (4, 3)))
    _axes(axes, defaults["unit"], times)
    handles, names = axes.get_legend_handles_labels()
    style = {"handlelength": 1, "borderpad": 0.2, "columnspacing": 1.2, "labelspacing": 0.3, "fontsize": 6.2, "labelcolor": INK}
    card.legend(handles[:MOST_NAMES], names[:MOST_NAMES], loc="lower left", ncols=3, frameon=False, **style)


def _axes(axes: Axes, unit: str, times: Sequence[float]) -> None:
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=6.2, labelcolor=FAINT)
    axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    begin = times[0]
    axes.xaxis.set_major_formatter(lambda value, _: f"{(value - begin) / 60:.0f} min")
    axes.set_xticks([begin + 60 * minute for minute in range(int((times[-1] - begin) // 60) + 1)])


def _number(figure: Figure, card: Axes, panel: Json, found: Found, box: Box, tall: float) -> None:
    defaults, (_, series) = panel["fieldConfig"]["defaults"], found[0]
    values = [float(value) for _, value in series["values"]]
    color = _color(values[-1], defaults["thresholds"]["steps"])
    card.text(0.5, 0.46, shown(values[-1], defaults["unit"]), ha="center", va="center", fontsize=15, weight="bold", color=color)
    axes = figure.add_axes((box[0], box[1], box[2], box[3] * 0.24))
    axes.axis("off")
    axes.fill_between(range(len(values)), values, color=color, alpha=0.18, linewidth=0)
    axes.plot(values, color=color, linewidth=0.8)
    axes.set_ylim(min(0, *values), max(*values, 1e-9) * 1.1)
    axes.margins(x=0)


def _bars(figure: Figure, card: Axes, panel: Json, found: Found, box: Box, tall: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    ranked = sorted(((float(series["value"][1]), _name(target, series)) for target, series in found), reverse=True)[:MOST_ROWS]
    axes = figure.add_axes((box[0] + 0.3 * box[2], box[1] + 0.08 * box[3], 0.58 * box[2], box[3] * (1 - 0.40 / tall)))
    axes.axis("off")
    colors = [_color(value, defaults["thresholds"]["steps"]) for value, _ in ranked]
    axes.barh(range(len(ranked)), [value for value, _ in ranked], color=colors, height=0.55, alpha=0.85)
    axes.set_ylim(max(len(ranked), 4) - 0.5, -0.5)
    longest = ranked[0][0] or 1.0
    for place, (value, name) in enumerate(ranked):
        axes.text(-0.02 * longest, place, name, ha="right", va="center", color=INK)
        axes.text(value + 0.015 * longest, place, shown(value, defaults["unit"]), ha="left", va="center", color=FAINT)
    axes.set_xlim(0, 1.1 * longest)


def _table(figure: Figure, card: Axes, panel: Json, found: Found, box: Box, tall: float) -> None:
    titles = [target["legendFormat"] for target in panel["targets"]]
    units = {each["matcher"]["options"]: each["properties"][0]["value"] for each in panel["fieldConfig"]["overrides"]}
    cells: dict[tuple[str, ...], dict[str, float]] = {}
    labels = sorted({label for _, series in found for label in series["metric"]}, reverse=True)
    for target, series in found:
        key = tuple(series["metric"].get(label, "") for label in labels)
        cells.setdefault(key, {})[target["legendFormat"]] = float(series["value"][1])
    sort = panel["options"]["sortBy"][0]["displayName"]
    rows = sorted(cells.items(), key=lambda row: (-row[1].get(sort, 0.0), row[0]))[:MOST_ROWS]
    columns = [*labels, *titles]
    weights = [2.0] * len(labels) + [1.0] * len(titles)
    edges = [0.008 + 0.984 * sum(weights[:place]) / sum(weights) for place in range(len(weights) + 1)]
    line = 0.215 / tall
    for place, column in enumerate(columns):
        is_label = place < len(labels)
        x, side = (edges[place], "left") if is_label else (edges[place + 1] - 0.012, "right")
        card.text(x, 1 - 0.42 / tall, column, ha=side, va="center", color=FAINT, weight="bold", fontsize=6.5)
        for number, (key, values) in enumerate(rows):
            y = 1 - 0.42 / tall - (number + 1) * line
            text = (
                key[place]
                if is_label
                else shown(round(values[column]) if units[column] == "short" else values[column], units[column])
                if column in values
                else "–"
            )
            card.text(x, y, text, ha=side, va="center", color=THRESHOLDS["blue"] if is_label else INK)
    for number in range(len(rows)):
        card.axhline(1 - 0.42 / tall - (number + 0.5) * line, color=GRID, linewidth=0.6)
    card.set(xlim=(0, 1), ylim=(0, 1))


PAINTERS: Final[Mapping[str, Callable[..., None]]] = {"timeseries": _lines, "stat": _number, "bargauge": _bars, "table": _table}


def _color(value: float, steps: Sequence[Json]) -> str:
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return THRESHOLDS[reached[-1]["color"]]


def _name(target: Json, series: Json) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: str(series["metric"].get(found[1], "")), target["legendFormat"])


def shown(value: float, unit: str) -> str:
    """A value in its unit, shortly, as Grafana shows it."""
    if math.isnan(value):
        return "–"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        place = min(len(_BYTES) - 1, int(math.log(max(abs(value), 1), 1000)))
        return f"{value / 1000**place:.3g} {_BYTES[place]}"
    if unit == "s":
        for limit, factor, word in ((1, 1000, "ms"), (60, 1, "s"), (3600, 1 / 60, "min"), (86_400, 1 / 3600, "h")):
            if abs(value) < limit:
                return f"{value * factor:.3g} {word}" if value else "0 s"
        return f"{value / 86_400:.3g} days"
    number = f"{value / 1000:.3g} K" if abs(value) >= 10_000 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} /s" if unit == "ops" else number
