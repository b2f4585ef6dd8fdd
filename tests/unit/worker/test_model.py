"""The reference model is the same every time, and one ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tailspan.errors import CannotError
from tailspan.worker import cuda, model


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


def test_what_a_run_returned_is_not_changed_by_the_next(tmp_path: Path) -> None:
    loaded = model.load(tmp_path, width=4, threads=1)
    random = np.random.default_rng(7)
    first_batch, second_batch = (random.random((2, model.FEATURES), np.float32) for _ in range(2))
    first = loaded.run(first_batch)
    kept = first.copy()
    second = loaded.run(second_batch)
    np.testing.assert_array_equal(first, kept)
    assert (second != first).any()
    # AND bound buffers give what a run without them gives
    np.testing.assert_allclose(first, loaded.session.run(None, {"input": first_batch})[0], rtol=1e-6)


def test_a_host_without_a_gpu_runs_on_the_cpu_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-absent.so.1")
    loaded = model.load(tmp_path, width=4, threads=1, device="auto")
    assert (loaded.provider, loaded.device) == ("CPUExecutionProvider", "")
    assert loaded.why_not_cuda == "there is no CUDA device 0"
    assert capfd.readouterr() == ("", "")
    with pytest.raises(CannotError, match="there is no CUDA device 3"):
        model.load(tmp_path, width=4, threads=1, device="cuda", device_id=3)


def test_a_gpu_that_onnx_runtime_cannot_use_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a device, and a host without what ONNX Runtime needs to use it
    monkeypatch.setattr(cuda, "device_uuid", lambda ordinal: "GPU-a")
    loaded = model.load(tmp_path, width=4, threads=1, device="auto")
    if loaded.device:
        pytest.skip("this host's GPU is there for ONNX Runtime to use")
    assert loaded.provider == "CPUExecutionProvider"
    # THEN it is one line to print, and what ONNX Runtime has to say is not
    assert "CUDAExecutionProvider" in loaded.why_not_cuda
    assert "\n" not in loaded.why_not_cuda
    assert capfd.readouterr() == ("", "")
    assert loaded.run(np.zeros((1, model.FEATURES), np.float32)).shape == (1, model.CLASSES)


def test_a_model_that_profiles_tells_of_its_runs(tmp_path: Path) -> None:
    loaded = model.load(tmp_path, width=4, threads=1)
    profiled = loaded.profiled(str(tmp_path / "run"))
    profiled.warm(2)
    assert profiled.provider == loaded.provider
    assert "model_run" in Path(profiled.end_profiling()).read_text()
    assert profiled.get_profiling_start_time_ns() > 0
