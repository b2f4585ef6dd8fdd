from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

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


def test_segment_larger_than_the_store_is_refused() -> None:
    with pytest.raises(UsageError, match=r"segment_mib = 16 is more than store.total_mib = 8"):
        load(store__total_mib="8")


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
