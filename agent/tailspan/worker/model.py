"""A small convolutional network, built as needed and always the same, and the ONNX Runtime session that runs it.

Convolutions rather than large matrices: the time is spent computing, so a batch of eight costs eight times one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailspan.errors import CannotError

NAME = "convnet"
VERSION = "1"
FEATURES = 64  #: length of one input vector
CLASSES = 10  #: length of one output vector

_SIDE = 40
_LAYERS = 8
_OPSET = 17
_IR_VERSION = 8
_SEVERITY_ERROR = 3
_NVIDIA_DEVICE = Path("/dev/nvidiactl")

Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class Model:
    session: Any
    provider: str  #: of ONNX Runtime's names, e.g. ``CPUExecutionProvider``

    def run(self, batch: Floats) -> Floats:
        """(n, FEATURES) -> (n, CLASSES), on the calling thread and the session's own pool."""
        output: Floats = self.session.run(None, {"input": batch})[0]
        return output


def load(folder: Path, width: int, threads: int) -> Model:
    """A session over the model of ``width`` channels (time grows with the square), built if not in ``folder``."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise CannotError("the reference worker needs ONNX Runtime: pip install 'tailspan[worker]'") from None
    path = folder / f"{NAME}-{VERSION}-{width}.onnx"
    if not path.exists():
        build(path, width)
    ort.set_default_logger_severity(_SEVERITY_ERROR)
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool burns CPU instead of sleeping, so the kernel cannot tell whom a thread waits for, and on few
    # cores it takes them from the very thread that it waits for.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=_providers(ort))
    return Model(session, session.get_providers()[0])


def _providers(ort: Any) -> list[str]:
    # onnxruntime-gpu offers CUDA on every machine, and says so at length where there is none.
    wanted = ["CUDAExecutionProvider"] if _NVIDIA_DEVICE.exists() else []
    return [name for name in (*wanted, "CPUExecutionProvider") if name in ort.get_available_providers()]


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
