"""The paper's cells on drawn and real surfaces, and what each part of VAEGAN brings. Writes results/sbad_paper*.json.

    python benchmarks/sbad_paper.py cells       # the ten drawn surfaces under DAGM_MIX: table 4's cells, all pairs
    SBDZSL_SHARED=../shared python benchmarks/sbad_paper.py parts       # each part taken away, drawn and leathers
    SBDZSL_SHARED=../shared python benchmarks/sbad_paper.py length      # the most telling of them, at default length
    python benchmarks/sbad_paper.py time        # training for ten surfaces, features cached
    python benchmarks/sbad_paper.py yardsticks  # the same pairs by the router's gate and by a plain neighbour

Design, since 45 pairs x 8 cells x 5 seeds would take hours: `cells` runs (a) five pairs that hold each surface once,
each with a seed of its own, in all eight cells, (b) all 45 pairs in the four cells of table 4, by as many of
five seeds as the minutes are enough for. `parts`
has the pairs and seeds of (a), and the leathers with a fifth of them unseen by seed. Trainings are shortened, alike for
all, to `--vaegan-steps` and `--ce-vae-steps`; the row "as by default" of `parts` says what that costs. `--minutes` ends
a study in good order and the result says how many runs there were. Runs are kept in the temporary folder: the same
command goes on where it was, until code, features or settings change.

S, U, H at a promised false-alarm rate of 2 %, the threshold from held-out images of seen surfaces
(`sbdzsl/reproduce/routers.py`), all in per cent. Features are embedded once and kept in the temporary folder.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import record, shared_data
from router_scores import Method, Training, cosine_neighbour, cross_fitted, gate
from vaegan_parts import Variant, variants

import sbdzsl
from sbdzsl.calibration import choose_threshold
from sbdzsl.config import ImageSettings, RouterSettings, ThresholdRule
from sbdzsl.metrics import auroc, zero_shot_figures
from sbdzsl.reproduce import sources
from sbdzsl.reproduce.routers import CELLS, PUBLISHED, TABLES, Cell, measure
from sbdzsl.reproduce.sources import Collection, Embed
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.feature_gan import FeatureGAN
from sbdzsl.sbad.reading import fit_reading

SHOWN = ("seen", "unseen", "h", "auroc", "naming", "unseen_by_name", "zsl", "train_s")
NUM_SEEDS = 5
PACKAGE = Path(sbdzsl.__file__).parent

Runs = list[dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("cells", "parts", "length", "time", "yardsticks"))
    parser.add_argument("--vaegan-steps", type=int, default=60)
    parser.add_argument("--ce-vae-steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = RouterSettings(vaegan_steps=arguments.vaegan_steps, ce_vae_steps=arguments.ce_vae_steps)
    deadline = time.monotonic() + 60 * arguments.minutes
    studies = {"cells": study_cells, "parts": study_parts, "length": study_length, "time": study_time}
    (studies | {"yardsticks": study_yardsticks})[arguments.study](settings, deadline)
    return 0


def cached_embed(settings: RouterSettings) -> Embed:
    embedder = Embedder(load_backbone(), settings)
    cache = Path(tempfile.gettempdir()) / "sbdzsl-features"

    def embed(grey: NDArray[np.float32]) -> NDArray[np.float32]:
        digest = hashlib.sha256(str(grey.shape).encode() + np.ascontiguousarray(grey).tobytes()).hexdigest()
        return embedder.embed_cached(grey, digest, cache)

    return embed


def study_cells(settings: RouterSettings, deadline: float) -> None:
    collection = sources.drawn(cached_embed(settings), ImageSettings())
    rounds = round_robin(sorted(collection.surfaces))
    seeds: dict[str, Runs] = {}
    all_pairs: dict[str, Runs] = {}
    # Each pair goes through all cells before the next, so that an early end leaves the cells comparable.
    for seed, pair in enumerate(rounds[0]):
        for cell in CELLS:
            run(seeds, label(cell), collection, pair, cell.settings(settings), seed, deadline)
    for seed, one in itertools.product(range(NUM_SEEDS), rounds):
        for pair, cell in itertools.product(one, TABLES["table4"]):
            run(all_pairs, label(cell), collection, pair, cell.settings(settings), seed, deadline)
    figures = {
        "settings": settings.model_dump(mode="json"),
        "notes": list(collection.notes),
        "paper": {label(cell): asdict(figures) for cell, figures in PUBLISHED.items()},
        "five pairs": summary(seeds),
        "all pairs": summary(all_pairs),
        "learned against real CE, all pairs": compared(all_pairs, "real", "learned"),
        "MSE against L1, all pairs": compared(all_pairs, "l1", "mse"),
        "learned against real CE": compared(seeds, "real", "learned"),
        "MSE against L1": compared(seeds, "l1", "mse"),
        "VAEGAN against TF-VAEGAN": compared(seeds, "tf-vaegan", "vaegan"),
        "runs": {"five pairs": seeds, "all pairs": all_pairs},
    }
    record("sbad_paper", figures)
    for name in ("five pairs", "all pairs"):
        print_table(name, figures[name])


def round_robin(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """The circle method: all pairs of an even number of names, in rounds that hold each name once."""
    fixed, *turning = names
    rounds = []
    for _ in turning:
        circle = [fixed, *turning]
        rounds.append([(circle[k], circle[-1 - k]) for k in range(len(circle) // 2)])
        turning = [turning[-1], *turning[:-1]]
    return rounds


def label(cell: Cell) -> str:
    return f"{cell.generator}, {cell.class_embedding} CE, {cell.reading_loss}"


def run(
    rows: dict[str, Runs],
    name: str,
    collection: Collection,
    unseen: Sequence[str],
    settings: RouterSettings,
    seed: int,
    deadline: float,
    network: type[FeatureGAN] | None = None,
) -> None:
    """Add a run to `rows[name]`, a kept one if there is one; none after the deadline."""
    key = [code_digest(), features_digest(collection), settings.model_dump(mode="json"), list(unseen), seed]
    digest = hashlib.sha256(json.dumps([*key, network and network.__name__]).encode()).hexdigest()
    kept = Path(tempfile.gettempdir()) / "sbdzsl-paper-runs" / f"{digest}.json"
    if not kept.exists():
        if time.monotonic() > deadline:
            return
        figures = measure(collection, unseen, settings, seed, network)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps({"unseen_surfaces": list(unseen), "seed": seed} | rounded(figures)))
        print(f"{collection.name}, {name}, seed {seed}: H {100 * (figures['h'] or 0):.1f}", flush=True)
    rows.setdefault(name, []).append(json.loads(kept.read_text()))


@functools.cache
def code_digest() -> str:
    """Of the code that a run depends on."""
    here = Path(__file__)
    files = (*sorted((PACKAGE / "sbad").glob("*.py")), PACKAGE / "reproduce" / "routers.py", here)
    files += (here.with_name("vaegan_parts.py"),)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def features_digest(collection: Collection) -> str:
    found = hashlib.sha256()
    for name, parts in collection.surfaces.items():
        found.update(name.encode())
        for part in (parts.train, parts.calibration, parts.test, parts.unseen):
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def rounded(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def study_parts(settings: RouterSettings, deadline: float) -> None:
    ablation("sbad_paper_parts", list(variants(settings)), settings, deadline)


def study_length(settings: RouterSettings, deadline: float) -> None:
    """What a short training may hide, at the default number of steps."""
    telling = ("VAEGAN, whole", "no GAN at all: Encoder-2 alone", "real CE", "TF-VAEGAN, L1")
    default = RouterSettings()
    ablation("sbad_paper_length", [one for one in variants(default) if one[0] in telling], default, deadline)


def ablation(study: str, chosen: Sequence[Variant], settings: RouterSettings, deadline: float) -> None:
    embed = cached_embed(settings)
    collections = {"drawn": sources.drawn(embed, ImageSettings())}
    leathers = sources.real(str(shared_data() / "Leather27"), embed, ImageSettings())
    assert leathers is not None
    collections["leathers"] = replace(leathers, name="leathers")
    rows: dict[str, dict[str, Runs]] = {name: {} for name in collections}
    for seed in range(NUM_SEEDS):
        for name, collection in collections.items():
            unseen = unseen_of(name, collection, seed)
            for variant, changed, network in chosen:
                run(rows[name], variant, collection, unseen, changed, seed, deadline, network)
            for variant, fit in YARDSTICKS.items():
                rows[name].setdefault(variant, []).append(
                    measure_yardstick(collection, unseen, fit(settings), settings, seed)
                )
    figures = {name: summary(found) for name, found in rows.items()}
    notes = [note for collection in collections.values() for note in collection.notes]
    record(study, {"settings": settings.model_dump(mode="json"), "notes": notes} | figures | {"runs": rows})
    for name, found in figures.items():
        print_table(name, found)


def unseen_of(name: str, collection: Collection, seed: int) -> tuple[str, ...]:
    """Of the drawn surfaces five pairs that hold each once; of the leathers a fifth by seed."""
    names = sorted(collection.surfaces)
    if name == "drawn":
        return round_robin(names)[0][seed]
    return tuple(sorted(np.random.default_rng(seed).permutation(names)[round(0.8 * len(names)) :]))


#: What needs no network, by the scores that `sbad_gzsl.py` compares.
YARDSTICKS: dict[str, Callable[[RouterSettings], Method]] = {
    "nearest neighbour, cosine": lambda _: Method(cosine_neighbour),
    "the router's own gate": gate,
}


def measure_yardstick(
    collection: Collection,
    unseen: Sequence[str],
    method: Method,
    settings: RouterSettings,
    seed: int,
) -> dict[str, Any]:
    known = sorted(set(collection.surfaces) - set(unseen))
    own = [np.concatenate([collection.surfaces[name].train, collection.surfaces[name].calibration]) for name in known]
    features, labels = np.concatenate(own), np.repeat(np.arange(len(known)), [len(part) for part in own])
    images = [f"{number:06d}" for number in range(len(features))]
    started = time.monotonic()
    fitted = cross_fitted(method, Training(features, labels, known, images, None, None, seed))
    train_s = time.monotonic() - started
    parts = [collection.surfaces[name].test for name in known] + [collection.surfaces[name].unseen for name in unseen]
    truth = np.repeat([*known, *unseen], [len(part) for part in parts])
    found = fitted.score(np.concatenate(parts))
    rule = ThresholdRule("false-alarm-rate", settings.false_alarm_rate)
    threshold = choose_threshold(rule, fitted.held_out, np.empty(0)).value
    scores = found.min(axis=1)
    detected = zero_shot_figures(
        truth.tolist(), np.array(known)[found.argmin(axis=1)].tolist(), scores > threshold, known
    )
    figures = {"seen": detected.s, "unseen": detected.u, "h": detected.h, "naming": detected.naming}
    figures |= {"auroc": auroc(np.isin(truth, unseen), scores), "train_s": train_s}
    return {"unseen_surfaces": list(unseen), "seed": seed} | rounded(figures)


def study_yardsticks(settings: RouterSettings, deadline: float) -> None:
    """All pairs without any network: the router's gate, and a plain neighbour. Neither was chosen on these surfaces."""
    collection = sources.drawn(cached_embed(settings), ImageSettings())
    pairs = [pair for one in round_robin(sorted(collection.surfaces)) for pair in one]
    rows: dict[str, Runs] = {
        name: [measure_yardstick(collection, pair, fit(settings), settings, 0) for pair in pairs]
        for name, fit in YARDSTICKS.items()
    }
    found = summary(rows)
    record("sbad_paper_yardsticks", {"settings": settings.model_dump(mode="json"), "all pairs": found, "runs": rows})
    print_table("all pairs", found)


