"""The service on Ray Serve, in two shapes from one code base.

    fused    Inspection: both stages in one replica, as many replicas as wanted
    routed   Inspection: HTTP, decoding and SBAD; one hop to Detector-<surface>: that surface's SBDD

Beside either: Memory, an application of its own that holds the journal (`build_memory`).

Between the stages go the bytes of the file, never pixels. Verdicts are those of a process without Ray. `build` is the
application builder that a config of Ray Serve names (`import_path: sbdzsl.cluster.serve:build`). To deploy it again
with another `bundle` replaces the replicas one after the other, new ones first, and no request is lost.
"""

# No postponed annotations here: Ray Serve reads the type of the builder's argument.
import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast
from urllib.parse import quote

from fastapi import FastAPI
from pydantic import Field, model_validator
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from sbdzsl import bundle as bundles
from sbdzsl import registry
from sbdzsl.cluster.memory import Memory, RemotePart, RemoteRecorder
from sbdzsl.cluster.metrics import Mirror
from sbdzsl.cluster.session import session
from sbdzsl.config import Settings
from sbdzsl.errors import ConfigError, SbdzslError, ServiceError
from sbdzsl.inspector import Loaded
from sbdzsl.report import gallery
from sbdzsl.serving.app import build_app
from sbdzsl.serving.keys import KeyFile
from sbdzsl.serving.observe import log
from sbdzsl.serving.service import Crew, Job, Judged, LocalService, deadline_exceeded, load_job, waited_ms
from sbdzsl.serving.settings import ServeSettings, Shape
from sbdzsl.verdict import Verdict

#: Ray Serve queues what is above this at its door; the service's own bound, with its clear answer, lies far below.
_MAX_ONGOING = 1000

#: Name of the application that remembers.
MEMORY = "memory"

#: Bundles that a detector keeps: the one in force, and others that routers still ask for while it changes.
MAX_BUNDLES = 2


class ServeArgs(Settings):
    """What is deployed: the arguments of the application in a config of Ray Serve."""

    bundle: str = Field(description="folder or URL of a bundle that every node can read")
    shape: Shape = Field("routed", description="fused: both stages in one replica; routed: a deployment a surface")
    service: ServeSettings = Field(ServeSettings(), description="limits, threads, thresholds")
    replicas: int = Field(1, ge=1, description="of the deployment that answers HTTP")
    max_replicas: int | None = Field(None, ge=1, description="of it under load; none: no autoscaling")
    cpus: float = Field(1.0, ge=0, description="CPUs of one of its replicas")
    gpus: float = Field(0.0, ge=0, description="GPUs, or a share of one, of one of its replicas")
    detector_replicas: int = Field(1, ge=1, description="routed: of each surface's deployment")
    detector_cpus: float = Field(1.0, ge=0, description="routed: CPUs of one of them")
    detector_gpus: float = Field(0.0, ge=0, description="routed: GPUs, or a share of one, of one of them")
    shared_surfaces: tuple[str, ...] = Field((), description="routed: rarely seen surfaces, one deployment for all")
    open_to_all: bool = Field(False, description="without `service.keys`: all who reach the port may do everything")

    @model_validator(mode="after")
    def _asks_for_keys(self) -> "ServeArgs":
        if self.service.keys is None and not self.open_to_all:
            raise ValueError(
                "found no service.keys, so that all who reach the port could send images, see pictures and change "
                "bundles; name a file of `sbdzsl keys create`, or set open_to_all: true where nobody else can connect"
            )
        return self


def build(args: ServeArgs) -> serve.Application:
    """The application. Raises `BundleError` where there is no bundle, `RegistryError`, `ConfigError`."""
    # Once for all replicas: those that start later must not have another bundle.
    args = args.model_copy(update={"bundle": registry.locate(args.bundle)})
    detectors: dict[str, Any] = {}
    if args.shape == "routed":
        card = bundles.read_card(args.bundle)
        for surface in sorted(card["detectors"]):
            name = _deployment_name(None if surface in args.shared_surfaces else surface)
            detectors.setdefault(name, _detector(args, name))
    ingress = serve.deployment(
        serve.ingress()(Inspection),
        name="Inspection",
        ray_actor_options=_resources(args.cpus, args.gpus),
        user_config={"bundle": args.bundle},
        **_COMMON,
        **_scale(args),
    )
    # The bundle is no argument of the constructor: a change of it would start new replicas.
    service = _with_threads(args.service, args.cpus)
    return ingress.bind(args.model_copy(update={"bundle": "", "service": service}), detectors)


def _with_threads(settings: ServeSettings, cpus: float) -> ServeSettings:
    """As many threads as a replica was given CPUs; where it was given none, it may have all there are."""
    return settings if settings.threads or cpus < 1 else settings.model_copy(update={"threads": int(cpus)})


