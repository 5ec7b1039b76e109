"""A sweep over the shared real surfaces, killed and gone on, and what it is worth on truly unseen ones.

    SBDZSL_SHARED=../shared python benchmarks/sweep.py [gate] [gate-in-postgresql] [vaegan]

About 40 minutes on two cores. Twenty of 25 surfaces are seen, five are unseen (`--unseen`: nothing of the sweep reads
them). Two spaces: `gate` (ray_configs/tune_sbad.yaml, the default score) and `vaegan` (tune_vaegan.yaml, the paper's
score). Each is searched by 40 trials of the command line; the driver and all below it are killed as soon as 15 are
finished, and the same command is given again. Then the same space is searched without pruning, for the time that
pruning saves: seconds that trials took, summed, for starts and waits do not belong to it. `gate-in-postgresql` is the
first search once more, its study in a PostgreSQL server in place of a journal.

The settings given and those found then train a router as `sbdzsl train` does (train rows, thresholds from val rows),
which is judged on the test rows of the seen surfaces and on all images of the unseen ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import audit_lab
import numpy as np
import optuna
import postgresql_server
import real_surfaces
import yaml
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sbdzsl import datasets, lake
from sbdzsl.config import ImageSettings, RouterSettings, TrainSettings, load
from sbdzsl.datasets.sample import Sample, assign_splits
from sbdzsl.inspector import load_image
from sbdzsl.metrics import auroc, zero_shot_figures
from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import EmbeddedImages, fit_router

KEPT = audit_lab.ROOT / "runs" / "sweep"
TRIALS, KILL_AT, NUM_UNSEEN, STARTS = 40, 15, 5, 4
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
#: Search -> the file of its space, and the settings that it starts from.
SPACES = {
    "gate": ("tune_sbad.yaml", TrainSettings()),
    "gate-in-postgresql": ("tune_sbad.yaml", TrainSettings()),
    "vaegan": ("tune_vaegan.yaml", TrainSettings(router=RouterSettings(score="paper"))),
}
IN_DATABASE = ("gate-in-postgresql",)


@dataclass(frozen=True, slots=True)
class Search:
    """One search by the command line: its space, where its results go, what it is given, and where its study is."""

    space: str
    out: Path
    manifest: Path
    unseen: Sequence[str]
    pruning: bool = True
    database: str | None = None

    def command(self) -> list[str]:
        """The words of the command line."""
        file, base = SPACES[self.space]
        settings = yaml.safe_load((audit_lab.ROOT / "ray_configs" / file).read_text())
        settings |= {"trials": TRIALS, "pruning": self.pruning, "storage": self.database}
        words = [sys.executable, "-m", "sbdzsl.cli", "tune", "--manifest", str(self.manifest), "--out", str(self.out)]
        words += ["--search", json.dumps(settings), "--config", base.model_dump_json(exclude_defaults=True)]
        return [*words, "--address", "local", *(word for name in self.unseen for word in ("--unseen", name))]

    def trials(self) -> list[FrozenTrial]:
        """All that the study holds."""
        journal = str(self.out / "study.journal")
        storage = RDBStorage(self.database) if self.database else JournalStorage(JournalFileBackend(journal))
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).trials

    def finished(self) -> dict[int, FrozenTrial]:
        """Number -> trial, complete or pruned."""
        return {one.number: one for one in self.trials() if one.state in FINISHED}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("searches", nargs="*", help=f"of {', '.join(SPACES)}; all without any")
    chosen = parser.parse_args(argv).searches or list(SPACES)
    if set(chosen) - set(SPACES):
        parser.error(f"found {chosen}; searches are {', '.join(SPACES)}")
    samples = labelled_samples()
    names = sorted({sample.surface or "" for sample in samples})
    unseen = sorted(np.random.default_rng(0).permutation(names)[:NUM_UNSEEN].tolist())
    KEPT.mkdir(parents=True, exist_ok=True)
    manifest = KEPT / "manifest.parquet"
    lake.write_manifest(datasets.samples_to_table(samples), str(manifest))
    features = embedded(samples)
    for space in chosen:
        figures: dict[str, Any] = {"unseen": unseen, "seen": len(names) - len(unseen), "images": len(samples)}
        with postgresql_server.served() if space in IN_DATABASE else contextlib.nullcontext() as database:
            search = Search(space, emptied(KEPT / space), manifest, unseen, database=database)
            figures["pruned"] = killed_and_gone_on(search)
        recipe = load(TrainSettings, search.out / "recipe.yaml")
        for name, settings in {"given": SPACES[space][1], "found": recipe}.items():
            figures[f"test, {name}"] = tested(settings.router, samples, features, unseen)
        audit_lab.extend_record("sweep", space, figures)
        if space not in IN_DATABASE:
            unpruned = replace(search, out=emptied(KEPT / f"{space}-unpruned"), pruning=False)
            shutil.copytree(search.out / "features", unpruned.out / "features")  # to read them is not compared
            figures["unpruned"] = searched(unpruned)
            saved = 1 - figures["pruned"]["trial_seconds"] / figures["unpruned"]["trial_seconds"]
            figures["share_of_time_saved_by_pruning"] = round(saved, 3)
            audit_lab.extend_record("sweep", space, figures)
        print(json.dumps(figures, indent=2), flush=True)
    return 0


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def labelled_samples() -> list[Sample]:
    """All images with their surface (NEU counts as one) and a split of which no group is part of two."""
    named = [
        replace(sample, surface="neu" if surface.startswith("neu_") else surface, split=None)
        for surface, sample in real_surfaces.list_images()
    ]
    return assign_splits(named, seed=0)


def killed_and_gone_on(search: Search) -> dict[str, Any]:
    """The driver killed at so many finished trials; what the study held then, and in the end."""
    finished = 0
    with contextlib.closing(lines_of(search.command())) as lines:
        for line in lines:
            finished += " complete: " in line or " pruned after " in line
            if finished >= KILL_AT:
                break
    under_way = sum(one.state == TrialState.RUNNING for one in search.trials())
    at_kill = search.finished()
    figures = searched(search)
    after = search.finished()
    unchanged = sum(
        (after[number].values, after[number].params) == (one.values, one.params) for number, one in at_kill.items()
    )
    return {
        "finished_at_kill": len(at_kill),
        "under_way_at_kill": under_way,
        "finished_at_kill_and_unchanged": unchanged,
        **figures,
    }


def searched(search: Search) -> dict[str, Any]:
    """Run the command to its end; counts, the best and the settings given, seconds."""
    started = time.perf_counter()
    for _ in lines_of(search.command()):
        pass
    wall = time.perf_counter() - started
    summary = json.loads((search.out / "study.json").read_text())
    finished = search.finished().values()
    return {
        "trials": summary["trials"],
        "distinct_finished_or_pruned": len({json.dumps(one.params, sort_keys=True) for one in finished}),
        "folds_judged": sum(one.user_attrs["steps"] for one in finished),
        "best": summary["best"],
        "given": summary["given"],
        "importance": summary["importance"],
        "trial_seconds": summary["seconds"],
        "wall_s_of_the_last_start": round(wall, 1),
    }


def lines_of(words: Sequence[str]) -> Generator[str, None, None]:
    """Run a command and give its lines; who takes no more of them kills it and all below it, as a power cut would.

    On a busy machine Ray may miss its thirty seconds to start; then it is started again.
    """
    for _ in range(STARTS):
        environment = audit_lab.environment(OMP_NUM_THREADS="1")
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                yield line
        except GeneratorExit:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if process.wait() == 0:
            return
    sys.exit(f"{words} ended with {process.returncode}")


def embedded(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Features of all images by id, kept between runs."""
    kept = KEPT / "features.npz"
    ids = [sample.image_id for sample in samples]
    if kept.exists() and list((found := np.load(kept))["ids"]) == ids:
        return dict(zip(ids, found["features"], strict=True))
    embedder, rows = Embedder(load_backbone(), RouterSettings()), []
    for sample in samples:
        image = load_image(sample.image_id, sample.uri, ImageSettings()).image
        assert image is not None, sample.uri
        rows.append(embedder.embed(image.grey()))
    np.savez(kept, ids=np.array(ids), features=np.stack(rows))
    return dict(zip(ids, rows, strict=True))


