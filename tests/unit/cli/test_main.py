from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tailspan import __version__
from tailspan.cli import INTERRUPTED, PIPE_CLOSED, main, output, parser
from tailspan.errors import CannotError
from tests.unit.cli.conftest import Run

IMPORTS = """
import sys
from tailspan.cli import main
try:
    main({argv})
except SystemExit as stop:
    assert stop.code == 0, stop.code
heavy = {{"numpy", "msgpack", "psutil", "opentelemetry", "prometheus_client"}} & set(sys.modules)
assert not heavy, heavy
"""


def tailspan(*argv: str, script: str = "", **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-c", script) if script else ("-m", "tailspan")), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in parser.COMMANDS)])
def test_help_and_version_import_nothing_heavy(argv: list[str]) -> None:
    done = tailspan(script=IMPORTS.format(argv=argv))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in parser.COMMANDS)])
def test_help_begins_with_examples(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("examples:\n  ")


def test_version_is_the_packages() -> None:
    done = tailspan("--version")
    assert (done.returncode, done.stdout) == (0, f"tailspan {__version__}\n")


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["slow", "--nonsense"], ["slow", "--last", "0"], ["slow", "--since", "soon"]]
)
def test_wrong_usage_is_one_line_and_exit_code_2(argv: list[str], run: Run) -> None:
    done = run(*argv)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("tailspan: ")
    assert done.err.count("\n") == 1
    assert "--help" in done.err


def test_option_is_not_guessed_from_its_beginning(run: Run) -> None:
    assert run("slow", "--stor", "/").code == 2


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def width(asked: int | None = None) -> int:
        raise error

    monkeypatch.setattr(output, "width", width)


def test_error_of_many_lines_is_printed_as_one(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, CannotError("refused:\n  by the kernel\n"))
    done = run("slow", "--store", store)
    assert (done.code, done.err) == (3, "tailspan: refused: by the kernel\n")


def test_interrupt_is_quiet(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    done = run("slow", "--store", store)
    assert (done.code, done.err) == (INTERRUPTED, "")


def test_closed_pipe_is_quiet(store: Path) -> None:
    # GIVEN a stdout whose reader has gone
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tailspan", "slow", "--store", str(store)]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(write)
    # THEN nothing is said about it, not even when the interpreter ends
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, "")


def test_output_that_cannot_be_encoded_is_replaced(store: Path) -> None:
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = tailspan("explain", "--slowest", "--store", str(store), env=environ)
    assert done.returncode == 0, done.stderr
    assert "run queue" in done.stdout
    assert "?" in done.stdout


def test_off_a_terminal_text_is_80_wide_and_has_no_colour(run: Run, store: Path) -> None:
    done = run("explain", "--slowest", "--store", store)
    assert "\x1b" not in done.out
    assert 60 < max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    environ: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert output.colour() is expected
