from __future__ import annotations

from pathlib import Path

from tailspan.config import Config
from tests.unit.cli.conftest import Daemon, Run


def test_daemon_gets_the_configuration_and_its_exit_code_is_ours(run: Run, daemon: Daemon) -> None:
    daemon.code = 23
    assert run("run").code == 23
    assert (daemon.config, daemon.seconds) == (Config(), None)


def test_flags_go_before_the_file(run: Run, daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("[store]\npath = '/from/file'\nkeep = 'slow'\n[slow]\nfactor = 3\n[window]\nseconds = 23\n")
    flags = ["--pid", "23", "--pid", "29", "--store", "/from/flag", "--keep", "all", "--set", "slow.factor=4"]
    assert run("run", "--config", path, "--socket", "/s", *flags).code == 0
    config = daemon.config
    assert config is not None
    assert config.follow.pids == (23, 29)
    assert config.worker.socket == "/s"
    assert (config.store.path, config.store.keep) == ("/from/flag", "all")
    assert (config.slow.factor, config.window.seconds) == (4.0, 23)


def test_wrong_setting_never_reaches_the_daemon(run: Run, daemon: Daemon, tmp_path: Path) -> None:
    for flags, said in (
        (["--set", "slow.factr=4"], "did you mean slow.factor?"),
        (["--set", "slow"], "write section.key=value"),
        (["--set", "probes.disabled=irqs"], "no probe irqs: there are sched"),
        (["--config", tmp_path / "absent"], "no such file"),
        (["--pid", "0"], "no positive whole number"),
    ):
        done = run("run", *flags)
        assert done.code == 2
        assert said in done.err
    assert daemon.config is None
