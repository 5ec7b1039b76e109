"""Features -> `Route`: which seen surface, or none of them, and the class embedding that explains it.

Shapes: D features, K seen surfaces, A attributes.

Two scores decide (`RouterSettings.score`), both one number per seen surface, of which the smallest counts:
- "whitened-nn": distance to the surface in its own spread (`gate.py`). Best of all that were measured.
- "paper": error between a_hat = Encoder-2(x) and the surface's learned CE (paper, section 3.1.2): squared, or as the
  settings say (`reading_loss`, `class_embedding`, `generator`).
The threshold is conformal on images of the seen surfaces by gates that did not learn them, whatever the score, under
one of two promises: as they are ("plain"), or each under conditions drawn from an envelope ("envelope"). The second
bears a change of light, lens, sensor or distance, and lets more strangers through.

One image at a time in float64 and without BLAS, so that a score does not depend on batch or threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.calibration import Threshold, choose_threshold, conformal_p_value
from sbdzsl.config import Promise, RouterSettings, ThresholdRule
from sbdzsl.errors import BundleError, ConfigError
from sbdzsl.sbad.gate import SurfaceGate
from sbdzsl.verdict import Route

Array = NDArray[np.float64]
Stored = NDArray[np.float32]

# Half way between "half" (0.5) and "mostly" (0.75) of the attribute table.
STANDS_OUT = 0.625
_NUM_NEAREST = 3


@dataclass(frozen=True, slots=True)
class AttributeReader:
    """Encoder-2, or Dec of TF-VAEGAN, with the scaling of its input: reads a class embedding off features.

    `low` and `span` [D] map the training features to [0, 1]; other images may leave it. `hidden_weight` [H, D],
    `hidden_bias` [H], `output_weight` [A, H], `output_bias` [A]; `class_embeddings` [K, A] are those it was trained
    towards, learned or real. `exponent` (a scalar) is 2 where it was trained by MSE, 1 by L1.
    """

    low: Stored
    span: Stored
    hidden_weight: Stored
    hidden_bias: Stored
    output_weight: Stored
    output_bias: Stored
    class_embeddings: Stored
    exponent: Stored

    def read(self, features: NDArray[np.float32]) -> Array:
        """[D] -> a_hat [A], on the scale of the attribute table; an extrapolation for surfaces never seen."""
        x = (features.astype(np.float64) - self.low) / self.span
        hidden = np.einsum("hd,d->h", self.hidden_weight.astype(np.float64), x) + self.hidden_bias
        hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
        return np.einsum("ah,h->a", self.output_weight.astype(np.float64), hidden) + self.output_bias

    def distances(self, features: NDArray[np.float32]) -> Array:
        """[D] -> [K]: dissimilarity to each class embedding: mean squared error (eq. 4), or mean absolute error."""
        apart = np.abs(self.class_embeddings - self.read(features))
        return (np.square(apart) if self.exponent == 2 else apart).mean(axis=1)


class SurfaceRouter:
    """The fitted stage one. Immutable after construction.

    `surfaces` are the K seen surfaces in the order of all per-surface arrays. For each promise that was calibrated
    ("plain" always) there is a gate, and `calibration_scores`: the unseen scores of seen images that what judged them
    did not learn, under `settings.score`, in any order. `promise` is the one in force where `route` is not told
    another; that of the settings, unless it is given. `calibrated` is its threshold at the settings' false-alarm rate,
    with the rule and the counts that made it. Raises `DataError` (`too-few-images`) without scores, `ConfigError` for a
    promise that was not calibrated.
    """

    def __init__(
        self,
        surfaces: Sequence[str],
        attribute_names: Sequence[str],
        gates: Mapping[Promise, SurfaceGate],
        reader: AttributeReader,
        calibration_scores: Mapping[Promise, Array],
        settings: RouterSettings,
        promise: Promise | None = None,
    ) -> None:
        self.surfaces = tuple(surfaces)
        self.attribute_names = tuple(attribute_names)
        self.gates = dict(gates)
        self.reader = reader
        self.settings = settings
        self.calibration_scores = {
            name: np.sort(np.asarray(scores, dtype=np.float64)) for name, scores in calibration_scores.items()
        }
        self.promise = promise or settings.promise
        if self.promise not in self.gates:
            raise ConfigError(
                "bad-config",
                f"found no {self.promise!r} promise in the router, expected one of {', '.join(self.gates)}; "
                "train with router.copies above 0 to have both",
            )
        self.calibrated = self._calibrate(settings.false_alarm_rate)

    @property
    def gate(self) -> SurfaceGate:
        """The gate of conditions as they were, whatever the promise: similarity is measured there."""
        return self.gates["plain"]

    def promising(self, promise: Promise | None) -> SurfaceRouter:
        """The same router under another promise; itself for None. Raises `ConfigError` for one not calibrated."""
        if promise in (None, self.promise):
            return self
        return SurfaceRouter(
            self.surfaces,
            self.attribute_names,
            self.gates,
            self.reader,
            self.calibration_scores,
            self.settings,
            promise,
        )

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """The score above which an image is unseen, at another rate than the one of the settings if one is given.

        Where the images are too few for the rate it is the threshold at the lowest rate they support;
        `calibrated` tells which one that is for the settings' own.
        """
        return self.calibrated.value if false_alarm_rate is None else self._calibrate(false_alarm_rate).value

    def _calibrate(self, false_alarm_rate: float) -> Threshold:
        rule = ThresholdRule("false-alarm-rate", false_alarm_rate)
        return choose_threshold(rule, self.calibration_scores[self.promise], np.empty(0))

    def route(self, features: NDArray[np.float32], threshold: float | None = None) -> Route:
        """Route one image by its features, [D] float32; `threshold` replaces the one of the settings."""
        if not np.isfinite(features).all():
            raise ValueError("features are not all finite: a comparison with them would call the image seen")
        scored = self.gates[self.promise] if self.settings.score == "whitened-nn" else self.reader
        distances = scored.distances(features)
        order = np.argsort(distances, kind="stable")
        score = float(distances[order[0]])
        embedding = self.reader.read(features)
        return Route(
            surface=self.surfaces[order[0]],
            surface_margin=float(distances[order[1]]) - score if len(order) > 1 else None,
            unseen_score=score,
            unseen_threshold=self.calibrated.value if threshold is None else threshold,
            unseen_p_value=conformal_p_value(self.calibration_scores[self.promise], score),
            class_embedding=tuple(float(value) for value in embedding.astype(np.float32)),
            attributes=words(embedding, self.attribute_names),
            nearest_surfaces=tuple(self.surfaces[k] for k in order[:_NUM_NEAREST]),
            nearest_scores=tuple(float(distances[k]) for k in order[:_NUM_NEAREST]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All arrays by name, for a safetensors file."""
        arrays: dict[str, NDArray[Any]] = {f"reader.{name}": getattr(self.reader, name) for name in _READER_FIELDS}
        for promise, gate in self.gates.items():
            arrays[f"{promise}.calibration_scores"] = self.calibration_scores[promise]
            arrays |= {f"{promise}.{name}": getattr(gate, name) for name in _GATE_FIELDS}
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def meta(self) -> dict[str, Any]:
        """What belongs beside the tensors and the settings, as plain JSON values; `thresholds` are for the reader."""
        return {
            "surfaces": list(self.surfaces),
            "attribute_names": list(self.attribute_names),
            "thresholds": {promise: asdict(self.promising(promise).calibrated) for promise in self.gates},
        }

    @classmethod
    def from_tensors(
        cls, settings: RouterSettings, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> SurfaceRouter:
        """The inverse of `tensors` and `meta`: routes to the same bits. Raises `BundleError` (`damaged-bundle`)."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            surfaces, attribute_names, promises = meta["surfaces"], meta["attribute_names"], tuple(meta["thresholds"])
            reader = AttributeReader(*(arrays[f"reader.{name}"] for name in _READER_FIELDS))
            gates = {
                promise: SurfaceGate(*(arrays[f"{promise}.{name}"] for name in _GATE_FIELDS)) for promise in promises
            }
            scores = {promise: arrays[f"{promise}.calibration_scores"] for promise in promises}
        except KeyError as error:
            raise BundleError("damaged-bundle", f"router: found no {error}; train and save the bundle again") from None
        expected = *(len(surfaces) for _ in gates), len(surfaces), len(attribute_names)
        found = *(len(gate.scales) for gate in gates.values()), *reader.class_embeddings.shape
        if found != expected:
            raise BundleError("damaged-bundle", f"router: found tensors of sizes {found}, expected {expected}")
        return cls(surfaces, attribute_names, gates, reader, scores, settings)


_READER_FIELDS, _GATE_FIELDS = AttributeReader.__slots__, SurfaceGate.__slots__


def words(embedding: Array, names: Sequence[str]) -> tuple[str, ...]:
    """The attributes that stand out of a class embedding [A]: those of at least 0.625, the largest first."""
    order = np.argsort(-embedding, kind="stable")
    return tuple(names[index] for index in order if embedding[index] >= STANDS_OUT)
