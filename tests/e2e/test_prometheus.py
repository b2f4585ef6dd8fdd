"""A real Prometheus scrapes the real agent under load and faults: every panel and rule has its answer."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from dashboards.panels import Panel
from dashboards.rules import JOB, Alert, Recording, alerts, recording
from dashboards.views import VIEWS

from tailspan.export import semconv
from tests.conftest import eventually
from tests.e2e.backends import Backend, http_backend
from tests.prometheus import SCRAPE_EVERY_S, Prometheus, Sample, prometheus, promtool
from tests.scorecard.faults import cpu_hog, cpu_quota
from tests.scorecard.scene import Scene, scene

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.e2e,
    pytest.mark.skipif(os.cpu_count() == 1, reason="the worker has a CPU of its own"),
]

#: What a panel's variables stand for. The window holds all of the run.
WINDOW = "10m"
VARIABLES = {"$job": JOB, "$instance": ".*", "$name": ".*", "$__rate_interval": WINDOW}

#: Queries that are about one of these may have no answer, and why.
EMPTY: Mapping[str, str] = {
    semconv.BPF_RUN_TIME.name: "the kernel keeps it only where kernel.bpf_stats_enabled is set",
    semconv.EXPORT_DROPPED.name: "every verdict arrived",
    semconv.DROPPED_MESSAGES.name: "no message was dropped",
    semconv.LABEL_OVERFLOWS.name: "there were few names",
    semconv.NVML_FAILURES.name: "NVML answered every call",
    semconv.OTLP_FAILURES.name: "the backend took what it was sent",
    semconv.OTLP_DROPPED.name: "the backend took what it was sent",
    semconv.OTLP_REFUSED.name: "workers sent what can be read",
    semconv.OTLP_BROKEN_SPANS.name: "workers' traces fit together",
    semconv.TLS_RELOADS.name: "nothing listens beyond loopback",
    semconv.TLS_EXPIRES.name: "nothing listens beyond loopback",
    semconv.COST_DIFFERENCE.name: "nobody asked what its probes cost",
    semconv.COST_MEASURED.name: "nobody asked what its probes cost",
}
#: Stages whose requests come on a connection each: the worker's threads, and their own connections, end with it.
FRESH = {"upstream", "fresh"}
#: A worker that says by OTLP what it serves: a request with one step, ten times a second.
TELLS_BY_OTLP = """
import os, sys, time, urllib.request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
print("begun", flush=True)
while True:
    request = ExportTraceServiceRequest()
    told = request.resource_spans.add()
    told.resource.attributes.add(key="service.name").value.string_value = "told"
    told.resource.attributes.add(key="process.pid").value.int_value = os.getpid()
    spans, trace, root, start = told.scope_spans.add().spans, os.urandom(16), os.urandom(8), time.time_ns()
    sum(range(100_000))
    for own, parent, kind in ((root, b"", Span.SPAN_KIND_SERVER), (os.urandom(8), root, Span.SPAN_KIND_INTERNAL)):
        spans.add(
            trace_id=trace, span_id=own, parent_span_id=parent, name="GET /told", kind=kind,
            start_time_unix_nano=start, end_time_unix_nano=time.time_ns(),
        )
    headers = {"Content-Type": "application/x-protobuf"}
    url = f"http://127.0.0.1:{sys.argv[1]}/v1/traces"
    with urllib.request.urlopen(urllib.request.Request(url, request.SerializeToString(), headers)) as answer:
        answer.read()
    time.sleep(0.1)
"""
#: Panels that show only what is wrong.
NOTHING_WRONG = {
    "Which agents are down?",
    "Which hosts lack probes?",
    "Which steps are shed?",
}

#: Unit of a panel -> what its values must lie within.
RANGES: Mapping[str, tuple[float, float]] = {
    "percentunit": (0.0, 1.0 + 1e-9),
    "s": (0.0, 60.0),
    "celsius": (1.0, 150.0),
    "watt": (1.0, 2000.0),
}
ANY = (0.0, 1e15)
#: Shares that may be more than one: of CPUs, or summed over processes that run at the same time.
BEYOND_ONE = {semconv.AGENT_CPU.name, semconv.BPF_RUN_TIME.name, semconv.GPU_PROCESS_UTILIZATION.name}

ASKED = [
    pytest.param(view.name, panel, id=f"{view.name}: {panel.question}")
    for view in VIEWS
    for panels in view.rows.values()
    for panel in panels
    if isinstance(panel, Panel)
]
RULES = [
    pytest.param(rule, id=rule.name if isinstance(rule, Alert) else rule.record)
    for groups in (recording.GROUPS, alerts.GROUPS)
    for rules in groups.values()
    for rule in rules
]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run has left behind. All is asked as of ``until_unix_s``, when it was in full swing."""

    scene: Scene
    prometheus: Prometheus
    since_unix_s: float
    until_unix_s: float

    def answer(self, expr: str) -> list[Sample]:
        return self.prometheus.query(expr, self.until_unix_s)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    cpus = os.sched_getaffinity(0)
    since, otlp_port = time.time(), _free_port()
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cpus)
        # Not in /tmp, which may be a tmpfs: the worker reads from a disk.
        made = tempfile.TemporaryDirectory(prefix="tailspan-prometheus-", dir="/var/tmp")
        folder = Path(stack.enter_context(made))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", stack.enter_context(http_backend(Backend())))
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        patch.setenv("TAILSPAN_OTLP_HTTP", f"127.0.0.1:{otlp_port}")
        at = stack.enter_context(scene(folder))
        asked = stack.enter_context(prometheus(folder, _free_port(), f"127.0.0.1:{at.agent_port}"))
        stack.enter_context(at.python(TELLS_BY_OTLP, otlp_port))
        _play(at, asked)
        until = time.time()
        at.load.close()
        yield Run(at, asked, since, until)
        at.agent.stop()