def tested(
    settings: RouterSettings, samples: Sequence[Sample], features: Mapping[str, np.ndarray], unseen: Sequence[str]
) -> dict[str, Any]:
    """Figures of a router trained by settings on seen surfaces, on test rows and all of the unseen surfaces."""

    def rows(split: str) -> EmbeddedImages:
        chosen = [one for one in samples if one.split == split and one.surface not in unseen]
        groups = [one.group or one.image_id for one in chosen]
        return EmbeddedImages(
            np.stack([features[one.image_id] for one in chosen]), [one.surface or "" for one in chosen], groups
        )

    router = fit_router(rows("train"), rows("val"), standard_attributes(), settings, seed=0).router
    judged = [one for one in samples if one.split == "test" or one.surface in unseen]
    routes = [router.route(features[one.image_id]) for one in judged]
    surfaces, scores = [one.surface or "" for one in judged], np.array([route.unseen_score for route in routes])
    found = zero_shot_figures(
        surfaces, [route.surface for route in routes], scores > router.threshold(), router.surfaces
    )
    strange = np.isin(surfaces, unseen)
    figures = {"h": found.h, "s": found.s, "u": found.u, "false_alarms": found.false_alarms}
    figures |= {"auroc": auroc(strange, scores), "worst_unseen": min(found.per_surface[name] for name in unseen)}
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    raise SystemExit(main())
