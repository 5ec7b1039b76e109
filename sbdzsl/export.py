"""Bundle -> a folder of graphs for other runtimes, each checked on real images before any of it is published.

    export.json              what the graphs take and give, thresholds, and how far they are from the bundle's nets
    router.onnx              SBAD's trunk; its arithmetic after that is in the bundle
    detectors/<surface>.onnx SBDD, one a surface

or `.xml` with `.bin` for OpenVINO. `graphs.py` says what goes in and comes out. The images of the check are the user's:
a graph is only promised to be right on what the bundle was made for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from sbdzsl import __version__, lake
from sbdzsl.bundle import Bundle, SurfaceDetector
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.errors import ConfigError, ExportError
from sbdzsl.graphs import GraphTrunk, detector_graph, trunk_graph
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.metrics import average_precision
from sbdzsl.runtime import Runtime, Session, open_session, require
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbdd.predict import shrink

CARD = "export.json"
SCHEMA_VERSION = 1

Format = Literal["onnx", "openvino"]

#: What scores, map cells (logits) and features may differ by: rounding, far below what decides anything.
TOLERANCE = 1e-3
#: The same for detectors in int8, whose scores really move. Scores of good and defective images lie many logits apart.
INT8_TOLERANCE = 1.0

#: Images of a surface that int8 takes the ranges of its layers from, at most.
CALIBRATION_IMAGES = 64

#: Layers that stay in float32: the first and the last, where rounding costs most and a quarter of the work lies.
UNQUANTISED = ("/flatten/", "/stem/", "/decision/")

Grey = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parity:
    """How an exported detector differs from the bundle's over the images of its surface.

    Largest and mean difference of scores, largest of map cells, in logits; verdicts that changed at the bundle's
    threshold; average precision before and after, None without labels of both kinds.
    """

    num_images: int
    score_max: float
    score_mean: float
    map_max: float
    verdicts_changed: int
    ap: float | None
    ap_exported: float | None


def export(
    bundle: Bundle,
    out: str,
    target: Format,
    samples: Sequence[Sample],
    *,
    int8: bool = False,
    surfaces: Sequence[str] = (),
    tolerance: float | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the graphs of a bundle (of `surfaces` alone, if any are named) to the lake URL `out`; returns the card.

    `samples` are images to check on, at least one a surface: `test` rows where there are splits, and int8 takes its
    ranges from `train` rows; without splits, all of them for both. A sample without a surface counts for the one that
    the router names. Raises `ExportError` "no-parity" beyond `tolerance`, before anything is written, "export-exists";
    `ConfigError` for unknown surfaces, surfaces without an image, missing extras.
    """
    if lake.exists(lake.join(out, CARD)):
        raise ExportError("export-exists", f"{out} holds an export already; choose another --out or remove it first")
    chosen = tuple(surfaces) or bundle.surfaces
    if strangers := sorted(set(chosen) - set(bundle.surfaces)):
        raise ConfigError("bad-config", f"surfaces {strangers} are not in the bundle; it knows {bundle.surfaces}")
    runtime: Runtime = "openvino" if target == "openvino" else "onnxruntime"
    limits = TOLERANCE, (INT8_TOLERANCE if int8 else TOLERANCE) if tolerance is None else tolerance
    images = _Images(bundle, samples, chosen)
    with tempfile.TemporaryDirectory() as folder:
        router = _write(trunk_graph(bundle.backbone), Path(folder) / "router", target)
        moved = _feature_difference(bundle, open_session(router, runtime, torch.get_num_threads()), images)
        report(f"router: features of {len(images.checked)} images differ by at most {moved:.2g}")
        _require_parity("router", "features", moved, limits[0])
        detectors = {}
        for surface in chosen:
            graph = detector_graph(bundle.detectors[surface].detector.network)
            if int8:
                graph = quantise(graph, images.calibration(surface))
            stem = Path(folder) / "detectors" / quote(surface, safe="")
            session = open_session(_write(graph, stem, target), runtime, torch.get_num_threads())
            parity = compare(bundle.detectors[surface], session, images.of(surface))
            report(_parity_line(surface, parity))
            _require_parity(surface, "scores", parity.score_max, limits[1])
            _require_parity(surface, "map cells", parity.map_max, limits[1])
            detectors[surface] = _detector_card(bundle.detectors[surface], stem.relative_to(folder), target, parity)
        blobs = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    card = {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        "bundle": bundle.digest,
        "format": target,
        "int8": int8,
        "tolerance": {"features": limits[0], "logits": limits[1]},
        "image": bundle.settings.image.model_dump(),
        "preprocessing": "value / white as float32; RGB to grey by BT.601; shrunk by `scale`, each pixel the mean of "
        "those it covers (OpenCV INTER_AREA)",
        "router": {
            "file": _file("router", target),
            "input": "image",
            "outputs": ["mean", "variance"],
            "crop_px": bundle.settings.router.crop_px,
            "max_crops": bundle.settings.router.max_crops,
            "feature_difference": moved,
        },
        "detectors": detectors,
        "files": {name: hashlib.sha256(blob).hexdigest() for name, blob in sorted(blobs.items())},
    }
    for name, blob in blobs.items():
        lake.write_bytes(lake.join(out, name), blob)
    lake.write_bytes(lake.join(out, CARD), json.dumps(card, indent=2, allow_nan=False).encode())
    return card


