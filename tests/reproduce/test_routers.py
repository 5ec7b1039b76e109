"""Tables 3 to 5: cells are trained as they say, nothing of an unseen surface is learnt from, what is printed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sbdzsl import cli
from sbdzsl.config import ImageSettings, RouterSettings, TrainSettings
from sbdzsl.datasets import synthetic
from sbdzsl.datasets.sample import Sample
from sbdzsl.errors import ConfigError
from sbdzsl.reproduce import reproduce, routers, sources
from sbdzsl.reproduce.sources import Collection, SurfaceFeatures
from sbdzsl.sbad.attributes import AttributeTable

TINY = RouterSettings(hidden=32, ce_vae_steps=150, vaegan_steps=150, critic_steps=2, false_alarm_rate=0.1)
SURFACES = "abcdefgh"
DIMS = 20


def made_up(seed: int = 0) -> Collection:
    """Eight surfaces whose features are linear in five attributes."""
    rng = np.random.default_rng(seed)
    ce = rng.random((len(SURFACES), 5)).round(2)
    centres = ce @ rng.standard_normal((5, DIMS))

    def draw(surface: int, count: int) -> NDArray[np.float32]:
        return (centres[surface] + 0.05 * rng.standard_normal((count, DIMS))).astype(np.float32)

    return Collection(
        "drawn",
        {name: SurfaceFeatures(*(draw(k, count) for count in (20, 10, 10, 15))) for k, name in enumerate(SURFACES)},
        AttributeTable(tuple("vwxyz"), {name: tuple(row) for name, row in zip(SURFACES, ce, strict=True)}),
        ("drawn: a note",),
    )


def grey_moments(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Six numbers of an image in place of the backbone's features."""
    fine = image - cv2.GaussianBlur(image, (0, 0), 2)
    return np.array([image.mean(), image.std(), fine.std(), *np.quantile(image, (0.1, 0.5, 0.9))], dtype=np.float32)


def test_published_figures_agree_with_each_other() -> None:
    for figures in routers.PUBLISHED.values():
        h = 2 * figures.seen * figures.unseen / (figures.seen + figures.unseen)
        assert h == pytest.approx(figures.h, abs=0.015)  # one of them is cut off, not rounded
    assert {cell for cells in routers.TABLES.values() for cell in cells} == set(routers.CELLS)
    assert all(len(cells) == 4 for cells in routers.TABLES.values())


@pytest.mark.parametrize("cell", [routers.CELLS[0], routers.CELLS[-1]])
def test_a_cell_is_measured(cell: routers.Cell) -> None:
    collection = made_up()
    figures = routers.measure(collection, ("c", "f"), cell.settings(TINY), seed=0)
    assert figures["naming"] > 0.8
    assert figures["auroc"] > 0.6
    s, u = figures["seen"], figures["unseen"]
    assert figures["h"] == pytest.approx(2 * s * u / (s + u) if s + u else 0)
    assert s <= 1 - figures["false_alarms"] + 1e-9
    assert figures["zsl"] > 0.7
    again = routers.measure(collection, ("c", "f"), cell.settings(TINY), seed=0)
    assert {k: v for k, v in again.items() if k != "train_s"} == {k: v for k, v in figures.items() if k != "train_s"}


def test_only_the_seen_surfaces_parts_are_learnt_from() -> None:
    """Whatever the training images of an unseen surface show, and its CE, detection stays as it is."""
    collection = made_up()
    cell = routers.Cell("vaegan", "learned", "mse").settings(TINY)
    before = routers.measure(collection, ("c", "f"), cell, seed=0)
    noise = np.random.default_rng(1).standard_normal((20, DIMS)).astype(np.float32)
    other = replace(collection.surfaces["c"], train=noise, calibration=noise, test=noise)
    changed = replace(
        collection,
        surfaces={**collection.surfaces, "c": other},
        attributes=collection.attributes.with_row("c", dict.fromkeys("vwxyz", 1.0)),
    )
    after = routers.measure(changed, ("c", "f"), cell, seed=0)
    for name in ("seen", "unseen", "h", "auroc", "naming", "false_alarms"):
        assert after[name] == before[name], name


def test_one_unseen_surface_leaves_nothing_to_name() -> None:
    assert routers.measure(made_up(), ("c",), TINY, seed=0)["zsl"] is None


def test_which_surfaces_are_unseen_depends_on_the_seed() -> None:
    collection = made_up()
    chosen = {routers.choose_unseen(collection, seed) for seed in range(10)}
    assert len(chosen) > 3
    assert all(len(names) == 2 for names in chosen)


