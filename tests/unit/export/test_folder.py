"""Folders of the store."""

import os
from pathlib import Path

from tailspan.export import folder


def test_the_group_reads_whatever_the_umask_and_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    for umask in (0o000, 0o077):
        before = os.umask(umask)
        try:
            folder.make(tmp_path / f"{umask}" / "store" / "spool")
        finally:
            os.umask(before)
        for made in (f"{umask}", f"{umask}/store", f"{umask}/store/spool"):
            assert (tmp_path / made).stat().st_mode & 0o777 == 0o750
    (tmp_path / "mine").mkdir(mode=0o711)
    folder.make(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o711
