"""``python -m tests.scorecard.upstream``: a TCP service that the worker calls.

A message is its length (4 bytes, big-endian) and as many bytes; the answer to it is one too. A line ``delay 25``
on standard input makes every answer 25 ms late, ``delay 0`` ends that.
"""

from __future__ import annotations

import argparse
import socketserver
import struct
import sys
import threading
import time
from socket import IPPROTO_TCP, TCP_NODELAY

from tailspan.worker.comm import name_this_thread

LENGTH = struct.Struct(">I")
ANSWER = b"x" * 200


class Upstream(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    delay_s = 0.0


class Handler(socketserver.StreamRequestHandler):
    server: Upstream

    def handle(self) -> None:
        name_this_thread("upstream")
        self.connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        while len(head := self.rfile.read(LENGTH.size)) == LENGTH.size:
            self.rfile.read(LENGTH.unpack(head)[0])
            if self.server.delay_s:
                time.sleep(self.server.delay_s)
            self.wfile.write(LENGTH.pack(len(ANSWER)) + ANSWER)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard.upstream", description=__doc__)
    parser.add_argument("--address", required=True, help="host:port to listen on")
    host, _, port = parser.parse_args().address.rpartition(":")
    name_this_thread("upstream")
    with Upstream((host, int(port)), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print("ready", flush=True)
        for line in sys.stdin:
            server.delay_s = float(line.split()[1]) / 1000
            print("ok", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
