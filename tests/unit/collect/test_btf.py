"""BTF that no compiler has written: read in bounded time, or not readable."""

from __future__ import annotations

import struct

import pytest

from tailspan.collect.bpf.btf import Btf, elf_section
from tailspan.errors import CannotError

_INT, _STRUCT, _TYPEDEF = 1 << 24, 4 << 24, 8 << 24
_STRINGS = b"\0s\0a\0b\0"
_S, _A, _B = 1, 3, 5


def btf(*types: bytes) -> Btf:
    packed = b"".join(types)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(packed), len(packed), len(_STRINGS))
    return Btf(head + packed + _STRINGS)


def struct_of(size: int, *members: tuple[int, int, int]) -> bytes:
    """Members: name, type, offset in bits."""
    return struct.pack("<III", _S, _STRUCT | len(members), size) + b"".join(
        struct.pack("<III", *member) for member in members
    )


def integer(size: int) -> bytes:
    return struct.pack("<IIII", _S, _INT, size, 8 * size & 255)


def test_types_without_end_are_refused_at_once() -> None:
    # GIVEN a struct that holds itself, by way of a typedef
    with pytest.raises(CannotError, match="within one another"):
        btf(struct_of(4, (_A, 2, 0)), struct.pack("<III", _B, _TYPEDEF, 1)).struct("s")
    # AND two hundred, of which each holds the next
    chain = [struct_of(4, (_A, number, 0)) for number in range(2, 202)]
    with pytest.raises(CannotError, match="within one another"):
        btf(*chain, integer(4)).struct("s")


def test_a_type_that_is_used_a_million_times_is_read_once() -> None:
    # GIVEN twenty structs of which each has two of the next
    sizes = [8 << number for number in range(20, 0, -1)]
    structs = [struct_of(size, (_A, number, 0), (_B, number, 0)) for number, size in enumerate(sizes, 2)]
    # THEN the first is there at once, with all that is in it
    dtype = btf(*structs, integer(8)).struct("s")
    depth = 0
    while dtype.fields:
        assert dtype.names == ("a", "b")
        dtype, depth = dtype.fields["a"][0], depth + 1
    assert (depth, dtype.itemsize) == (20, 8)


@pytest.mark.parametrize("size", [0, 3, 1 << 31])
def test_a_struct_of_integers_that_there_are_none_of_is_not_readable(size: int) -> None:
    with pytest.raises(CannotError, match="not readable"):
        btf(struct_of(8, (_A, 2, 0)), integer(size)).struct("s")


def test_a_field_behind_the_end_of_its_struct_is_not_readable() -> None:
    with pytest.raises(CannotError, match="not readable"):
        btf(struct_of(8, (_A, 2, 64)), integer(4)).struct("s")
    with pytest.raises(CannotError, match="not readable"):
        btf(struct_of(8, (_A, 7, 0)), integer(4)).struct("s")


@pytest.mark.parametrize("table", [1 << 63, (1 << 64) - 1, 1 << 40])
def test_an_object_that_contradicts_itself_is_not_readable(table: int) -> None:
    elf = b"\x7fELF\x02\x01\x01".ljust(40, b"\0") + struct.pack("<QIHHHHHH", table, 0, 64, 0, 0, 64, 3, 1)
    with pytest.raises(CannotError, match="BPF object"):
        elf_section(elf, ".BTF")