def _play(at: Scene, asked: Prometheus) -> None:
    """Every kind of request, two faults, each until verdicts name it; and a GPU at work when all is asked."""
    for stage in ("upstream", "fresh", "plain"):
        _served(at, asked, stage)
    for role in ("accepted", "connected"):
        _grows(asked, f'{semconv.TCP_CONNECTIONS.name}{{role="{role}"}}')
    for fault, cause in ((cpu_hog.FAULT, "run_queue"), (cpu_quota.FAULT, "throttled")):
        with fault.inject(at):
            _grows(asked, f'{semconv.SLOW_REQUESTS.name}{{cause="{cause}"}}')
    with at.card.scripted("xid 0 79"):
        _served(at, asked, "gpu")
        _grows(asked, semconv.GPU_XIDS.name)


def _served(at: Scene, asked: Prometheus, stage: str) -> None:
    at.load.ask(stage, fresh=stage in FRESH)
    _grows(asked, f'{semconv.REQUEST_DURATION.name}_count{{name="POST /v1/infer/{stage}"}}', by=40)


def _grows(asked: Prometheus, series: str, by: float = 0) -> None:
    """Until Prometheus has seen a counter grow: the first scrape that has it shows no growth yet."""

    def has_grown() -> bool:
        time.sleep(SCRAPE_EVERY_S / 4)  # nothing changes between two scrapes
        return bool(asked.query(f"increase({series}[{WINDOW}]) > {by}"))

    eventually(has_grown, f"{series} grows", seconds=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def substituted(expr: str) -> str:
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr
    return expr


def _metrics_in(expr: str) -> set[str]:
    """Names of metrics, and of labels that look like them."""
    return {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"\b(?:tailspan|hw)_\w+", expr)}


def may_be_empty(expr: str) -> bool:
    return bool(_metrics_in(expr) & EMPTY.keys())


def test_the_target_is_up_and_every_scrape_was_good(run: Run) -> None:
    (target,) = run.prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"]["job"] == JOB
    (scraped,) = run.answer(f'min_over_time(up{{job="{JOB}"}}[{WINDOW}])')
    assert scraped.value == 1


def test_promtool_finds_nothing_wrong_with_what_is_scraped(run: Run) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{run.scene.agent_port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    checked = promtool("check", "metrics", given=text)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(("view", "panel"), ASKED)
def test_a_panel_has_answers_in_its_units_range(run: Run, view: str, panel: Panel) -> None:
    for legend, expr in panel.queries.items():
        samples = run.answer(substituted(expr))
        for sample in samples:
            print(f"{view} | {panel.question} | {_named_as(legend, sample)} | {sample.value:.4g} {panel.unit}")
            assert math.isfinite(sample.value), (legend, sample)
            low, high = ANY if panel.metric.name in BEYOND_ONE else RANGES.get(panel.unit, ANY)
            assert low <= sample.value <= high, (legend, sample)
        assert samples or panel.question in NOTHING_WRONG or may_be_empty(expr), legend


def _named_as(legend: str, sample: Sample) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: sample.labels.get(match[1], ""), legend)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_evaluated(run: Run, rule: Recording | Alert) -> None:
    if isinstance(rule, Recording):
        samples = run.answer(rule.record)
        for sample in samples:
            print(f"recording | {rule.record} | {sample.labels} | {sample.value:.4g}")
        assert samples or may_be_empty(rule.expr)
        assert all(math.isfinite(sample.value) and sample.value >= 0 for sample in samples)
        return
    groups = run.prometheus.ask("rules")["groups"]
    (found,) = (each for group in groups for each in group["rules"] if each["name"] == rule.name)
    assert (found["health"], found.get("lastError", "")) == ("ok", "")
    for alert in found["alerts"]:
        print(f"alert | {rule.name} | {alert['state']} | {alert['annotations']['summary']}")
        assert not re.search(r"<|\bno value\b|{{", alert["annotations"]["summary"])


def test_a_gpu_error_is_heard_of_at_once(run: Run) -> None:
    (heard,) = run.answer('ALERTS{alertname="TailspanGpuError", alertstate="firing"}')
    assert heard.labels["hw_id"].startswith("GPU-")


def test_exemplars_lead_to_slow_requests(run: Run) -> None:
    selector = f"{semconv.REQUEST_DURATION.name}_bucket"
    exemplars = run.prometheus.exemplars(selector, run.since_unix_s, run.until_unix_s)
    listed = run.scene.agent.json("slow", "--last", "10000")["requests"]
    assert isinstance(listed, list)
    assert exemplars
    assert {exemplar["trace_id"] for exemplar in exemplars} <= {request["trace_id"] for request in listed}


def test_every_reason_to_be_empty_is_one_of_a_query() -> None:
    asked = [panel for parameters in ASKED for panel in parameters.values if isinstance(panel, Panel)]
    assert {panel.question for panel in asked} >= NOTHING_WRONG
    exprs = " ".join(expr for panel in asked for expr in panel.queries.values())
    assert all(name in exprs for name in EMPTY)
