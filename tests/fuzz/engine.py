"""libFuzzer, by way of atheris: each target in a process of its own, forked from one that has all of it imported.

``atheris`` changes the agent's modules as they are imported, so nothing here imports one before :func:`prepare`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tests.fuzz.target import Target

#: Beyond it an input hangs; the machine may be busy with other things.
INPUT_S = 20
#: Resident, and of addresses: a length that is believed shows as one of the two.
RESIDENT_MIB, ADDRESSES_MIB = 700, 4096
#: A process goes on for so long, then another does: instrumented, a large target takes some 10 KiB more with each
#: execution, and the same code as it is none.
ROUND_S = 60
#: Share of the inputs that are changed by their shape, where a target knows it; the rest is libFuzzer's own.
SHAPED = 0.75

#: The agent, and what of others reads for it in Python: inputs that differ only there are different too.
_INSTRUMENTED = ("tailspan", "email", "http", "tomllib", "google.protobuf.json_format")
_RAISED = "crash-raised"
#: What the inputs are called that a run stops at.
_CRASHES = ("crash", "timeout", "oom")
_STATUS = re.compile(rb"^#(\d+)\s+\w+(?:\s+cov: (\d+) ft: (\d+))?(?:\s+corp: (\d+)/)?", re.M)
_STAT = re.compile(rb"^stat::(\w+):\s+(\d+)", re.M)
_FAILED = re.compile(r"^ === Uncaught Python exception: ===$\n(.*?)(?=^\n)", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one target's run."""

    executions: int
    seconds: float
    edges: int  #: libFuzzer's ``cov``: edges of the agent's bytecode that were taken
    features: int  #: ``ft``: the same, by how often, and comparisons
    corpus: int  #: inputs it holds, with those it began with
    slowest_s: int
    peak_rss_mib: int
    finding: str  #: "" where there is none; else what was raised, or libFuzzer's own words
    input: bytes  #: the one that did it

    def then(self, later: Outcome) -> Outcome:
        """Both as one; the later has begun with what the earlier has found."""
        return replace(
            later,
            executions=self.executions + later.executions,
            seconds=round(self.seconds + later.seconds, 1),
            slowest_s=max(self.slowest_s, later.slowest_s),
            peak_rss_mib=max(self.peak_rss_mib, later.peak_rss_mib),
        )


def why_absent() -> str:
    """Why there is no coverage-guided run here; "" where there can be one."""
    if importlib.util.find_spec("atheris") is None:
        return "atheris is not installed (it has wheels for Linux on x86-64 alone): only the corpus can be run"
    return ""


def prepare(names: list[str]) -> list[Target]:
    """The targets, with the agent's modules instrumented as they come."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    logging.disable(logging.CRITICAL)  # what is said of each bad input is not what is looked for
    from tests.fuzz import targets

    said = io.StringIO()  # a line for each module
    with contextlib.redirect_stderr(said), atheris.instrument_imports(include=[*_INSTRUMENTED]):
        return [targets.load(name) for name in names]


def run(target: Target, known: Path, found: Path, runs: int, seconds: float) -> Outcome:
    """Fuzz until there are so many executions or seconds, whichever there is (0: it does not count).

    ``known``: inputs to begin with. ``found``: a folder that gets those which reach more.
    """
    outcome = _round(target, known, found, runs, min(seconds, ROUND_S) if seconds else 0)
    while not outcome.finding and (left_s := seconds - outcome.seconds) >= 1:
        left = runs - outcome.executions
        if runs and left <= 0:
            break
        outcome = outcome.then(_round(target, known, found, max(left, 0), min(left_s, ROUND_S)))
    return outcome


def _round(target: Target, known: Path, found: Path, runs: int, seconds: float) -> Outcome:
    began_s = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as folder:
        log = Path(folder) / "log"
        sys.stdout.flush()
        child = os.fork()
        if not child:
            limits = [f"-runs={runs or -1}", f"-max_total_time={int(seconds)}"]
            _fuzz(target, log, [*limits, str(found), str(known)])
        try:
            _, status, usage = os.wait4(child, 0)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        said = log.read_bytes()
        crashes = [path.read_bytes() for kind in _CRASHES for path in Path(folder).glob(f"{kind}-*")]
    return _outcome(said, status, crashes, time.monotonic() - began_s, usage.ru_maxrss >> 10)


def _fuzz(target: Target, log: Path, arguments: list[str]) -> NoReturn:
    """In the child, which never comes back: what is open in the parent is not its own to close."""
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        tempfile.tempdir = str(log.parent)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES_MIB << 20,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _begin(target, log.parent, arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def _begin(target: Target, folder: Path, arguments: list[str]) -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    words = folder / "words"
    words.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words))
    options = [
        f"-max_len={target.max_bytes}",
        f"-timeout={INPUT_S}",
        f"-rss_limit_mb={RESIDENT_MIB}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        "-keep_seed=1",  # and as they are: the agent may do the same with two dates, a library does not
        "-reduce_inputs=0",
        *([f"-dict={words}"] if target.words else []),
    ]

    def mutated(data: bytes, max_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if target.mutate is not None and rng.random() < SHAPED:
            made = target.mutate(data, rng, lambda some, most: bytes(atheris.Mutate(some, max(most, 1))))
            if len(made) <= max_bytes:
                return made
        return bytes(atheris.Mutate(data, max_bytes))

    def checked(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            (folder / _RAISED).write_bytes(data)  # libFuzzer writes those alone that hang or take too much memory
            raise

    shaped: dict[str, Any] = {"custom_mutator": mutated} if target.mutate else {}
    atheris.Setup([target.name, *options, *arguments], checked, **shaped)
    atheris.Fuzz()


def _quoted(word: bytes) -> str:
    """As a dictionary of libFuzzer has it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def _outcome(said: bytes, status: int, crashes: list[bytes], seconds: float, peak_mib: int) -> Outcome:
    statuses = _STATUS.findall(said)
    stats = {name.decode(): int(value) for name, value in _STAT.findall(said)}
    _, edges, features, corpus = (max((int(one[i] or 0) for one in statuses), default=0) for i in range(4))
    failed = bool(crashes) or status != 0
    return Outcome(
        executions=stats.get("number_of_executed_units", max((int(one[0]) for one in statuses), default=0)),
        seconds=round(seconds, 1),
        edges=edges,
        features=features,
        corpus=corpus,
        slowest_s=stats.get("slowest_unit_time_sec", 0),
        peak_rss_mib=peak_mib,
        finding=_said(said.decode(errors="replace")) if failed else "",
        input=crashes[0] if crashes else b"",
    )


def _said(text: str) -> str:
    if match := _FAILED.search(text):
        return match[1].strip()
    errors = [line for line in text.splitlines() if "ERROR: libFuzzer" in line]
    return "\n".join(errors) or text[-2000:] or "it ended without a word"
