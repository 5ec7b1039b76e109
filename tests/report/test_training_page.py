"""The report of a training: it says what the figures say, needs nothing beside itself, and trusts no name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sbdzsl import evaluation
from sbdzsl.bundle import Bundle
from sbdzsl.calibration import realised_rate_interval
from sbdzsl.config import ThresholdRule
from sbdzsl.report import formats
from sbdzsl.report.label_budget import label_budgets
from sbdzsl.report.training_page import StepTime, TrainingFacts, write_training_report
from tests.conftest import SEEN, UNSEEN, Trained

Write = Callable[..., str]


def facts_of(trained: Trained, policy: ThresholdRule | None = None) -> TrainingFacts:
    return TrainingFacts(
        run="/runs/1",
        bundle_url=trained.bundle_url,
        manifests=(trained.manifest_uri,),
        evaluation_manifests=(trained.manifest_uri,),
        evaluation_digest=trained.bundle.card["provenance"]["data_digest"],
        training=trained.manifest,
        evaluation=trained.manifest,
        policy=policy,
        steps=(StepTime("train", datetime(2026, 11, 26, tzinfo=timezone.utc), 61.0),),
        sweep=None,
        outcome="0f",
        promotion=None,
    )


@pytest.fixture
def write(trained: Trained, tmp_path: Path) -> Write:
    """Writes the page of the trained bundle at a policy, and returns it."""

    def written(policy: ThresholdRule | None = None, bundle: Bundle = trained.bundle, **changes: object) -> str:
        found = evaluation.evaluate(bundle, trained.manifest, policy)
        target = str(tmp_path / "report.html")
        facts = replace(facts_of(trained, policy), **changes)  # type: ignore[arg-type]
        write_training_report(facts, bundle, found.figures, found.scores, target)
        return Path(target).read_text(encoding="utf-8")

    return written


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace("\u00a0", " ")


def test_the_page_says_what_the_figures_say(trained: Trained, write: Write) -> None:
    page, figures = write(), evaluation.evaluate(trained.bundle, trained.manifest).figures
    said = text_of(page)
    assert f"S {figures['s']:.3f}, U {figures['u']:.3f}" in said
    assert f"{figures['mean']['ap']:.3f}" in said
    made = trained.bundle.card["provenance"]
    learnt = sum(counts["train"] for counts in made["images"].values())
    assert f"The bundle knows 3 surfaces, learnt from {learnt} images." in said
    assert made["data_digest"] in page
    assert "detector.epochs 4 40" in said, "a setting, its value and its default"
    assert "detector.width" not in said
    assert f"{UNSEEN}" in said
    for surface in SEEN:
        entry, row = trained.bundle.detectors[surface], figures["surfaces"][surface]
        assert f"{row['num_good']} good and {row['num_defect']} defective test images" in said
        for rule in ("false-alarm-rate:0.02", "max-f1", "zero-misses"):
            threshold = entry.threshold(ThresholdRule.parse(rule))
            assert f"{rule} " in said
            assert formats.score(threshold.value) in said
    assert said.count("in force ") >= len(SEEN)
    assert len(re.findall(r"<svg", page)) == 3 * len(SEEN)
    assert "train 1 min 01 s 2026-11-26 00:00:00 UTC" in said


def test_the_page_needs_nothing_beside_itself(write: Write) -> None:
    page = write(ThresholdRule.parse("fixed:-1e9"))
    assert "<script" not in page
    assert "default-src 'none'" in page
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    assert {source.split(",")[0] for source in sources if not source.startswith("#")} == {"data:image/jpeg;base64"}
    assert not re.search(r"https?://", page)
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors <= set(re.findall(r'id="([^"]+)"', page))


def test_errors_are_shown_the_worst_first(trained: Trained, write: Write) -> None:
    page = write(ThresholdRule.parse("fixed:1e9"))
    figures = evaluation.evaluate(trained.bundle, trained.manifest, ThresholdRule.parse("fixed:1e9"))
    for surface in SEEN:
        row, scores = figures.figures["surfaces"][surface], figures.scores[surface]
        assert f"{min(row['fn'], 12)} of {row['fn']} errors, the worst first" in text_of(page)
        missed = np.flatnonzero(scores.labels)
        worst = scores.samples[missed[np.argmin(scores.scores[missed])]]
        assert f"<strong>{worst.uri.rpartition('/')[2]}</strong>" in page
    assert "fixed:1000000000" in text_of(page)


def test_names_are_escaped(trained: Trained, write: Write, tmp_path: Path) -> None:
    name, bundle = "<b>steel & co</b>", trained.bundle
    renamed = [
        row | {"surface": name if row["surface"] == SEEN[0] else row["surface"]} for row in trained.manifest.to_pylist()
    ]
    table = pa.Table.from_pylist(renamed, schema=trained.manifest.schema)
    hostile = replace(
        bundle,
        detectors={name if surface == SEEN[0] else surface: entry for surface, entry in bundle.detectors.items()},
    )
    found = evaluation.evaluate(bundle, trained.manifest)
    figures = found.figures | {
        "surfaces": {name if key == SEEN[0] else key: row for key, row in found.figures["surfaces"].items()}
    }
    scores = {name if key == SEEN[0] else key: one for key, one in found.scores.items()}
    scores[name].surface = name
    facts = replace(facts_of(trained), training=table, evaluation=table, run="/runs/<i>", manifests=("<u>.parquet",))
    write_training_report(facts, hostile, figures, scores, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;steel &amp; co" in page
    assert not re.search(r"<b>|<i>|<u>", page)


def test_the_label_budget_counts_and_says_what_follows(trained: Trained) -> None:
    rows = trained.manifest.to_pylist()
    for row in rows:
        if row["surface"] == SEEN[1] and row["label"] == "defect":
            row["mask_uri"] = row["mask_kind"] = None
        if row["surface"] == SEEN[2] and row["split"] == "train" and row["label"] == "defect":
            row["label"] = None
    changed = pa.Table.from_pylist(rows, schema=trained.manifest.schema)
    found = label_budgets(changed, trained.manifest, trained.bundle, None)
    own = [row for row in rows if (row["surface"], row["split"]) == (SEEN[0], "train")]
    train = found[SEEN[0]].train
    assert (train.good, train.defective) == tuple(
        sum(row["label"] == label for row in own) for label in ("benign", "defect")
    )
    assert train.masked == train.defective > 0
    assert found[SEEN[0]].meaning[0] == f"All {train.defective} defective training images have a mask."
    assert found[SEEN[1]].train.masked == 0
    assert "have no masks" in found[SEEN[1]].meaning[0]
    assert found[SEEN[2]].train.unlabelled > 0
    assert "defects drawn into good images" in found[SEEN[2]].meaning[0]

    threshold = trained.bundle.detectors[SEEN[0]].threshold()
    n, rate = threshold.num_good, threshold.promised_rate
    assert rate == pytest.approx(1 / (n + 1)), "too few for 2 %"
    low, high = realised_rate_interval(n, rate)
    promise = found[SEEN[0]].meaning[1]
    assert promise.startswith(f"{n} good images were held out")
    assert f"not the {formats.share(0.02)} asked for, but {formats.share(rate)} is promised" in promise
    assert f"between {formats.share(low)} and {formats.share(high)}" in promise
    assert promise.endswith("49 good ones would be enough.")
    # The rule of three: none of m missed leaves about 3 / m open (95 % two-sided: 3.7 / m).
    m = found[SEEN[0]].test.defective
    assert f"a miss rate of up to {formats.share(1 - 0.025 ** (1 / m))} open" in found[SEEN[0]].meaning[2]
