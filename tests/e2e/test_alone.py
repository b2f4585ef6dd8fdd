"""An agent with nobody to follow looks a few times a second, and at once when somebody comes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan import agent as module
from tailspan import config
from tailspan.agent import Agent
from tailspan.collect.bpf.programs import Programs

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

#: Longer than the test may take: what ends such a rest is no clock.
FOR_EVER_S = 50.0


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setattr(module, "ALONE_S", FOR_EVER_S)
    flags = {
        "agent.judge_ms": "60000",
        "agent.control": f"{tmp_path}/control",
        "worker.socket": f"{tmp_path}/worker",
        "store.path": f"{tmp_path}/store",
        "export.prometheus": "",
    }
    agent = Agent(config.load(Path(os.devnull), {}, flags), Programs())
    agent.tick()
    yield agent
    agent.close()


@pytest.mark.parametrize(("door", "kind"), [("worker", socket.SOCK_SEQPACKET), ("control", socket.SOCK_STREAM)])
def test_who_connects_ends_its_rest(agent: Agent, tmp_path: Path, door: str, kind: socket.SocketKind) -> None:
    # GIVEN an agent that rests, as nobody is there
    with socket.socket(socket.AF_UNIX, kind) as stranger:
        began_s = time.monotonic()
        coming = threading.Timer(0.1, stranger.connect, [f"{tmp_path}/{door}"])
        coming.start()
        agent.rest()
        # WHEN somebody connects THEN it looks, and is alone no more: the next rest is an ordinary one
        coming.join()
        agent.tick()
        agent.rest()
        assert time.monotonic() - began_s < FOR_EVER_S / 2


def test_it_is_alone_again_when_all_have_gone(agent: Agent, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(f"{tmp_path}/control")
        agent.tick()
        assert not agent.is_alone
    agent.tick()
    assert agent.is_alone
