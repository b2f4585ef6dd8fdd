"""``tailspan config``: what the agent would run with, and what is wrong with it."""

from __future__ import annotations

import argparse
import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tailspan import config
from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.config import Config, Problem, Reading
from tailspan.errors import UsageError

EXAMPLES = """
  tailspan config --check            before a reload: every problem, and what is odd
  tailspan config --print            every key, and where its value is from
"""


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("config", help="check the configuration, or show it", examples=EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="say every problem; exit code 2 where there is one")
    what.add_argument("--print", action="store_true", help="print what is in force, as a configuration file")
    arguments.add_agent(parser)
    arguments.add_json(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    flags = arguments.agent_flags(args)
    return _check(args, flags) if args.check else _print(args, flags)


def _print(args: argparse.Namespace, flags: dict[str, str]) -> int:
    from tailspan.views import config as view

    arguments.known_probes(config.load(args.config, flags=flags))
    reading = config.read(args.config, flags=flags)
    if args.json:
        output.print_json(view.as_json(reading))
    else:
        print(view.as_toml(reading))
    return 0


def _check(args: argparse.Namespace, flags: dict[str, str]) -> int:
    from tailspan.views import config as view

    reading = config.read(args.config, flags=flags)
    problems, odd = [*reading.problems, *_wrong_probes(reading)], list(_odd(reading))
    if args.json:
        output.print_json(view.as_json(reading, problems, odd))
    else:
        print(view.check_as_text(reading, problems, odd))
    return UsageError.exit_code if problems else 0


def _wrong_probes(reading: Reading) -> Iterator[Problem]:
    from tailspan.collect.bpf.probes import BY_NAME

    key, disabled = "probes.disabled", reading.config.probes.disabled
    where = reading.origins.get(key, "default")
    try:
        arguments.known_probes(reading.config)
    except UsageError as error:
        yield Problem(where, key, str(error))
    for name in disabled:
        if name in BY_NAME and BY_NAME[name].required:
            yield Problem(where, key, f"{key}: without {name} the agent does not run")


def _odd(reading: Reading) -> Iterator[Problem]:
    """What is allowed, and hardly meant so."""
    loaded = reading.config
    found = (*_odd_listeners(loaded), *_odd_files(loaded), *_odd_targets(loaded), *_odd_group(loaded))
    for key, text in found:
        yield Problem(reading.origins.get(key, "default"), key, f"{key}: {text}")
    if reading.file and reading.file.stat().st_mode & stat.S_IWOTH:
        yield Problem(str(reading.file), "", "any user may write to it")


def _odd_listeners(loaded: Config) -> Iterator[tuple[str, str]]:
    beyond = [
        key
        for key in ("export.prometheus", "otlp.grpc", "otlp.http")
        if (address := config.value_of(loaded, key)) and not _is_loopback(address)
    ]
    for key in beyond:
        if not loaded.tls.certificate:
            yield (
                key,
                f"{config.value_of(loaded, key)} is served beyond this host in the clear: set tls.certificate",
            )
        elif not loaded.tls.client_ca:
            yield key, f"{config.value_of(loaded, key)} is open to any client: set tls.client_ca"
    if loaded.tls.certificate and not beyond:
        yield "tls.certificate", "nothing listens beyond loopback: it is not used"


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def _odd_files(loaded: Config) -> Iterator[tuple[str, str]]:
    for key in ("tls.certificate", "tls.key", "tls.client_ca"):
        path = config.value_of(loaded, key)
        if path and not os.access(path, os.R_OK):
            yield key, f"uid {os.geteuid()} cannot read {path}"


def _odd_targets(loaded: Config) -> Iterator[tuple[str, str]]:
    for pid in loaded.follow.pids:
        if not Path(f"/proc/{pid}").exists():
            yield "follow.pids", f"no process {pid} runs now"
    if any(path.strip("/") in ("", "*") for path in loaded.follow.cgroups):
        yield "follow.cgroups", "every process of this host fits"
    for path in loaded.follow.executables:
        if "*" not in path and not Path(path).exists():
            yield "follow.executables", f"{path} is not on this host: right if it is a container's"


def _odd_group(loaded: Config) -> Iterator[tuple[str, str]]:
    group = loaded.worker.group
    try:
        if group:
            grp.getgrnam(group)
    except KeyError:
        yield "worker.group", f"there is no group {group} on this host"
