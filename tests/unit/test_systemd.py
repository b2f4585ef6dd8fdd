"""The unit is valid, sandboxed, and agrees with the configuration's defaults and its own README."""

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
README = (FOLDER / "README.md").read_text()

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze (package systemd) is not installed"
)


def settings(name: str) -> list[str]:
    """Every value of a setting, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def setting(name: str) -> str:
    (value,) = settings(name)
    return value


def test_it_runs_a_command_that_exists() -> None:
    binary, *arguments = setting("ExecStart").split()
    assert Path(binary).name == "tailspan"
    build().parse_args(arguments)


def test_it_tells_systemd_when_it_is_ready() -> None:
    assert setting("Type") == "notify"


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
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # GIVEN the unit with a program that is here: a missing one is a complaint too
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M))

    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_its_exposure_is_low() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
