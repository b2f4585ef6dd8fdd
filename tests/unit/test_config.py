from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan import config
from tailspan.config import Config
from tailspan.errors import CannotError, UsageError

SHIPPED = Path(__file__).parents[2] / "systemd" / "tailspan.toml"


def load(
    toml: str = "", environ: Mapping[str, str] | None = None, tmp_path: Path | None = None, **flags: str
) -> Config:
    path = None
    if tmp_path:
        path = tmp_path / "tailspan.toml"
        path.write_text(toml)
    return config.load(path, environ or {}, {key.replace("__", "."): text for key, text in flags.items()})


def test_defaults_hold_where_nothing_is_said(tmp_path: Path) -> None:
    assert load(tmp_path=tmp_path) == Config()


def test_shipped_file_changes_nothing_as_it_is() -> None:
    assert config.load(SHIPPED, {}) == Config()


def test_shipped_file_with_its_keys_uncommented_is_the_defaults(tmp_path: Path) -> None:
    # GIVEN the shipped file, whose keys are commented out without a space
    uncommented = re.sub(r"^#(?=\w+ = )", "", SHIPPED.read_text(), flags=re.M)
    # THEN it names every key there is, each with its default
    said = [f"{section}.{key}" for section, body in tomllib.loads(uncommented).items() for key in body]
    assert said == config.keys()
    assert load(uncommented, tmp_path=tmp_path) == Config()


def test_flag_wins_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    toml = "[slow]\nslo_ms = 1\nfactor = 3\nmin_excess_ms = 1.5\n"
    environ = {"TAILSPAN_SLOW_FACTOR": "4", "TAILSPAN_SLOW_MIN_EXCESS_MS": "2.5"}
    slow = load(toml, environ, tmp_path, slow__min_excess_ms="3.5").slow
    assert (slow.slo_ms, slow.factor, slow.min_excess_ms) == (1.0, 4.0, 3.5)
    assert type(slow.slo_ms) is float


def test_text_becomes_the_type_of_its_key() -> None:
    environ = {
        "TAILSPAN_FOLLOW_PIDS": "23, 29",
        "TAILSPAN_PROBES_DISABLED": "irq",
        "TAILSPAN_EXPORT_PROMETHEUS": "",
    }
    loaded = load(environ=environ)
    assert loaded.follow.pids == (23, 29)
    assert loaded.probes.disabled == ("irq",)
    assert loaded.export.prometheus == ""


