"""The configuration: frozen dataclasses with their defaults, and one loader over their fields.

A later source wins: defaults < TOML file < environment (``TAILSPAN_<SECTION>_<KEY>``) < flags. Whatever is not
understood is a :class:`UsageError` that names the key, where it was said, and the known key that is nearest to it.
``systemd/tailspan.toml`` documents every key.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from tailspan.errors import CannotError, UsageError

DEFAULT_PATH = Path("/etc/tailspan/tailspan.toml")
ENV_PREFIX = "TAILSPAN_"

T = TypeVar("T")


def _within(default: T, low: float, high: float) -> T:
    """A number, or a list of numbers, each of which is ``low`` to ``high``."""
    value: T = field(default=default, metadata={"within": (low, high)})
    return value


def _checked(default: T, complaint: Callable[[Any], str]) -> T:
    """``complaint`` completes "must be …"; "" for a good value."""
    value: T = field(default=default, metadata={"complaint": complaint})
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


@dataclass(frozen=True, slots=True)
class Worker:
    socket: str = _checked("/run/tailspan/worker.sock", _socket_path)
    mode: str = _checked("0660", _octal_mode)
    group: str = ""
    allow_uids: tuple[int, ...] = _within((), 0, 2**32 - 2)
    max_connections: int = _within(256, 1, 65536)


@dataclass(frozen=True, slots=True)
class Follow:
    pids: tuple[int, ...] = _within((), 1, 2**22)
    peers: int = _within(16, 0, 1024)


@dataclass(frozen=True, slots=True)
class Probes:
    disabled: tuple[str, ...] = ()
    syscalls: Literal["off", "on", "triggered"] = "off"
    syscalls_seconds: int = _within(10, 1, 3600)
    syscall_floor_us: int = _within(1000, 0, 1_000_000)
    short_wait_us: int = _within(10, 0, 1_000_000)
    ring_kib: int = _checked(1024, _power_of_two)


@dataclass(frozen=True, slots=True)
class Gpu:
    nvml: Literal["on", "off"] = "on"
    sample_ms: int = _within(250, 100, 10_000)
    budget: float = _within(0.01, 0.0001, 0.5)
    calls: Literal["on", "off"] = "on"
    calls_per_s: int = _within(10_000, 100, 1_000_000)


@dataclass(frozen=True, slots=True)
class Slow:
    slo_ms: float = _within(0.0, 0, 3_600_000)
    factor: float = _within(2.0, 1, 1000)
    min_excess_ms: float = _within(5.0, 0, 3_600_000)


@dataclass(frozen=True, slots=True)
class Window:
    seconds: int = _within(30, 1, 3600)
    max_rows: int = _within(200_000, 1000, 100_000_000)


@dataclass(frozen=True, slots=True)
class Store:
    path: str = _checked("/var/lib/tailspan", _not_empty)
    keep: Literal["slow", "all"] = "slow"
    segment_mib: int = _within(16, 1, 1024)
    total_mib: int = _within(512, 1, 1_048_576)
    days: int = _within(7, 1, 3650)


@dataclass(frozen=True, slots=True)
class Otlp:
    grpc: str = _checked("", _address)
    http: str = _checked("", _address)


@dataclass(frozen=True, slots=True)
class Export:
    prometheus: str = _checked("127.0.0.1:9464", _address)
    spool_mib: int = _within(256, 1, 1_048_576)


@dataclass(frozen=True, slots=True)
class Agent:
    tick_ms: int = _within(15, 1, 1000)
    judge_ms: int = _within(250, 10, 60_000)
    control: str = _checked("/run/tailspan/control.sock", _socket_path)


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
    agent: Agent = Agent()


_SECTIONS: dict[str, type[Any]] = {section.name: type(section.default) for section in fields(Config)}


@dataclass(frozen=True, slots=True)
class _Setting:
    key: str  #: ``section.key``
    value: Any  #: as TOML gave it; text from everywhere else
    where: str  #: the file, the environment variable or the flag
    is_text: bool = False


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Config:
    """``path``: None for the default file, which may be absent. ``flags``: ``section.key`` -> text.

    Text is a number, a string or, for a list, its items with commas between.
    """
    settings = list(_of_file(path))
    settings += _of_environment(os.environ if environ is None else environ)
    settings += (_Setting(key, text, "command line", is_text=True) for key, text in (flags or {}).items())
    config = Config()
    for setting in settings:
        config = _apply(config, setting)
    store = config.store
    if store.segment_mib > store.total_mib:
        raise UsageError(
            f"store.segment_mib = {store.segment_mib} is more than store.total_mib = {store.total_mib}"
        )
    return config


def keys() -> list[str]:
    """Every ``section.key`` there is."""
    return [f"{section}.{key.name}" for section, type_ in _SECTIONS.items() for key in fields(type_)]


def _of_file(path: Path | None) -> Iterator[_Setting]:
    where = path or DEFAULT_PATH
    try:
        sections = tomllib.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path is None:
            return
        raise UsageError(f"{where}: no such file") from None
    except OSError as error:
        raise CannotError(f"cannot read {where}: {error.strerror}") from None
    except ValueError as error:  # tomllib's own, and text that is not UTF-8
        raise UsageError(f"{where}: {error}") from None
    for section, body in sections.items():
        if not isinstance(body, dict):
            if section in _SECTIONS:
                raise UsageError(f"{where}: {section} is a section: write [{section}]")
            raise _unknown(section, str(where))
        if section not in _SECTIONS:
            raise _unknown(section, str(where))
        for key, value in body.items():
            yield _Setting(f"{section}.{key}", value, str(where))


def _of_environment(environ: Mapping[str, str]) -> Iterator[_Setting]:
    """Variables of no section are somebody else's: the worker's client has some with the same prefix."""
    for name, text in sorted(environ.items()):
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("_")
        if name.startswith(ENV_PREFIX) and section in _SECTIONS and key:
            yield _Setting(f"{section}.{key}", text, f"environment variable {name}", is_text=True)


def _apply(config: Config, setting: _Setting) -> Config:
    section, _, key = setting.key.partition(".")
    if setting.key not in keys():
        raise _unknown(setting.key, setting.where)
    before = getattr(config, section)
    type_ = get_type_hints(_SECTIONS[section])[key]
    value = _parse(setting.value, type_) if setting.is_text else setting.value
    value, complaint = _typed(value, type_)
    if not complaint:
        metadata = next(f.metadata for f in fields(before) if f.name == key)
        complaint = _out_of_range(value, metadata)
    if complaint:
        raise UsageError(f"{setting.where}: {setting.key} = {setting.value!r}: must be {complaint}")
    return replace(config, **{section: replace(before, **{key: value})})


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
        good = isinstance(value, list) and all(type(one) is item for one in value)
        return (tuple(value), "") if good else (value, f"a list of {_WORDS[item]}s")
    if type_ is float and type(value) is int:
        value = float(value)
    return value, "" if type(value) is type_ else f"a {_WORDS[type_]}"


_WORDS = {int: "whole number", float: "number", str: "string"}


def _out_of_range(value: Any, metadata: Mapping[str, Any]) -> str:
    if "complaint" in metadata:
        return str(metadata["complaint"](value))
    if "within" in metadata:
        low, high = metadata["within"]
        values = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(one) and low <= one <= high for one in values):
            return f"{low} to {high}"
    return ""


def _unknown(key: str, where: str) -> UsageError:
    section, dot, _ = key.partition(".")
    kind = "key" if dot else "section"
    near = difflib.get_close_matches(key, keys() if dot else list(_SECTIONS), n=1, cutoff=0.6)
    if near:
        hint = f"did you mean {near[0]}?"
    elif section in _SECTIONS:
        hint = f"[{section}] has " + ", ".join(key.name for key in fields(_SECTIONS[section]))
    else:
        hint = "sections are " + ", ".join(_SECTIONS)
    return UsageError(f"{where}: unknown {kind} {key}: {hint}")
