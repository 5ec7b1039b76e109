"""The decision: image to route to detection to verdict. Audit, command line and evaluation all go through here.

    bytes -> image.decode -> SBAD route -> that surface's SBDD -> thresholds of the bundle -> Verdict

One image is judged at a time, on whatever device the bundle was loaded to: a convolution sums in another order for
another batch, and a verdict must not depend on which images happened to arrive together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sbdzsl import image as images
from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.calibration import Threshold
from sbdzsl.config import ImageSettings, ThresholdRule
from sbdzsl.errors import ConfigError, ImageError, LakeError
from sbdzsl.graphs import GraphEngine, GraphTrunk, trunk_graph
from sbdzsl.image import Appearance, Image
from sbdzsl.runtime import Runtime, open_session
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbdd.predict import DefectMap
from sbdzsl.verdict import Detection, Route, Verdict

#: glibc keeps freed memory up to twice the largest block (of at most 32 MB) that was ever freed. The maps of one image
#: are above its first guess: they would be mapped, zeroed and given back for each image, a fifth of the time.
_ALLOCATOR_HINT_BYTES = 31 * 2**20


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image on its way to the nets: decoded, or the error that stopped it. Made off the nets' thread.

    `appearance` is there where `image` is; `bit_depth` is the declared one.
    """

    image_id: str
    uri: str
    image: Image | None
    appearance: Appearance | None
    error: ImageError | LakeError | None
    decode_ms: float
    bit_depth: int | None
    modified_at: datetime | None


def load_image(
    image_id: str,
    uri: str,
    settings: ImageSettings,
    bit_depth: int | None = None,
    modified_at: datetime | None = None,
    content: bytes | ImageError | LakeError | None = None,
) -> Loaded:
    """Read and decode one image. A bad one is a `Loaded` with its error, never an exception.

    That holds for what a decoder does wrong, too: one image must not end an audit of millions.

    `content` is what an earlier reading of `uri` gave, its bytes or the error; without it the image is read here.
    """
    started = time.perf_counter()
    image, appearance, error = None, None, None
    try:
        if content is None:
            content = lake.read_bytes(uri, settings.max_bytes)
        if not isinstance(content, bytes):
            raise content
        image = images.decode(content, settings, bit_depth)
        appearance = image.appearance()
    except (ImageError, LakeError) as caught:
        error = caught
    except Exception as caught:  # noqa: BLE001
        error = ImageError("unreadable", f"the decoder failed with {type(caught).__name__}: {caught}; please report it")
    return Loaded(image_id, uri, image, appearance, error, _ms_since(started), bit_depth, modified_at)


