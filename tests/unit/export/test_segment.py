from __future__ import annotations

import tracemalloc
import zlib
from dataclasses import replace

import msgpack
import pytest

from tailspan.errors import SegmentError
from tailspan.export import payload, segment
from tailspan.export.segment import BLOCK_HEADER_SIZE, BlockHeader, IndexRow
from tests.builders import sample_evidence, sample_verdict


def _block() -> tuple[BlockHeader, bytes, bytes]:
    data = segment.encode_block(sample_evidence(), [IndexRow.of(sample_verdict())])
    header = segment.decode_block_header(data[:BLOCK_HEADER_SIZE])
    assert header is not None
    return header, data[BLOCK_HEADER_SIZE:][: header.index_len], data[BLOCK_HEADER_SIZE + header.index_len :]


def _with_index(rows: object) -> tuple[BlockHeader, bytes]:
    header, _, _ = _block()
    index = msgpack.packb(rows)
    return replace(header, index_len=len(index), index_crc=zlib.crc32(index)), index


def test_an_index_row_comes_back_as_it_was() -> None:
    header, index, _ = _block()
    assert segment.decode_index(header, index) == [IndexRow.of(sample_verdict())]


def test_a_block_knows_the_time_that_its_requests_span() -> None:
    header, _, _ = _block()
    request = sample_verdict().request
    assert header.start_unix_ns == request.start_unix_ns
    assert header.end_unix_ns == request.start_unix_ns + request.wall_ns


def test_an_index_row_of_an_older_file_has_defaults_and_of_unknown_fields_nothing() -> None:
    header, index = _with_index([{"trace_id": "ab", "from_the_past": 1}])
    assert segment.decode_index(header, index) == [IndexRow(trace_id="ab")]


@pytest.mark.parametrize("rows", [[{"wall_ns": "long"}], [{"confidence": 1}], [7], 7, {"trace_id": "ab"}])
def test_a_malformed_index_is_refused(rows: object) -> None:
    header, index = _with_index(rows)
    with pytest.raises(SegmentError, match="index"):
        segment.decode_index(header, index)


@pytest.mark.parametrize("field", ["index_len", "payload_len", "raw_len"])
def test_a_header_whose_lengths_are_out_of_bounds_is_no_header(field: str) -> None:
    header, _, _ = _block()
    absurd = replace(header, **{field: payload.MAX_RAW + 1})
    packed = segment._BLOCK.pack(
        segment.BLOCK_MAGIC, *(getattr(absurd, name) for name in BlockHeader.__dataclass_fields__)
    )
    assert segment.decode_block_header(segment._with_crc(packed)) is None


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_payload_of_another_length_than_announced_is_refused(difference: int) -> None:
    header, _, stored = _block()
    with pytest.raises(SegmentError, match="not as long as its header says"):
        segment.decode_payload(replace(header, raw_len=header.raw_len + difference), stored)


def test_a_decompression_bomb_is_cut_off_at_the_announced_length() -> None:
    # GIVEN 100 MB of zeros in 100 kB that announce themselves as 1000 bytes
    bomb = zlib.compress(bytes(100 << 20), level=9)
    header, _, _ = _block()
    header = replace(header, payload_len=len(bomb), payload_crc=zlib.crc32(bomb), raw_len=1000)

    # WHEN they are decoded
    tracemalloc.start()
    with pytest.raises(SegmentError, match="not as long as its header says"):
        segment.decode_payload(header, bomb)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # THEN they never came into memory
    assert peak_bytes < 1 << 20


def test_a_payload_that_is_no_zlib_stream_is_refused() -> None:
    header, _, _ = _block()
    with pytest.raises(SegmentError, match="does not decompress"):
        segment.decode_payload(replace(header, payload_crc=zlib.crc32(b"junk")), b"junk")


def test_a_host_name_of_any_length_fits_the_file_header() -> None:
    for host in ("node-1", "n" * 63 + "ö", "n" * 300):
        header = segment.encode_file_header(23, host)
        assert len(header) == segment.FILE_HEADER_SIZE
        assert segment.decode_file_header(header).host[:63] == host[:63]
