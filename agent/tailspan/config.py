"""The configuration: frozen dataclasses with their defaults, and one reader over their fields.

A later source wins: defaults < TOML file < environment (``TAILSPAN_<SECTION>_<KEY>``) < flags. Whatever is not
understood is a :class:`Problem` that names the key, where it was said, and the known key that is nearest to it.
A running agent applies a changed key, unless its field is marked ``restart``. ``systemd/tailspan.toml`` documents
every key.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from tailspan.errors import CannotError, UsageError

DEFAULT_PATH = Path("/etc/tailspan/tailspan.toml")
ENV_PREFIX = "TAILSPAN_"

T = TypeVar("T")


def _within(default: T, low: float, high: float, *, restart: bool = False) -> T:
    """A number, or a list of numbers, each of which is ``low`` to ``high``."""
    value: T = field(default=default, metadata={"within": (low, high), "restart": restart})
    return value


def _checked(default: T, complaint: Callable[[Any], str], *, restart: bool = False) -> T:
    """``complaint`` completes "must be …"; "" for a good value."""
    value: T = field(default=default, metadata={"complaint": complaint, "restart": restart})
    return value


def _at_start(default: T) -> T:
    """Any value of its type; another one is applied by the next start."""
    value: T = field(default=default, metadata={"restart": True})
    return value


def _socket_path(path: str) -> str:
    # sun_path holds 108 bytes with its terminator
    return "" if path.startswith("/") and len(path.encode()) < 108 else "an absolute path of at most 107 bytes"


def _not_empty(text: str) -> str:
    return "" if text else "a path, not empty"


def _octal_mode(text: str) -> str:
    return "" if re.fullmatch(r"0?[0-7]{3}", text) else 'an octal mode such as "0660"'


def _address(text: str) -> str:
    match = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):(\d{1,5})", text)
    good = not text or (match and int(match[1]) < 65536)
    return "" if good else 'host:port, or "" for off'


def _power_of_two(kib: int) -> str:
    good = 64 <= kib <= 65536 and kib & (kib - 1) == 0
    return "" if good else "a power of two, 64 to 65536"


def _units(names: Sequence[str]) -> str:
    good = all(re.fullmatch(r"[^/\s]*(?:\.service|\.scope|\.slice|\*)", name) for name in names)
    return "" if good else 'names of units such as "triton.service"'


def _absolute(paths: Sequence[str]) -> str:
    return "" if all(path.startswith("/") for path in paths) else "absolute paths"


def _containers(names: Sequence[str]) -> str:
    good = all(re.fullmatch(r"[0-9a-f]{12,64}|[^/\s]+/[^/\s]+/[^/\s]+", name) for name in names)
    return "" if good else '12 to 64 digits of an id in lower case, or "namespace/pod/container"'


@dataclass(frozen=True, slots=True)
class Worker:
    socket: str = _checked("/run/tailspan/worker.sock", _socket_path, restart=True)
    mode: str = _checked("0660", _octal_mode, restart=True)
    group: str = _at_start("")
    allow_uids: tuple[int, ...] = _within((), 0, 2**32 - 2)
    max_connections: int = _within(256, 1, 65536)
    packets_per_s: int = _within(20_000, 100, 10_000_000)


@dataclass(frozen=True, slots=True)
class Follow:
    pids: tuple[int, ...] = _within((), 1, 2**22)
    units: tuple[str, ...] = _checked((), _units)
    cgroups: tuple[str, ...] = _checked((), _absolute)
    containers: tuple[str, ...] = _checked((), _containers)
    executables: tuple[str, ...] = _checked((), _absolute)
    ports: tuple[int, ...] = _within((), 1, 65535)
    peers: int = _within(16, 0, 1024)


@dataclass(frozen=True, slots=True)
class Probes:
    loader: Literal["auto", "core", "bcc"] = _at_start("auto")
    disabled: tuple[str, ...] = _at_start(())
    syscalls: Literal["off", "on", "triggered"] = "off"
    syscalls_seconds: int = _within(10, 1, 3600)
    syscall_floor_us: int = _within(1000, 0, 1_000_000, restart=True)
    short_wait_us: int = _within(10, 0, 1_000_000, restart=True)
    ring_kib: int = _checked(1024, _power_of_two, restart=True)


@dataclass(frozen=True, slots=True)
class Gpu:
    nvml: Literal["on", "off"] = _at_start("on")
    sample_ms: int = _within(250, 100, 10_000)
    budget: float = _within(0.01, 0.0001, 0.5)
    calls: Literal["on", "off"] = _at_start("on")
    calls_per_s: int = _within(10_000, 100, 1_000_000, restart=True)


@dataclass(frozen=True, slots=True)
class Slow:
    slo_ms: float = _within(0.0, 0, 3_600_000)
    factor: float = _within(2.0, 1, 1000)
    min_excess_ms: float = _within(5.0, 0, 3_600_000)


@dataclass(frozen=True, slots=True)
class Window:
    seconds: int = _within(30, 1, 3600, restart=True)
    max_rows: int = _within(200_000, 1000, 100_000_000, restart=True)


@dataclass(frozen=True, slots=True)
class Store:
    path: str = _checked("/var/lib/tailspan", _not_empty, restart=True)
    keep: Literal["slow", "all"] = "slow"
    segment_mib: int = _within(16, 1, 1024)
    total_mib: int = _within(512, 1, 1_048_576)
    days: int = _within(7, 1, 3650)


@dataclass(frozen=True, slots=True)
class Otlp:
    grpc: str = _checked("", _address, restart=True)
    http: str = _checked("", _address, restart=True)


@dataclass(frozen=True, slots=True)
class Export:
    prometheus: str = _checked("127.0.0.1:9464", _address, restart=True)
    spool_mib: int = _within(256, 1, 1_048_576, restart=True)


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: str = _at_start("")
    key: str = _at_start("")
    client_ca: str = _at_start("")


@dataclass(frozen=True, slots=True)
class Health:
    load_weight: float = _within(1.0, 0, 100)
    gpu_memory_weight: float = _within(1.0, 0, 100)
    latency_weight: float = _within(1.0, 0, 100)
    warning: int = _within(70, 1, 100)
    critical: int = _within(40, 0, 100)


@dataclass(frozen=True, slots=True)
class Budget:
    cpu: float = _within(0.25, 0, 64)
    rss_mib: int = _within(256, 0, 1_048_576)


@dataclass(frozen=True, slots=True)
class Agent:
    tick_ms: int = _within(15, 1, 1000)
    judge_ms: int = _within(500, 10, 60_000)
    control: str = _checked("/run/tailspan/control.sock", _socket_path, restart=True)


@dataclass(frozen=True, slots=True)
class Config:
    worker: Worker = Worker()
    follow: Follow = Follow()
    probes: Probes = Probes()
    gpu: Gpu = Gpu()
    slow: Slow = Slow()
    window: Window = Window()
    store: Store = Store()
    otlp: Otlp = Otlp()
    export: Export = Export()
    tls: Tls = Tls()
    health: Health = Health()
    budget: Budget = Budget()
    agent: Agent = Agent()


_SECTIONS: dict[str, type[Any]] = {section.name: type(section.default) for section in fields(Config)}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the configuration that is not understood, or contradicts another thing in it."""

    where: str  #: ``FILE:LINE``, the environment variable, ``command line``; else ``configuration``
    key: str  #: ``section.key``, or the section
    text: str  #: what is wrong, and what it must be or was meant to be

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Reading:
    """All that the sources say, also where some of it is wrong."""

    config: Config  #: without what has a problem
    origins: Mapping[str, str]  #: ``section.key`` -> where its value is from; of those that are not the default
    problems: tuple[Problem, ...]
    file: Path | None  #: the one that was read


