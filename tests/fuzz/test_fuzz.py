"""Every input that was ever kept, through its target; and a moment of coverage-guided fuzzing of each."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import engine
from tests.fuzz.corpus import CORPUS, inputs
from tests.fuzz.findings import FINDINGS, ROOT
from tests.fuzz.target import Target
from tests.fuzz.targets import NAMES, load

#: Of each target: enough to see that the engine, the instrumentation and the mutators work.
RUNS = 500
#: What the corpus may take in the repository.
MAX_CORPUS_BYTES = 300_000
#: One input: far more than any takes, on a machine that is busy with something else.
PATIENCE_S = 20.0


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    loaded = load(request.param)
    yield loaded
    loaded.close()


def test_every_kept_input_leaves_the_invariants_whole(target: Target) -> None:
    kept = inputs(target)
    assert any(file.startswith("seed-") for file in kept), "no seeds: python -m tests.fuzz --seeds"
    for file, data in kept.items():
        began_s = time.monotonic()
        try:
            target.check(data)
        except Exception as error:
            pytest.fail(f"{CORPUS.name}/{target.name}/{file}: {error!r}")
        assert time.monotonic() - began_s < PATIENCE_S, file


def test_an_empty_input_is_one(target: Target) -> None:
    target.check(b"")


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MAX_CORPUS_BYTES


def test_each_finding_is_held_by_a_test() -> None:
    for finding in FINDINGS:
        file, _, test = finding.held.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, finding.held
        assert finding.target in NAMES


@pytest.mark.skipif(bool(engine.why_absent()), reason=engine.why_absent() or "it is there")
def test_a_short_run_by_coverage_finds_nothing(tmp_path: Path) -> None:
    # GIVEN a run in a process of its own: here the agent's modules are imported as they are
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.fuzz", "--runs", str(RUNS), "--json", str(figures)]
    done = subprocess.run(
        [*command, "--findings", str(tmp_path / "findings")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    # THEN every target has run, has reached code of the agent, and nothing was found
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    targets = json.loads(figures.read_text())["targets"]
    assert list(targets) == list(NAMES)
    for name, one in targets.items():
        assert one["executions"] >= RUNS, name
        assert one["edges"] > 10, name
