from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tailspan.collect.bpf import headers
from tailspan.collect.bpf.btf import elf_section
from tailspan.collect.bpf.programs import OBJECT
from tailspan.errors import CannotError

RELEASE = "6.12.107-test"


def write(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(f"/* {root.name} */\n")
    return root


def generated(root: Path) -> Path:
    return write(root, "include/generated/autoconf.h", "arch/x86/include/generated/asm/syscalls_64.h", "Makefile")


def common(root: Path) -> Path:
    return write(
        root, "include/linux/kconfig.h", "include/linux/sched.h", "arch/x86/include/asm/page.h", "Makefile"
    )


def modules(tmp_path: Path, **links: Path) -> Path:
    folder = tmp_path / "modules" / RELEASE
    folder.mkdir(parents=True)
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return folder.parent


@pytest.fixture
def vmlinux(tmp_path: Path) -> Path:
    """Real BTF, though of our own object: as in a kernel's, types refer to each other both ways."""
    path = tmp_path / "vmlinux"
    path.write_bytes(elf_section(OBJECT.read_bytes(), ".BTF"))
    return path


def find(tmp_path: Path, vmlinux: Path | None = None, **given: object) -> headers.Headers:
    paths = {"modules": tmp_path / "modules", "vmlinux": vmlinux or tmp_path / "absent", "release": RELEASE}
    return headers.find(tmp_path / "kept", **(paths | given))  # type: ignore[arg-type]


def test_complete_headers_are_taken_as_they_are(tmp_path: Path) -> None:
    build = common(generated(tmp_path / "linux"))
    modules(tmp_path, build=build, source=build)
    found = find(tmp_path)
    assert (found.kind, found.path) == ("package", build)
    assert not (tmp_path / "kept").exists()


def test_split_headers_are_merged_whether_a_link_or_the_makefile_names_the_common_ones(tmp_path: Path) -> None:
    build, source = generated(tmp_path / "linux-amd64"), common(tmp_path / "linux-common")
    folder = modules(tmp_path, build=build, source=source) / RELEASE
    merged = find(tmp_path).path
    assert (merged / "include/linux/kconfig.h").read_text() == "/* linux-common */\n"
    assert (merged / "include/generated/autoconf.h").read_text() == "/* linux-amd64 */\n"
    assert (merged / "arch/x86/include/asm/page.h").read_text() == "/* linux-common */\n"
    assert (merged / "arch/x86/include/generated/asm/syscalls_64.h").read_text() == "/* linux-amd64 */\n"
    assert (merged / "Makefile").read_text() == "/* linux-amd64 */\n"

    (folder / "source").unlink()
    (build / "Makefile").write_text(f"KBUILD_OUTPUT={build}\ninclude {source}/Makefile\n")
    assert find(tmp_path).path == merged


@pytest.mark.parametrize("lost", ["include/generated/autoconf.h", "include/linux/kconfig.h"])
def test_headers_that_lack_what_bcc_needs_are_none(lost: str, tmp_path: Path, vmlinux: Path) -> None:
    build = common(generated(tmp_path / "linux"))
    modules(tmp_path, build=build)
    (build / lost).unlink()
    with pytest.raises(CannotError, match=f"apt-get install linux-headers-{RELEASE}"):
        find(tmp_path)
    assert find(tmp_path, vmlinux, prefer="package").kind == "btf"


def test_btf_is_preferred_until_told_otherwise(tmp_path: Path, vmlinux: Path) -> None:
    modules(tmp_path, build=common(generated(tmp_path / "linux")))
    assert find(tmp_path, vmlinux).kind == "btf"
    assert find(tmp_path, vmlinux, prefer="package").kind == "package"


def test_stub_compiles_and_has_every_struct_and_the_kernels_version(tmp_path: Path, vmlinux: Path) -> None:
    stub = find(tmp_path, vmlinux).path
    program = tmp_path / "program.c"
    program.write_text("""
        #include <linux/kconfig.h>
        #include <uapi/linux/ptrace.h>
        _Static_assert(sizeof(struct thread_cycle) >= 128, "a struct of ours");
        _Static_assert(LINUX_VERSION_CODE == KERNEL_VERSION(6, 12, 107), "its version");
        _Static_assert(roundup_pow_of_two(1) == 1 && roundup_pow_of_two(23) == 32 &&
                       roundup_pow_of_two(32) == 32, "");
        _Static_assert(PAGE_SIZE >= 4096, "");
    """)
    command = ["clang", "--target=bpf", "-fsyntax-only", f"-I{stub}/include", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_stub_is_made_once_also_by_several_at_once(tmp_path: Path, vmlinux: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        trees = {found.path for found in pool.map(lambda _: find(tmp_path, vmlinux), range(8))}
    (tree,) = trees
    assert list((tmp_path / "kept").iterdir()) == [tree]
    made = (tree / "include/vmlinux.h").stat()
    assert find(tmp_path, vmlinux).path == tree
    assert (tree / "include/vmlinux.h").stat().st_ctime_ns == made.st_ctime_ns
    assert (tree.stat().st_mode & 0o7777, made.st_mode & 0o7777) == (0o755, 0o644)
    # another kernel is another tree
    assert find(tmp_path, vmlinux, release="6.18.1").path != tree


def test_bytes_that_are_no_btf_leave_nothing_behind(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(os.urandom(4096))
    with pytest.raises(CannotError, match="BTF is not readable"):
        find(tmp_path, rubbish)
    assert list((tmp_path / "kept").iterdir()) == []


def test_folder_that_others_may_write_is_refused(tmp_path: Path, vmlinux: Path) -> None:
    kept = tmp_path / "kept"
    for place, mode in ((kept, 0o775), (kept, 0o757), (kept, 0o1777), (tmp_path, 0o777)):
        kept.mkdir(exist_ok=True)
        before = place.stat().st_mode & 0o7777
        place.chmod(mode)
        with pytest.raises(CannotError, match=f"others may write {place}: chmod go-w"):
            find(tmp_path, vmlinux)
        place.chmod(before)
    assert find(tmp_path, vmlinux).kind == "btf"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_what_belongs_to_another_user_is_refused(tmp_path: Path, vmlinux: Path) -> None:
    tree = find(tmp_path, vmlinux).path
    os.chown(tree, 65534, 65534)
    with pytest.raises(CannotError, match="belongs to user 65534"):
        find(tmp_path, vmlinux)
    build = common(generated(tmp_path / "linux"))
    os.chown(build, 65534, 65534)
    modules(tmp_path, build=build)
    with pytest.raises(CannotError, match=r"headers in .*linux are not used: .*belongs to user 65534"):
        find(tmp_path)


def test_release_without_a_version_is_told(tmp_path: Path, vmlinux: Path) -> None:
    with pytest.raises(CannotError, match="'next' has no version"):
        find(tmp_path, vmlinux, release="next")


def test_bcc_uses_the_tree_only_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = headers.Headers("btf", tmp_path, "")
    for before in (None, "/another"):
        if before:
            monkeypatch.setenv("BCC_KERNEL_SOURCE", before)
        else:
            monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
        with found.in_use():
            assert os.environ["BCC_KERNEL_SOURCE"] == str(tmp_path)
        assert os.environ.get("BCC_KERNEL_SOURCE") == before


def test_missing_bcc_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    monkeypatch.setattr(headers, "PACKAGES", tmp_path)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(CannotError, match="apt-get install python3-bpfcc"):
        headers.import_bcc()
    for text, said in (("", "something else"), ("import ctypes; ctypes.CDLL('libabsent.so.0')", "libabsent")):
        (tmp_path / "bcc.py").write_text(text)
        with pytest.raises(CannotError, match=said):
            headers.import_bcc()
        assert "bcc" not in sys.modules
