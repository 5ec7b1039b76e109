"""Join a running Ray cluster or start one on this machine, and say within seconds when work can never be placed."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from sbdzsl.errors import AuditError

#: Only rows of a few kilobytes go through the object store; images never do.
LOCAL_OBJECT_STORE_BYTES = 200 * 2**20


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """A Ray connection for the length of a `with` block; a cluster that was connected before is left as it was.

    `address` None means the cluster that RAY_ADDRESS names (set inside a submitted job), else a new local one.
    Raises `AuditError` "no-resources" where the cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    if target.startswith(("http://", "https://")):
        raise AuditError(
            "no-resources",
            f"{target} is the address for `ray job submit`; a driver needs the cluster's own address, host:6379. "
            "Unset RAY_ADDRESS to run on this machine, or submit the job",
        )
    # Its plans and progress bars are not the audit's progress, which is printed in images.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    local = {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES} if target == "local" else {}
    try:
        ray.init(address=target, log_to_driver=False, logging_level="warning", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise AuditError("no-resources", f"no Ray cluster at {target!r}: {error}") from error
    try:
        with _terminated_is_interrupted():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which schedulers and `ray job stop` end a driver, do what Ctrl-C does.

    Under the handler that Ray installs, a driver that waits for Ray Data aborts with a stack trace of Ray's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may, and gets the signal
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def require_placeable(resources: Mapping[str, float], what: str) -> None:
    """Raise `AuditError` "no-resources" unless some living node can hold `resources` at all.

    Ray itself waits for ever for what fits on no node.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(key, 0) >= amount for key, amount in resources.items()) for node in nodes):
        largest = {key: max((node.get(key, 0) for node in nodes), default=0) for key in resources}
        raise AuditError(
            "no-resources",
            f"{what} needs {dict(resources)} on one node; the largest node offers {largest}. "
            "Ask for less or add a node",
        )


def total_cpus() -> float:
    """CPUs of all living nodes."""
    return float(ray.cluster_resources().get("CPU", 0))
