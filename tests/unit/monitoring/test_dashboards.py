"""The dashboards are what the code makes, and have what Grafana's dashboard linter asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from grafana.__main__ import DASHBOARDS, FOLDER, rendered
from grafana.parts import LABELS, SOURCE, TITLES, TOP
from tests.unit.monitoring.metrics import TYPES, metrics_in

BOARDS = {name: json.loads(text) for name, text in rendered().items()}
every_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
VARIABLES = re.compile(r"\$(?:\{)?(\w+)")
#: Functions that a counter may stand in, alone.
OF_COUNTERS = re.compile(r"\b(?:rate|increase)\((\w+)\{[^}]*\}\[\$__(?:rate_interval|range)\](?: @ end\(\))?\)")
OF_TIMES = re.compile(r"\bchanges\((\w+)\{[^}]*\}\[\$__range\]\)")


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield from (each for each in (panel, *panel.get("panels", ())) if each["type"] != "row")


def expressions(board: dict[str, Any]) -> Iterator[str]:
    for panel in panels(board):
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["expr"] for each in board["annotations"]["list"])


def test_what_is_committed_is_what_the_code_makes() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert found == rendered(), "run `make dashboards`, and commit what it wrote"
    assert len(found) == len(DASHBOARDS) == len(TITLES) == 5


@every_board
def test_a_dashboard(board: dict[str, Any]) -> None:
    assert board["uid"] in TITLES
    assert board["title"].endswith(TITLES[board["uid"]])
    assert board["description"]
    assert board["graphTooltip"] == 1  # a crosshair that all panels share
    assert not board["editable"]
    assert {link["url"] for link in board["links"]} > {f"/d/{uid}" for uid in TITLES if uid != board["uid"]}
    assert any(link["title"] == "Runbooks" for link in board["links"])
    assert [each["name"] for each in board["annotations"]["list"]] == ["Worker crashes"]
    assert '"id": null' not in json.dumps(board)


@every_board
def test_variables(board: dict[str, Any]) -> None:
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert list(variables)[:2] == ["datasource", "job"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in variables.keys() - {"datasource"}:
        each = variables[name]
        assert (each["multi"], each["includeAll"], each["allValue"], each["refresh"]) == (True, True, ".*", 2), name
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = set(VARIABLES.findall(" ".join(expressions(board)))) - {"__rate_interval", "__range"}
    assert used == variables.keys() - {"datasource"}


def test_all_variables_are_there() -> None:
    names = {each["name"] for board in BOARDS.values() for each in board["templating"]["list"]}
    assert names >= {"datasource", "job", "host", "queue", "actor"}


@every_board
def test_panels_say_what_they_show(board: dict[str, Any]) -> None:
    ids, titles = [], []
    for panel in panels(board):
        title, defaults = panel["title"], panel["fieldConfig"]["defaults"]
        ids.append(panel["id"])
        titles.append(title)
        assert panel["description"].endswith("."), title
        assert defaults["unit"], title
        assert defaults["noValue"], f"{title} is empty without a word"
        assert defaults["thresholds"]["steps"][0]["value"] is None, title
        assert panel["datasource"]["uid"] == SOURCE.uid, title
        assert panel["targets"], title
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == SOURCE.uid, title
            assert target["legendFormat"], title
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


@every_board
def test_panels_fill_the_grid_and_lie_nowhere_over_each_other(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len(taken) == 24 * (max(y for _, y in taken) + 1), "there are holes"


@every_board
def test_counters_are_in_rates_over_intervals_that_grafana_chooses(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        bare = OF_TIMES.sub("", OF_COUNTERS.sub("", expr)) if "[15m]" not in expr else re.sub(r"\brate\(\w+\{[^}]*\}\[15m\]\)", "", expr)
        assert "[" not in bare, expr
        assert not [name for name in metrics_in(bare) if TYPES[name] != "gauge"], expr


@every_board
def test_every_selector_has_the_variables_that_fit_it(board: dict[str, Any]) -> None:
    names = {each["name"] for each in board["templating"]["list"]}
    for expr in expressions(board):
        for name, matchers in re.findall(r"(chaperone_\w+)(\{[^}]*\})", expr):
            labels = LABELS[next(known for known in metrics_in(name))]
            wanted = {"job", *names.intersection(labels)}
            assert all(f'{label}=~"${label}"' in matchers for label in wanted), expr
        assert len(re.findall(r"chaperone_\w+", expr)) == len(re.findall(r"chaperone_\w+\{", expr)), expr


@every_board
def test_three_hundred_actors_are_no_three_hundred_lines(board: dict[str, Any]) -> None:
    for panel in panels(board):
        if panel["type"] == "timeseries":
            for target in panel["targets"]:
                if re.search(r"by \((?:[^)]*, )?actor", target["expr"]):
                    assert f"topk({TOP}, " in target["expr"], panel["title"]
