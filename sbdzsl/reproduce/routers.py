"""Tables 3, 4 and 5 of Cheng and Yeh (2023): TF-VAEGAN and VAEGAN, with real and learned class embeddings.

The paper pairs TF-VAEGAN with L1 and VAEGAN with MSE; here each network is trained with both. What is measured, all as
means over surfaces:

- S, "Normal": seen test images that are not flagged and whose nearest CE is that of their surface. U, "Anomaly": images
  of unseen surfaces that are flagged. An image is flagged where the smallest dissimilarity of what is read off it to a
  seen CE is above the threshold (3.1.2), which comes from held-out images of seen surfaces at the settings'
  false-alarm rate. Nothing of an unseen surface, nor its CE, is used.
- "By name" and ZSL: what TF-VAEGAN calls GZSL and ZSL, with the real CE of the unseen surfaces given at test time
  (`zero_shot.py`): images named among all surfaces, and unseen images among the unseen surfaces alone.

The paper does not say which of the two its U is, nor the threshold, nor how a learned CE of an unseen surface could be
had for its ZSL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sbdzsl.calibration import choose_threshold
from sbdzsl.config import ReadingLoss, RouterSettings, ThresholdRule, TrainSettings
from sbdzsl.errors import ConfigError
from sbdzsl.metrics import auroc, harmonic_mean, zero_shot_figures
from sbdzsl.reproduce import sources
from sbdzsl.reproduce.sources import Collection
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.feature_gan import FeatureGAN
from sbdzsl.sbad.reading import fit_reading
from sbdzsl.sbad.zero_shot import name_by_synthesis

Report = Callable[[str], None]

UNSEEN_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of the tables: the fields of `RouterSettings` that it sets."""

    generator: Literal["tf-vaegan", "vaegan"]
    class_embedding: Literal["real", "learned"]
    reading_loss: ReadingLoss

    def settings(self, base: RouterSettings) -> RouterSettings:
        """`base` with this cell's fields."""
        return base.model_copy(update=asdict(self))


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of the paper, in per cent."""

    seen: float
    unseen: float
    h: float
    zsl: float


PUBLISHED = {
    Cell("tf-vaegan", "real", "l1"): Published(96.56, 65.76, 78.24, 100),
    Cell("tf-vaegan", "learned", "l1"): Published(96.15, 93.94, 95.03, 100),
    Cell("vaegan", "real", "mse"): Published(96.46, 70.61, 81.53, 100),
    Cell("vaegan", "learned", "mse"): Published(98.12, 95.96, 97.03, 100),
}
CELLS = tuple(
    Cell(generator, embedding, loss)
    for generator in ("tf-vaegan", "vaegan")
    for embedding in ("real", "learned")
    for loss in ("l1", "mse")
)
TABLES = {
    "table3": tuple(cell for cell in CELLS if cell.generator == "tf-vaegan"),
    "table4": tuple(cell for cell in CELLS if cell.generator == "vaegan"),
    "table5": tuple(cell for cell in CELLS if cell.class_embedding == "learned"),
}


def compute(
    table: str,
    data: str | None,
    settings: TrainSettings,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    report: Report = print,
) -> dict[str, Any]:
    """Train and test the cells of `table` on the drawn surfaces and on what is found below `data`; plain JSON values.

    A seed decides which fifth of the surfaces is unseen, and the weights; how images are divided is the same for all.
    Raises `ConfigError` without a seed, and what reading and training raise.
    """
    if not seeds:
        raise ConfigError("bad-config", "found no seed, expected one or more")
    embed = Embedder(load_backbone(None), settings.router, device).embed
    found, notes = [], []
    if data is None:
        notes.append("DAGM and real surfaces: no --data, left out.")
    else:
        report("reading DAGM and real surfaces")
        if (whole := sources.dagm(data, embed, settings.image)) is not None:
            found.append(whole)
        else:
            notes.append(f"DAGM: not all ten classes below {data}, left out.")
        if (surfaces := sources.real(data, embed, settings.image)) is not None:
            found.append(surfaces)
        else:
            notes.append(f"real surfaces: less than three below {data}, left out.")
    report("drawing ten surfaces")
    found.append(sources.drawn(embed, settings.image))
    collections = []
    for collection in found:
        cells = []
        for cell in TABLES[table]:
            runs = []
            for seed in seeds:
                report(
                    f"{collection.name}: {cell.generator}, {cell.class_embedding} CE, {cell.reading_loss}, seed {seed}"
                )
                unseen = choose_unseen(collection, seed)
                figures = measure(collection, unseen, cell.settings(settings.router), seed)
                runs.append({"seed": seed, "unseen_surfaces": list(unseen)} | figures)
            cells.append(asdict(cell) | {"runs": runs})
        collections.append({"name": collection.name, "notes": list(collection.notes), "cells": cells})
    return {
        "table": table,
        "data": data,
        "settings": settings.model_dump(mode="json"),
        "notes": notes,
        "collections": collections,
    }


def choose_unseen(collection: Collection, seed: int) -> tuple[str, ...]:
    """A fifth of the surfaces, at least one, by seed."""
    names = sorted(collection.surfaces)
    chosen = np.random.default_rng(seed).permutation(len(names))[: max(round(UNSEEN_SHARE * len(names)), 1)]
    return tuple(sorted(names[index] for index in chosen))


def measure(
    collection: Collection,
    unseen: Sequence[str],
    settings: RouterSettings,
    seed: int,
    network: type[FeatureGAN] | None = None,
) -> dict[str, float | None]:
    """Train on the surfaces that are not in `unseen`, test on all. Shares in [0, 1], see the top of this file.

    `seen`, `unseen`, `h`, `false_alarms` (seen test images flagged), `naming` (seen test images whose nearest CE is
    theirs, flagged or not), `auroc` of the score; `seen_by_name`, `unseen_by_name`, `h_by_name`, `zsl`; `train_s`,
    seconds. `network` takes the place of the settings' generator.
    """
    known = sorted(set(collection.surfaces) - set(unseen))
    strange = sorted(unseen)
    train = [collection.surfaces[name].train for name in known]
    features, labels = np.concatenate(train), np.repeat(np.arange(len(known)), [len(part) for part in train])
    started = time.monotonic()
    reading = fit_reading(features, labels, collection.attributes.matrix(known), settings, seed, network)
    train_s = time.monotonic() - started

    parts = [collection.surfaces[name].test for name in known] + [collection.surfaces[name].unseen for name in strange]
    images = np.concatenate(parts)
    truth = np.repeat([*known, *strange], [len(part) for part in parts])
    is_strange = np.isin(truth, strange)
    reader = reading.reader()
    distances = np.array([reader.distances(row) for row in images])
    scores = distances.min(axis=1)
    held_out = [row for name in known for row in collection.surfaces[name].calibration]
    rule = ThresholdRule("false-alarm-rate", settings.false_alarm_rate)
    good = np.array([reader.distances(row).min() for row in held_out])
    threshold = choose_threshold(rule, good, np.empty(0)).value
    nearest = np.array(known)[distances.argmin(axis=1)]
    detected = zero_shot_figures(truth.tolist(), nearest.tolist(), scores > threshold, known)

    names = name_by_synthesis(reading, features, labels, collection.attributes.matrix(strange), images, seed)
    joint = np.array([*known, *strange])[names.joint] == truth
    among_unseen = np.array(strange)[names.unseen] == truth
    seen_by_name = _mean_by_surface(joint[~is_strange], truth[~is_strange])
    unseen_by_name = _mean_by_surface(joint[is_strange], truth[is_strange])
    return {
        "seen": detected.s,
        "unseen": detected.u,
        "h": detected.h,
        "false_alarms": detected.false_alarms,
        "naming": detected.naming,
        "auroc": auroc(is_strange, scores),
        "seen_by_name": seen_by_name,
        "unseen_by_name": unseen_by_name,
        "h_by_name": harmonic_mean(seen_by_name, unseen_by_name),
        "zsl": _mean_by_surface(among_unseen[is_strange], truth[is_strange]) if len(strange) > 1 else None,
        "train_s": round(train_s, 2),
    }


def _mean_by_surface(right: np.ndarray[Any, np.dtype[np.bool_]], truth: np.ndarray[Any, np.dtype[np.str_]]) -> float:
    return float(np.mean([right[truth == surface].mean() for surface in np.unique(truth)]))


#: Few, short and broken into lines, so that a table fits into 80 columns; the JSON has all figures.
HEADINGS = ("by", "network", "CE, loss", "S", "U", "H", "AUROC", "U by\nname", "ZSL")
_FIGURES = ("seen", "unseen", "h", "auroc", "unseen_by_name", "zsl")
_NAMES = {"vaegan": "VAEGAN", "tf-vaegan": "TF-VAEGAN", "mse": "MSE", "l1": "L1"}


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A result of `compute` as rows under `HEADINGS`, in per cent: of each cell the paper's, if it has one, and ours.

    Of several seeds the mean and the standard deviation.
    """
    lines: list[tuple[str, ...]] = []
    for number, cell in enumerate(TABLES[result["table"]]):
        words = _NAMES[cell.generator], f"{cell.class_embedding},\n{_NAMES[cell.reading_loss]}"
        if (paper := PUBLISHED.get(cell)) is not None:
            figures = f"{paper.seen:.2f}", f"{paper.unseen:.2f}", f"{paper.h:.2f}"
            lines.append(("paper", *words, *figures, "", "", f"{paper.zsl:g}"))
        for collection in result["collections"]:
            runs = collection["cells"][number]["runs"]
            lines.append((collection["name"], *words, *(_spread(runs, name) for name in _FIGURES)))
    return lines


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What has to be said beside the rows."""
    rate = result["settings"]["router"]["false_alarm_rate"]
    lines = [
        f"S, U, H: flagged above a threshold from held-out images of seen surfaces, false-alarm rate {rate:.1%}.",
        "By name, ZSL: the real CE of the unseen surfaces is given; synthesised features, linear softmax.",
        "The paper says neither its threshold nor which of the two its U is; its S is measured on validation images.",
        "The paper has TF-VAEGAN with L1 and VAEGAN with MSE; the other pairs have no published figure.",
    ]
    return [*lines, *result["notes"], *(note for one in result["collections"] for note in one["notes"])]


def _spread(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [100 * run[name] for run in runs if run[name] is not None]
    if not values:
        return "–"
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean}\n±{np.std(values):.1f}"
