"""Writes requests.json beside this file: ``python dashboards/build.py``.

Every panel is a row of :data:`ROWS`: a question, its queries, and the metric that answers it. What Grafana needs
around that (positions, variables, data source, exemplars) is the same for all and is added here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
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
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from tailspan.export import semconv
from tailspan.export.semconv import Metric

OUTPUT = Path(__file__).with_name("requests.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID = 24


@dataclass(frozen=True, slots=True)
class Panel:
    question: str
    answer: str  #: the description; the metric's name is put after it
    metric: Metric  #: the one that it is about
    unit: str  #: Grafana's id of it
    queries: dict[str, str]  #: legend -> PromQL
    as_stat: bool = False
    stacked: bool = False
    exemplars: bool = False


def series(metric: Metric, suffix: str = "", *matchers: str) -> str:
    """The metric of the chosen instances; and of the chosen names, where it has them."""
    chosen = ['job=~"$job"', 'instance=~"$instance"']
    if "name" in metric.labels:
        chosen.append('name=~"$name"')
    return f"{metric.name}{suffix}{{{', '.join([*chosen, *matchers])}}}"


def rate(metric: Metric, suffix: str = "", by: str = "", *matchers: str) -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({series(metric, suffix, *matchers)}[$__rate_interval]))"


def latest(metric: Metric, by: str, *matchers: str) -> str:
    return f"sum by ({by}) ({series(metric, '', *matchers)})"


def quantile(share: float, metric: Metric, by: str = "") -> str:
    return f"histogram_quantile({share}, {rate(metric, '_bucket', f'le, {by}' if by else 'le')})"


#: syscalls is off unless somebody asks for it: that it is not attached is no fault.
DEFAULT_PROBES = 'probe!="syscalls"'
OOM_KILLS = 'kind="oom_kill"'
#: Kernels, and not the encoding and decoding of video.
GENERAL = 'hw_gpu_task="general"'
SM = 'domain="sm"'
REQUESTS = rate(semconv.REQUEST_DURATION, "_count")

ROWS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        Panel(
            "How many requests are served?",
            "Requests that workers reported, a second",
            semconv.REQUEST_DURATION,
            "reqps",
            {"requests": REQUESTS},
            as_stat=True,
        ),
        Panel(
            "What share of them is slow?",
            "Slow requests that were judged, of all requests; those of every name, since the counter has none",
            semconv.SLOW_REQUESTS,
            "percentunit",
            # The counter begins with the first slow request; without requests there is no share, not 0.
            {
                "slow": f"({rate(semconv.SLOW_REQUESTS)} or vector(0))"
                f' / sum (rate({semconv.REQUEST_DURATION.name}_count{{job=~"$job", instance=~"$instance"}}'
                "[$__rate_interval]))"
            },
            as_stat=True,
        ),
        Panel(
            "How slow is the slowest 1 %?",
            "99th percentile of all chosen names together",
            semconv.REQUEST_DURATION,
            "s",
            {"p99": quantile(0.99, semconv.REQUEST_DURATION)},
            as_stat=True,
        ),
        Panel(
            "Is evidence being lost?",
            "Records, messages and rows lost, a second; a verdict whose window is touched says so",
            semconv.LOST_RECORDS,
            "cps",
            {"lost": rate(semconv.LOST_RECORDS)},
            as_stat=True,
        ),
        Panel(
            "How many probes are missing?",
            "Default probes that could not be attached, on all chosen hosts; tailspan check says why",
            semconv.PROBE_ATTACHED,
            "none",
            {"missing": f"sum (1 - {series(semconv.PROBE_ATTACHED, '', DEFAULT_PROBES)})"},
            as_stat=True,
        ),
        Panel(
            "What does the agent take?",
            "CPUs that the agents take: 100 % is one CPU",
            semconv.AGENT_CPU,
            "percentunit",
            {"cpu": rate(semconv.AGENT_CPU)},
            as_stat=True,
        ),
    ),
    "Is it slow, and why?": (
        Panel(
            "Why are requests slow?",
            "Slow requests a second, by the cause that the verdict names; none is a verdict that names no cause",
            semconv.SLOW_REQUESTS,
            "reqps",
            {"{{cause}}": rate(semconv.SLOW_REQUESTS, by="cause")},
            stacked=True,
        ),
        Panel(
            "What does a request spend its time on?",
            "Mean wall time of a request, slow or not, by what it was spent on; the stack's height is the mean",
            semconv.REQUEST_TIME,
            "s",
            {"{{cause}}": f"{rate(semconv.REQUEST_TIME, by='cause')} / on () group_left () {REQUESTS}"},
            stacked=True,
        ),
        *(
            Panel(
                f"How long does {what} take, by name?",
                f"{which} percentile; a dot is one slow request and leads to its trace",
                semconv.REQUEST_DURATION,
                "s",
                {"{{name}}": quantile(share, semconv.REQUEST_DURATION, by="name")},
                exemplars=True,
            )
            for what, which, share in (
                ("a typical request", "50th", 0.5),
                ("one request in twenty", "95th", 0.95),
                ("one request in a hundred", "99th", 0.99),
            )
        ),
    ),
    "What do network and memory add?": (
        Panel(
            "How long do connections wait to be accepted?",
            "95th percentile from the handshake to the first read; 0 where a connection was accepted in time",
            semconv.TCP_ACCEPT_WAIT,
            "s",
            {"p95": quantile(0.95, semconv.TCP_ACCEPT_WAIT)},
        ),
        Panel(
            "How long do upstreams take to answer?",
            "95th percentile from a worker's last send to the first byte back; waits below 1 ms are not in it",
            semconv.TCP_UPSTREAM_ANSWER,
            "s",
            {"p95": quantile(0.95, semconv.TCP_UPSTREAM_ANSWER)},
        ),
        Panel(
            "How much does TCP send again?",
            "Segments and retransmission timeouts a second, of the whole host: the agent's network namespace",
            semconv.HOST_TCP_RETRANSMITTED,
            "cps",
            {
                "segments": rate(semconv.HOST_TCP_RETRANSMITTED),
                "SYNs": rate(semconv.HOST_TCP_SYN_RETRANSMITS),
                "timeouts": rate(semconv.HOST_TCP_TIMEOUTS),
            },
        ),
        Panel(
            "Do listeners turn connections away?",
            "Dropped SYNs and final ACKs a second, of the whole host; overflows: the accept queue was full",
            semconv.HOST_TCP_LISTEN_OVERFLOWS,
            "cps",
            {
                "overflows": rate(semconv.HOST_TCP_LISTEN_OVERFLOWS),
                "drops": rate(semconv.HOST_TCP_LISTEN_DROPS),
            },
        ),
        Panel(
            "Does the kernel kill for want of memory?",
            "Processes a minute that the out-of-memory killer chose, on the whole host",
            semconv.INCIDENTS,
            "cpm",
            {"kills": f"60 * {rate(semconv.INCIDENTS, '', '', OOM_KILLS)}"},
        ),
    ),
    "What do the GPUs do?": (
        Panel(
            "How busy is each GPU?",
            "Share of time in which any kernel ran, however small a part of the GPU it filled",
            semconv.HW_GPU_UTILIZATION,
            "percentunit",
            {"{{hw_id}}": latest(semconv.HW_GPU_UTILIZATION, "hw_id", GENERAL)},
        ),
        Panel(
            "How full is its memory?",
            "Memory used, of all there is; runtimes often take most of it at start and keep it",
            semconv.HW_GPU_MEMORY_UTILIZATION,
            "percentunit",
            {"{{hw_id}}": latest(semconv.HW_GPU_MEMORY_UTILIZATION, "hw_id")},
        ),
        Panel(
            "How near to their limit are the SM clocks?",
            "SM clock, of the highest that it can go; a GPU lowers it while it is idle too",
            semconv.GPU_CLOCK,
            "percentunit",
            {
                "{{hw_id}}": f"{latest(semconv.GPU_CLOCK, 'hw_id', SM)}"
                f" / {latest(semconv.GPU_CLOCK_LIMIT, 'hw_id', SM)}"
            },
        ),
        Panel(
            "What holds the clocks down?",
            "GPUs whose clocks are held down, by NVIDIA's reason: 100 % is one GPU all the time; reasons overlap, "
            "and low_utilization is idleness",
            semconv.GPU_CLOCK_EVENTS,
            "percentunit",
            {"{{reason}}": rate(semconv.GPU_CLOCK_EVENTS, by="reason")},
        ),
        Panel(
            "How near to its limit is the power?",
            "Power taken, of that at which the driver lowers the clocks",
            semconv.HW_POWER,
            "percentunit",
            {"{{hw_id}}": f"{latest(semconv.HW_POWER, 'hw_id')} / {latest(semconv.GPU_POWER_LIMIT, 'hw_id')}"},
        ),
        Panel(
            "How hot is it?",
            "Temperature of the die and, where the GPU says it, of its memory",
            semconv.HW_TEMPERATURE,
            "celsius",
            {"{{hw_id}} {{hw_sensor_location}}": latest(semconv.HW_TEMPERATURE, "hw_id, hw_sensor_location")},
        ),
        Panel(
            "Which errors are there?",
            "Errors a minute by type, and XIDs of any number; by number (xid-79) only from the second of it on, "
            "since its counter begins with the first",
            semconv.HW_ERRORS,
            "cpm",
            {
                "{{hw_id}} {{error_type}}": f"60 * {rate(semconv.HW_ERRORS, by='hw_id, error_type')}",
                "{{hw_id}} any xid": f"60 * {rate(semconv.GPU_XIDS, by='hw_id')}",
            },
        ),
        Panel(
            "How often is CUDA called?",
            "Calls of followed processes a second, by kind; launches are counted and not timed",
            semconv.GPU_CALLS,
            "cps",
            {"{{kind}}": rate(semconv.GPU_CALLS, by="kind")},
        ),
        Panel(
            "What do threads wait for in CUDA?",
            "Followed threads that are inside such a call, on average; a sync waits for the GPU to be done",
            semconv.GPU_CALL_DURATION,
            "short",
            {"{{kind}}": rate(semconv.GPU_CALL_DURATION, "_sum", "kind")},
            stacked=True,
        ),
        Panel(
            "Whose kernels run on each GPU?",
            "Share of time in which a kernel of processes of that command name ran",
            semconv.GPU_PROCESS_UTILIZATION,
            "percentunit",
            {"{{hw_id}} {{process}}": latest(semconv.GPU_PROCESS_UTILIZATION, "hw_id, process")},
        ),
        Panel(
            "Who holds the memory of each GPU?",
            "Memory of processes of that command name",
            semconv.GPU_PROCESS_MEMORY,
            "bytes",
            {"{{hw_id}} {{process}}": latest(semconv.GPU_PROCESS_MEMORY, "hw_id, process")},
            stacked=True,
        ),
    ),
    "Can the answers be trusted?": (
        Panel(
            "What do verdicts come to?",
            "Slow requests a second by outcome; many inconclusive ones mean that evidence is missing",
            semconv.SLOW_REQUESTS,
            "reqps",
            {"{{outcome}}": rate(semconv.SLOW_REQUESTS, by="outcome")},
            stacked=True,
        ),
        Panel(
            "How soon is a slow request judged?",
            "From the end of a request to its verdict",
            semconv.VERDICT_LATENCY,
            "s",
            {
                "p50": quantile(0.5, semconv.VERDICT_LATENCY),
                "p99": quantile(0.99, semconv.VERDICT_LATENCY),
            },
        ),
        Panel(
            "Which evidence is lost?",
            "Losses a second by class of record",
            semconv.LOST_RECORDS,
            "cps",
            {"{{class}}": rate(semconv.LOST_RECORDS, by="class")},
        ),
        Panel(
            "Which worker messages are dropped?",
            "Messages a second that clients dropped or the agent refused, by reason; empty while none is",
            semconv.DROPPED_MESSAGES,
            "cps",
            {"{{reason}}": rate(semconv.DROPPED_MESSAGES, by="reason")},
        ),
        Panel(
            "Which exporter drops verdicts?",
            "Verdicts a second that did not reach the disk or the backend; empty while all do",
            semconv.EXPORT_DROPPED,
            "cps",
            {"{{exporter}}: {{reason}}": rate(semconv.EXPORT_DROPPED, by="exporter, reason")},
        ),
        Panel(
            "Do names run over their limit?",
            "Observations a second that are kept under the name other; empty while there is room",
            semconv.LABEL_OVERFLOWS,
            "cps",
            {"{{metric}}": rate(semconv.LABEL_OVERFLOWS, by="metric")},
        ),
        Panel(
            "How old is what the GPUs said?",
            "Age of the last reading of each; it grows while the driver does not answer, or the GPU is lost",
            semconv.GPU_READING_AGE,
            "s",
            {"{{hw_id}}": f"max by (hw_id) ({series(semconv.GPU_READING_AGE)})"},
        ),
        Panel(
            "Which CUDA calls come too often to be recorded?",
            "Processes where probes of a kind are off for its rate; verdicts on their requests lack those calls",
            semconv.GPU_PROBE_OFF,
            "short",
            {"{{kind}}": latest(semconv.GPU_PROBE_OFF, "kind")},
        ),
    ),
    "What does the agent cost?": (
        Panel(
            "How much CPU does each agent take?",
            "CPUs, by instance: 100 % is one CPU. Time in BPF programs is charged to the threads they run on",
            semconv.AGENT_CPU,
            "percentunit",
            {"{{instance}}": rate(semconv.AGENT_CPU, by="instance")},
        ),
        Panel(
            "How much memory does each agent hold?",
            "Resident memory, by instance",
            semconv.AGENT_MEMORY,
            "bytes",
            {"{{instance}}": latest(semconv.AGENT_MEMORY, "instance")},
        ),
        Panel(
            "How much of the recent past is held?",
            "Rows in the live window, by table",
            semconv.WINDOW_ROWS,
            "short",
            {"{{table}}": latest(semconv.WINDOW_ROWS, "table")},
        ),
    ),
}


def built() -> str:
    """The dashboard as JSON text."""
    dashboard = (
        Dashboard("tailspan: is it slow, and why?")
        .uid("tailspan-requests")
        .description("Requests of the inference workers of each host, what they wait for, and how sure that is.")
        .tags(["tailspan"])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .link(
            DashboardLink("tailspan")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["tailspan"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(DatasourceVariable("datasource").label("data source").type("prometheus"))
    )
    for variable in _variables():
        dashboard.with_variable(variable)
    number = 0
    for title, panels in ROWS.items():
        dashboard.with_row(Row(title).id(number := number + 1))
        for panel, width in zip(panels, _widths(panels), strict=True):
            dashboard.with_panel(_panel(panel).id(number := number + 1).span(width))
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variables() -> list[QueryVariable]:
    build, requests = semconv.BUILD_INFO.name, semconv.REQUEST_DURATION.name
    instances = 'job=~"$job", instance=~"$instance"'
    values = {
        "job": f"label_values({build}, job)",
        "instance": f'label_values({build}{{job=~"$job"}}, instance)',
        "name": f"label_values({requests}_count{{{instances}}}, name)",
    }
    return [
        QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
        for name, query in values.items()
    ]


def _widths(panels: tuple[Panel, ...]) -> list[int]:
    """Stats share one line; others come three to a line, and what is left over shares the first one."""
    if panels[0].as_stat:
        return [GRID // len(panels)] * len(panels)
    over = len(panels) % 3
    return ([GRID // over] * over if over else []) + [GRID // 3] * (len(panels) - over)


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    builder = _stat() if panel.as_stat else _timeseries(panel.stacked)
    builder.title(panel.question).description(f"{panel.answer}. Metric: {panel.metric.name}")
    builder.datasource(SOURCE).unit(panel.unit)
    for number, (legend, expr) in enumerate(panel.queries.items()):
        builder.with_target(
            Dataquery()
            .ref_id(chr(ord("A") + number))
            .datasource(SOURCE)
            .expr(expr)
            .legend_format(legend)
            .range()
            .exemplar(panel.exemplars)
        )
    return builder


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .height(4)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.NONE)
    )


def _timeseries(stacked: bool) -> timeseries.Panel:
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


if __name__ == "__main__":
    OUTPUT.write_text(built())
