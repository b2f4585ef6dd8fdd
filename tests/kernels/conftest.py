"""The marker of tests that boot a kernel."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "guest: boots another kernel in an emulated machine (root, Debian's archive)"
    )
