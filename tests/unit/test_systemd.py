"""The units are valid, sandboxed, and agree with the configuration's defaults and their own README."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tailspan.cli.parser import build
from tailspan.config import Config
from tailspan.errors import UsageError

FOLDER = Path(__file__).parents[2] / "systemd"
UNIT = FOLDER / "tailspan.service"
SOCKET = FOLDER / "tailspan.socket"
README = (FOLDER / "README.md").read_text()

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze (package systemd) is not installed"
)


def settings(name: str, unit: Path = UNIT) -> list[str]:
    """Every value of a setting, in order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.M)


def setting(name: str, unit: Path = UNIT) -> str:
    (value,) = settings(name, unit)
    return value


def test_it_runs_commands_that_exist() -> None:
    commands = [setting("ExecStart"), *settings("ExecReload")]
    for command in commands:
        binary, *arguments = command.split()
        if binary == "kill":
            assert arguments == ["-HUP", "$MAINPID"]
        else:
            assert binary == "tailspan"
            build().parse_args(arguments)
    assert len(commands) == 3


def test_it_tells_systemd_when_it_is_ready_and_that_it_lives() -> None:
    assert setting("Type") == "notify"
    # Its loop turns in milliseconds, and a sign of life comes every third of this.
    assert int(setting("WatchdogSec").removesuffix("s")) * 1000 > 50 * Config().agent.judge_ms


def test_the_socket_is_the_one_that_the_configuration_names() -> None:
    default = Config().worker
    assert setting("ListenSequentialPacket", SOCKET) == default.socket
    assert setting("SocketMode", SOCKET) == default.mode
    assert int(setting("Backlog", SOCKET)) == default.max_connections
    assert setting("SocketGroup", SOCKET) == setting("Group")
    assert setting("Requires") == SOCKET.name == setting("Also")


def test_a_wrong_configuration_is_not_retried() -> None:
    assert setting("Restart") == "on-failure"
    assert setting("RestartPreventExitStatus") == str(UsageError.exit_code)


def test_capabilities_are_the_documented_ones() -> None:
    documented, _, refused = README.partition("## Capabilities")[2].partition("What is not needed")
    needed = re.findall(r"^\| `(CAP_\w+)` \|", documented, re.M)
    assert setting("CapabilityBoundingSet").split() == needed
    assert setting("AmbientCapabilities").split() == needed
    assert setting("NoNewPrivileges") == "yes"
    assert not set(re.findall(r"^\| `(CAP_\w+)` \|", refused, re.M)) & set(needed)


def test_its_user_is_the_one_that_sysusers_makes() -> None:
    made = re.findall(r"^u (\S+)", (FOLDER / "tailspan.sysusers").read_text(), re.M)
    assert made == [setting("User")] == [setting("Group")]


def test_the_folder_of_the_sockets_is_there_before_them_with_the_services_owner() -> None:
    (line,) = re.findall("^d .*$", (FOLDER / "tailspan.tmpfiles").read_text(), re.M)
    mode = setting("RuntimeDirectoryMode")
    assert line == f"d /run/{setting('RuntimeDirectory')} {mode} {setting('User')} {setting('Group')} -"
    assert setting("DirectoryMode", SOCKET) == mode


def test_every_file_is_in_the_table_of_the_readme() -> None:
    named = re.findall(r"^\| `(\S+)` \|", README.partition("## Install")[0], re.M)
    assert sorted(named) == sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".md")
    assert all(f"systemd/{name} " in README for name in named)


def test_folders_are_where_the_configuration_looks() -> None:
    default = Config()
    runtime = Path("/run") / setting("RuntimeDirectory")
    assert Path(default.worker.socket).parent == Path(default.agent.control).parent == runtime
    assert Path(default.store.path) == Path("/var/lib") / setting("StateDirectory")
    assert setting("RuntimeDirectoryPreserve") == "yes"


def test_the_agent_is_bounded_and_is_killed_before_the_worker() -> None:
    assert int(setting("OOMScoreAdjust")) > 0
    for limit in ("MemoryMax", "CPUQuota", "TasksMax"):
        assert re.fullmatch(r"\d+[MG%]?", setting(limit))


def test_metrics_on_loopback_pass_the_firewall() -> None:
    assert Config().export.prometheus.startswith("127.0.0.1:")
    assert (setting("IPAddressDeny"), setting("IPAddressAllow")) == ("any", "localhost")


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    # GIVEN the service with a program that is here: a missing one is a complaint too
    service, listener = tmp_path / UNIT.name, tmp_path / SOCKET.name
    service.write_text(re.sub(r"^(ExecStart|ExecReload)=tailspan", r"\1=/bin/true", UNIT.read_text(), flags=re.M))
    listener.write_text(SOCKET.read_text())

    command = ["systemd-analyze", "verify", service, listener]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_its_exposure_is_low() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
