"""What the HTTP application asks of whatever judges images: one process, or a cluster.

`LocalService` is the first: threads that decode, threads that run the nets, and a bounded number of images in between.
An image is judged by itself: batches would make a verdict depend on which images happened to arrive together.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar

import cv2
import numpy as np
import torch

from sbdzsl import bundle as bundles
from sbdzsl import registry
from sbdzsl.bundle import Bundle
from sbdzsl.config import ImageSettings, ThresholdRule
from sbdzsl.errors import ServiceError
from sbdzsl.inspector import Inspector, Loaded, load_image
from sbdzsl.report import gallery
from sbdzsl.report.drift import References
from sbdzsl.serving.settings import ServeSettings
from sbdzsl.verdict import Verdict

P = ParamSpec("P")
T = TypeVar("T")

#: Side of the drawn image of a health check, in pixels.
PROBE_PX = 256

#: A health check that found a real image judged so lately does not judge one of its own.
_FRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """One image to judge: the bytes of its file, and how. `deadline` is a time of `time.monotonic`, in seconds."""

    content: bytes
    name: str = ""
    bit_depth: int | None = None
    rule: ThresholdRule | None = None
    with_overlay: bool = False
    deadline: float = float("inf")


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a job, the time it waited, and the picture that explains it where one was asked for (PNG)."""

    verdict: Verdict
    queue_ms: float
    overlay: bytes | None = None


@dataclass(frozen=True, slots=True)
class ServiceCard:
    """What is in force: bundle, surfaces with their thresholds, limits of an image."""

    bundle: str
    bundle_url: str
    created_at: str
    surfaces: Mapping[str, Mapping[str, Any]]
    attributes: tuple[str, ...]
    image: ImageSettings


class Service(Protocol):
    """Judges images, many at a time. All methods may be called from many tasks of one event loop."""

    async def inspect(self, job: Job) -> Judged:
        """Judge one image; a bad one is a verdict "error".

        Raises `ServiceError` "overloaded", "deadline-exceeded" or "not-ready", `DataError` where the job's threshold
        rule needs held-out images that the surface lacks.
        """

    async def card(self) -> ServiceCard:
        """What is in force now. Raises `ServiceError` "not-ready"."""

    async def reference(self) -> tuple[str, References]:
        """Digest of the bundle in force, and what its images are measured against. Raises as `card`."""

    async def check(self) -> None:
        """Infer for real; returns when that went well. Raises `ServiceError` "not-ready"."""

    async def swap(self, bundle_url: str) -> ServiceCard:
        """Put another bundle in force; requests that are under way end with the one they began with."""

    async def close(self) -> None:
        """Finish what is under way and give threads back."""


