"""Join a running Ray cluster or start one on this machine, and say within seconds when work can never be placed."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ray
from ray.exceptions import AuthenticationError

from sbdzsl.config import AuditSettings, ClusterSettings
from sbdzsl.errors import AuditError, ConfigError
from sbdzsl.runtime import Runtime

#: Only rows of a few kilobytes go through the object store; images never do.
LOCAL_OBJECT_STORE_BYTES = 200 * 2**20

Resources = Mapping[str, float]


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """A Ray connection for the length of a `with` block; a cluster that was connected before is left as it was.

    `address` None means the cluster that RAY_ADDRESS names (set inside a submitted job), else a new local one.
    Raises `AuditError` "no-resources" where the cluster does not answer, or no local one starts in half a minute.
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
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    local = {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES} if target == "local" else {}
    with _ended_like_by_hand():
        try:
            ray.init(address=target, log_to_driver=False, logging_level="warning", **local)
        except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
            raise AuditError("no-resources", f"no Ray cluster at {target!r}: {error}") from error
        except Exception as error:
            if type(error) is not Exception:  # this is what Ray raises where its own processes are too slow to start
                raise
            raise AuditError(
                "no-resources",
                f"Ray did not start on this machine: {error} Free it of other work, and run the same command again",
            ) from error
        try:
            with _ended_like_by_hand():  # again, for Ray puts a handler of its own in place, which aborts
                yield
        finally:
            ray.shutdown()


@contextmanager
def _ended_like_by_hand() -> Iterator[None]:
    """SIGTERM, as `ray job stop` and service managers send it, ends the process in good order, like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@dataclass(frozen=True, slots=True)
class Crew:
    """The actors of an audit or a training: how many, and what each is given. `waits`: none of it is free just now."""

    num_actors: int
    cpus: float
    gpus: float
    waits: bool = False

    @property
    def each(self) -> dict[str, float]:
        """What one actor asks of a node, by Ray's names."""
        return {key: amount for key, amount in {"CPU": self.cpus, "GPU": self.gpus}.items() if amount}

    @property
    def device(self) -> str:
        """Where the nets run."""
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """Threads of the nets of one actor."""
        return max(1, int(self.cpus))


def crew(settings: AuditSettings, runtime: Runtime, max_actors: int) -> Crew:
    """The actors that the connected cluster holds, `max_actors` at most; raises as `size_crew`."""
    found = size_crew(settings, runtime, _nodes(), max_actors)
    return replace(found, waits=_free(found) < 1)


def training_crew(settings: ClusterSettings, max_workers: int) -> Crew:
    """The workers of a training, `max_workers` at most; as they start together, no more than there is room for now.

    Raises `AuditError` "no-resources" where no node can hold one at all.
    """
    found = _fitting(
        "a training worker",
        settings.workers,
        settings.cpus_per_worker,
        settings.gpus_per_worker,
        _nodes(),
        max_workers,
    )
    free = _free(found)
    return replace(found, num_actors=max(1, min(found.num_actors, free)), waits=free < 1)


def trial_crew(number: int | None, cpus: float, gpus: float, max_trials: int) -> Crew:
    """The trials of a sweep that run side by side; None: as many as the cluster holds, `max_trials` at most.

    Raises `AuditError` "no-resources" where no node can hold one at all.
    """
    found = _fitting("a trial", number, cpus, gpus, _nodes(), max_trials)
    return replace(found, waits=_free(found) < 1)


def size_crew(settings: AuditSettings, runtime: Runtime, nodes: Sequence[Resources], max_actors: int) -> Crew:
    """What each actor gets, and how many of them the nodes hold.

    Raises `AuditError` "no-resources" where no node can hold one at all: Ray itself waits for ever for what fits on no
    node. Raises `ConfigError` for a runtime that does not use the GPUs asked for.
    """
    gpus = settings.gpus_per_actor
    if runtime != "torch":
        if gpus:
            raise ConfigError("bad-config", f"runtime {runtime} runs on the CPU; set gpus_per_actor to 0")
        gpus = 0.0
    return _fitting("an audit actor", settings.actors, settings.cpus_per_actor, gpus, nodes, max_actors)


def has_room(found: Crew) -> bool:
    """Whether a node is there that could hold one of such actors, if it had nothing else to do."""
    return any(all(node.get(key, 0) >= amount for key, amount in found.each.items()) for node in _nodes())


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _free(found: Crew) -> int:
    """How many of such actors the CPUs and GPUs would hold that nothing else has at the moment."""
    free = ray.available_resources()
    return int(min(free.get(key, 0) / amount for key, amount in found.each.items()))


def _fitting(
    what: str, number: int | None, cpus: float | None, gpus: float | None, nodes: Sequence[Resources], most: int
) -> Crew:
    """As many as asked for (None: as the nodes hold), `most` at most; by default a GPU where there are any."""
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus is None:
        gpus = 1.0 if with_gpu else 0.0
    if cpus is None:
        cpus = max(
            1.0, min((node.get("CPU", 0) * gpus // node["GPU"] for node in with_gpu), default=1.0) if gpus else 1.0
        )
    each = Crew(1, cpus, gpus).each
    room = sum(int(min(node.get(key, 0) / amount for key, amount in each.items())) for node in nodes)
    if not room:
        largest = {key: max((node.get(key, 0) for node in nodes), default=0) for key in each}
        raise AuditError(
            "no-resources",
            f"{what} needs {each} on one node; the largest node offers {largest}. Ask for less or add a node",
        )
    return Crew(max(1, min(number or room, most)), cpus, gpus)
