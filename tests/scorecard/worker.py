"""``python -m tests.scorecard.worker``: the reference worker, with stages before inference and faults inside.

``POST /v1/infer/<stage>``: the stage, then inference. A line ``<switch> on`` or ``<switch> off`` on standard input
turns on or off a fault that lives in this process; the end of standard input ends it.
"""

from __future__ import annotations

import argparse
import ctypes
import socket
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

import tailspan.client
from tailspan.worker import model
from tailspan.worker.batching import Batcher
from tailspan.worker.comm import name_this_thread
from tailspan.worker.cuda import device_uuid
from tailspan.worker.model import Floats
from tailspan.worker.server import Handler, HttpError, Server, preprocess
from tests.scorecard.stages import Stage, Stages
from tests.scorecard.switches import Switches

#: About 2 ms of CPU time a request: how fast they compute depends on the CPU's neighbours too.
MODEL_WIDTH = 40
MCL_CURRENT = 1
#: An input that takes as long as so many others.
HEAVY_SEED, HEAVY_RUNS = 666, 25
#: How late the accepting thread looks at its socket, when it is switched to.
ACCEPT_LATE_S = 0.02


class StagedServer(Server):
    def __init__(
        self, address: tuple[str, int], batcher: Batcher, client: tailspan.client.Client, stages: dict[str, Stage]
    ) -> None:
        super().__init__(address, batcher, client)
        self.stages = stages
        self.device = device_uuid()
        self.accepting_late = threading.Event()
        self.RequestHandlerClass = StagedHandler

    def get_request(self) -> tuple[socket.socket, Any]:
        if self.accepting_late.is_set():
            time.sleep(ACCEPT_LATE_S)
        return super().get_request()


class StagedHandler(Handler):
    server: StagedServer

    def setup(self) -> None:
        name_this_thread("handler")
        super().setup()

    def do_POST(self) -> None:  # noqa: N802 - the standard library's name
        with (
            self.server.request_in_flight(),
            self.server.client.request(
                f"POST {self.path}",
                request_id=self.headers.get("x-request-id", ""),
                model=model.NAME,
                model_version=model.VERSION,
                peer=self.client_address[:2],
            ) as request,
        ):
            stage = self.server.stages[self.path.removeprefix("/v1/infer/")]
            body = self._read_body()
            request.device(self.server.device, "")
            stage(request)
            try:
                with request.span("preprocess"):
                    vector = preprocess(body)
                execution = self._run(vector, request).execution
            except HttpError as error:
                request.status = "rejected"
                self._answer(error.status, {"error": str(error)}, request)
                return
            assert execution is not None
            with request.span("postprocess"):
                self._answer(
                    HTTPStatus.OK,
                    {"batch": execution.batch_id, "tid": threading.get_native_id()},
                    request,
                )


def slowed(loaded: model.Model) -> Any:
    """``Model.run`` that takes long for one input."""
    heavy = preprocess(b'{"seed": %d}' % HEAVY_SEED)

    def run(batch: Floats) -> Floats:
        if (batch == heavy).all(axis=1).any():
            for _ in range(HEAVY_RUNS):
                loaded.run(batch)
        return loaded.run(batch)

    return run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for its files, on a real disk")
    parser.add_argument("--upstream", required=True, help="host:port")
    parser.add_argument("--helper", required=True, help="path of its socket")
    parser.add_argument("--other-cpu", type=int, required=True, help="one that is not its own")
    args = parser.parse_args()
    name_this_thread("worker")
    loaded = model.load(args.folder, MODEL_WIDTH, 1)
    for size in range(1, 5):
        loaded.run(np.zeros((size, model.FEATURES), np.float32))  # the first run of a size is slow
    ctypes.CDLL(None).mlockall(MCL_CURRENT)  # a limit on memory shall not make it read its own code again
    client = tailspan.client.connect(service="scorecard", service_version=model.VERSION)
    batcher = Batcher(slowed(loaded), client, model.NAME, max_batch=4, max_wait_s=0.001, queue=64)
    stages = Stages(args.folder, args.upstream, args.helper)
    switches = Switches(stages, args.other_cpu)
    server = StagedServer(("127.0.0.1", 0), batcher, client, stages.by_name)
    server.accepting_late = switches.accepting_late

    def accept() -> None:
        name_this_thread("accept")
        server.serve_forever(0.1)

    threading.Thread(target=accept, daemon=True).start()
    print(server.server_port, flush=True)
    for line in sys.stdin:
        name, state = line.split()
        switches.set(name, state == "on")
        print("ok", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
