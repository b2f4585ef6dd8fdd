"""What the sources never do: hand text to a shell, run text as code, load objects from bytes, trust anybody.

Names are followed through imports (``from os import system as s``); what is put together at run time is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tailspan

PACKAGE = Path(tailspan.__file__).parent
#: A name, or all below it that begin so.
NEVER = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "runs text as code",
    "__import__": "imports what text says",
    "os.system": "is a shell",
    "os.popen": "is a shell",
    "os.exec": "becomes another program",
    "os.spawn": "starts a program",
    "os.posix_spawn": "starts a program",
    "pty": "starts a program",
    "subprocess.getoutput": "is a shell",
    "subprocess.getstatusoutput": "is a shell",
    "asyncio.create_subprocess_shell": "is a shell",
    "pickle": "loads objects from bytes",
    "cPickle": "loads objects from bytes",
    "dill": "loads objects from bytes",
    "shelve": "loads objects from bytes",
    "marshal": "loads objects from bytes",
    "jsonpickle": "loads objects from bytes",
    "numpy.load": "may load objects from bytes",
    "yaml.load": "loads objects from bytes",
    "yaml.unsafe_load": "loads objects from bytes",
    "yaml.full_load": "loads objects from bytes",
    "tempfile.mktemp": "gives a name that another may take first",
    "ssl._create_unverified_context": "trusts anybody",
    "ssl.CERT_NONE": "trusts anybody",
    "ssl.wrap_socket": "trusts anybody",
}
#: Modules that start programs, from a list of words: the interpreter that runs them.
MAY_START_PROGRAMS = {
    "worker/demo.py": "no part of the agent",
    "collect/bpf/compiler.py": "bcc's compiler, before privileges are given up, in memory that is freed with it",
}
#: ``shell=True`` and the like, whatever is called with it.
KEYWORDS = {("shell", True): "is a shell", ("allow_pickle", True): "loads objects from bytes"}


def offences(package: Path) -> list[str]:
    """``path:line: name why``, of a tree of sources."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"), str(path))
        where = path.relative_to(package).as_posix()
        found += [f"{where}:{line}: {what}" for line, what in _of_module(module, where)]
    return found


def _of_module(module: ast.Module, where: str) -> Iterator[tuple[int, str]]:
    names = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            begun = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    begun + alias.name if alias.asname or begun else alias.name.partition(".")[0]
                )
                yield from _judge(node.lineno, begun + alias.name, where)
    for node in ast.walk(module):
        if isinstance(node, ast.Name | ast.Attribute):
            dotted = _dotted(node)
            first, dot, rest = dotted.partition(".")
            yield from _judge(node.lineno, names.get(first, first) + dot + rest, where)
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            why = KEYWORDS.get((node.arg or "", node.value.value))
            if why:
                yield node.lineno, f"{node.arg}={node.value.value} {why}"


def _dotted(node: ast.expr) -> str:
    """``a.b.c``; what hangs on anything but a name begins with a dot."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _judge(line: int, name: str, where: str) -> Iterator[tuple[int, str]]:
    for never, why in NEVER.items():
        is_one = name == never or name.startswith(f"{never}.")
        if is_one or (never in ("os.exec", "os.spawn", "os.posix_spawn") and name.startswith(never)):
            yield line, f"{name} {why}"
    if name.partition(".")[0] == "subprocess" and where not in MAY_START_PROGRAMS:
        yield line, f"{name} starts a program"


def test_the_agent_does_none_of_it() -> None:
    assert offences(PACKAGE) == []
    assert len(list(PACKAGE.rglob("*.py"))) > 100  # it was looked at


def test_what_may_start_programs_does() -> None:
    for where in MAY_START_PROGRAMS:
        assert "subprocess" in (PACKAGE / where).read_text()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os\nos.system('ls')", "os.system is a shell"),
        ("from os import system as quietly", "os.system is a shell"),
        ("import os as o\nrun = o.popen", "os.popen is a shell"),
        ("import os\nos.execvp('ls', [])", "os.execvp becomes another program"),
        ("import subprocess", "subprocess starts a program"),
        ("def f():\n    from subprocess import run", "subprocess.run starts a program"),
        ("start('ls', shell=True)", "shell=True is a shell"),
        ("x = eval('1')", "eval runs text as code"),
        ("exec('1')", "exec runs text as code"),
        ("compile('1', '', 'eval')", "compile runs text as code"),
        ("import pickle", "pickle loads objects from bytes"),
        ("from pickle import loads", "pickle.loads loads objects from bytes"),
        ("import marshal as m", "marshal loads objects from bytes"),
        ("import numpy as np\nnp.load('f', allow_pickle=True)", "allow_pickle=True loads objects from bytes"),
        ("import yaml\nyaml.load(b'')", "yaml.load loads objects from bytes"),
        ("import tempfile\ntempfile.mktemp()", "tempfile.mktemp gives a name"),
        ("import ssl\nmode = ssl.CERT_NONE", "ssl.CERT_NONE trusts anybody"),
    ],
)
def test_each_of_it_would_be_found(source: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "module.py").write_text(source)
    assert any(f"deep/module.py:{source.count(chr(10)) + 1}: {told}" in one for one in offences(tmp_path))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('a')",
        "self.exec = 1",
        "model.compile()",
        "import yaml\nyaml.safe_load(b'')",
        "import os\nos.open('f', os.O_RDONLY)",
        "start('ls', shell=False)",
    ],
)
def test_what_only_looks_like_it_is_left_alone(source: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(source)
    assert offences(tmp_path) == []