def build_memory(settings: ServeSettings) -> serve.Application:
    """The application that remembers, beside the one that `build` gives: named `MEMORY`, without a route.

    Raises `ConfigError` where the settings name no folder.
    """
    if settings.data is None:
        raise ConfigError("bad-config", "nothing would be kept: give a folder, `data`")
    # No surge: two of them would write into one folder.
    options = _COMMON | {"max_surge_percent": 0}
    return serve.deployment(Memory, name="Memory", ray_actor_options={"num_cpus": 0}, **options).bind(settings)


def _detector(args: ServeArgs, name: str) -> serve.Application:
    deployment = serve.deployment(
        Detector,
        name=name,
        num_replicas=args.detector_replicas,
        ray_actor_options=_resources(args.detector_cpus, args.detector_gpus),
        user_config={"bundle": args.bundle},
        **_COMMON,
    )
    return deployment.bind(_with_threads(args.service, args.detector_cpus))


_COMMON: dict[str, Any] = {
    "max_ongoing_requests": _MAX_ONGOING,
    "max_queued_requests": _MAX_ONGOING,
    "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
    "health_check_period_s": 10,
    "health_check_timeout_s": 60,
    "graceful_shutdown_timeout_s": 30,
    # New replicas are ready before old ones stop; by default a deployment of one replica would be gone in between.
    "max_surge_percent": 100,
}


def _scale(args: ServeArgs) -> dict[str, Any]:
    if args.max_replicas is None:
        return {"num_replicas": args.replicas}
    return {"autoscaling_config": {"min_replicas": args.replicas, "max_replicas": args.max_replicas}}


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"num_cpus": cpus, "num_gpus": gpus}


def _deployment_name(surface: str | None) -> str:
    return "Detectors" if surface is None else f"Detector-{quote(surface, safe='')}"


class Inspection:
    """HTTP and SBAD; SBDD too where the shape is fused."""

    def __init__(self, args: ServeArgs, detectors: Mapping[str, DeploymentHandle]) -> None:
        self._settings = args.service
        self._memory = None
        if args.service.data is not None:
            self._memory = serve.get_app_handle(MEMORY).options(_by_reference=False)
        if detectors:
            self._service: LocalService = RoutedService(detectors, args)
        else:
            self._service = LocalService("", args.service)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Put the bundle of `user_config` in force; a replica takes no request before the first one is."""
        self._bundle_url = user_config["bundle"]
        await self._service.swap(self._bundle_url)
        await self._tell_memory()

    def __serve_build_asgi_app__(self) -> FastAPI:
        keys = KeyFile(self._settings.keys) if self._settings.keys is not None else None
        recorder = monitor = None
        if self._memory is not None:
            recorder, monitor = RemoteRecorder(self._memory), RemotePart(self._memory, "monitor")
        # To the application they are what they stand for.
        app = build_app(self._service, self._settings, cast("Any", recorder), keys, cast("Any", monitor))
        Mirror(app.state.meter.registry).start()
        return app

    async def check_health(self) -> None:
        """Infer for real; and tell the memory again, which may have been started anew."""
        await self._service.check()
        await self._tell_memory()

    async def _tell_memory(self) -> None:
        """Which bundle is in force. A memory that is away is no reason to end this replica: it is told later."""
        if self._memory is None:
            return
        try:
            await self._memory.follow.remote(self._bundle_url)
        except (RayError, RayServeException) as error:
            log.warning("the memory does not know the bundle yet: %s", type(error).__name__)


@dataclass(frozen=True, slots=True)
class Named:
    """A job whose surface is named: what a router sends to that surface's detector. `left_s` is left of its time."""

    job: Job
    verdict: Verdict
    bundle_url: str
    left_s: float


class RoutedService(LocalService):
    """Names the surface here, and has the defects found by that surface's deployment."""

    def __init__(self, detectors: Mapping[str, DeploymentHandle], args: ServeArgs) -> None:
        super().__init__("", args.service)
        # The bytes of an image go from replica to replica; by reference they would go through the object store.
        self._detectors = {name: handle.options(_by_reference=False) for name, handle in detectors.items()}
        self._shared = frozenset(args.shared_surfaces)

    async def _judge(self, crew: Crew, job: Job) -> Judged:
        came = time.monotonic()
        loaded = await self.on_decoders(load_job, job, crew.card.image)
        judged, is_final = await self.on_nets(job, came, _name_surface, crew, loaded, job, came)
        if is_final:
            return judged
        found = await self._find_defects(job, judged.verdict, crew.card.bundle_url)
        return replace(judged, verdict=found.verdict, overlay=found.overlay, queue_ms=judged.queue_ms + found.queue_ms)

    async def _find_defects(self, job: Job, verdict: Verdict, bundle_url: str) -> Judged:
        assert verdict.surface is not None
        name = _deployment_name(None if verdict.surface in self._shared else verdict.surface)
        if name not in self._detectors:
            raise ServiceError(
                "not-ready", f"surface {verdict.surface!r} has no deployment: it is new in the bundle; deploy again"
            )
        left_s = job.deadline - time.monotonic()
        named = Named(replace(job, deadline=0), verdict, bundle_url, left_s)
        try:
            found = await asyncio.wait_for(self._detectors[name].judge.remote(named), max(0.0, left_s))
        except asyncio.TimeoutError:
            raise deadline_exceeded(time.monotonic() - left_s) from None
        except BackPressureError as error:
            raise ServiceError("overloaded", f"the detector takes no more images: {error}; send it later") from None
        except (RayError, RayServeException) as error:
            raise ServiceError("not-ready", f"the detector died ({type(error).__name__}); send it again") from None
        if isinstance(found, SbdzslError):
            raise found
        judged: Judged = found
        return judged


