"""What the worker makes of a body."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.worker.model import FEATURES
from tailspan.worker.server import HttpError, preprocess


def test_a_seed_is_a_vector_and_the_same_one_each_time() -> None:
    assert preprocess(b'{"seed": 7}').shape == (FEATURES,)
    np.testing.assert_array_equal(preprocess(b'{"seed": 7}'), preprocess(b'{"seed": 7}'))
    assert (preprocess(b'{"seed": 7}') != preprocess(b'{"seed": 8}')).any()


def test_a_short_list_is_filled_with_zeros() -> None:
    vector = preprocess(b"[1.5, -2]")
    assert vector.dtype == np.float32
    assert vector.tolist() == [1.5, -2.0] + [0.0] * (FEATURES - 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"{}",
        b'{"seed": "7"}',
        b'{"seed": -1}',
        b'{"seed": 1.5}',
        b'{"seed": true}',
        b"[]",
        b"[true]",
        b'["1"]',
        b"[NaN]",
        b"[Infinity]",
        b"[1e39]",
        b"[" + b"9" * 4000 + b"]",
        b"[" + b"9" * 5000 + b"]",
        b"[" + b"0," * FEATURES + b"0]",
        b"[" * 60_000,
    ],
    ids=lambda body: body[:12],
)
def test_any_other_body_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        preprocess(body)
    assert refused.value.status == 400


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_body_does_worse_than_a_bad_request(body: bytes) -> None:
    try:
        vector = preprocess(body)
    except HttpError as refused:
        assert refused.status == 400
    else:
        assert np.isfinite(vector).all()
