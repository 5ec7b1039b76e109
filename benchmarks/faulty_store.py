"""An S3 server on this machine that can be unwell: moto's, behind a layer that spoils a share of its answers.

    python benchmarks/faulty_store.py --share 0.05 --seed 1       prints its URL, serves until its standard input ends

Spoiled by a seeded draw a request: 500 and 503, each before the store acts and after it did (the answer is lost, the
object is there); an answer seconds late; a connection reset in the middle of the body; a body that ends early in good
order. `GET /__counts` gives how many requests of each kind and how many of each fault there were, as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

FAULTS = ("500", "503", "500-after", "503-after", "slow", "reset", "short")
_REASONS = {"500": ("Internal Server Error", "InternalError"), "503": ("Service Unavailable", "SlowDown")}
SLOW_S = 2.0

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class FaultyStore:
    """A WSGI application around another one. `share` of the requests fare badly; 0 only counts."""

    def __init__(self, app: Callable[..., Iterable[bytes]], share: float, seed: int) -> None:
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.seconds = 0.0
        self.share = share
        self._app = app
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request, or fail to."""
        if environ["PATH_INFO"] == "/__counts":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"requests": self.requests, "faults": self.faults, "seconds": self.seconds}).encode()]
        fault = self._draw(environ["REQUEST_METHOD"])
        if fault in ("500", "503"):
            # What the client still sends is read, or the next request here would begin in the middle of it.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _refused(start_response, fault)
        if fault == "slow":
            time.sleep(SLOW_S)
        answer: list[Any] = []
        started = time.perf_counter()
        body = b"".join(self._app(environ, lambda status, headers, info=None: answer.extend((status, headers))))
        with self._lock:
            self.seconds += time.perf_counter() - started
        if fault in ("500-after", "503-after"):
            return _refused(start_response, fault[:3])
        status, headers = answer
        start_response(status, headers)
        if fault in ("reset", "short"):
            return _broken(body, environ["werkzeug.socket"], reset=fault == "reset")
        return [body]

    def _draw(self, method: str) -> str | None:
        with self._lock:
            self.requests[method] += 1
            if self._rng.random() >= self.share:
                return None
            fault = self._rng.choice(FAULTS)
            self.faults[fault] += 1
            return fault


def _refused(start_response: StartResponse, status: str) -> list[bytes]:
    reason, code = _REASONS[status]
    body = f"<Error><Code>{code}</Code><Message>made up for a test</Message></Error>".encode()
    start_response(f"{status} {reason}", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _broken(body: bytes, connection: socket.socket, *, reset: bool) -> Iterator[bytes]:
    """The first half of a body; then the connection is reset, or closed as if that had been all."""
    yield body[: len(body) // 2]
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # `close` would wait for the files that the handler made of the socket.
        os.close(connection.detach())
    else:
        connection.shutdown(socket.SHUT_RDWR)


def serve(share: float, seed: int) -> None:
    """Run a server on a free port of loopback until standard input ends; its URL is the first line printed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = FaultyStore(DomainDispatcherApplication(create_backend_app), share, seed)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_quiet(MotoRequestHandler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
    server.shutdown()


def _quiet(handler: type) -> type:
    """The handler without a trace for each connection that was broken on purpose."""

    class Quiet(handler):  # type: ignore[misc]
        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    return Quiet


@dataclass(frozen=True, slots=True)
class Server:
    """A running store in a process of its own: its URL, and the environment that leads clients there."""

    url: str
    environment: dict[str, str]

    def counts(self) -> dict[str, Any]:
        """Requests and faults so far."""
        from urllib.request import urlopen

        with urlopen(f"{self.url}/__counts") as answer:
            return dict(json.loads(answer.read()))


@contextlib.contextmanager
def running(share: float = 0.0, seed: int = 0) -> Iterator[Server]:
    """A store in a process of its own, gone at the end of the `with` block with all it holds."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--share", str(share), "--seed", str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        url = process.stdout.readline().strip()
        yield Server(
            url,
            {
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": url,
                "AWS_EC2_METADATA_DISABLED": "true",
            },
        )
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    serve(given.share, given.seed)