class LocalService:
    """A service in this process. `start` it before use. PyTorch gets one thread everywhere but on those of its nets."""

    def __init__(self, bundle_url: str, settings: ServeSettings) -> None:
        self._url = bundle_url
        self._settings = settings
        self._decoders = ThreadPoolExecutor(settings.decoders, "decode")
        self._threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.workers)
        # Threads of the nets wait for each other by spinning, as long as there are no more of them in the process than
        # cores; beyond, they sleep, and a second thread gains nothing. So no other thread may have helpers of its own.
        torch.set_num_threads(1)
        self._nets = ThreadPoolExecutor(settings.workers, "nets", torch.set_num_threads, (self._threads,))
        self._crew: Crew | None = None
        self._in_flight = 0
        self._judged_at = -float("inf")

    async def start(self) -> LocalService:
        """Load the bundle and judge a first image. Raises `BundleError`, `ConfigError`."""
        self._crew = await self.load(self._url)
        return self

    async def inspect(self, job: Job) -> Judged:
        """See `Service.inspect`."""
        crew = self.current()
        if self._in_flight >= self._settings.max_queue + self._settings.workers:
            raise ServiceError(
                "overloaded",
                f"{self._in_flight} images are waiting or being judged, no more are taken; send this one again later",
            )
        self._in_flight += 1
        try:
            return await self._judge(crew, job)
        finally:
            self._in_flight -= 1

    async def card(self) -> ServiceCard:
        """See `Service.card`."""
        return self.current().card

    async def reference(self) -> tuple[str, References]:
        """See `Service.reference`."""
        crew = self.current()
        return crew.card.bundle, crew.references

    async def check(self) -> None:
        """See `Service.check`."""
        if self._in_flight and time.monotonic() - self._judged_at < _FRESH_S:
            return
        judged = await self._judge(self.current(), Job(_probe(), deadline=time.monotonic() + 30))
        if judged.verdict.verdict == "error":
            raise ServiceError("not-ready", f"a drawn image cannot be judged: {judged.verdict.error_detail}")

    async def swap(self, bundle_url: str) -> ServiceCard:
        """See `Service.swap`. Raises as `start`, and then the bundle that was in force stays."""
        self._crew = await self.load(bundle_url)
        self._url = bundle_url
        return self._crew.card

    async def close(self) -> None:
        """See `Service.close`."""
        await asyncio.to_thread(self._nets.shutdown)
        self._decoders.shutdown()

    def current(self) -> Crew:
        """The bundle in force. Raises `ServiceError` "not-ready"."""
        if self._crew is None:
            raise ServiceError("not-ready", "the bundle is being loaded; ask again in some seconds")
        return self._crew

    async def load(self, url: str) -> Crew:
        """Load a bundle, and judge a first image by it. Raises as `start`, and `RegistryError`."""
        # A thread of its own, which ends with its helpers; it has as many as those that will use what it makes.
        with ThreadPoolExecutor(1, "load", torch.set_num_threads, (self._threads,)) as loader:
            return await asyncio.get_running_loop().run_in_executor(loader, self._load, url)

    def _load(self, url: str) -> Crew:
        url = registry.locate(url)
        return Crew(bundles.load(url, self._settings.device, self._settings.promise), url, self._settings)

    async def _judge(self, crew: Crew, job: Job) -> Judged:
        came = time.monotonic()
        loaded = await self.on_decoders(load_job, job, crew.card.image)
        return await self.on_nets(job, came, _judge_all, crew, loaded, job, came)

    async def on_decoders(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on a thread that decodes."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, partial(call, *args, **kwargs))

    async def on_nets(self, job: Job, came: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on a thread of nets, for a job that came at `came`. Raises `ServiceError` "deadline-exceeded"."""
        running = asyncio.get_running_loop().run_in_executor(self._nets, partial(call, *args, **kwargs))
        try:
            found = await asyncio.wait_for(running, max(0.0, job.deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise deadline_exceeded(came) from None
        self._judged_at = time.monotonic()
        return found


class Crew:
    """One bundle as it is served: an inspector for each image that is judged at once, every one of them warm."""

    def __init__(self, bundle: Bundle, url: str, settings: ServeSettings) -> None:
        inspectors = [make_inspector(bundle, settings) for _ in range(settings.workers)]
        self.card = service_card(inspectors[0], url)
        self.references = gallery.references_of(bundle)
        self._idle: SimpleQueue[Inspector] = SimpleQueue()
        for inspector in inspectors:
            warm(inspector)
            self._idle.put(inspector)

    @contextmanager
    def inspector(self) -> Iterator[Inspector]:
        """One that no other thread uses meanwhile."""
        inspector = self._idle.get()
        try:
            yield inspector
        finally:
            self._idle.put(inspector)


def waited_ms(came: float, loaded: Loaded) -> float:
    """How long a decoded job that came at `came` has waited until now."""
    return max(0.0, (time.monotonic() - came) * 1e3 - loaded.decode_ms)


def _judge_all(crew: Crew, loaded: Loaded, job: Job, came: float) -> Judged:
    waited = waited_ms(came, loaded)
    with crew.inspector() as inspector:
        verdict = inspector.decide(loaded, job.rule)
        drawn = job.with_overlay and loaded.image is not None
        overlay = gallery.overlay_png(inspector, loaded, verdict) if drawn else None
    return Judged(verdict, waited, overlay)


def make_inspector(bundle: Bundle, settings: ServeSettings) -> Inspector:
    """The inspector that the settings describe. Raises as `Inspector`."""
    return Inspector(
        bundle,
        settings.policy,
        settings.device,
        settings.max_memory_mb,
        settings.runtime,
        settings.surface_policies,
    )


def service_card(inspector: Inspector, url: str) -> ServiceCard:
    """What an inspector judges by."""
    bundle = inspector.bundle
    surfaces: dict[str, dict[str, Any]] = {}
    for surface in bundle.surfaces:
        threshold = inspector.threshold(surface)
        surfaces[surface] = {
            "defect_threshold": threshold.value,
            "threshold_policy": str(threshold.rule),
            "promised_false_alarm_rate": threshold.promised_rate,
            "held_out_good": threshold.num_good,
            "held_out_defective": threshold.num_defect,
            "validation_ap": bundle.detectors[surface].validation_ap,
        }
    return ServiceCard(
        bundle=bundle.digest,
        bundle_url=url,
        created_at=bundle.card["created_at"],
        surfaces=surfaces,
        attributes=bundle.router.attribute_names,
        image=bundle.settings.image,
    )


def load_job(job: Job, settings: ImageSettings) -> Loaded:
    """Decode a job. The image is named by its content: the same bytes are the same image."""
    digest = hashlib.sha256(job.content).hexdigest()
    return load_image(digest, job.name or f"sha256:{digest}", settings, job.bit_depth, content=job.content)


def deadline_exceeded(came: float) -> ServiceError:
    """The refusal of a job that came at `came` and was not judged in time."""
    waited = time.monotonic() - came
    return ServiceError("deadline-exceeded", f"not judged within {waited:.1f} s; send it again, or send fewer at once")


def warm(inspector: Inspector) -> None:
    """Run both stages once, so that no caller waits for what the first call alone does."""
    loaded = load_image("", "", inspector.bundle.settings.image, content=_probe())
    assert loaded.image is not None
    grey = loaded.image.grey()
    inspector.route(grey)
    for surface in inspector.bundle.surfaces:
        inspector.detect(grey, surface)


def _probe() -> bytes:
    noise = np.random.default_rng(0).integers(96, 160, (PROBE_PX, PROBE_PX), dtype=np.uint8)
    done, data = cv2.imencode(".png", noise)
    assert done
    return data.tobytes()