def test_rows_hold_the_papers_figures_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "drawn", lambda *_: made_up())
    lines: list[str] = []
    found = reproduce("table4", None, TrainSettings(router=TINY), seeds=(0, 1), report=lines.append)
    json.dumps(found.figures, allow_nan=False)
    assert sum("seed 1" in line for line in lines) == 4
    assert {len(row) for row in found.rows} == {len(found.headings)}
    assert [row[:3] for row in found.rows] == [
        ("drawn", "VAEGAN", "real,\nL1"),
        ("paper", "VAEGAN", "real,\nMSE"),
        ("drawn", "VAEGAN", "real,\nMSE"),
        ("drawn", "VAEGAN", "learned,\nL1"),
        ("paper", "VAEGAN", "learned,\nMSE"),
        ("drawn", "VAEGAN", "learned,\nMSE"),
    ]
    assert found.rows[4][3:] == ("98.12", "95.96", "97.03", "", "", "100")
    assert "±" in found.rows[5][3]
    said = "\n".join(found.remarks)
    assert "no --data" in said
    assert "drawn: a note" in said
    assert "10.0%" in said
    with pytest.raises(ConfigError, match="no seed"):
        reproduce("table3", None, TrainSettings(router=TINY), seeds=())


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn surfaces in DAGM's layout, 40 images each."""
    folder = tmp_path_factory.mktemp("lake")
    names = ("brushed_steel", "cast_iron", "leather")
    synthetic.write_lake(str(folder / "lake"), 120, surfaces=names, size=64, processes=1, defect_share=0.3)
    return folder


def test_dagm_needs_all_ten_classes(lake: Path) -> None:
    assert sources.dagm(str(lake), grey_moments, ImageSettings()) is None


def test_real_surfaces_are_found_and_divided(lake: Path) -> None:
    plain = lake / "Leather27" / "class_01"
    plain.mkdir(parents=True)
    nameless = lake / "mine" / "odd"
    nameless.mkdir(parents=True)
    few = lake / "mine" / "few"
    few.mkdir()
    rng = np.random.default_rng(0)
    for folder, count in ((plain, 24), (nameless, 24), (few, 3)):
        for number in range(count):
            cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, (64, 64), dtype=np.uint8))
    found = sources.real(str(lake), grey_moments, ImageSettings())
    assert found is not None
    assert sorted(found.surfaces) == ["brushed_steel", "cast_iron", "leather", "leather27_class_01", "odd"]
    parts = found.surfaces["odd"]
    assert [len(part) for part in (parts.train, parts.calibration, parts.test, parts.unseen)] == [12, 6, 6, 24]
    assert "odd" in found.attributes.rows
    said = "\n".join(found.notes)
    assert "odd: no row in the attribute table" in said
    assert "few: left out, 3 images" in said
    assert sources.real(str(lake / "Leather27"), grey_moments, ImageSettings()) is None  # one surface is too few
    for name in ("class_03", "class_05"):
        shutil.copytree(plain, lake / "Leather27" / name)
    leathers = sources.real(str(lake / "Leather27"), grey_moments, ImageSettings())
    assert leathers is not None
    assert sorted(leathers.surfaces) == ["leather27_class_01", "leather27_class_03", "leather27_class_05"]


def test_the_ten_drawn_surfaces_follow_the_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DRAWN_IMAGES", 200)
    found = sources.drawn(lambda image: image[:2, :3].reshape(-1), ImageSettings())
    assert len(found.surfaces) == 10
    for parts in found.surfaces.values():
        # 14 benign and 6 defective: 8:2, training defects brought up to the benign ones; val is halved.
        assert len(parts.train) in (20, 22, 24)
        assert len(parts.calibration) + len(parts.test) in (3, 4, 5)
        assert len(parts.unseen) in (10, 12, 14)
        training = {row.tobytes() for row in parts.train}
        assert not any(row.tobytes() in training for row in (*parts.calibration, *parts.test))
    again = sources.drawn(lambda image: image[:2, :3].reshape(-1), ImageSettings())
    for name, parts in found.surfaces.items():
        for part in ("train", "calibration", "test", "unseen"):
            assert np.array_equal(getattr(parts, part), getattr(again.surfaces[name], part))


def test_groups_are_not_split_where_images_are_left_out_or_halved() -> None:
    samples = [Sample(str(k), f"/{k}.png", surface="a", group=f"part{k // 4}") for k in range(40)]
    chosen = sources._at_most(samples, 10, seed=0)
    assert len(chosen) == 12
    first, second = sources._halves(samples)
    assert {one.group for one in first}.isdisjoint({one.group for one in second})
    assert len(first) == len(second)


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sources, "drawn", lambda *_: made_up())
    settings = tmp_path / "tiny.yaml"
    settings.write_text("router: {hidden: 16, ce_vae_steps: 5, vaegan_steps: 2}\n")
    words = ["reproduce", "table3", "--config", str(settings), "--out", str(tmp_path / "t.json")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "65.76" in said
    assert "TF-VAEGAN" in said
    assert "…" not in said  # 80 columns hold it
    assert json.loads((tmp_path / "t.json").read_text())["table"] == "table3"
