"""Table 6 of Cheng and Yeh (2023): the detector alone on four data sets.

Each data set that is found is trained and tested as published: one detector a class of DAGM, three folds by item on
KolektorSDD, the official test set elsewhere where the copy has it. No router is needed. Where the published figures
and ours do not mean the same, the result says so: a part of a data set is no data set, and the published thresholds
were chosen on the test images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sbdzsl import datasets
from sbdzsl.config import TrainSettings
from sbdzsl.datasets.sample import Sample, samples_to_table
from sbdzsl.detector_figures import SurfaceScores, mean_figures, pooled_figures, score_samples, surface_figures
from sbdzsl.errors import ConfigError, DataError
from sbdzsl.reproduce.sources import find
from sbdzsl.surface_training import load_surface, train_detector
from sbdzsl.training import training_samples

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Published:
    """A column of table 6: shares in [0, 1], counts of images; AP by the trapezoid rule, as in the code it used."""

    auroc: float
    ap: float
    f1: float
    fp: int
    fn: int


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set of table 6: its adapter, how many images the whole of it has, folds if that is its protocol."""

    name: str
    adapter: str
    num_images: int
    folds: int | None
    published: Published


TABLE6 = (
    DataSet("DAGM", "dagm", 16_100, None, Published(0.99, 0.99, 0.99, 0, 0)),
    DataSet("KSDD", "kolektorsdd", 399, 3, Published(0.99, 0.99, 0.99, 0, 0)),
    DataSet("KSDD2", "kolektorsdd2", 3_335, None, Published(0.97, 0.94, 0.91, 2, 17)),
    DataSet("STEEL", "severstal", 12_568, None, Published(0.99, 0.99, 0.96, 35, 9)),
)


def table6(
    data: str, settings: TrainSettings, seeds: Sequence[int] = (0,), device: str = "cpu", report: Report = print
) -> dict[str, Any]:
    """Train and test a detector on each data set of table 6 found below `data`; plain JSON values.

    `data` is the folder of one of them or one that holds several. Raises `DataError` "bad-layout" where none is found,
    and what training and reading raise.
    """
    if not seeds:
        raise ConfigError("bad-config", "found no seed, expected one or more")
    found = {one.name: folder for one in TABLE6 if (folder := find(one.adapter, data)) is not None}
    if not found:
        names = ", ".join(one.name for one in TABLE6)
        raise DataError(
            "bad-layout", f"found none of {names} below {data}; expected a folder that holds one or more of them"
        )
    sets = []
    for one in TABLE6:
        row: dict[str, Any] = {"name": one.name, "published": asdict(one.published), "num_images": one.num_images}
        if one.name not in found:
            report(f"{one.name}: not found below {data}")
            sets.append(row | {"folder": None})
            continue
        runs = [_run(one, found[one.name], settings, seed, device, report) for seed in seeds]
        sets.append(row | {"folder": found[one.name], "runs": runs})
    return {"table": "table6", "data": data, "settings": settings.model_dump(), "sets": sets}


def _run(one: DataSet, folder: str, settings: TrainSettings, seed: int, device: str, report: Report) -> dict[str, Any]:
    """Figures of one data set at one seed: of each detector, pooled, and their mean."""
    started = time.monotonic()
    generator = np.random.default_rng(seed)
    detectors: dict[str, dict[str, Any]] = {}
    scores, estimates, images = [], [], set[str]()
    notes: list[str] = []
    left_out: dict[str, str] = {}
    for mark, samples in _splits(one, folder, seed, notes):
        images |= {sample.image_id for sample in samples}
        for surface, found, errors in _detectors(mark, samples, settings, seed, device, report, left_out):
            figures, behind = surface_figures(found, generator)
            detectors[surface] = figures | {"errors": errors}
            scores.append(found)
            estimates.append(behind)
            report(
                f"  {surface}: test AP {figures['ap_trapezoid']} (trapezoid), {figures['fp']} FP, {figures['fn']} FN"
            )
    return {
        "seed": seed,
        "num_images": len(images),
        "is_part": len(images) < one.num_images,
        "split": notes,
        "detectors": detectors,
        "left_out": left_out,
        "pooled": pooled_figures(scores, generator),
        "mean": mean_figures(estimates),
        "seconds": round(time.monotonic() - started, 1),
    }


