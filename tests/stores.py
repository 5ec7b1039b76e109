"""Fixtures of object stores for tests: a real S3 server on loopback, and fsspec's store in memory."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import boto3
import fsspec
import pytest
import stamina
from moto.server import ThreadedMotoServer


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
