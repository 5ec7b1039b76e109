"""Fixtures of object stores for tests: a real S3 server on loopback, and fsspec's store in memory."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import fsspec
import pytest
import stamina
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from werkzeug.serving import make_server


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server on a free port of loopback."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket of its own; endpoint and dummy credentials stand in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"lake-{uuid.uuid4().hex[:12]}"
    boto3.Session().client("s3").create_bucket(Bucket=bucket)
    # s3fs keeps instances, and with them endpoint and credentials, for as long as the process lives.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with stamina.set_testing(True, attempts=1):
        yield f"s3://{bucket}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of an empty folder in memory."""
    yield f"memory://lake-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("memory").store.clear()


@dataclass
class Doorkeeper:
    """Stands before a real S3 server, notes each request, may take headers off, and answer 503 to one in so many."""

    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    drop: tuple[str, ...] = ()
    fail_one_in: int = 0
    app: Any = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        for name in self.drop:
            environ.pop(name, None)
        if self.fail_one_in and len(self.requests) % self.fail_one_in == 0:
            start_response("503 Slow Down", [("Content-Type", "text/xml"), ("Content-Length", "0")])
            return []
        return self.app(environ, start_response)


@pytest.fixture
def doorkeeper(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doorkeeper]:
    """An S3 server of its own over the same buckets; the environment leads to it."""
    keeper = Doorkeeper(app=DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, keeper, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    keeper.url = f"http://127.0.0.1:{server.port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", keeper.url)
    yield keeper
    server.shutdown()
    server.server_close()


@pytest.fixture
def s3_apart(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As `s3`, on a server in a process of its own: for callers that hold the interpreter's lock while they wait."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while not _answers(port) and time.monotonic() < deadline:
            time.sleep(0.05)
        boto3.Session().client("s3").create_bucket(Bucket=s3.removeprefix("s3://"))
        yield s3
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