def samples_to_check(images: Sequence[str], manifests: Sequence[str]) -> list[Sample]:
    """Files, folders and manifests as samples. Raises `ConfigError` where there is none of either."""
    if not images and not manifests:
        raise ConfigError(
            "bad-config", "an export is checked on real images: give some of each surface by --images or --manifest"
        )
    samples = samples_from_table(lake.read_manifests(manifests)) if manifests else []
    for given in images:
        uri = lake.absolute_url(given)
        if PurePosixPath(uri).suffix.lower() in lake.IMAGE_SUFFIXES:
            samples.append(Sample(lake.image_id(uri, ""), uri))
        else:
            samples.extend(samples_from_table(lake.list_images(uri)))
    return samples


def compare(entry: SurfaceDetector, session: Session, images: Iterator[tuple[Grey, bool | None]]) -> Parity:
    """Judge images (with whether they are defective, if known) by the bundle's detector and by an exported graph."""
    threshold, labels = entry.threshold().value, list[bool | None]()
    scores, exported, cells = list[float](), list[float](), [0.0]
    for grey, defective in images:
        # Whole, whatever it takes: what is checked is the exported graph, which knows no tiles.
        found = entry.detector.detect(grey, float("inf"))
        other = session.run({"image": shrink(grey, entry.detector.scale)[None, None]})
        labels.append(defective)
        scores.append(found.score)
        exported.append(float(other["score"][0]))
        cells.append(float(np.abs(found.logits - other["map"][0, 0]).max()))
    before, after = np.array(scores), np.array(exported)
    moved = np.abs(before - after)
    known = np.array([label is not None for label in labels])
    truth = np.array([bool(label) for label in labels])[known]
    return Parity(
        num_images=len(labels),
        score_max=float(moved.max()),
        score_mean=float(moved.mean()),
        map_max=max(cells),
        verdicts_changed=int(((before > threshold) != (after > threshold)).sum()),
        ap=average_precision(truth, before[known]),
        ap_exported=average_precision(truth, after[known]),
    )


def quantise(graph: bytes, images: Iterator[Grey]) -> bytes:
    """A detector's graph with its convolutions in int8 (QDQ: unsigned activations, signed weights per channel).

    The ranges of the activations are those of `images`, float32 [H', W'] at network scale. First and last layers stay
    as they are.
    """
    quantization = require("onnxruntime.quantization")
    # The quantiser's own sessions warn of what their optimiser tidies up.
    require("onnxruntime").set_default_logger_severity(3)
    onnx = require("onnx")
    nodes = onnx.load_from_string(graph).graph.node
    kept = [node.name for node in nodes if node.op_type == "Conv" and any(part in node.name for part in UNQUANTISED)]
    inputs = iter({"image": image[None, None]} for image in images)
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(inputs, None)})()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        quantization.quantize_static(
            str(source),
            str(target),
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=kept,
        )
        return target.read_bytes()


