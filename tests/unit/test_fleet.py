"""The fleet example hangs together: what one file names, another one has."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.rules import JOB

from tailspan import config
from tailspan.attribute.verdict import Outcome
from tailspan.cli.parser import build
from tailspan.export import otlp, semconv
from tests.bench import sizing
from tests.prometheus import RULES, promtool

FOLDER = Path(__file__).parents[2] / "docs" / "fleet"
README = (FOLDER / "README.md").read_text()
KINDS = ("receivers", "processors", "exporters")


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def laid_over(below: Any, above: Any) -> Any:
    """As the Collector does it with several --config: maps are merged, all else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: laid_over(below.get(key), value) for key, value in above.items()}}


def environment(name: str) -> dict[str, str]:
    lines = (FOLDER / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


COLLECTOR = read("collector.yaml")
OVERLAYS = sorted(path.name for path in FOLDER.glob("collector-*.yaml"))
COMPOSE = read("compose.yaml")["services"]

each_collector = pytest.mark.parametrize(
    "collector",
    [COLLECTOR, *(laid_over(COLLECTOR, read(name)) for name in OVERLAYS)],
    ids=["collector.yaml", *OVERLAYS],
)


@each_collector
def test_pipelines_are_made_of_components_that_are_configured(collector: dict[str, Any]) -> None:
    for kind in KINDS:
        used = {name for pipeline in collector["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used <= set(collector[kind])
    assert set(collector["service"]["extensions"]) == set(collector["extensions"])
    stores = {exporter.get("sending_queue", {}).get("storage") for exporter in collector["exporters"].values()} - {
        None
    }
    assert stores <= set(collector["extensions"])


@each_collector
def test_memory_is_bounded_before_anything_else_is_done(collector: dict[str, Any]) -> None:
    for pipeline in collector["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


def test_nothing_is_configured_that_is_not_used() -> None:
    for kind in KINDS:
        used = {name for pipeline in COLLECTOR["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == set(COLLECTOR[kind])


def test_the_collector_acknowledges_only_what_was_taken() -> None:
    """What the README promises: the only queue is the sender's spool."""
    for exporter in COLLECTOR["exporters"].values():
        queue = exporter.get("sending_queue") or exporter.get("remote_write_queue")
        assert queue == {"enabled": False}
        assert exporter["retry_on_failure"] == {"enabled": False}
    assert not any(name.startswith("batch") for name in COLLECTOR["processors"])


def test_sampling_keeps_every_verdict_that_is_sent() -> None:
    policies = read("collector-sampling.yaml")["processors"]["tail_sampling"]["policies"]
    (explained,) = (policy["string_attribute"] for policy in policies if policy["name"] == "explained")
    assert explained["key"] == semconv.OUTCOME.name
    assert set(explained["values"]) == {str(outcome) for outcome in Outcome} - {str(Outcome.UNJUDGED)}


def test_names_and_ports_between_the_containers_agree() -> None:
    tempo = read("tempo.yaml")
    listens = {
        "tempo": {
            tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2],
            str(tempo["server"]["http_listen_port"]),
        },
        "prometheus": {"9090"},
        "collector": {"8888"},
    }
    exporters = COLLECTOR["exporters"].values()
    asked = [exporter["endpoint"] for exporter in exporters]
    asked += [
        target
        for job in read("prometheus.yaml")["scrape_configs"]
        for static in job.get("static_configs", [])
        for target in static["targets"]
    ]
    assert len(asked) == 3
    for endpoint in asked:
        host, port = re.fullmatch(r"(?:\w+://)?([a-z]+):(\d+)(?:/\S*)?", endpoint).groups()  # type: ignore[union-attr]
        assert host in COMPOSE
        assert port in listens[host]


def test_every_file_that_a_container_mounts_is_here() -> None:
    mounts = [volume.split(":") for service in COMPOSE.values() for volume in service.get("volumes", [])]
    files = {source: target for source, target, *_ in mounts if source.startswith(".")}
    assert len(files) >= 6
    assert [source for source in files if not (FOLDER / source).exists()] == []
    # A configuration is read from where it is mounted.
    for service in COMPOSE.values():
        for argument in service.get("command", []):
            if "config" in argument:
                assert argument.partition("=")[2] in files.values()


def test_images_are_pinned_to_a_version() -> None:
    for service in COMPOSE.values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    shutil.copytree(RULES, tmp_path / "rules")  # as compose.yaml mounts them
    checked = promtool("check", "config", str(tmp_path / "prometheus.yaml"))
    assert checked.returncode == 0, checked.stderr
    assert "2 rule files found" in checked.stdout


def test_agents_are_scraped_as_the_rules_expect() -> None:
    jobs = {job["job_name"]: job for job in read("prometheus.yaml")["scrape_configs"]}
    (files,) = jobs[JOB]["file_sd_configs"]
    assert files["files"] == ["agents/*.yaml"]
    assert all(re.fullmatch(r"[\w.-]+:\d+", target) for target in _targets())


@pytest.mark.parametrize("name", ["agent.env", "agent-tls.env"])
def test_the_agent_understands_its_environment(name: str) -> None:
    environ = environment("agent.env") | environment(name)
    assert otlp.configured(environ)
    loaded = config.load(Path(os.devnull), environ)
    assert (loaded.otlp.grpc, loaded.otlp.http) == ("127.0.0.1:4317", "127.0.0.1:4318")
    ours = [variable for variable in environ if variable.startswith(config.ENV_PREFIX)]
    assert len(ours) == 3
    (port,) = {target.rpartition(":")[2] for target in _targets()}
    assert loaded.export.prometheus.endswith(f":{port}")


def _targets() -> Iterator[str]:
    for group in read("agents/agents.yaml"):
        yield from group["targets"]


def test_the_readme_lists_every_file() -> None:
    listed = set(re.findall(r"^\| `([^`]+)` \| ", README.partition("## Set up")[0], re.M))
    assert listed == {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.*")} - {"README.md"}


def test_its_tables_are_of_the_figures_beside_it() -> None:
    results = json.loads((FOLDER / "sizing.json").read_text())
    assert not results["quick"]
    assert sizing.written(README, results) == README, "run: python -m tests.bench.sizing docs/fleet"


def test_metrics_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`(tailspan_\w+)`", README))
    assert named
    assert named <= {metric.name for metric in semconv.METRICS}


def test_every_command_of_the_readme_parses() -> None:
    commands = re.findall(r"^ {4,}(?:sudo )?tailspan (.+?)(?:  .*)?$", README, re.M)
    assert len(commands) >= 2
    for command in commands:
        build().parse_args(command.replace("<trace-id>", "4bf92f35").split())
