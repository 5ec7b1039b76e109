"""What settings are worth, from the seen surfaces alone, a step at a time, so that a search can stop what lags behind.

- sbad: some seen surfaces are held out as if they were unseen, a part of them in each step and each of them once. The
  router learns the others' training images. Their validation images are halved by group: one half sets the threshold,
  the other is judged beside the held-out surfaces, then the other way round. Worth: mean H.
- sbdd: in each step one surface's detector is trained. Worth: mean AP on the validation images.

The steps are the same for all trials of a sweep, so trials compare after each. The same settings give the same worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sbdzsl.calibration import choose_threshold
from sbdzsl.config import RouterSettings, ThresholdRule, TrainSettings
from sbdzsl.errors import DataError
from sbdzsl.metrics import average_precision, zero_shot_figures
from sbdzsl.sbad.attributes import AttributeTable
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.fit import EmbeddedImages, fit_router, joined
from sbdzsl.sbdd.fit import fit_detector
from sbdzsl.surface_training import load_surface
from sbdzsl.tuning.prepare import EmbeddedSurface, LabelledSurface
from sbdzsl.verdict import Route

T = TypeVar("T")

#: Fewer seen surfaces leave none to tell apart while one is held out.
MIN_SURFACES = 3

_NUM_TIMED = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """One step: `value` in [0, 1], what it is made of by name, and the median milliseconds that an image took."""

    value: float
    figures: Mapping[str, float]
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What settings are worth after `step` of `num_steps`: means over the steps so far, and `seconds` since the start.

    `values` are those of the steps.
    """

    step: int
    num_steps: int
    values: tuple[float, ...]
    figures: Mapping[str, float]
    latency_ms: float
    seconds: float

    @property
    def value(self) -> float:
        """H or AP so far, in [0, 1]."""
        return float(np.mean(self.values))

    @property
    def is_last(self) -> bool:
        """Whether nothing is left to do."""
        return self.step == self.num_steps


class Bench(Protocol):
    """Judges settings in steps."""

    @property
    def steps(self) -> tuple[str, ...]:
        """What each step is about, for people."""

    def judge(self, settings: TrainSettings, step: int) -> Judged:
        """Train by `settings` and judge, step 0 to the last. Raises `TrainingError`."""


def outcomes(bench: Bench, settings: TrainSettings) -> Iterator[Outcome]:
    """Go through the steps of a bench; who takes no further outcome stops the work."""
    started, judged = time.monotonic(), list[Judged]()
    for step in range(len(bench.steps)):
        judged.append(bench.judge(settings, step))
        yield Outcome(
            step=step + 1,
            num_steps=len(bench.steps),
            values=tuple(one.value for one in judged),
            figures={name: float(np.mean([one.figures[name] for one in judged])) for name in judged[0].figures},
            latency_ms=float(np.mean([one.latency_ms for one in judged])),
            seconds=time.monotonic() - started,
        )


