"""The reference worker: ONNX Runtime behind HTTP with dynamic batching, and what tests and demos do to it.

``python -m tailspan.worker`` serves, ``python -m tailspan.worker.load`` asks, and ``python -m
tailspan.worker.neighbour`` takes its CPU away. It shows how :mod:`tailspan.client` is used, and is what the
end-to-end tests and benchmarks run.
"""
