"""docs/security.md names its tests."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "security.md"


def test_every_test_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", DOCUMENT.read_text())
    assert len(named) > 10
    for file, function in named:
        (found,) = TESTS.rglob(file)
        assert not function or f"def {function}(" in found.read_text(), (file, function)