def test_empty_text_is_an_empty_list(tmp_path: Path) -> None:
    assert load("[follow]\npids = [1]", {"TAILSPAN_FOLLOW_PIDS": ""}, tmp_path).follow.pids == ()


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[slow]\nslo = 1", "unknown key slow.slo: did you mean slow.slo_ms?"),
        ("[store]\nkep = 'all'", "unknown key store.kep: did you mean store.keep?"),
        ("[window]\nxyzzy = 1", "unknown key window.xyzzy: [window] has seconds, max_rows"),
        ("[slo]\nx = 1", "unknown section slo: did you mean slow?"),
        ("[xyzzy]\nx = 1", "unknown section xyzzy: sections are worker, follow"),
        ("slow = 1", "slow is a section: write [slow]"),
        ("slo_ms = 1", "unknown section slo_ms"),
        ("[slow", "Expected ']'"),
        ("[slow]\nfactor = '2'", "slow.factor = '2': must be a number"),
        ("[slow]\nfactor = true", "slow.factor = True: must be a number"),
        ("[slow]\nfactor = 0.5", "slow.factor = 0.5: must be 1 to 1000"),
        ("[slow]\nfactor = nan", "must be 1 to 1000"),
        ("[slow]\nslo_ms = inf", "must be 0 to 3600000"),
        ("[window]\nseconds = 1.5", "must be a whole number"),
        ("[window]\nseconds = 0", "must be 1 to 3600"),
        ("[follow]\npids = 23", "must be a list of whole numbers"),
        ("[follow]\npids = [true]", "must be a list of whole numbers"),
        ("[follow]\npids = [0]", "must be 1 to 4194304"),
        ("[probes]\nsyscalls = 'of'", 'must be one of "off", "on", "triggered"'),
        ("[probes]\nsyscalls = []", 'must be one of "off", "on", "triggered"'),
        ("[probes]\ndisabled = 'irq'", "must be a list of strings"),
        ("[probes]\nring_kib = 1000", "must be a power of two"),
        ("[gpu]\nnvml = true", 'must be one of "on", "off"'),
        ("[gpu]\nsample_ms = 99", "must be 100 to 10000"),
        ("[gpu]\nbudget = 0", "must be 0.0001 to 0.5"),
        ("[gpu]\ncalls = 'launch'", 'must be one of "on", "off"'),
        ("[gpu]\ncalls_per_s = 1e4", "must be a whole number"),
        ("[worker]\nmode = '888'", "must be an octal mode"),
        ('[worker]\ngroup = "a\\tb"', "must be printable text"),
        ('[follow]\nexecutables = ["/a\\nb"]', "must be printable text"),
        ("[follow]\nunits = ['triton']", 'must be names of units such as "triton.service"'),
        ("[follow]\nunits = ['/system.slice/triton.service']", "must be names of units"),
        ("[follow]\ncgroups = ['kubepods.slice']", "must be absolute paths"),
        ("[follow]\nexecutables = ['python3']", "must be absolute paths"),
        ("[follow]\ncontainers = ['0123456789a']", "must be 12 to 64 digits of an id"),
        ("[follow]\ncontainers = ['vllm/main']", 'or "namespace/pod/container"'),
        ("[follow]\nports = [0]", "must be 1 to 65535"),
        ("[health]\nwarning = 101", "must be 1 to 100"),
        ("[worker]\nsocket = 'worker.sock'", "must be an absolute path"),
        (f"[agent]\ncontrol = '/{'a' * 107}'", "at most 107 bytes"),
        ("[export]\nprometheus = '9464'", "must be host:port"),
        ("[export]\nprometheus = '127.0.0.1:99999'", "must be host:port"),
        ("[store]\npath = ''", "must be a path"),
        ("[store]\nkeep = 'some'", 'must be one of "slow", "all"'),
    ],
)
def test_what_is_not_understood_is_refused_by_file_and_key(toml: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        load(toml, tmp_path=tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "tailspan.toml"))


def test_wrong_variable_is_named() -> None:
    with pytest.raises(UsageError, match=r"variable TAILSPAN_SLOW_FACTOR: slow.factor = 'two': must be a number"):
        load(environ={"TAILSPAN_SLOW_FACTOR": "two"})
    with pytest.raises(UsageError, match=r"variable TAILSPAN_SLOW_FACTR: .* did you mean slow.factor\?"):
        load(environ={"TAILSPAN_SLOW_FACTR": "2"})


def test_variable_of_no_section_is_somebody_elses() -> None:
    assert load(environ={"TAILSPAN_SOCKET": "/run/x.sock", "TAILSPAN_REQUIRE_KERNEL": "1"}) == Config()


