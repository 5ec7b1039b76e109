"""Suspects: a planted defect is ranked first, groups are left out, the ranking is a function of samples and seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sbdzsl import cli, datasets, lake, screening
from sbdzsl.config import ImageSettings
from sbdzsl.datasets import Sample, synthetic
from sbdzsl.sbad.backbone import Backbone, load_backbone
from sbdzsl.screening import describe_cells, draw_banks, rank_suspects, robust_z, strangest_cells

SURFACE = "brushed_steel"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.set_num_threads(1)
    return load_backbone()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """30 images of one drawn surface; three of them get a dark scratch of 40 px and the label defect."""
    folder = str(tmp_path_factory.mktemp("screening") / "lake")
    synthetic.write_lake(folder, 40, seed=5, surfaces=(SURFACE,), size=192, defect_share=0.1)
    good = [sample for sample in datasets.ingest("dagm", folder).samples if sample.label == "benign"][:30]
    for k, sample in enumerate(good[:3]):
        pixels = cv2.imread(sample.uri, cv2.IMREAD_GRAYSCALE)
        cv2.line(pixels, (50 + 20 * k, 60), (70 + 20 * k, 95), 40, 2)
        cv2.imwrite(sample.uri, pixels)
    # Ids of their own, so that what is drawn into the bank does not depend on the folder and the hour.
    return [
        replace(sample, image_id=f"{k:02}", split="train", label="defect" if k < 3 else "benign")
        for k, sample in enumerate(good)
    ]


def relabelled(samples: list[Sample]) -> tuple[list[Sample], set[str]]:
    planted = {sample.image_id for sample in samples if sample.label == "defect"}
    return [replace(sample, label="benign", mask_uri=None) for sample in samples], planted


def test_planted_defects_are_the_first_of_the_ranking(drawn: list[Sample], backbone: Backbone) -> None:
    good, planted = relabelled(drawn)
    found = rank_suspects(good, len(planted), backbone, ImageSettings())
    assert {finding.sample.image_id for finding in found if finding.sample} == planted
    assert [finding.code for finding in found] == ["suspect"] * len(planted)
    scores = [finding.score for finding in found]
    assert scores == sorted(scores, reverse=True)
    assert found[0].reason.startswith(f"rank 1 of {len(good)} good images of {SURFACE}")


def test_defects_and_test_images_are_left_alone(drawn: list[Sample], backbone: Backbone) -> None:
    benign = [sample for sample in drawn if sample.label == "benign"]
    rows = [*[s for s in drawn if s.label == "defect"], replace(benign[0], split="test"), *benign[1:]]
    ranked = {f.sample.image_id for f in rank_suspects(rows, 99, backbone, ImageSettings()) if f.sample}
    assert ranked == {sample.image_id for sample in benign[1:]}


def test_the_ranking_depends_on_the_seed_and_not_on_the_order(drawn: list[Sample], backbone: Backbone) -> None:
    good, _ = relabelled(drawn)
    first = rank_suspects(good, 99, backbone, ImageSettings(), seed=1)
    assert rank_suspects(good[::-1], 99, backbone, ImageSettings(), seed=1) == first
    assert rank_suspects(good, 99, backbone, ImageSettings(), seed=2) != first


def test_beyond_the_bank_images_are_scored_as_those_within(
    drawn: list[Sample], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, planted = relabelled(drawn)
    monkeypatch.setattr(screening, "BANK_IMAGES", 25)
    found = rank_suspects(good, 99, backbone, ImageSettings())
    assert len(found) == len(good)
    assert planted <= {finding.sample.image_id for finding in found[:5] if finding.sample}


def test_cells_of_the_own_group_do_not_vouch_for_an_image() -> None:
    rng = np.random.default_rng(0)
    usual = {Sample(f"{k}", f"/{k}", group=f"{k}"): (rng.normal(size=(50, 4)).astype(np.float32),) for k in range(8)}
    odd = rng.normal(size=(50, 4)).astype(np.float32) + 9
    twins = {Sample(name, f"/{name}", group="twins"): (odd,) for name in ("a", "b")}
    images = usual | twins
    banks = draw_banks(images, seed=0)
    apart = {sample.image_id: strangest_cells(cells, sample, banks)[0] for sample, cells in images.items()}
    assert min(apart["a"], apart["b"]) > 1.5 * max(apart[str(k)] for k in range(8))
    strangers = [replace(sample, group=sample.image_id) for sample in twins]
    own = dict(zip([*usual, *strangers], images.values(), strict=True))
    vouched = strangest_cells((odd,), strangers[0], draw_banks(own, seed=0))[0]
    assert vouched < 0.75 * apart["a"]


def test_distances_are_those_of_a_slow_search() -> None:
    rng = np.random.default_rng(1)
    images = {Sample(f"{k}", f"/{k}"): (rng.normal(size=(40, 3)).astype(np.float32),) for k in range(5)}
    (bank,) = draw_banks(images, seed=0)
    for sample, (cells,) in images.items():
        group = datasets.sample.group_of(sample)
        others = bank.cells[bank.groups != bank.numbers[group]]
        slow = [
            sorted(np.linalg.norm(cell @ bank.whitening - other) for other in others)[screening.NEIGHBOUR - 1]
            for cell in cells
        ]
        assert bank.distances(cells, group) == pytest.approx(slow, abs=1e-3)


def test_gain_of_a_whole_image_does_not_make_it_suspect(backbone: Backbone) -> None:
    grey = np.random.default_rng(0).uniform(0.3, 0.5, (96, 128)).astype(np.float32)
    cells, darker = describe_cells(grey, backbone), describe_cells(grey * 0.8, backbone)
    for found in (*cells, *darker):
        assert np.median(found, axis=0) == pytest.approx(0, abs=1e-5)
    for one, other in zip(cells[:3], darker[:3], strict=True):
        assert np.abs(one - other).mean() < 0.25 * abs(np.log(0.8))


def test_contrast_is_the_log_deviation_in_overlapping_windows(backbone: Backbone) -> None:
    grey = np.random.default_rng(0).random((70, 100), np.float32)
    stem, *_ = backbone(torch.from_numpy(grey)[None, None])
    tops, lefts = range(0, stem.shape[2] - 15, 8), range(0, stem.shape[3] - 15, 8)
    slow = torch.stack(
        [stem[0, :, y : y + 16, x : x + 16].flatten(1).std(1, correction=0) for y in tops for x in lefts]
    )
    expected = np.log(slow.numpy() + 0.01)
    assert describe_cells(grey, backbone)[0] == pytest.approx(expected - np.median(expected, axis=0), abs=0.01)


@pytest.mark.parametrize("shape", [(32, 32), (40, 3000), (1500, 1200)])
def test_images_of_any_size_have_cells(backbone: Backbone, shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).random(shape, np.float32)
    small = screening.shrunk(grey)
    assert min(small.shape) >= screening.WINDOW_PX
    assert small.size <= screening.MAX_AREA_PX * 1.01
    assert all(np.isfinite(cells).all() and len(cells) for cells in describe_cells(grey, backbone))


def test_what_cannot_be_screened_is_said(drawn: list[Sample], backbone: Backbone, tmp_path: Path) -> None:
    good, _ = relabelled(drawn)
    lines: list[str] = []
    (tmp_path / "broken.png").write_bytes(b"")
    broken = replace(good[0], image_id="broken", uri=str(tmp_path / "broken.png"))
    found = rank_suspects([*good, broken], 99, backbone, ImageSettings(), report=lines.append)
    assert len(found) == len(good)
    assert rank_suspects(good[:5], 3, backbone, ImageSettings(), report=lines.append) == []
    one_group = [replace(sample, group="lot1") for sample in good]
    assert rank_suspects(one_group, 3, backbone, ImageSettings(), report=lines.append) == []
    assert [line.split(": ")[1] for line in lines] == ["not screened"] + ["not screened for suspects"] * 2
    assert "broken.png: empty" in lines[0]


def test_robust_z_is_not_moved_by_a_few() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 1000.0]
    assert robust_z(values)[:4] == pytest.approx(np.array([-2, -1, 0, 1]) / 1.4826)
    assert robust_z([5.0] * 4).tolist() == [0] * 4
    assert robust_z([5.0] * 4 + [6.0])[4] > 0


def test_the_command_ranks_suspects_and_rejects_nobody_for_it(
    drawn: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, planted = relabelled(drawn)
    split = [replace(sample, split="val" if k % 5 == 0 else "train") for k, sample in enumerate(good)]
    manifest = str(tmp_path / "m.parquet")
    lake.write_manifest(datasets.samples_to_table(split), manifest)
    assert cli.main(["datasets", "validate", "--manifest", manifest, "--suspects", "3"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("suspect: ")]
    uris = {sample.uri for sample in good if sample.image_id in planted}
    assert {line.split(": ")[1] for line in lines} == uris