class _Images:
    """The images of an export, read when asked for: those to check on, by surface, and those to calibrate on."""

    def __init__(self, bundle: Bundle, samples: Sequence[Sample], surfaces: Sequence[str]) -> None:
        self._bundle = bundle
        splits = {sample.split for sample in samples}
        router = Inspector(bundle)
        self.checked: list[Sample] = []
        self._checked: dict[str, list[Sample]] = {surface: [] for surface in surfaces}
        self._calibration: dict[str, list[Sample]] = {surface: [] for surface in surfaces}
        for sample in samples:
            surface = sample.surface or router.route(self._grey(sample)).surface
            if surface not in self._checked:
                continue
            if "test" not in splits or sample.split == "test":
                self._checked[surface].append(sample)
                self.checked.append(sample)
            if "train" not in splits or sample.split == "train":
                self._calibration[surface].append(sample)
        if bare := [surface for surface in surfaces if not (self._checked[surface] and self._calibration[surface])]:
            raise ConfigError(
                "bad-config",
                f"found no image of {', '.join(bare)} to check the export on; give real images of each surface by "
                "--images or --manifest, or choose others by --surface",
            )

    def of(self, surface: str) -> Iterator[tuple[Grey, bool | None]]:
        """Images to check on, and whether they are defective."""
        for sample in self._checked[surface]:
            yield self._grey(sample), None if sample.label is None else sample.label == "defect"

    def all(self) -> Iterator[Grey]:
        """Images of all surfaces to check on."""
        return (self._grey(sample) for sample in self.checked)

    def calibration(self, surface: str) -> Iterator[Grey]:
        """Images at network scale to take ranges from, spread over what there is."""
        samples = self._calibration[surface]
        step = max(1, len(samples) // CALIBRATION_IMAGES)
        scale = self._bundle.detectors[surface].detector.scale
        return (shrink(self._grey(sample), scale) for sample in samples[::step][:CALIBRATION_IMAGES])

    def _grey(self, sample: Sample) -> Grey:
        loaded = load_image(sample.image_id, sample.uri, self._bundle.settings.image, sample.bit_depth)
        if loaded.image is None:
            assert loaded.error is not None
            raise loaded.error
        return loaded.image.grey()


def _feature_difference(bundle: Bundle, session: Session, images: _Images) -> float:
    ours = Embedder(bundle.backbone, bundle.settings.router)
    theirs = Embedder(bundle.backbone, bundle.settings.router, statistics=GraphTrunk(session))
    return max(float(np.abs(ours.embed(grey) - theirs.embed(grey)).max()) for grey in images.all())


def _write(graph: bytes, stem: Path, target: Format) -> Path:
    """Write a graph in the target's format; returns the file to open."""
    stem.parent.mkdir(exist_ok=True)
    path = Path(_file(str(stem), target))
    if target == "onnx":
        path.write_bytes(graph)
    else:
        openvino = require("openvino")
        # Weights in half precision, its default, would move scores.
        openvino.save_model(openvino.Core().read_model(graph), str(path), compress_to_fp16=False)
    return path


def _file(stem: str, target: Format) -> str:
    return f"{stem}.onnx" if target == "onnx" else f"{stem}.xml"


def _require_parity(name: str, what: str, found: float, limit: float) -> None:
    if not found <= limit:
        raise ExportError(
            "no-parity", f"{name}: {what} of the exported graph differ by {found:.3g}, at most {limit:g} are allowed"
        )


def _parity_line(surface: str, parity: Parity) -> str:
    line = (
        f"{surface}: {parity.num_images} images, scores differ by at most {parity.score_max:.2g} "
        f"(mean {parity.score_mean:.2g}), map cells by {parity.map_max:.2g}; {parity.verdicts_changed} verdicts changed"
    )
    if parity.ap is None or parity.ap_exported is None:
        return line
    return f"{line}; AP {parity.ap:.4f}, exported {parity.ap_exported:.4f}"


def _detector_card(entry: SurfaceDetector, stem: Path, target: Format, parity: Parity) -> Mapping[str, Any]:
    return {
        "file": _file(str(stem), target),
        "input": "image",
        "outputs": ["score", "decision", "map"],
        "scale": entry.detector.scale,
        "threshold": asdict(entry.threshold()),
        "map_threshold": entry.detector.map_threshold,
        "parity": asdict(parity),
    }


class _quiet:  # noqa: N801  a context manager reads as a verb
    """Silences the quantiser's advice, which it logs to the root logger."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)