@dataclass(frozen=True, slots=True)
class _Setting:
    key: str  #: ``section.key``
    value: Any  #: as TOML gave it; text from everywhere else
    where: str  #: as in :class:`Problem`
    is_text: bool = False


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Config:
    """As :func:`read`, but raises :class:`UsageError` with the first problem."""
    reading = read(path, environ, flags)
    if reading.problems:
        first, *others = reading.problems
        raise UsageError(f"{first} (and {len(others)} more: tailspan config --check)" if others else str(first))
    return reading.config


def read(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Reading:
    """``path``: None for the default file, which may be absent. ``flags``: ``section.key`` -> text.

    Text is a number, a string or, for a list, its items with commas between. Raises :class:`UsageError` where the
    file is no TOML, or absent though named; :class:`CannotError` where it cannot be read.
    """
    file = path or DEFAULT_PATH
    found = _settings_of(path, os.environ if environ is None else environ, flags or {})
    config, origins, problems = Config(), dict[str, str](), list[Problem]()
    for one in found:
        if isinstance(one, _Setting):
            config, complaint = _apply(config, one)
            if not complaint:
                origins[one.key] = one.where
                continue
            one = Problem(one.where, one.key, complaint)
        problems.append(one)
    problems += (
        Problem(origins.get(key, "configuration"), key, complaint) for key, complaint in _contradictions(config)
    )
    return Reading(config, origins, tuple(problems), file if file.exists() else None)


def keys() -> list[str]:
    """Every ``section.key`` there is."""
    return [f"{section}.{key.name}" for section, type_ in _SECTIONS.items() for key in fields(type_)]


def value_of(config: Config, key: str) -> Any:
    """Of ``section.key``."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def needs_restart(key: str) -> bool:
    """Whether a running agent keeps the value of ``section.key`` that it was started with."""
    section, _, name = key.partition(".")
    return any(one.name == name and one.metadata.get("restart", False) for one in fields(_SECTIONS[section]))


def changed(old: Config, new: Config) -> list[str]:
    """Keys whose values differ."""
    return [key for key in keys() if value_of(old, key) != value_of(new, key)]


def reloaded(old: Config, new: Config) -> Config:
    """``new``, as far as a running agent that has ``old`` applies it."""
    kept = [key for key in changed(old, new) if needs_restart(key)]
    for key in kept:
        new = _with(new, key, value_of(old, key))
    return new


def _with(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.partition(".")
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Values that are good one by one, and not together: the key, and what is wrong."""
    store, health = config.store, config.health
    if store.segment_mib > store.total_mib:
        yield (
            "store.segment_mib",
            f"store.segment_mib = {store.segment_mib} is more than store.total_mib = {store.total_mib}",
        )
    if health.critical > health.warning:
        yield (
            "health.critical",
            f"health.critical = {health.critical} is more than health.warning = {health.warning}",
        )
    for key in ("tls.certificate", "tls.key"):
        if any(value_of(config, f"tls.{one.name}") for one in fields(Tls)) and not value_of(config, key):
            yield key, f"{key} is not set, but another key of [tls] is: it takes both"
    for group in (("worker.socket", "agent.control"), ("export.prometheus", "otlp.grpc", "otlp.http")):
        taken: dict[str, str] = {}
        for key in group:
            at = value_of(config, key)
            if at in taken:
                yield key, f"{key} = {at!r} is {taken[at]} too"
            if at and not at.endswith(":0"):  # port 0 is any free one
                taken[at] = key


def _settings_of(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]
) -> Iterator[_Setting | Problem]:
    yield from _of_file(path)
    yield from _of_environment(environ)
    yield from (_Setting(key, text, "command line", is_text=True) for key, text in flags.items())


