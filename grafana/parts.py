"""What the dashboards share: queries, panels, variables, links, annotations.

A query names its series alone; :func:`of` adds a matcher for each variable that fits one of the series' labels.  Totals are of the whole
fleet and come from one process at a time; one that lost the store goes on to serve its last ones.  So counters are added up as
rates, in which those stand still, and of gauges the highest counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dramatiq_chaperone.metrics.names import SERIES

#: Where runbooks.md can be read; docs/grafana.md says how to replace it.
RUNBOOKS: Final = "https://docs.example.com/chaperone/runbooks.md"
SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: Every dashboard: its uid, and what the links to it say.
TITLES: Final = {
    "chaperone-overview": "Overview",
    "chaperone-actors": "Actors",
    "chaperone-workers": "Workers",
    "chaperone-queues": "Queues",
    "chaperone-breakers": "Breakers and alerts",
}
#: Variables beside datasource and job: where their values come from.
SOURCES: Final = {
    "host": "chaperone_worker_processes",
    "queue": "chaperone_enqueued_total",
    "actor": "chaperone_enqueued_total",
    "service": "chaperone_circuit_breaker_state",
}
LABELS: Final = {each.name: each.labels for each in SERIES}
RATE: Final = "[$__rate_interval]"
RANGE: Final = "[$__range]"
#: Of what there may be three hundred, so many lines are drawn: those with the most in the whole range that is shown.
TOP: Final = 10

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
#: (from this value on, colour), the first of them from anywhere.
Steps = Sequence[tuple[float | None, str]]
CALM: Final[Steps] = ((None, GREEN),)
NONE_IS_WELL: Final[Steps] = ((None, GREEN), (1, RED))
SOME_IS_WELL: Final[Steps] = ((None, RED), (1, GREEN))
PLAIN: Final[Steps] = ((None, BLUE),)


class Query(NamedTuple):
    """An expression and what its lines are called; in a table, the name of its column."""

    expr: str
    legend: str = ""


# -- queries


def of(name: str, *matchers: str, suffix: str = "") -> str:
    """A selector of a series: ``of("chaperone_jobs_total", 'outcome="failed"')``.  *suffix*: ``_bucket``, ``_sum`` or ``_count``."""
    picked = [f'{label}=~"${label}"' for label in ("job", *LABELS[name]) if label == "job" or label in SOURCES]
    return f"{name}{suffix}{{{', '.join((*picked, *matchers))}}}"


def rate(name: str, *matchers: str, by: str = "", suffix: str = "", window: str = RATE) -> str:
    """Per second, added up by these labels."""
    return f"sum{_by(by)}(rate({of(name, *matchers, suffix=suffix)}{window}))"


def increase(name: str, *matchers: str, by: str = "", suffix: str = "", window: str = RANGE) -> str:
    """How much in the window, added up by these labels."""
    return f"sum{_by(by)}(increase({of(name, *matchers, suffix=suffix)}{window}))"


def level(name: str, *matchers: str, by: str) -> str:
    """A gauge of the whole fleet: whatever else serves it, the highest counts."""
    return f"max{_by(by)}({of(name, *matchers)})"


def total(name: str, *matchers: str, by: str) -> str:
    """The same, added up over *by*."""
    return f"sum({level(name, *matchers, by=by)})"


def hosts(name: str, by: str = "host") -> str:
    """A gauge of living workers: several masters of a host each serve their own."""
    return f"sum{_by(by)}({of(name)})"


def quantile(share: float, name: str, by: str = "", window: str = RATE) -> str:
    """A quantile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(name, by=labels, suffix='_bucket', window=window)})"


def age(name: str, by: str) -> str:
    """Seconds since a time."""
    return f"time() - {level(name, by=by)}"


def or_zero(expr: str) -> str:
    """Nothing is 0."""
    return f"{expr} or vector(0)"


def top(expr: str, by: str, ranked: str) -> str:
    """Those that have the most of *ranked* in the range that is shown: the same ones at every step."""
    return f"{expr} and on ({by}) topk({TOP}, {ranked.replace(RANGE, RANGE + ' @ end()')})"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


# -- panels


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    empty: str = "No data in this time range",
    steps: Steps = CALM,
    stacked: bool = False,
    bars: bool = False,
    width: int = 12,
    highest: float | None = None,
) -> timeseries.Panel:
    """Lines over time; *steps* are drawn where there are any."""
    panel = timeseries.Panel().title(title).description(description).datasource(SOURCE).unit(unit).min(0).span(width).height(8)
    panel = panel.no_value(empty).thresholds(_thresholds(steps)).line_width(1).fill_opacity(60 if bars else 25 if stacked else 8)
    panel = panel.show_points(commons.VisibilityMode.NEVER).tooltip(
        common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI).sort(commons.SortOrder.DESCENDING)
    )
    legend = common.VizLegendOptions().show_legend(True).display_mode(commons.LegendDisplayMode.TABLE)
    panel = panel.legend(legend.placement(commons.LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"]))
    if bars:
        panel = panel.draw_style(commons.GraphDrawStyle.BARS)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(commons.StackingMode.NORMAL))
    if len(steps) > 1:
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(commons.GraphThresholdsStyleMode.DASHED))
    if highest is not None:
        panel = panel.max(highest)
    for number, query in enumerate(queries):
        panel = panel.with_target(_query(query, number).range())
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Steps = PLAIN,
    empty: str = "No data",
    width: int = 3,
    links_to: str = "",
) -> stat.Panel:
    """One number, coloured by *steps*; a click leads to the dashboard *links_to*."""
    panel = stat.Panel().title(title).description(description).datasource(SOURCE).unit(unit).span(width).height(4).no_value(empty)
    panel = panel.thresholds(_thresholds(steps)).color_mode(commons.BigValueColorMode.VALUE).graph_mode(commons.BigValueGraphMode.AREA)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if links_to:
        link = dashboard.DashboardLink(TITLES[links_to]).type(models.DashboardLinkType.LINK)
        panel = panel.links([link.url(f"/d/{links_to}?${{__url_time_range}}&${{__all_variables}}")])
    return panel.with_target(_query(query, 0).range())


