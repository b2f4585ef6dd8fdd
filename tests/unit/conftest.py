"""What every unit test begins with."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_message_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By clients of this process, in tests before."""
    monkeypatch.setattr("tailspan.client.connection._dropped", {})