def test_wrong_flag_is_named() -> None:
    with pytest.raises(UsageError, match=r"command line: unknown key slow\.slo: did you mean slow\.slo_ms\?"):
        load(slow__slo="1")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[store]\ntotal_mib = 8", "store.segment_mib = 16 is more than store.total_mib = 8"),
        ("[health]\ncritical = 71", "health.critical = 71 is more than health.warning = 70"),
        ("[tls]\nkey = '/k'", "tls.certificate is not set, but another key of [tls] is: it takes both"),
        ("[tls]\ncertificate = '/c'\nclient_ca = '/a'", "tls.key is not set"),
        ("[worker]\nsocket = '/s'\n[agent]\ncontrol = '/s'", "agent.control = '/s' is worker.socket too"),
        ("[otlp]\nhttp = '127.0.0.1:9464'", "otlp.http = '127.0.0.1:9464' is export.prometheus too"),
    ],
)
def test_values_that_contradict_each_other_are_refused(toml: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        load(toml, tmp_path=tmp_path)


def test_any_free_port_may_be_asked_for_twice() -> None:
    loaded = load(otlp__grpc="127.0.0.1:0", otlp__http="127.0.0.1:0", export__prometheus="")
    assert (loaded.otlp.grpc, loaded.otlp.http) == ("127.0.0.1:0", "127.0.0.1:0")


def test_every_problem_is_found_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tailspan.toml"
    path.write_text("[slow]\n\nslo = 1\nfactor = 0\n  min_excess_ms=7\n[xyzzy]\n[store]\nkeep = 'all'\n")
    environ = {"TAILSPAN_WINDOW_SECONDS": "0", "TAILSPAN_SLOW_FACTOR": "3"}
    reading = config.read(path, environ, {"store.keep": "some", "probes.ring_kib": "2048"})
    assert [(problem.where, problem.key) for problem in reading.problems] == [
        (f"{path}:3", "slow.slo"),
        (f"{path}:4", "slow.factor"),
        (f"{path}:6", "xyzzy"),
        ("environment variable TAILSPAN_WINDOW_SECONDS", "window.seconds"),
        ("command line", "store.keep"),
    ]
    assert reading.origins == {
        "slow.min_excess_ms": f"{path}:5",
        "slow.factor": "environment variable TAILSPAN_SLOW_FACTOR",
        "store.keep": f"{path}:8",
        "probes.ring_kib": "command line",
    }
    assert (reading.config.slow.min_excess_ms, reading.config.slow.factor) == (7.0, 3.0)
    assert (reading.config.store.keep, reading.config.probes.ring_kib) == ("all", 2048)
    assert reading.file == path


def test_first_of_many_problems_is_raised_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"toml:2: unknown key slow\.a: .* \(and 2 more: tailspan config --check\)"
    ):
        load("[slow]\na = 1\nb = 1\nfactor = 0", tmp_path=tmp_path)


@pytest.mark.parametrize("brackets", [10, 100_000])
def test_brackets_without_end_are_an_error(brackets: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tailspan.toml: "):
        load("a = " + "[" * brackets, tmp_path=tmp_path)


@given(st.text(st.sampled_from("[]=\n\"'#.,x1 ") | st.characters(), max_size=60))
def test_whatever_a_file_holds_is_read_or_refused(text: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)
        file.flush()
        try:
            reading = config.read(Path(file.name), {})
        except UsageError:
            return
    assert reading.config == Config()
    assert all(problem.where.startswith(file.name) for problem in reading.problems)


def test_a_reload_applies_every_key_that_is_not_marked(tmp_path: Path) -> None:
    old = Config()
    new = load(
        environ={},
        window__seconds="60",
        slow__slo_ms="7",
        follow__ports="8000",
        worker__socket="/s",
        worker__allow_uids="23",
    )
    assert config.changed(old, new) == [
        "worker.socket",
        "worker.allow_uids",
        "follow.ports",
        "slow.slo_ms",
        "window.seconds",
    ]
    applied = config.reloaded(old, new)
    assert config.changed(old, applied) == ["worker.allow_uids", "follow.ports", "slow.slo_ms"]
    assert config.changed(applied, new) == ["worker.socket", "window.seconds"]
    assert all(map(config.needs_restart, config.changed(applied, new)))


def test_shipped_file_marks_the_keys_that_need_a_restart() -> None:
    marked, section = [], ""
    for line in SHIPPED.read_text().splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line):
            section = head[1]
        elif key := re.match(r"#(\w+) = .*  # restart$", line):
            marked.append(f"{section}.{key[1]}")
    assert marked == list(filter(config.needs_restart, config.keys()))


def test_named_file_that_is_absent_is_an_error_and_the_default_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent.toml"
    monkeypatch.setattr(config, "DEFAULT_PATH", absent)
    assert config.load(None, {}) == Config()
    with pytest.raises(UsageError, match=r"absent.toml: no such file"):
        config.load(absent, {})


def test_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tailspan.toml"
    path.write_text("[window]\nseconds = 23")
    monkeypatch.setattr(config, "DEFAULT_PATH", path)
    assert config.load(None, {}).window.seconds == 23


def test_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(CannotError, match=r"cannot read .*: Is a directory"):
        config.load(tmp_path, {})


def test_file_that_is_not_utf8_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "tailspan.toml"
    path.write_bytes(b"[slow]\nslo_ms = \xff")
    with pytest.raises(UsageError, match=r"tailspan.toml: .*utf-8"):
        config.load(path, {})