def ranking(title: str, description: str, unit: str, query: Query, *, empty: str, steps: Steps = PLAIN, width: int = 12) -> bargauge.Panel:
    """Bars from the longest to the shortest, of the range that is shown."""
    panel = bargauge.Panel().title(title).description(description).datasource(SOURCE).unit(unit).min(0).span(width).height(8)
    panel = panel.no_value(empty).thresholds(_thresholds(steps)).orientation(commons.VizOrientation.HORIZONTAL)
    panel = panel.display_mode(commons.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    return panel.with_target(_query(query, 0).instant())


def rows(
    title: str,
    description: str,
    columns: Iterable[tuple[Query, str]],
    *,
    by: str,
    sort: str,
    empty: str,
    links_to: Sequence[tuple[str, str]] = (),
    height: int = 10,
) -> table.Panel:
    """A table with a row for each value of the labels *by*, and a column for each query with its unit; of any length.

    *links_to*: (label, uid of the dashboard that its values lead to).
    """
    panel = table.Panel().title(title).description(description).datasource(SOURCE).span(24).height(height).no_value(empty)
    panel = panel.unit("short").thresholds(_thresholds(CALM)).footer(common.TableFooterOptions().show(False).enable_pagination(True))
    names = {"Time": "", **{f"Value #{_letter(place)}": query.legend for place, (query, _) in enumerate(columns)}}
    for place, (query, unit) in enumerate(columns):
        panel = panel.with_target(_query(query, place).instant().format(PromQueryFormat.TABLE))
        panel = panel.override_by_name(
            query.legend, [models.DynamicConfigValue("unit", unit), models.DynamicConfigValue("decimals", 0 if unit == "short" else 2)]
        )
    panel = panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    labels = [label.strip() for label in by.split(",")]
    order = {name: place for place, name in enumerate([*labels, *(f"Value #{_letter(n)}" for n in range(len(names) - 1))])}
    options = {"excludeByName": {"Time": True}, "renameByName": {old: new for old, new in names.items() if new}, "indexByName": order}
    panel = panel.with_transformation(models.DataTransformerConfig("organize", options=options))
    for label, uid in links_to:
        url = f"/d/{uid}?${{__url_time_range}}&var-datasource=${{datasource}}&var-job=${{job}}&var-{label}=${{__value.text}}"
        panel = panel.override_by_name(
            label, [models.DynamicConfigValue("links", [{"title": f"{TITLES[uid]}: ${{__value.text}}", "url": url}])]
        )
    return panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])


def _query(query: Query, place: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(_letter(place)).datasource(SOURCE)


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    found = [models.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


# -- dashboards


def board(uid: str, description: str, variables: Sequence[str], *sections: tuple[str, Sequence[Any]]) -> dashboard.Dashboard:
    """A dashboard of sections: a title and panels each."""
    found = dashboard.Dashboard(f"Chaperone / {TITLES[uid]}").uid(uid).description(description).tags(["chaperone", "dramatiq"])
    found = found.readonly().tooltip(models.DashboardCursorSync.CROSSHAIR).time("now-3h", "now").refresh("30s").timezone("browser")
    found = found.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    found = found.with_variable(_variable("job", "chaperone_up", "{}"))
    for name in variables:
        found = found.with_variable(_variable(name, SOURCES[name], '{job=~"$job"}'))
    for other, title in TITLES.items():
        if other != uid:
            link = dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).url(f"/d/{other}").icon("dashboard")
            found = found.link(link.include_vars(True).keep_time(True))
    found = found.link(dashboard.DashboardLink("Runbooks").type(models.DashboardLinkType.LINK).url(RUNBOOKS).icon("doc").target_blank(True))
    found = found.annotations([_crashes()])
    place = 0
    for title, panels in sections:
        found = found.with_row(dashboard.Row(title))
        for panel in panels:
            place += 1
            found = found.with_panel(panel.id(place))
    return found


def _variable(name: str, series: str, matchers: str) -> dashboard.QueryVariable:
    query: dict[str, object] = {"query": f"label_values({series}{matchers.replace('{}', '')}, {name})", "refId": f"variable-{name}"}
    found = dashboard.QueryVariable(name).label(name.capitalize()).datasource(SOURCE).query(query).multi(True).include_all(True)
    found = found.all_value(".*").sort(models.VariableSort.ALPHABETICAL_ASC).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return found.current(models.VariableOption(text="All", value="$__all", selected=True))


def _crashes() -> dashboard.AnnotationQuery:
    expr = f"{increase('chaperone_workers_lost_total', by='cause', window=RATE)} > 0"
    found = dashboard.AnnotationQuery().name("Worker crashes").datasource(SOURCE).enable(True).icon_color(RED)
    found._internal.target = {  # type: ignore[assignment]  # the builder knows the targets of Grafana's own source alone
        "expr": expr,
        "refId": "Anno",
        "interval": "",
    }
    return found


def text_of(builder: dashboard.Dashboard) -> str:
    """The JSON text of a dashboard, which is the same each time."""
    found = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    for annotation in found["annotations"]["list"]:
        annotation.update(expr=annotation["target"]["expr"], titleFormat="Worker lost: {{cause}}", step="60s")
    return json.dumps(found, indent=2, sort_keys=True) + "\n"
