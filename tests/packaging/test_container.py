"""The image's recipe, read; and its last stage, run on a clean Debian: no container engine is needed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.errors import NotFoundError
from tailspan.export.local import Entry, SegmentReader
from tests.conftest import eventually
from tests.packaging import root
from tests.packaging.conftest import Built
from tests.workloads import SLEEPY_WORKER, program

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "packaging" / "container" / "Containerfile"
INSTALL = ROOT / "docs" / "install.md"
GROUP = "4748"

pytestmark = pytest.mark.timeout(600)  # what is built once is built in the first test that asks for it


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", RECIPE.read_text(), flags=re.M).replace("\\\n", " ")
    pairs = (line.partition(" ") for line in text.splitlines() if line)
    return [(word, " ".join(rest.split())) for word, _, rest in pairs]


def last_stage() -> list[tuple[str, str]]:
    steps = instructions()
    (*_, begin) = (at for at, (word, _) in enumerate(steps) if word == "FROM")
    return steps[begin:]


def test_both_stages_are_of_one_release_that_is_named() -> None:
    assert [rest for word, rest in instructions() if word == "FROM"] == ["${BASE} AS build", "${BASE}"]
    (base,) = (rest for word, rest in instructions() if word == "ARG")
    assert re.fullmatch(r"BASE=debian:\d+-slim", base)


def test_nothing_comes_from_beside_the_checkout_and_the_distributions_archive() -> None:
    assert "ADD" not in [word for word, _ in instructions()]
    for word, rest in instructions():
        assert not re.search(r"curl|wget|https?://", rest), word
        if word == "COPY" and not rest.startswith("--from=build"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()


def test_no_compiler_is_in_the_last_stage() -> None:
    installed = " ".join(rest for word, rest in last_stage() if word == "RUN")
    assert not re.search(r"clang|llvm|gcc|make|-dev|pip|venv", installed)


def test_it_runs_the_agent_and_asks_for_its_health() -> None:
    steps = dict(last_stage())
    assert json.loads(steps["ENTRYPOINT"]) + json.loads(steps["CMD"]) == ["/usr/bin/tailspan", "run"]
    assert "tailspan health" in steps["HEALTHCHECK"]


def test_the_documented_command_drops_all_capabilities_but_two() -> None:
    (command,) = re.findall(r"^ +(docker run .+(?:\n +-.+)*\n +.+)$", INSTALL.read_text(), re.M)
    words = shlex.split(command.replace("\\\n", ""))
    given = list(itertools.pairwise(words))
    assert [value for option, value in given if option == "--cap-add"] == ["BPF", "PERFMON"]
    assert ("--cap-drop", "ALL") in given
    assert ("--security-opt", "no-new-privileges") in given
    assert ("--pid", "host") in given
    assert "--read-only" in words
    assert "--privileged" not in words


@pytest.fixture(scope="module")
def image(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the last stage makes of a clean Debian."""
    folder = tmp_path_factory.mktemp("image")
    root.unpack(folder)
    for word, rest in last_stage():
        if word == "RUN":
            # What it installs lies in apt's cache: the archive's lists are as they were when this Debian was made.
            subprocess.run(["chroot", folder, "sh", "-ec", rest.replace("apt-get update", "true")], check=True)
        elif word == "COPY":
            *sources, target = rest.removeprefix("--from=build ").split()
            for source in sources:
                _copied(built.tree if source == "/tree/" else ROOT / source, folder / target.lstrip("/"))
    yield folder
    shutil.rmtree(folder)


def _copied(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


#: As a container engine does it, less its seccomp filter: a read-only root, the host's processes and network.
CONTAINED = """
mount --make-rprivate /
mount --bind "$0" "$0"
mount -t proc proc "$0/proc"
mount --rbind -o ro /sys "$0/sys"
mount -t tmpfs tmp "$0/tmp"
mkdir -p "$0/run/tailspan" "$0/var/lib/tailspan"
mount --bind "$1/run" "$0/run/tailspan"
mount --bind "$1/state" "$0/var/lib/tailspan"
mount -o remount,bind,ro "$0"
exec chroot "$0" \\
    setpriv --no-new-privs --bounding-set=-all,+bpf,+perfmon --inh-caps=-all --regid=%s --clear-groups \\
    /usr/bin/tailspan run --keep all --set export.prometheus=
"""


@contextlib.contextmanager
def contained(image: Path, place: Path) -> Iterator[Path]:
    """Gives the agent's log."""
    for name in ("run", "state"):
        (place / name).mkdir()
    log = place / "log"
    with log.open("w") as stderr:
        command = ["unshare", "--mount", "sh", "-ec", CONTAINED % GROUP, str(image), str(place)]
        running = subprocess.Popen(command, stderr=stderr, env={"PATH": os.environ["PATH"]})
    try:
        eventually(lambda: running.poll() is not None or "ready in" in log.read_text(), "it is ready", seconds=60)
        assert running.poll() is None, log.read_text()
        yield log
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=30) == 0, log.read_text()


@pytest.mark.kernel
def test_with_two_capabilities_on_a_read_only_root_it_explains_requests(image: Path, tmp_path: Path) -> None:
    with contained(image, tmp_path) as log, program(SLEEPY_WORKER, tmp_path / "run/worker.sock") as worker:
        status = (tmp_path / "run/worker.sock").stat()
        assert (f"{status.st_mode & 0o777:o}", status.st_gid) == ("660", int(GROUP))
        worker.go()
        eventually(lambda: f"following pid {worker.pid} " in log.read_text(), "the worker is followed")
        worker.go()
        assert worker.finish() == ["0"]
        eventually(lambda: len(stored(tmp_path)) == 23, "all requests are stored")

    reader = SegmentReader(tmp_path / "state")
    blocks = {entry.offset: entry for entry in stored(tmp_path)}
    verdicts = [verdict for entry in blocks.values() for verdict in judge(reader.load(entry))]
    asleep = [part.ns for verdict in verdicts for part in verdict.ledger if part.cause is Cause.SLEEP]
    assert len(asleep) == 23
    assert sum(asleep) > 23 * 2_000_000


def stored(place: Path) -> list[Entry]:
    try:
        return list(SegmentReader(place / "state").rows())
    except NotFoundError:
        return []
