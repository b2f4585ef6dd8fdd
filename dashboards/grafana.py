"""A :class:`View` as Grafana's JSON: positions, variables, data sources, links; the same for all of them."""

from __future__ import annotations

import json

from grafana_foundation_sdk.builders import common, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.tempo import TempoQuery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

from dashboards.panels import Look, Panel, TracePanel, View, uid
from tailspan.export import semconv

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
TEMPO = DataSourceRef(type_val="tempo", uid="${tempo}")
TAG = "tailspan"
GRID = 24
#: Spans that a table of them shows at most.
SPANS = 50

Drawn = stat.Panel | timeseries.Panel | table.Panel


def as_json(view: View) -> str:
    """The text of its file."""
    dashboard = (
        Dashboard(f"tailspan: {view.title}")
        .uid(uid(view.name))
        .description(view.about)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .link(
            DashboardLink(TAG)
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in (*_sources(view), *_choices(view)):
        dashboard.with_variable(variable)
    number = 0
    for title, panels in view.rows.items():
        dashboard.with_row(Row(title).id(number := number + 1))
        for panel, width in zip(panels, _widths(panels), strict=True):
            drawn = _asking_prometheus(panel) if isinstance(panel, Panel) else _asking_tempo(panel)
            dashboard.with_panel(drawn.id(number := number + 1).span(width))
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _sources(view: View) -> list[DatasourceVariable]:
    sources = [DatasourceVariable("datasource").label("data source").type("prometheus")]
    if any(isinstance(panel, TracePanel) for panels in view.rows.values() for panel in panels):
        sources.append(DatasourceVariable("tempo").label("traces").type("tempo"))
    return sources


def _choices(view: View) -> list[QueryVariable]:
    build, requests = semconv.BUILD_INFO.name, semconv.REQUEST_DURATION.name
    values = {
        "job": f"label_values({build}, job)",
        "instance": f'label_values({build}{{job=~"$job"}}, instance)',
    }
    if view.by_request_name:
        values["name"] = f'label_values({requests}_count{{job=~"$job", instance=~"$instance"}}, name)'
    return [
        QueryVariable(name)
        .label(name)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
        for name, query in values.items()
    ]


def _widths(panels: tuple[Panel | TracePanel, ...]) -> list[int]:
    """Stats share one line; others come three to a line, and what is left over shares the first one."""
    if panels[0].look is Look.STAT:
        widest = GRID // len(panels)
        return [widest + (number < GRID % len(panels)) for number in range(len(panels))]
    over = len(panels) % 3
    return ([GRID // over] * over if over else []) + [GRID // 3] * (len(panels) - over)


def _asking_prometheus(panel: Panel) -> Drawn:
    builder = _empty(panel.look)
    builder.title(panel.question).description(f"{panel.answer}. Metric: {panel.metric.name}")
    builder.datasource(PROMETHEUS).unit(panel.unit)
    for number, (legend, expr) in enumerate(panel.queries.items()):
        query = Dataquery().ref_id(chr(ord("A") + number)).datasource(PROMETHEUS)
        query.expr(expr).legend_format(legend).exemplar(panel.exemplars)
        if panel.look is Look.TABLE:
            query.instant().format(PromQueryFormat.TABLE)
        else:
            query.range()
        builder.with_target(query)
    return builder


def _asking_tempo(panel: TracePanel) -> Drawn:
    builder = _empty(panel.look)
    builder.title(panel.question).description(f"{panel.answer}. Span: {panel.span.name}")
    builder.datasource(TEMPO).unit(panel.unit)
    query = TempoQuery().ref_id("A").datasource(TEMPO).query_type("traceql").query(panel.query)
    if panel.look is Look.TABLE:
        query.limit(SPANS).spss(SPANS).table_type(SearchTableType.SPANS)
    return builder.with_target(query)


def _empty(look: Look) -> Drawn:
    match look:
        case Look.STAT:
            return _stat()
        case Look.TABLE:
            return _table()
        case _:
            return _timeseries(stacked=look is Look.STACK)


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .height(4)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.NONE)
    )


def _table() -> table.Panel:
    hidden = DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}})
    return (
        table.Panel()
        .height(8)
        .with_transformation(hidden)
        .sort_by([common.TableSortByFieldState().display_name("Duration").desc(True)])
    )


def _timeseries(*, stacked: bool) -> timeseries.Panel:
    return (
        timeseries.Panel()
        .height(8)
        .min(0)
        .fill_opacity(30 if stacked else 0)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
