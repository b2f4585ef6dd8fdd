"""Arguments that several commands share, and how their text is read."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tailspan import config
from tailspan.config import Config
from tailspan.errors import UsageError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """``250ms``, ``10s``, ``5m``, ``1.5h``, ``2d``; a bare number is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 250ms, 10s, 5m, 1.5h or 2d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, metavar="DIR", help="read this store (default: the agent's)")


def add_since(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=seconds, metavar="AGE", help="only what ended in the last AGE, e.g. 10m")


def add_json(parser: argparse.ArgumentParser, help_: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=help_)


def add_width(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=positive, metavar="N", help="characters a line (default: the terminal's)")


def add_loader(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--loader",
        choices=("auto", "core", "bcc"),
        help="how the kernel's side is loaded: compiled with the agent, or by bcc on this host",
    )


def add_agent(parser: argparse.ArgumentParser) -> None:
    """What ``run`` and ``record`` have in common."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: {config.DEFAULT_PATH}, if there")
    parser.add_argument(
        "--pid", type=positive, action="append", metavar="N", help="follow this process; repeatable"
    )
    parser.add_argument("--socket", metavar="PATH", help="where workers connect")
    add_loader(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any key of the configuration file"
    )


def agent_flags(args: argparse.Namespace) -> dict[str, str]:
    """What :func:`add_agent`'s arguments set: configuration key -> text."""
    found = {}
    for assignment in args.set:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: write section.key=value")
        found[key.strip()] = value.strip()
    if args.pid:
        found["follow.pids"] = ",".join(map(str, args.pid))
    if args.socket is not None:
        found["worker.socket"] = str(Path(args.socket).absolute())
    if args.loader is not None:
        found["probes.loader"] = args.loader
    return found


def agent_config(args: argparse.Namespace, flags: dict[str, str]) -> Config:
    """The configuration under :func:`add_agent`'s arguments and further ``flags``."""
    return known_probes(config.load(args.config, flags=agent_flags(args) | flags))


def known_probes(loaded: Config) -> Config:
    """Refuse a probe name that is none: disabled it would be, silently."""
    from tailspan.collect.bpf.probes import BY_NAME

    unknown = sorted(set(loaded.probes.disabled) - set(BY_NAME))
    if unknown:
        raise UsageError(f"probes.disabled: no probe {', '.join(unknown)}: there are {', '.join(BY_NAME)}")
    return loaded