def study_time(settings: RouterSettings, deadline: float) -> None:
    """Both trainings at the default settings for all ten drawn surfaces."""
    collection = sources.drawn(cached_embed(settings), ImageSettings())
    names = sorted(collection.surfaces)
    features = np.concatenate([collection.surfaces[name].train for name in names])
    labels = np.repeat(np.arange(len(names)), [len(collection.surfaces[name].train) for name in names])
    seconds: dict[str, dict[str, float]] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for generator in ("vaegan", "tf-vaegan"):
            wall, processor = time.monotonic(), time.process_time()
            fit_reading(
                features, labels, collection.attributes.matrix(names), RouterSettings(generator=generator), seed=0
            )
            seconds[f"{generator}, {threads} threads"] = {
                "wall_s": round(time.monotonic() - wall, 1),
                "processor_s": round(time.process_time() - processor, 1),
            }
    print(seconds)
    record("sbad_paper_time", {"images": len(features), "settings": RouterSettings().model_dump(), "training": seconds})


def compared(rows: dict[str, Runs], lesser: str, greater: str) -> dict[str, Any]:
    """H of each label with the word `greater` minus that of its twin with `lesser`, over the runs that both have."""
    found = {}
    for name, runs in rows.items():
        words = name.replace(",", "").split()
        if greater not in words:
            continue
        twin = ", ".join(part.replace(greater, lesser) for part in name.split(", "))
        pairs = list(zip(runs, rows.get(twin, []), strict=False))
        gains = [100 * (one["h"] - two["h"]) for one, two in pairs]
        if gains:
            found[f"{name} minus {lesser}"] = {
                "mean": round(float(np.mean(gains)), 2),
                "sd": round(float(np.std(gains)), 2),
                "runs": len(gains),
                "better": sum(gain > 0 for gain in gains),
                "worse": sum(gain < 0 for gain in gains),
            }
    return found


def summary(rows: dict[str, Runs]) -> dict[str, dict[str, Any]]:
    """Per label and figure: mean, standard deviation and worst over the runs, in per cent, and how many they are."""
    found: dict[str, dict[str, Any]] = {}
    for name, runs in rows.items():
        found[name] = {"runs": len(runs)}
        for figure in SHOWN:
            unit = 1 if figure == "train_s" else 100
            values = [unit * one[figure] for one in runs if one.get(figure) is not None]
            if values:
                worst = max(values) if figure == "train_s" else min(values)
                numbers = {"mean": np.mean(values), "sd": np.std(values), "worst": worst}
                found[name][figure] = {key: round(float(value), 2) for key, value in numbers.items()}
    return found


def print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}: mean (worst)")
    print("".ljust(46) + "runs".rjust(5) + "".join(name.rjust(16) for name in SHOWN))
    for name, row in rows.items():
        cells = (f"{row[key]['mean']:.1f} ({row[key]['worst']:.1f})" if key in row else "–" for key in SHOWN)
        print(name.ljust(46) + f"{row['runs']}".rjust(5) + "".join(cell.rjust(16) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
