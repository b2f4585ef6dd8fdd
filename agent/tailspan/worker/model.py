"""A small convolutional network, built as needed and always the same, and the ONNX Runtime session that runs it.

Convolutions rather than large matrices: the time is spent computing, so a batch of eight costs eight times one.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailspan.errors import CannotError
from tailspan.worker import cuda

NAME = "convnet"
VERSION = "1"
FEATURES = 64  #: length of one input vector
CLASSES = 10  #: length of one output vector

#: ONNX Runtime's names of its providers.
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_SIDE = 40
_LAYERS = 8
_OPSET = 17
_IR_VERSION = 8
_SEVERITY_ERROR, _SEVERITY_FATAL = 3, 4

Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Bound:
    """A batch size's own buffers, where the model runs, bound to its input and output once and for all."""

    binding: Any
    input: Any
    output: Any


@dataclass(slots=True)
class Model:
    """For one thread at a time: runs of one size share their buffers."""

    path: Path
    threads: int
    session: Any
    provider: str  #: of ONNX Runtime's names, e.g. ``CPUExecutionProvider``
    device_id: int = 0  #: CUDA's ordinal
    device: str = ""  #: uuid of the GPU; none on the CPU
    why_not_cuda: str = ""  #: where it was to use CUDA if it could
    _bound: dict[int, _Bound] = field(default_factory=dict)

    def run(self, batch: Floats) -> Floats:
        """(n, FEATURES) -> (n, CLASSES), on the calling thread and the session's own pool."""
        bound = self._bound.get(len(batch)) or self._bind(len(batch))
        bound.input.update_inplace(batch)
        self.session.run_with_iobinding(bound.binding)
        return np.array(bound.output.numpy())  # a copy: on the CPU that is the buffer itself

    def warm(self, max_batch: int) -> None:
        """The first run of a session and of a size is slow."""
        for size in (1, max_batch):
            self.run(np.zeros((size, FEATURES), np.float32))

    def profiled(self, prefix: str) -> Model:
        """The same again, in a session that profiles its runs. Raises CannotError."""
        session = _session(self.path, self.threads, self.provider, self.device_id, prefix)
        if session.get_providers()[0] != self.provider:
            raise CannotError(f"ONNX Runtime cannot load its {self.provider} again")
        return Model(self.path, self.threads, session, self.provider, self.device_id, self.device)

    def end_profiling(self) -> str:
        path: str = self.session.end_profiling()
        return path

    def get_profiling_start_time_ns(self) -> int:
        start_unix_ns: int = self.session.get_profiling_start_time_ns()
        return start_unix_ns

    def _bind(self, size: int) -> _Bound:
        from onnxruntime import OrtValue

        where = ("cuda" if self.device else "cpu", self.device_id)
        bound = _Bound(
            self.session.io_binding(),
            OrtValue.ortvalue_from_shape_and_type((size, FEATURES), np.float32, *where),
            OrtValue.ortvalue_from_shape_and_type((size, CLASSES), np.float32, *where),
        )
        bound.binding.bind_ortvalue_input("input", bound.input)
        bound.binding.bind_ortvalue_output("output", bound.output)
        self._bound[size] = bound
        return bound


