"""``python -m tests.scorecard.helper``: a process that the worker asks over a unix socket, such as a tokenizer.

It works for each byte it gets, and sends it back. A line ``work 20`` on standard input: 20 ms of CPU time each.
"""

from __future__ import annotations

import argparse
import hashlib
import socketserver
import sys
import threading
import time

from tailspan.worker.comm import name_this_thread


class Helper(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    work_s = 0.001


class Handler(socketserver.BaseRequestHandler):
    server: Helper

    def handle(self) -> None:
        name_this_thread("helper")
        while got := self.request.recv(1):
            until = time.thread_time() + self.server.work_s
            while time.thread_time() < until:
                hashlib.pbkdf2_hmac("sha256", b"helper", b"salt", 200)  # some 50 µs, without the GIL
            self.request.sendall(got)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard.helper", description=__doc__)
    parser.add_argument("--socket", required=True)
    name_this_thread("helper")
    with Helper(parser.parse_args().socket, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print("ready", flush=True)
        for line in sys.stdin:
            server.work_s = float(line.split()[1]) / 1000
            print("ok", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
