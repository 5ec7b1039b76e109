"""Benches for tests: drawn features that tell surfaces apart, and one whose worth is a formula."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from sbdzsl.config import RouterSettings, TrainSettings
from sbdzsl.errors import TrainingError
from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.fit import EmbeddedImages
from sbdzsl.tuning import (
    Bench,
    Parameter,
    RouterBench,
    SweepSettings,
    SweepStudy,
    applied,
    distributions,
    outcomes,
)
from sbdzsl.tuning.bench import Judged
from sbdzsl.tuning.prepare import EmbeddedSurface, Report
from sbdzsl.tuning.space import values_of
from sbdzsl.tuning.study import open_study

BASE = TrainSettings(router=RouterSettings(shrinkage=0.4))
PURPOSE = {"data, settings or seed": "abc", "stage": "sbad", "digest": "0123"}

#: A space whose names exist, for benches that make of them what they like.
SPACE = {
    "router.shrinkage": Parameter(low=0.0, high=1.0),
    "router.own_prior": Parameter(low=0.1, high=10.0, log=True),
}


def sweep(**more: object) -> SweepSettings:
    return SweepSettings.model_validate({"space": SPACE, "trials": 8, "startup_trials": 4, **more})


def draw_surfaces(number: int = 6, images: int = 24, dims: int = 24, apart: float = 5.0) -> dict[str, EmbeddedSurface]:
    """Surfaces as clouds of features; two images a group."""
    generator = np.random.default_rng(7)

    def images_of(name: str, centre: np.ndarray, count: int) -> EmbeddedImages:
        features = centre + generator.normal(0, 1, (count, dims))
        groups = [f"{name}-{count}-{place // 2}" for place in range(count)]
        return EmbeddedImages(features.astype(np.float32), [name] * count, groups)

    found = {}
    names = sorted(standard_attributes().rows)[:number]
    for name in names:
        centre = generator.normal(0, apart, dims)
        found[name] = EmbeddedSurface(images_of(name, centre, images), images_of(name, centre, images // 2), None)
    return found


def draw_bench(folds: int = 3, apart: float = 5.0) -> RouterBench:
    return RouterBench.build(draw_surfaces(apart=apart), standard_attributes(), folds, seed=1)


@dataclass(frozen=True)
class Formula:
    """Worth 1 - shrinkage in every step; takes `seconds` a step, and fails as the settings say."""

    steps: tuple[str, ...] = ("first", "second", "third", "fourth")
    seconds: float = 0.0
    fails: bool = False

    def judge(self, settings: TrainSettings, step: int) -> Judged:
        time.sleep(self.seconds)
        prior = settings.router.own_prior
        if self.fails and prior < 0.3:
            raise TrainingError("not-finite", "the loss is nan")
        if self.fails and prior < 1.0:
            raise ZeroDivisionError("a mistake of ours")
        if self.fails and prior > 5.0:
            os.kill(os.getpid(), signal.SIGKILL)
        return Judged(1 - settings.router.shrinkage, {"s": 0.5, "u": 0.25}, prior)


def quiet(line: str) -> None:
    raise AssertionError(line)


def opened(
    url: object, settings: SweepSettings, report: Report = quiet, purpose: Mapping[str, object] = PURPOSE
) -> AbstractContextManager[SweepStudy]:
    space = distributions(settings, BASE)
    return open_study(str(url), settings, space, purpose, values_of(BASE, space), 5, report)


def search(study: SweepStudy, bench: Bench, most: int = 1000) -> None:
    """What a driver does, one trial after the other."""
    for number in range(most):
        if not study.num_missing:
            return
        _, values = study.ask(f"key {number}")
        for outcome in outcomes(bench, applied(BASE, values)):
            if not study.note(f"key {number}", outcome):
                break
        study.end(f"key {number}")


def die_within(url: str, num_finished: int) -> None:
    """In a process of its own: finish some trials, tell a part of another one, and die as by a power cut."""
    with opened(url, sweep(), report=print) as study:
        search(study, Formula(), most=num_finished)
        _, values = study.ask("last")
        study.note("last", next(iter(outcomes(Formula(), applied(BASE, values)))))
        os.kill(os.getpid(), signal.SIGKILL)
