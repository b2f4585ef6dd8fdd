"""Fixtures: an agent's ear, and clients that talk to it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tailspan.client
from tailspan.client import Client

from .listener import Listener, Peer


@pytest.fixture(autouse=True)
def no_pauses_but_the_tests_own() -> Iterator[None]:
    """A pause is a message, and may be one that is dropped: tests that count either would count pytest's."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "worker.sock"


@pytest.fixture
def listener(socket_path: Path) -> Iterator[Listener]:
    listener = Listener(socket_path)
    yield listener
    listener.stop()


@pytest.fixture
def connect(socket_path: Path) -> Iterator[Callable[[], Client]]:
    clients: list[Client] = []

    def make() -> Client:
        clients.append(tailspan.client.connect("resnet", "3", socket_path, {"host.name": "a"}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client_and_peer(listener: Listener, connect: Callable[[], Client]) -> tuple[Client, Peer]:
    """A connected client whose hello has been read."""
    client = connect()
    return client, listener.accept_and_greet()[0]


@pytest.fixture
def every_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client looks for the agent whenever it has something to say, not once a second."""
    monkeypatch.setattr("tailspan.client.connection.RETRY_NS", 0)
