"""The Helm chart, rendered by Helm itself and checked against Kubernetes' own schemas. No cluster was asked."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailspan import __version__, config
from tailspan.config import Config

ROOT = Path(__file__).parents[2]
CHART = ROOT / "packaging" / "helm" / "tailspan"
EVERYTHING = {
    "config": "[slow]\nslo_ms = 200.0\n\n[tls]\ncertificate = '/etc/tailspan/tls/tls.crt'\n"
    "key = '/etc/tailspan/tls/tls.key'\n",
    "metrics": {"listen": "node", "port": 9555, "podMonitor": {"enabled": True, "labels": {"team": "inference"}}},
    "otlpEndpoint": "http://collector.observability:4317",
    "extraEnv": [{"name": "TAILSPAN_OTLP_GRPC", "value": "$(HOST_IP):4317"}],
    "tls": {"secretName": "tailspan-tls"},
    "gpu": {"enabled": True},
    "extraCapabilities": ["SYS_PTRACE"],
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"nvidia.com/gpu.present": "true"},
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-node-critical",
    "podLabels": {"team": "inference"},
    "podAnnotations": {"note": "1"},
}


@pytest.fixture(scope="module", autouse=True)
def helm() -> None:
    missing = [name for name in ("helm_python", "kubernetes_validate") if find_spec(name) is None]
    if not missing:
        return
    why = f"not installed: {', '.join(missing)}"
    if os.environ.get("TAILSPAN_REQUIRE_KERNEL") == "1":
        pytest.fail(why)
    pytest.skip(why)


def asked(values: dict[str, Any]) -> dict[str, Any]:
    return _asked(json.dumps(values))


@functools.cache
def _asked(values: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.packaging.chart", values]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def resources(**values: Any) -> dict[str, dict[str, Any]]:
    """By kind."""
    answer = asked(values)
    assert (answer["refused"], answer["findings"]) == ("", [])
    return {each["kind"]: each for each in answer["resources"]}


def pod(**values: Any) -> dict[str, Any]:
    found: dict[str, Any] = resources(**values)["DaemonSet"]["spec"]["template"]["spec"]
    return found


def agent(**values: Any) -> dict[str, Any]:
    (found,) = pod(**values)["containers"]
    return dict(found)


@pytest.mark.parametrize(("values", "unknown"), [({}, []), (EVERYTHING, ["PodMonitor"])], ids=["defaults", "all"])
def test_kubernetes_knows_every_field(values: dict[str, Any], unknown: list[str]) -> None:
    answer = asked(values)
    assert (answer["refused"], answer["findings"], answer["unknown"]) == ("", [], unknown)
    assert {each["kind"] for each in answer["resources"]} == {"ConfigMap", "DaemonSet", "ServiceAccount", *unknown}
    assert {each["metadata"]["namespace"] for each in answer["resources"]} == {"observability"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"metricz": {}}, "metricz"),
        ({"metrics": {"listen": "0.0.0.0"}}, "listen"),
        ({"metrics": {"podMonitor": {"enabled": True}}}, "listen"),
        ({"extraCapabilities": ["ALL"]}, "extraCapabilities"),
        ({"otlpEndpoint": "collector:4317"}, "otlpEndpoint"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    assert said in asked(values)["refused"]


def test_it_is_of_the_agents_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert agent()["image"] == f"tailspan:{__version__}"


def test_the_agent_has_two_capabilities_and_nothing_that_a_pod_need_not_have() -> None:
    security = agent()["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "PERFMON"]}
    assert (security["privileged"], security["allowPrivilegeEscalation"]) == (False, False)
    assert security["readOnlyRootFilesystem"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    assert "hostIPC" not in pod()


def test_the_node_is_written_to_in_two_folders_alone() -> None:
    folders = {volume["name"]: volume["hostPath"]["path"] for volume in pod()["volumes"] if "hostPath" in volume}
    mounts = [mount for mount in agent()["volumeMounts"] if mount["name"] in folders]
    assert {mount["mountPath"] for mount in mounts if not mount.get("readOnly")} == {
        str(Path(Config().worker.socket).parent),
        Config().store.path,
    }
    assert set(folders.values()) == {mount["mountPath"] for mount in mounts}


def test_its_configuration_is_one_that_the_agent_takes(tmp_path: Path) -> None:
    (tmp_path / "tailspan.toml").write_text(resources(**EVERYTHING)["ConfigMap"]["data"]["tailspan.toml"])
    given = {each["name"]: each["value"] for each in agent(**EVERYTHING)["env"] if "value" in each}
    by_the_kubelet = {name: value.replace("$(HOST_IP)", "192.0.2.7") for name, value in given.items()}
    loaded = config.load(tmp_path / "tailspan.toml", environ=by_the_kubelet)
    assert loaded.slow.slo_ms == 200.0
    assert (loaded.export.prometheus, loaded.otlp.grpc) == ("192.0.2.7:9555", "192.0.2.7:4317")


def test_another_configuration_starts_the_agents_anew() -> None:
    def checksum(**values: Any) -> str:
        meta = resources(**values)["DaemonSet"]["spec"]["template"]["metadata"]
        return str(meta["annotations"]["checksum/config"])

    assert checksum() != checksum(config="[slow]\nslo_ms = 200.0\n")


@pytest.mark.parametrize(
    ("values", "probe"),
    [
        ({}, {"httpGet": {"path": "/healthz", "port": "metrics", "scheme": "HTTP", "host": "127.0.0.1"}}),
        (EVERYTHING, {"httpGet": {"path": "/healthz", "port": "metrics", "scheme": "HTTPS"}}),
        (
            {"metrics": {"listen": "node"}, "tls": {"secretName": "s", "clientsNeedCertificate": True}},
            {"tcpSocket": {"port": "metrics"}},
        ),
    ],
    ids=["loopback", "tls", "mutual tls"],
)
def test_the_kubelet_asks_where_and_how_the_agent_answers(values: dict[str, Any], probe: dict[str, Any]) -> None:
    said = agent(**values)["livenessProbe"]
    assert {name: said[name] for name in probe} == probe
    assert ("httpGet" in said) == ("httpGet" in probe)
