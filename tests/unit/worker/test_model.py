"""The reference model is the same every time, and one ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tailspan.worker import model


def test_the_same_width_is_the_same_file(tmp_path: Path) -> None:
    model.build(tmp_path / "a.onnx", 4)
    model.build(tmp_path / "b.onnx", 4)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_row_scores_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    loaded = model.load(tmp_path, width=4, threads=1)
    batch = np.random.default_rng(7).random((8, model.FEATURES), np.float32)
    together = loaded.run(batch)
    assert together.shape == (8, model.CLASSES)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(loaded.run(batch[3:4])[0], together[3], rtol=1e-4, atol=1e-6)
    # AND different inputs score differently: the network does something
    assert np.ptp(together, axis=0).max() > 0.01


def test_a_model_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    model.load(tmp_path, width=4, threads=1)
    (path,) = tmp_path.iterdir()
    before = path.stat()
    model.load(tmp_path, width=4, threads=1)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