def load(folder: Path, width: int, threads: int, device: str = "cpu", device_id: int = 0) -> Model:
    """A session over the model of ``width`` channels (time grows with the square), built if not in ``folder``.

    ``device``: ``cpu``; ``cuda``, or CannotError; ``auto``: CUDA if it can be had, else the CPU.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise CannotError("the reference worker needs ONNX Runtime: pip install 'tailspan[worker]'") from None
    path = folder / f"{NAME}-{VERSION}-{width}.onnx"
    if not path.exists():
        build(path, width)
    ort.set_default_logger_severity(_SEVERITY_ERROR)
    ort.disable_telemetry_events()
    why_not_cuda = ""
    if device != "cpu":
        try:
            return _on_cuda(path, threads, device_id)
        except CannotError as error:
            if device == "cuda":
                raise
            why_not_cuda = str(error)
    return Model(path, threads, _session(path, threads, CPU), CPU, why_not_cuda=why_not_cuda)


def _on_cuda(path: Path, threads: int, device_id: int) -> Model:
    import onnxruntime as ort

    uuid = cuda.device_uuid(device_id)
    if not uuid:
        raise CannotError(f"there is no CUDA device {device_id}")
    if CUDA not in ort.get_available_providers():
        raise CannotError(f"this ONNX Runtime is built without {CUDA}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # ours is read by who started the worker
            if hasattr(ort, "preload_dlls"):  # since 1.21: CUDA's libraries may be Python packages
                ort.preload_dlls()
            ort.set_default_logger_severity(_SEVERITY_FATAL)  # it says at length what is one line here
            session = _session(path, threads, CUDA, device_id)
    except Exception as error:  # of ONNX Runtime's own types, by what went wrong
        raise CannotError(f"ONNX Runtime cannot use {CUDA}: {str(error).splitlines()[0]}") from None
    finally:
        ort.set_default_logger_severity(_SEVERITY_ERROR)
    if session.get_providers()[0] != CUDA:
        raise CannotError(f"ONNX Runtime cannot load its {CUDA}: are its CUDA and cuDNN libraries here?")
    return Model(path, threads, session, CUDA, device_id, uuid)


def _session(path: Path, threads: int, provider: str, device_id: int = 0, profile: str = "") -> Any:
    """``profile``: the first part of its profile's path, if it is to have one."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool burns CPU instead of sleeping, so the kernel cannot tell whom a thread waits for, and on few
    # cores it takes them from the very thread that it waits for.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    # onnxruntime-gpu offers CUDA on every machine.
    on_gpu: list[Any] = [(CUDA, {"device_id": device_id})] if provider == CUDA else []
    return ort.InferenceSession(str(path), options, providers=[*on_gpu, CPU])


def build(path: Path, width: int) -> None:
    """Write the model, byte for byte the same for the same width. A reader never sees half a file."""
    import onnx  # only to build: a worker that finds its model does without

    made = onnx.helper.make_model(
        _graph(onnx.helper, width), opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(made.SerializeToString(deterministic=True))
    part.replace(path)


def _graph(helper: Any, width: int) -> Any:
    """A vector spread over a picture, convolved again and again with one kernel, and read off as class scores."""
    from onnx import TensorProto, numpy_helper

    random = np.random.RandomState(0)  # numpy promises that this one's numbers never change
    constants: dict[str, npt.NDArray[Any]] = {
        "spread": _weights(random, (FEATURES, width), FEATURES),
        "axes": np.array([2, 3], np.int64),
        "picture": _weights(random, (1, width, _SIDE, _SIDE), 1),
        "kernel": _weights(random, (width, width, 3, 3), 9 * width),
        "head": _weights(random, (width, CLASSES), width),
    }
    node = helper.make_node
    nodes = [
        node("MatMul", ["input", "spread"], ["channels"]),
        node("Unsqueeze", ["channels", "axes"], ["pixels"]),
        node("Mul", ["pixels", "picture"], ["map0"]),
    ]
    for layer in range(_LAYERS):
        nodes.append(node("Conv", [f"map{layer}", "kernel"], [f"conv{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", [f"conv{layer}"], [f"map{layer + 1}"]))
    nodes += [
        node("GlobalAveragePool", [f"map{_LAYERS}"], ["pool"]),
        node("Flatten", ["pool"], ["flat"]),
        node("MatMul", ["flat", "head"], ["output"]),
    ]
    return helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def _weights(random: np.random.RandomState, shape: tuple[int, ...], fan_in: int) -> Floats:
    bound = (6 / fan_in) ** 0.5  # keeps the signal's size from layer to layer
    return random.uniform(-bound, bound, shape).astype(np.float32)