def _splits(one: DataSet, folder: str, seed: int, notes: list[str]) -> Iterator[tuple[str, list[Sample]]]:
    """The data set once, or once a fold, with a mark for the names of its detectors; where the splits come from is
    added to `notes`."""
    for fold in range(one.folds or 1):
        chosen = None if one.folds is None else fold
        ingested = datasets.ingest(one.adapter, folder, fold=chosen, folds=one.folds, seed=seed)
        notes += [note for note in ingested.notes if note not in notes]
        yield "" if one.folds is None else f", fold {fold}", ingested.samples


def _detectors(
    mark: str,
    samples: list[Sample],
    settings: TrainSettings,
    seed: int,
    device: str,
    report: Report,
    left_out: dict[str, str],
) -> Iterator[tuple[str, SurfaceScores, list[dict[str, str]]]]:
    """Train a detector for each surface and score its test images; a surface of too few goes to `left_out`."""
    for surface, learnt in training_samples(samples_to_table(samples), ()).items():
        name = surface + mark
        report(f"{name}: training, seed {seed}")
        try:
            data = load_surface(surface, learnt, None, settings.image, report)
            entry, _ = train_detector(data, settings.detector_for(surface), seed, device, report)
        except DataError as error:
            if error.code != "too-few-images":
                raise
            report(f"{name}: left out: {error.message}")
            left_out[name] = error.message
            continue
        test = [sample for sample in samples if sample.surface == surface and sample.split == "test"]
        scores, errors = score_samples(name, entry, test, settings.image, entry.threshold())
        yield name, scores, errors


HEADINGS = ("data set", "by", "images", "threshold from", "AUROC", "AP trapezoid", "AP step", "F1", "FP", "FN")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A result of `table6` as rows under `HEADINGS`: the paper's, ours at the validation threshold, ours in-sample.

    Of several seeds the mean, with the lowest and the highest.
    """
    lines: list[tuple[str, ...]] = []
    for found in result["sets"]:
        paper = found["published"]
        shares = f"{paper['auroc']:.2f}", f"{paper['ap']:.2f}", "", f"{paper['f1']:.2f}"
        whole = f"{found['num_images']:,}"
        lines.append((found["name"], "paper", whole, "test", *shares, f"{paper['fp']}", f"{paper['fn']}"))
        if found["folder"] is None:
            lines.append(("", "ours", "not found", *("",) * 7))
            continue
        ours = [_headline(run) for run in found["runs"]]
        ranking, held_out, in_sample = (
            tuple(_spread(ours, name) for name in names)
            for names in (
                ("auroc", "ap_trapezoid", "ap"),
                ("f1", "fp", "fn"),
                ("best_f1_on_test", "fp_at_best_f1_on_test", "fn_at_best_f1_on_test"),
            )
        )
        part = f"{found['runs'][0]['num_images']:,}"
        lines.append(("", "ours", part, "validation", *ranking, *held_out))
        lines.append(("", "ours, in-sample", part, "test", *ranking, *in_sample))
    return lines


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What has to be said beside the rows: parts, splits, what was pooled."""
    lines = ["The paper's thresholds were chosen on its test images; so are ours in-sample, and no others."]
    for found in result["sets"]:
        if found["folder"] is None:
            lines.append(f"{found['name']}: not found below {result['data']}, left out.")
            continue
        run = found["runs"][0]
        if run["is_part"]:
            whole = f"{run['num_images']:,} of {found['num_images']:,} images"
            lines.append(f"{found['name']}: a part, {whole}: no result on the official data set.")
        lines += run["split"]
        lines += [f"{surface}: left out: {reason}" for surface, reason in run["left_out"].items()]
        if len(run["detectors"]) > 1:
            pooled = ", ".join(run["pooled"]["surfaces"]) or "none"
            lines.append(
                f"{found['name']}: {len(run['detectors'])} detectors, pooled by calibrated probability: {pooled}."
            )
    return lines


def _headline(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures that stand for a run: of its only detector, or of all pooled."""
    figures: Mapping[str, Any]
    if len(run["detectors"]) == 1:
        (figures,) = run["detectors"].values()
    else:
        figures = run["pooled"]
    return figures


def _spread(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [run[name] for run in runs if run.get(name) is not None]
    if not values:
        return "–"
    whole = all(isinstance(value, int) for value in values)
    if len(values) == 1:
        return f"{values[0]}" if whole else f"{values[0]:.3f}"
    mean, low, high = np.mean(values), min(values), max(values)
    return f"{mean:.1f} ({low}–{high})" if whole else f"{mean:.3f} ({low:.3f}–{high:.3f})"
