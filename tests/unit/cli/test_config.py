from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailspan import config
from tests.unit.cli.conftest import Run


@pytest.fixture(autouse=True)
def no_variables_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(config.ENV_PREFIX)]:
        monkeypatch.delenv(name)


def written(folder: Path, text: str) -> Path:
    path = folder / "tailspan.toml"
    path.write_text(text)
    return path


def test_every_problem_is_said_with_its_place(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, "[slow]\nslo = 1\nfactor = 0\n[probes]\ndisabled = ['irqs', 'sched']\n")
    done = run("config", "--check", "--config", path, "--set", "store.kep=all")
    assert (done.code, done.err) == (2, "")
    *problems, last = done.out.splitlines()
    assert problems == [
        f"error: {path}:2: unknown key slow.slo: did you mean slow.slo_ms?",
        f"error: {path}:3: slow.factor = 0: must be 1 to 1000",
        "error: command line: unknown key store.kep: did you mean store.keep?",
        f"error: {path}:5: probes.disabled: no probe irqs: there are sched, lifecycle, irq, stalls, block, tcp, "
        "owners, incidents, gpu, syscalls",
        f"error: {path}:5: probes.disabled: without sched the agent does not run",
    ]
    assert last == f"{path}: 1 key is set, 5 wrong"


def test_a_good_file_is_said_to_be_good(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, "[slow]\nslo_ms = 200\n[store]\nkeep = 'all'\n")
    done = run("config", "--check", "--config", path)
    assert (done.code, done.out) == (0, f"{path}: 2 keys are set, all can be used\n")
    assert run("config", "--check").out == "no file, the environment and flags: 0 keys are set, all can be used\n"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("otlp.grpc=0.0.0.0:4317", "0.0.0.0:4317 is served beyond this host in the clear: set tls.certificate"),
        ("otlp.http=[::]:4318", "[::]:4318 is served beyond this host in the clear"),
        ("export.prometheus=node-7:9464", "node-7:9464 is served beyond this host in the clear"),
        ("follow.pids=4194304", "no process 4194304 runs now"),
        ("follow.cgroups=/", "every process of this host fits"),
        ("follow.executables=/opt/nowhere", "/opt/nowhere is not on this host: right if it is a container's"),
        ("worker.group=no-such-group", "there is no group no-such-group on this host"),
    ],
)
def test_what_is_odd_is_said_and_is_no_error(run: Run, setting: str, said: str) -> None:
    done = run("config", "--check", "--set", setting)
    assert done.code == 0
    warning, last = done.out.splitlines()
    assert warning.startswith(f"warning: command line: {setting.partition('=')[0]}: {said}")
    assert last.endswith("all can be used")


@pytest.mark.parametrize("setting", ["otlp.grpc=127.0.0.1:4317", "otlp.http=[::1]:4318", "otlp.http=localhost:1"])
def test_loopback_is_not_odd(run: Run, setting: str) -> None:
    assert len(run("config", "--check", "--set", setting).out.splitlines()) == 1


def test_certificates_that_nobody_uses_or_can_read_are_odd(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    tls = ["--set", f"tls.certificate={tmp_path / 'c.pem'}", "--set", f"tls.key={tmp_path / 'absent.pem'}"]
    done = run("config", "--check", *tls)
    assert done.code == 0
    assert "tls.certificate: nothing listens beyond loopback: it is not used" in done.out
    assert f"tls.key: uid {os.geteuid()} cannot read {tmp_path / 'absent.pem'}" in done.out
    done = run("config", "--check", *tls, "--set", "otlp.grpc=0.0.0.0:4317")
    assert "otlp.grpc: 0.0.0.0:4317 is open to any client: set tls.client_ca" in done.out
    assert "not used" not in done.out


def test_a_file_that_anybody_may_write_is_odd(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.chmod(0o666)
    assert f"warning: {path}: any user may write to it" in run("config", "--check", "--config", path).out


@pytest.mark.parametrize("what", ["--check", "--print"])
def test_a_file_that_cannot_be_read_is_one_clear_line(run: Run, tmp_path: Path, what: str) -> None:
    path = written(tmp_path, "[slow]\nfactor = \n")
    done = run("config", what, "--config", path)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"tailspan: {path}: Invalid value (at line 2, column 10)\n"
    assert run("config", what, "--config", tmp_path / "absent").code == 2
    done = run("config", what, "--config", tmp_path)
    assert (done.code, done.err) == (3, f"tailspan: cannot read {tmp_path}: Is a directory\n")


def test_print_says_where_each_value_is_from(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "[slow]\nslo_ms = 200\nfactor = 3\n")
    monkeypatch.setenv("TAILSPAN_SLOW_FACTOR", "4")
    done = run("config", "--print", "--config", path, "--pid", 23, "--pid", 29, "--set", "store.keep=all")
    assert done.code == 0
    lines = done.out.splitlines()
    assert f"slo_ms = 200.0  # {path}:2" in lines
    assert "factor = 4.0  # environment variable TAILSPAN_SLOW_FACTOR" in lines
    assert "pids = [23, 29]  # command line" in lines
    assert 'keep = "all"  # command line' in lines
    assert "days = 7  # default" in lines


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


TEXT = st.text(st.characters(exclude_categories=("Cs",)).filter(str.isprintable), max_size=20)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    group=TEXT, paths=st.lists(TEXT, max_size=3), factor=st.floats(1, 1000), ports=st.lists(st.integers(1, 65535))
)
def test_what_is_printed_says_the_same_when_it_is_loaded(
    run: Run, tmp_path: Path, group: str, paths: list[str], factor: float, ports: list[int]
) -> None:
    programs = ", ".join(map(quoted, ["/" + path for path in paths]))
    follow = f"[follow]\nports = {ports}\nexecutables = [{programs}]\n"
    path = written(tmp_path, f"{follow}[slow]\nfactor = {factor}\n[worker]\ngroup = {quoted(group)}\n")
    expected = config.load(path, {})
    done = run("config", "--print", "--config", path)
    assert done.code == 0, done.err
    again = written(tmp_path, done.out)
    assert config.load(again, {}) == expected
    assert [
        f"{section}.{key}" for section, body in tomllib.loads(done.out).items() for key in body
    ] == config.keys()


def test_json_has_values_origins_and_problems(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, "[slow]\nslo_ms = 200\n[window]\nsecond = 1\n")
    done = run("config", "--check", "--json", "--config", path, "--set", "follow.cgroups=/")
    assert done.code == 2
    body = json.loads(done.out)
    assert body["file"] == str(path)
    assert body["settings"]["slow.slo_ms"] == {"value": 200.0, "from": f"{path}:2", "restart": False}
    assert body["settings"]["window.seconds"] == {"value": 30, "from": "default", "restart": True}
    assert list(body["settings"]) == config.keys()
    (problem,) = body["problems"]
    assert (problem["where"], problem["key"]) == (f"{path}:4", "window.second")
    (warning,) = body["warnings"]
    assert warning["key"] == "follow.cgroups"
    assert run("config", "--print", "--json", "--config", path).code == 2


def test_one_of_both_must_be_asked_for(run: Run) -> None:
    assert run("config").code == 2
    assert run("config", "--check", "--print").code == 2
