"""The configuration: a TOML file, environment variables and flags."""

from __future__ import annotations

import random
from pathlib import Path

from tailspan import config
from tailspan.config import Config, Reading
from tailspan.errors import CannotError, UsageError
from tests.fuzz import frames, mutation
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import scratch

_EXAMPLE = Path(__file__).parents[3] / "systemd" / "tailspan.toml"


def check(data: bytes) -> None:
    toml, variables, flags = frames.exactly(data, 3)
    file = scratch.folder("configuration") / "tailspan.toml"
    file.write_bytes(toml)
    environ, given = _pairs(variables), _pairs(flags)
    try:
        reading = config.read(file, environ, given)
    except (UsageError, CannotError) as error:
        assert str(error)
        return
    _check_reading(reading)
    try:
        loaded = config.load(file, environ, given)
    except UsageError:
        assert reading.problems
    else:
        assert not reading.problems and loaded == reading.config


def _check_reading(reading: Reading) -> None:
    for problem in reading.problems:
        assert problem.where and problem.text
        assert len(str(problem)) < 20_000
    known = config.keys()
    assert set(reading.origins) <= set(known)
    read = reading.config
    assert config.changed(Config(), read) == [
        key for key in known if config.value_of(read, key) != config.value_of(Config(), key)
    ]
    kept = config.reloaded(Config(), read)
    assert not any(config.needs_restart(key) for key in config.changed(Config(), kept))
    assert read == _said_again(read), "a value that was taken is not taken again"


def _said_again(read: Config) -> Config:
    """What is taken by flags, of which those that no text can say are left."""
    flags = {}
    for key in config.changed(Config(), read):
        value = config.value_of(read, key)
        if not isinstance(value, tuple):
            flags[key] = str(value)
    again = config.read(None, {}, flags).config
    for key in config.changed(again, read):
        assert isinstance(config.value_of(read, key), tuple), (key, config.value_of(read, key))
        again = config._with(again, key, config.value_of(read, key))
    return again


def _pairs(lines: bytes) -> dict[str, str]:
    """``NAME=text`` a line, as a process is given them."""
    pairs = (line.decode("utf-8", "surrogateescape").partition("=") for line in lines.split(b"\n"))
    return {name: text for name, equals, text in pairs if equals}


def seeds() -> dict[str, bytes]:
    table = b'[slow]\nslo_ms = 250\nfactor = 1.5\n[worker]\nallow_uids = [1000, 33]\nsocket = "/run/x"\n'
    rules = b'[follow]\npids = [1]\nunits = ["a*.service"]\ncontainers = ["ns/pod/*"]\nports = [80]\n'
    variables = b"TAILSPAN_STORE_PATH=/var/lib/x\nTAILSPAN_SLOW_FACTOR=3\nTAILSPAN_FOLLOW_PORTS=80, 443\nHOME=/\n"
    flags = b"export.prometheus=[::1]:9464\nhealth.warning=70\nprobes.disabled=cuda,block\n"
    wrong = (
        b'slow = 3\n[stor]\nx = 1\n[store]\nkeep = "some"\ndays = 0\n[otlp]\ngrpc = "x"\nhttp = "127.0.0.1:0"\n'
    )
    return {
        "file": frames.join((table, b"", b"")),
        "all": frames.join((rules, variables, flags)),
        "wrong": frames.join((wrong, b"TAILSPAN_SLOW_X=1\nTAILSPAN_AGENT_TICK_MS=fast\n", b"nothing=1\n")),
        "same-address": frames.join((b"", b"", b"otlp.grpc=127.0.0.1:9464\nhealth.critical=90\ntls.key=/k\n")),
        "example": frames.join((_EXAMPLE.read_bytes()[:3000], b"", b"")),
    }


_VALUES = (
    b"0x" + b"f" * 300,
    b"1" * 400,
    b"-1",
    b"1e999",
    b"nan",
    b"[]",
    b"[[]]",
    b'""',
    b'"\\u0000"',
    b"1979-05-27",
)


def _piece(which: int, piece: bytes, rng: random.Random, change: Change) -> bytes:
    """A line changed; or its value replaced by one of another kind; or a key that there is."""
    lines = piece.split(b"\n")
    at = rng.randrange(len(lines))
    act = rng.choice(("bytes", "value", "key", "double"))
    if act == "bytes":
        lines[at] = change(lines[at], len(lines[at]) + 32)
    elif act == "value":
        name, equals, _ = lines[at].partition(b"=")
        lines[at] = name + equals + rng.choice((*_VALUES, str(mutation.number(1, rng)).encode()))
    elif act == "key":
        section, _, key = rng.choice(config.keys()).partition(".")
        value = rng.choice((*_VALUES, b'"a"', b"[1, 2]", b"true"))
        named = (f"{section}.{key}", f"TAILSPAN_{section}_{key}".upper(), f"{section}.{key}")[which % 3]
        lines.insert(at if which else 0, named.encode() + b"=" + value)
    else:
        lines.insert(at, lines[at])
    return b"\n".join(lines)


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    return frames.mutate(frames.join(frames.exactly(data, 3)), rng, change, _piece, fixed=True)


TARGET = Target(
    name="configuration",
    reads="the TOML file, `TAILSPAN_*` variables and flags, by `config.read`",
    holds="UsageError, CannotError, or problems that name their place; `load` and `read` agree; what was taken is "
    "taken again when it is said as a flag; a reload changes no key that needs a restart",
    sources=("tailspan.config",),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(b"[worker]", b"[follow]", b"[slow]", b"TAILSPAN_", b"slo_ms", b"\xff", b"'''", b'"""', b"{}", b"inf"),
)
