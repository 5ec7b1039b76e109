"""What the studies of the service share: servers started as a user starts them, clients that cost little, images.

Servers are processes of their own; nothing of their inside is used. A client is `http.client` on one kept connection:
what it costs itself is measured against `/livez`.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import audit_lab as lab
import numpy as np
from serving_process import free_port, wait_until_ready

#: Seconds until a server has to be ready.
START_S = 240


@dataclass
class Client:
    """One kept connection to a server on this machine."""

    port: int
    key: str | None = None
    timeout_s: float = 60.0
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def post(self, content: bytes, path: str = "/v1/inspect", **headers: str) -> tuple[int, bytes]:
        """Status and body of the answer; a broken connection is opened anew for the next request."""
        sent = {"Content-Type": "image/png"} | headers
        return self._send("POST", path, content, sent)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of the answer."""
        return self._send("GET", path, None, {})

    def put(self, path: str, document: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer."""
        return self._send("PUT", path, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except BaseException:
            self._connection.close()
            self._connection = None
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()


@dataclass(frozen=True)
class Server:
    """A running server: its port, the key that it asks for, its process."""

    port: int
    key: str | None
    process: subprocess.Popen[bytes]
    ready_after_s: float

    def client(self, timeout_s: float = 60.0) -> Client:
        """A new client of it."""
        return Client(self.port, self.key, timeout_s)


@contextmanager
def serving(bundle: Path, *more: str, needs_key: bool = False, log: Path | None = None) -> Iterator[Server]:
    """`sbdzsl serve` with further words, for the length of a `with` block; ready when it is entered."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-m",
            "sbdzsl.cli",
            "serve",
            "--bundle",
            str(bundle),
            "--port",
            str(port := free_port()),
        ]
        key = None
        if needs_key:
            file = str(Path(folder) / "keys.json")
            create = [sys.executable, "-m", "sbdzsl.cli", "keys", "create", "--file", file, "--name", "bench"]
            scopes = [word for scope in ("infer", "review", "admin") for word in ("--scope", scope)]
            key = subprocess.run(
                [*create, *scopes], env=lab.environment(), capture_output=True, text=True
            ).stdout.strip()
            words += ["--keys", file]
        with started([*words, *more], port, key, log) as server:
            yield server


@contextmanager
def started(words: Sequence[str], port: int, key: str | None = None, log: Path | None = None) -> Iterator[Server]:
    """Any server program, until it answers `/readyz`, for the length of a `with` block; ended as by Ctrl-C."""
    began = time.perf_counter()
    output = (log or Path(tempfile.gettempdir()) / f"serve-{port}.log").open("wb")
    env = lab.environment(RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="90")
    process = subprocess.Popen(words, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, START_S)
        yield Server(port, key, process, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.close()


def pictures(size: int, number: int, seed: int = 5) -> list[bytes]:
    """The bytes of drawn images, surfaces in turn."""
    folder = lab.drawn_lake(max(number, 160), size, seed)
    files = sorted(folder.glob("*/T*/*.PNG"), key=lambda file: (file.stem, str(file)))
    return [file.read_bytes() for file in files[:number]]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and tail of some durations."""
    ms = np.asarray(seconds) * 1e3
    return {
        "p50": round(float(np.median(ms)), 2),
        "p95": round(float(np.quantile(ms, 0.95)), 2),
        "p99": round(float(np.quantile(ms, 0.99)), 2),
        "requests": len(ms),
    }