class Inspector:
    """Judges images with one bundle. Not thread-safe: give each thread its own.

    `policy` overrides the threshold policy of every surface's detector, `surface_policies` that of single surfaces,
    `max_memory_mb` the ceiling of every one's settings. `runtime` runs the nets: other than "torch", on the CPU only,
    by as many threads as PyTorch would use. Raises `DataError` where a surface lacks the held-out images that the
    policy needs, `ConfigError` for a surface that the bundle does not know, a runtime that is not installed
    ("missing-extra") or a device that it does not run on.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: ThresholdRule | None = None,
        device: str = "cpu",
        max_memory_mb: float | None = None,
        runtime: Runtime = "torch",
        surface_policies: Mapping[str, ThresholdRule] = MappingProxyType({}),
    ) -> None:
        np.empty(_ALLOCATOR_HINT_BYTES, np.uint8)
        for surface in sorted(surface_policies.keys() - bundle.detectors.keys()):
            raise _unknown_surface(bundle, surface)
        self.bundle = bundle
        self._max_memory_mb = max_memory_mb
        self._detectors = {surface: entry.detector for surface, entry in bundle.detectors.items()}
        statistics = None
        if runtime != "torch":
            if device != "cpu":
                raise ConfigError("bad-config", f"runtime {runtime} runs on the cpu, found device {device!r}")
            threads = torch.get_num_threads()
            statistics = GraphTrunk(open_session(trunk_graph(bundle.backbone), runtime, threads))
            self._detectors = {
                surface: detector.run_by(GraphEngine(detector.network, runtime, threads))
                for surface, detector in self._detectors.items()
            }
        self._embedder = Embedder(bundle.backbone, bundle.settings.router, device, statistics)
        self._thresholds: dict[str, Threshold] = {
            surface: entry.threshold(surface_policies.get(surface, policy))
            for surface, entry in bundle.detectors.items()
        }
        # A service meets the same few rules again and again; to draw a threshold may take a bootstrap.
        self._other_threshold = lru_cache(maxsize=256)(lambda surface, rule: bundle.detectors[surface].threshold(rule))

    def judge(self, image_id: str, uri: str, bit_depth: int | None = None) -> Verdict:
        """Read, decode and decide. A bad image is a verdict "error" with its code."""
        return self.decide(load_image(image_id, uri, self.bundle.settings.image, bit_depth))

    def decide(self, loaded: Loaded, rule: ThresholdRule | None = None) -> Verdict:
        """Verdict of one loaded image, by the threshold of `rule` where one is given.

        Raises `DataError` where the surface lacks the held-out images that the rule needs.
        """
        verdict, grey = self.name_surface(loaded)
        return verdict if grey is None else self.find_defects(verdict, grey, rule)

    def name_surface(self, loaded: Loaded) -> tuple[Verdict, NDArray[np.float32] | None]:
        """The first half of `decide`: the verdict as far as SBAD comes, and the grey image for SBDD.

        Without a grey image the verdict is final: unseen, or an error. With one it stays undecided, which is "error",
        until `find_defects`, here or in another process that loaded the same bundle.
        """
        verdict = Verdict(
            image_id=loaded.image_id,
            uri=loaded.uri,
            verdict="error",
            bundle=self.bundle.digest,
            bit_depth=loaded.bit_depth,
            modified_at=loaded.modified_at,
            decode_ms=loaded.decode_ms,
        )
        if loaded.image is None:
            assert loaded.error is not None
            return replace(verdict, error_code=loaded.error.code, error_detail=loaded.error.message), None
        assert loaded.appearance is not None
        started = time.perf_counter()
        grey = loaded.image.grey()
        route = self.route(grey)
        verdict = replace(
            verdict,
            image_width=loaded.image.width,
            image_height=loaded.image.height,
            brightness=loaded.appearance.brightness,
            sharpness=loaded.appearance.sharpness,
            route_ms=_ms_since(started),
            extrapolated=route.extrapolated,
            **_fields(route),
        )
        return (replace(verdict, verdict="unseen"), None) if route.is_unseen else (verdict, grey)

    def find_defects(self, verdict: Verdict, grey: NDArray[np.float32], rule: ThresholdRule | None = None) -> Verdict:
        """The second half of `decide`, on an image whose surface is named. Raises as `decide`."""
        assert verdict.surface is not None
        started = time.perf_counter()
        try:
            detection, _ = self.detect(grey, verdict.surface, rule)
        except ImageError as error:  # above the memory ceiling; the route is known all the same
            return replace(verdict, error_code=error.code, error_detail=error.message)
        return replace(
            verdict,
            verdict="defect" if detection.is_defect else "good",
            detect_ms=_ms_since(started),
            **_fields(detection),
        )

    def threshold(self, surface: str, rule: ThresholdRule | None = None) -> Threshold:
        """The threshold of a surface's detector: the one in force, or by another rule. Raises as `decide`."""
        return self._thresholds[surface] if rule is None else self._other_threshold(surface, rule)

    def route(self, grey: NDArray[np.float32]) -> Route:
        """SBAD's answer on a grey image, `float32 [H, W]`, black 0, white 1."""
        return self.bundle.router.route(self._embedder.embed(grey))

    def detect(
        self, grey: NDArray[np.float32], surface: str, rule: ThresholdRule | None = None
    ) -> tuple[Detection, DefectMap]:
        """SBDD's answer on a grey image, taken for an image of `surface`, and the map it rests on.

        Raises `ConfigError` for a surface that the bundle does not know, `ImageError` "too-large" for an image that
        cannot be judged within the memory ceiling, `DataError` as `decide`.
        """
        entry = self.bundle.detectors.get(surface)
        if entry is None:
            raise _unknown_surface(self.bundle, surface)
        found = self._detectors[surface].detect(grey, self._max_memory_mb)
        threshold = self.threshold(surface, rule)
        is_defect = found.score > threshold.value
        detection = Detection(
            defect_score=found.score,
            defect_threshold=threshold.value,
            defect_probability=entry.platt.probability(found.score) if entry.platt else None,
            # A good verdict carries no places: they would contradict it.
            regions=found.regions(entry.detector.map_threshold) if is_defect else (),
            threshold_policy=threshold.policy,
        )
        return detection, found


def _unknown_surface(bundle: Bundle, surface: str) -> ConfigError:
    known = ", ".join(bundle.surfaces)
    return ConfigError("bad-config", f"surface {surface!r} is not in the bundle, which knows {known}")


def _fields(answer: Route | Detection) -> dict[str, Any]:
    """The fields of a stage's answer; a verdict has fields of the same names."""
    return {field.name: getattr(answer, field.name) for field in fields(answer)}


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
