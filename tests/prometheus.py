"""A real Prometheus: Debian's package, which ``make test`` unpacks into the virtual environment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dashboards.rules import JOB

from tests.conftest import eventually

FOLDER = Path(sys.prefix) / "prometheus" / "usr" / "bin"
RULES = Path(__file__).parents[1] / "dashboards" / "rules"
SCRAPE_EVERY_S = 1


def program(name: str) -> str:
    """``prometheus`` or ``promtool``; skips the test where it is not, and fails it where all must be there."""
    found = shutil.which(name, path=os.pathsep.join((str(FOLDER), os.environ["PATH"])))
    if found:
        return found
    why = f"no {name}: `make .venv/prometheus` fetches it"
    if os.environ.get("TAILSPAN_REQUIRE_KERNEL") == "1":
        pytest.fail(why)
    pytest.skip(why)


def promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


@dataclass(frozen=True, slots=True)
class Sample:
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def ask(self, path: str, **parameters: object) -> Any:
        """``data`` of the answer. An AssertionError with Prometheus' own words where it does not understand."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr: str, at_unix_s: float | None = None) -> list[Sample]:
        """An instant query; now, unless ``at_unix_s``."""
        when = {} if at_unix_s is None else {"time": at_unix_s}
        found = self.ask("query", query=expr, **when)
        assert found["resultType"] == "vector", expr
        return [Sample(each["metric"], float(each["value"][1])) for each in found["result"]]

    def exemplars(self, selector: str, from_unix_s: float, to_unix_s: float) -> list[dict[str, str]]:
        """Their labels."""
        found = self.ask("query_exemplars", query=selector, start=from_unix_s, end=to_unix_s)
        return [exemplar["labels"] for each in found for exemplar in each["exemplars"]]


@contextlib.contextmanager
def prometheus(folder: Path, port: int, target: str) -> Iterator[Prometheus]:
    """Scrapes ``target`` (host:port) as the job of our rules, and evaluates these. ``folder``: for its data."""
    settings = {
        "global": {"scrape_interval": f"{SCRAPE_EVERY_S}s", "evaluation_interval": f"{SCRAPE_EVERY_S}s"},
        "rule_files": [str(RULES / "recording.yaml"), str(RULES / "alerts.yaml")],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
    }
    config, log = folder / "prometheus.yaml", folder / "prometheus.log"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: process.poll() is not None or _ready(url), "Prometheus is ready", seconds=60)
        assert process.poll() is None, log.read_text()
        yield Prometheus(url)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=5):
        return True
    return False
