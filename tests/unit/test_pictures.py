"""The pictures of the command line are whole, show what they say, and are the same for the same store."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tailspan.attribute.judge import judge
from tailspan.errors import CannotError
from tailspan.export.local import SUFFIX, write_evidence_file
from tailspan.export.segment import IndexRow
from tests.builders import sample_evidence

FOLDER = Path(__file__).parents[2] / "docs"
PROGRAM: dict[str, Any] = runpy.run_path(str(FOLDER / "pictures.py"))
View, picture, shown = PROGRAM["View"], PROGRAM["picture"], PROGRAM["shown"]

#: What each view must show, whatever was recorded.
HEADINGS = {
    "check": ("$ tailspan check", "probes", "environment", "gpus", "sched", "BTF"),
    "explain": ("$ tailspan explain --slowest", "above normal", "for ms", "coverage ", "do: "),
    "replay": ("$ tailspan replay", " ms  named "),
    "slow": ("$ tailspan slow", "ended (UTC)", "culprit", "trace"),
    "syscalls": ("$ tailspan syscalls", "syscall", "total ms", "p99 ≤"),
    "top": ("$ tailspan top", "slow requests", "cause", "culprit", "ms above normal"),
}


def text_of(svg: str) -> str:
    """Its lines from top to bottom, each from left to right."""
    lines: dict[float, str] = {}
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if "matrix" not in element.get("class", ""):
            at = float(element.get("y", 0))
            lines[at] = lines.get(at, "") + (element.text or "").replace("\u00a0", " ").rstrip("\n")
    return "\n".join(lines[at] for at in sorted(lines))


def test_each_view_has_its_picture() -> None:
    of_benches = {"growth"}  # see test_bench_growth.py
    assert {path.stem for path in (FOLDER / "pictures").glob("*")} == set(HEADINGS) | of_benches


@pytest.mark.parametrize("name", HEADINGS)
def test_a_committed_picture_shows_its_view(name: str) -> None:
    svg = (FOLDER / "pictures" / f"{name}.svg").read_text()
    text = text_of(svg)
    assert [heading for heading in HEADINGS[name] if heading not in text] == []
    # It is shown by pages that fetch nothing from elsewhere, and fits the width it was made for.
    assert re.findall(r"(?:https?:)?//[^\s\"]+", svg) == ["http://www.w3.org/2000/svg"]
    assert max(map(len, text.splitlines())) <= PROGRAM["WIDTH"]


def test_the_same_store_gives_the_same_picture(tmp_path: Path) -> None:
    # GIVEN a store with one request
    evidence = sample_evidence()
    rows = [IndexRow.of(verdict) for verdict in judge(evidence)]
    write_evidence_file(tmp_path / f"1{SUFFIX}", [(evidence, rows)], host="node-1")
    view, environ = View("explain", "tailspan explain --slowest"), {"TAILSPAN_STORE_PATH": str(tmp_path)}

    # WHEN its view is drawn twice
    first, second = (picture(view, shown(view.command, environ, tmp_path)) for _ in range(2))

    # THEN both are the same, and say what the command says
    assert first == second
    assert rows[0].trace_id in text_of(first)


def test_colours_and_markup_of_the_output_are_kept_apart() -> None:
    svg = picture(View("x", "tailspan x"), "\x1b[31mred <&> text\x1b[0m\n")
    assert "red <&> text" in text_of(svg)
    styles = dict(re.findall(r"\.tailspan-x-(r\d+) { fill: (#\w+)", svg))
    (style,) = re.findall(r'class="tailspan-x-(r\d+)"[^>]*>red', svg)
    assert styles[style] == "#cc555a"


def test_a_long_line_goes_on_where_a_terminal_would_break_it() -> None:
    word = "0123456789" * 25
    lines = text_of(picture(View("x", "tailspan x"), f"{word}\n\nend\n")).splitlines()
    assert [len(line) for line in lines[2:5]] == [100, 100, 50]
    assert "".join(lines[2:5]) == word
    assert lines[-1] == "end"


def test_a_command_believes_to_be_on_a_terminal_of_that_width(tmp_path: Path) -> None:
    assert shown("test -t 1 && echo $COLUMNS && pwd", {}, tmp_path) == f"100\n{tmp_path}\n"


@pytest.mark.parametrize("command", ["true", "echo wrong; exit 3"])
def test_no_picture_is_made_of_a_failure(command: str, tmp_path: Path) -> None:
    with pytest.raises(CannotError, match="exit code"):
        shown(command, {}, tmp_path)
