"""docs/causes.md says what each cause is made of and what to do about it."""

import re
import runpy
from pathlib import Path

from tailspan.attribute.causes import CAUSES, Cause
from tailspan.collect.bpf.probes import BY_NAME

FOLDER = Path(__file__).parents[2] / "docs"
COMMITTED = (FOLDER / "causes.md").read_text()


def test_committed_is_generated() -> None:
    built = runpy.run_path(str(FOLDER / "causes.py"))["built"]
    assert built() == COMMITTED, "run: python docs/causes.py"


def test_every_cause_has_its_section_and_its_place_in_the_table() -> None:
    labels = sorted(info.label for info in CAUSES.values())
    assert sorted(re.findall(r"^## (.+)$", COMMITTED, re.M)) == labels
    assert sorted(re.findall(r"^\| \[(.+?)\]", COMMITTED, re.M)) == labels
    assert len(CAUSES) == len(Cause)


def test_what_a_cause_needs_exists() -> None:
    assert {info.probe for info in CAUSES.values()} <= BY_NAME.keys() | {"", "client", "nvml", "sampling"}