def _of_file(path: Path | None) -> Iterator[_Setting | Problem]:
    file = path or DEFAULT_PATH
    try:
        text = file.read_text(encoding="utf-8")
        sections = tomllib.loads(text)
    except FileNotFoundError:
        if path is None:
            return
        raise UsageError(f"{file}: no such file") from None
    except OSError as error:
        raise CannotError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:  # tomllib's own, and text that is not UTF-8
        raise UsageError(f"{file}: {error}") from None
    except RecursionError:
        raise UsageError(f"{file}: too many brackets in one another") from None
    lines = _lines(text)
    for section, body in sections.items():
        where = f"{file}:{lines[section]}" if section in lines else str(file)
        if section not in _SECTIONS:
            yield Problem(where, section, _unknown(section))
        elif not isinstance(body, dict):
            yield Problem(where, section, f"{section} is a section: write [{section}]")
        else:
            for key, value in body.items():
                full = f"{section}.{key}"
                yield _Setting(full, value, f"{file}:{lines[full]}" if full in lines else str(file))


def _lines(text: str) -> dict[str, int]:
    """Where sections and keys are, counted from 1; of what is written in a way of its own, nothing."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            section = head[1]
            found.setdefault(section, number)
        elif key := re.match(r"\s*([\w-]+)\s*=", line):
            found.setdefault(f"{section}.{key[1]}" if section else key[1], number)
    return found


def _of_environment(environ: Mapping[str, str]) -> Iterator[_Setting]:
    """Variables of no section are somebody else's: the worker's client has some with the same prefix."""
    for name, text in sorted(environ.items()):
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("_")
        if name.startswith(ENV_PREFIX) and section in _SECTIONS and key:
            yield _Setting(f"{section}.{key}", text, f"environment variable {name}", is_text=True)


def _apply(config: Config, setting: _Setting) -> tuple[Config, str]:
    """With the setting; or as it was, and why."""
    section, _, key = setting.key.partition(".")
    if setting.key not in keys():
        return config, _unknown(setting.key)
    type_ = get_type_hints(_SECTIONS[section])[key]
    value = _parse(setting.value, type_) if setting.is_text else setting.value
    value, complaint = _typed(value, type_)
    if not complaint:
        metadata = next(one.metadata for one in fields(_SECTIONS[section]) if one.name == key)
        complaint = _out_of_range(value, metadata)
    if complaint:
        return config, f"{setting.key} = {_shown(setting.value)}: must be {complaint}"
    return _with(config, setting.key, value), ""


def _parse(text: str, type_: Any) -> Any:
    """Text to what TOML would have given; text that does not parse stays text, and is refused for its type."""
    if get_origin(type_) is tuple:
        item = get_args(type_)[0]
        return [_parse(part.strip(), item) for part in text.split(",") if part.strip()]
    for number in (int, float):
        if type_ is number:
            try:
                return number(text)
            except ValueError:
                return text
    return text


def _typed(value: Any, type_: Any) -> tuple[Any, str]:
    """The value as the dataclass holds it; and what it must be where it is something else."""
    if get_origin(type_) is Literal:
        choices = get_args(type_)
        return value, "" if value in choices else "one of " + ", ".join(f'"{choice}"' for choice in choices)
    if get_origin(type_) is tuple:
        item = get_args(type_)[0]
        if not isinstance(value, list) or any(type(one) is not item for one in value):
            return value, f"a list of {_WORDS[item]}s"
        return tuple(value), next(filter(None, (_typed(one, item)[1] for one in value)), "")
    if type_ is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 1000 else math.inf  # larger has no float
    if type_ is str and type(value) is str and not value.isprintable():
        return value, "printable text"
    return value, "" if type(value) is type_ else f"a {_WORDS[type_]}"


#: Characters of a wrong value that are repeated.
_MAX_SHOWN = 200
_WORDS = {int: "whole number", float: "number", str: "string"}


def _out_of_range(value: Any, metadata: Mapping[str, Any]) -> str:
    if "complaint" in metadata:
        return str(metadata["complaint"](value))
    if "within" in metadata:
        low, high = metadata["within"]
        values = value if isinstance(value, tuple) else (value,)
        if not all(low <= one <= high for one in values):
            return f"{low} to {high}"
    return ""


def _shown(value: Any) -> str:
    """As it was said, cut: TOML has whole numbers of any length, Python shows none of more than 4300 digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _unknown(key: str) -> str:
    section, dot, _ = key.partition(".")
    kind = "key" if dot else "section"
    near = difflib.get_close_matches(key, keys() if dot else list(_SECTIONS), n=1, cutoff=0.6)
    if near:
        hint = f"did you mean {near[0]}?"
    elif section in _SECTIONS:
        hint = f"[{section}] has " + ", ".join(key.name for key in fields(_SECTIONS[section]))
    else:
        hint = "sections are " + ", ".join(_SECTIONS)
    return f"unknown {kind} {key}: {hint}"