def _name_surface(crew: Crew, loaded: Loaded, job: Job, came: float) -> tuple[Judged, bool]:
    """The verdict as far as SBAD comes, and whether it is final. Runs on a thread of nets."""
    waited = waited_ms(came, loaded)
    with crew.inspector() as inspector:
        verdict, grey = inspector.name_surface(loaded)
        drawn = grey is None and job.with_overlay and loaded.image is not None
        overlay = gallery.overlay_png(inspector, loaded, verdict) if drawn else None
    return Judged(verdict, waited, overlay), grey is None


class Detector:
    """SBDD of one surface, or of several rarely seen ones. While the bundle changes, routers and detectors change one
    after the other, in any order: each image is judged by the bundle that named its surface."""

    def __init__(self, settings: ServeSettings) -> None:
        self._service = LocalService("", settings)
        self._crews: dict[str, Crew] = {}
        self._loading = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Put the bundle of `user_config` in force."""
        card = await self._service.swap(user_config["bundle"])
        self._keep(card.bundle, self._service.current())

    async def judge(self, named: Named) -> Judged | SbdzslError:
        """Find the defects by the bundle that named the surface. Errors are values."""
        job, came = replace(named.job, deadline=time.monotonic() + named.left_s), time.monotonic()
        try:
            crew = self._crews.get(named.verdict.bundle) or await self._load(named)
            loaded = await self._service.on_decoders(load_job, job, crew.card.image)
            return await self._service.on_nets(job, came, _find_defects, crew, loaded, named.verdict, job, came)
        except SbdzslError as error:
            return error

    async def _load(self, named: Named) -> Crew:
        """The bundle of a router that is ahead, or behind."""
        async with self._loading:
            if named.verdict.bundle not in self._crews:
                crew = await self._service.load(named.bundle_url)
                self._keep(crew.card.bundle, crew)
        if named.verdict.bundle not in self._crews:
            raise ServiceError("not-ready", f"{named.bundle_url} holds another bundle now; send the image again")
        return self._crews[named.verdict.bundle]

    def _keep(self, digest: str, crew: Crew) -> None:
        self._crews[digest] = crew
        while len(self._crews) > MAX_BUNDLES:
            del self._crews[next(iter(self._crews))]

    async def check_health(self) -> None:
        """Infer for real."""
        await self._service.check()


def _find_defects(crew: Crew, loaded: Loaded, verdict: Verdict, job: Job, came: float) -> Judged:
    waited = waited_ms(came, loaded)
    assert loaded.image is not None
    with crew.inspector() as inspector:
        found = inspector.find_defects(verdict, loaded.image.grey(), job.rule)
        overlay = gallery.overlay_png(inspector, loaded, found) if job.with_overlay else None
    return Judged(found, waited, overlay)


@contextmanager
def deployed(args: ServeArgs, host: str, port: int) -> Iterator[None]:
    """The application on a cluster of this machine alone, for the length of a `with` block.

    With `cluster.FAST_MODE` in the environment the proxy binds every interface, whatever `host` is. Raises as `build`.
    """
    application = build(args)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with session("local"):
        options = {"host": host, "port": port, "request_timeout_s": 2 * args.service.deadline_s}
        serve.start(http_options=options)
        try:
            if args.service.data is not None:
                serve.run(build_memory(args.service), name=MEMORY, route_prefix=None)
            serve.run(application, route_prefix="/")
            yield
        finally:
            serve.shutdown()


def run(args: ServeArgs, host: str, port: int, report: Callable[[str], None]) -> None:
    """Serve on this machine until told to stop. Raises as `deployed`."""
    # There is nobody to share the machine with, and what asks for more CPUs than there are would wait for ever.
    args = args.model_copy(update={"cpus": 0.0, "detector_cpus": 0.0})
    if args.shape == "routed" and args.service.threads is None:
        # The stages are processes that work side by side: threads above the cores would take them from each other.
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
        args = args.model_copy(update={"service": args.service.model_copy(update={"threads": threads})})
    with deployed(args, host, port):
        report(f"http://{host}:{port} judges by bundle {args.bundle}, {args.shape}, on Ray Serve; Ctrl-C ends it")
        # A wait without end is not interrupted by a signal: Ray lets the system call be begun again.
        while True:
            time.sleep(0.5)