def pseudo_unseen(surfaces: Sequence[str], folds: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """Deal the seen surfaces into parts, each surface into one, so that two at least are left outside of each part.

    Raises `DataError` "too-few-images" where there are fewer than three surfaces.
    """
    if len(surfaces) < MIN_SURFACES:
        raise DataError(
            "too-few-images",
            f"found {len(surfaces)} seen surfaces, expected at least {MIN_SURFACES}: one is held out as if it were "
            "unseen, and two have to be told apart meanwhile",
        )
    number = min(max(folds, 3 if len(surfaces) == MIN_SURFACES else 2), len(surfaces))
    drawn = [str(name) for name in np.random.default_rng(seed).permutation(sorted(surfaces))]
    return tuple(tuple(sorted(drawn[part::number])) for part in range(number))


@dataclass(frozen=True, slots=True)
class RouterBench:
    """Judges router settings on embedded images of the seen surfaces; `folds` are held out as unseen in turn.

    `attributes` must have a row of each surface.
    """

    surfaces: Mapping[str, EmbeddedSurface]
    attributes: AttributeTable
    folds: tuple[tuple[str, ...], ...]
    seed: int

    @classmethod
    def build(
        cls, surfaces: Mapping[str, EmbeddedSurface], attributes: AttributeTable, folds: int, seed: int
    ) -> RouterBench:
        """Deal the folds, complete the attributes by what was measured. Raises `DataError` "too-few-images"."""
        for name, surface in surfaces.items():
            if surface.attributes is not None:
                attributes = attributes.with_row(name, surface.attributes)
        bench = cls(surfaces, attributes, pseudo_unseen(list(surfaces), folds, seed), seed)
        for step in range(len(bench.folds)):
            half = _halves(bench._seen(step))
            if half.all() or not half.any():
                raise DataError(
                    "too-few-images",
                    f"while {bench.steps[step]} are held out, the validation images of the others are of one group; at "
                    "least two are needed: one sets the threshold, the other is judged",
                )
        return bench

    @property
    def steps(self) -> tuple[str, ...]:
        """The surfaces held out in each step."""
        return tuple(", ".join(fold) for fold in self.folds)

    def judge(self, settings: TrainSettings, step: int) -> Judged:
        """H of a router that knows the surfaces outside of fold `step`; `figures` are its s and u."""
        seen = self._seen(step)
        names, held_out = list(seen), joined([one.val for one in seen.values()])
        strangers = joined([part for name in self.folds[step] for part in _parts(self.surfaces[name])])
        train = joined([one.train for one in seen.values()])
        router = fit_router(train, held_out, self.attributes, _what_decides(settings.router), self.seed).router
        own, own_ms = _timed(held_out.features, router.route)
        far, far_ms = _timed(strangers.features, router.route)
        scores = _calibration_scores(router, held_out, own)
        rule, half = ThresholdRule("false-alarm-rate", settings.router.false_alarm_rate), _halves(seen)
        found = []
        for calibrates in (half, ~half):
            threshold = choose_threshold(rule, scores[calibrates], np.empty(0)).value
            judged = [*np.flatnonzero(~calibrates)]
            routes = [*(own[place] for place in judged), *far]
            found.append(
                zero_shot_figures(
                    [*(held_out.surfaces[place] for place in judged), *strangers.surfaces],
                    [route.surface for route in routes],
                    np.array([route.unseen_score > threshold for route in routes]),
                    names,
                )
            )
        means = {key: float(np.mean([getattr(one, key) for one in found])) for key in ("h", "s", "u")}
        return Judged(means.pop("h"), means, float(np.median([*own_ms, *far_ms])))

    def _seen(self, step: int) -> dict[str, EmbeddedSurface]:
        return {name: one for name, one in self.surfaces.items() if name not in self.folds[step]}


@dataclass(frozen=True, slots=True)
class DetectorBench:
    """Judges detector settings on the seen surfaces, which are read anew in each trial: pixels would not fit beside it.

    The smallest surface comes first, so that a trial that lags behind has cost little.
    """

    surfaces: Mapping[str, LabelledSurface]
    seed: int
    device: str = "cpu"

    @property
    def steps(self) -> tuple[str, ...]:
        """The surfaces, by number of images."""
        return tuple(sorted(self.surfaces, key=lambda name: (len(self.surfaces[name].samples), name)))

    def judge(self, settings: TrainSettings, step: int) -> Judged:
        """Validation AP of the detector of one surface; `figures` is empty."""
        surface = self.steps[step]
        # What cannot be read was left out, and told, before the first trial.
        data = load_surface(surface, self.surfaces[surface].samples, None, settings.image, lambda _: None)
        fitted = fit_detector(data.train, data.val, settings.detector_for(surface), self.seed, device=self.device)
        ap = average_precision(fitted.val_labels, fitted.val_scores)
        if ap is None:
            raise DataError("too-few-images", f"{surface}: no defective validation image is left, so there is no AP")
        _, ms = _timed([image.grey for image in data.val[:_NUM_TIMED]], fitted.detector.detect)
        return Judged(ap, {}, float(np.median(ms)))


def _parts(surface: EmbeddedSurface) -> tuple[EmbeddedImages, EmbeddedImages]:
    return surface.train, surface.val


def _halves(seen: Mapping[str, EmbeddedSurface]) -> NDArray[np.bool_]:
    """Which half each validation image belongs to; groups are whole, and dealt in turn over all surfaces."""
    halves, dealt = list[bool](), 0
    for surface in seen.values():
        groups = surface.val.groups or [str(place) for place in range(len(surface.val.features))]
        place = {group: dealt + number for number, group in enumerate(dict.fromkeys(groups))}
        dealt += len(place)
        halves += [place[group] % 2 == 0 for group in groups]
    return np.array(halves, dtype=np.bool_)


def _what_decides(settings: RouterSettings) -> RouterSettings:
    """Without training of the networks that explain, where they decide nothing: most of the time goes there.

    Validation images are held out: they are what is judged.
    """
    changes: dict[str, Any] = {"calibration": "held-out"}
    changes |= {} if settings.score == "paper" else {"class_embedding": "real", "vaegan_steps": 0}
    return settings.model_copy(update=changes)


def _calibration_scores(
    router: SurfaceRouter, held_out: EmbeddedImages, routes: Sequence[Route]
) -> NDArray[np.float64]:
    """Unseen scores of the held-out images under the conditions that the router's promise is about."""
    if router.promise == "envelope":
        assert held_out.even is not None
        routes = [router.route(row) for row in held_out.even]
    return np.array([route.unseen_score for route in routes], dtype=np.float64)


def _timed(
    inputs: Sequence[NDArray[np.float32]] | NDArray[np.float32], judge: Callable[[NDArray[np.float32]], T]
) -> tuple[list[T], list[float]]:
    """What `judge` makes of each, and the milliseconds it took."""
    found, took = [], []
    for one in inputs:
        started = time.perf_counter()
        found.append(judge(one))
        took.append(1000 * (time.perf_counter() - started))
    return found, took
