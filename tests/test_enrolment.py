"""From bundle to bundle with a surface more, a lot more, a surface fewer: what is written, kept, refused."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from sbdzsl import bundle as bundles
from sbdzsl import enrolment, lake
from sbdzsl.bundle import Bundle
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.enrolment import Enrolled, Extended, enrol, extend, retire, samples_of
from sbdzsl.errors import SbdzslError
from sbdzsl.inspector import Inspector
from sbdzsl.sbad.attributes import standard_attributes
from tests.conftest import SEEN, UNSEEN, Trained


def samples(trained: Trained, surface: str, split: str = "train") -> list[Sample]:
    return [s for s in samples_from_table(trained.manifest) if s.surface == surface and s.split == split]


def few(trained: Trained, count: int = 8) -> list[Sample]:
    """Images of the surface that the bundle never saw, without splits."""
    return [replace(sample, split=None) for sample in samples(trained, UNSEEN)[:count]]


@pytest.fixture(scope="module")
def enrolled(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    out = str(tmp_path_factory.mktemp("enrolled") / "bundle")
    return enrol(trained.bundle, UNSEEN, few(trained), out, report=lambda _: None)


def test_the_new_surface_is_named_and_judged(trained: Trained, enrolled: Enrolled) -> None:
    assert enrolled.bundle.surfaces == tuple(sorted((*SEEN, UNSEEN)))
    before, after = Inspector(trained.bundle), Inspector(enrolled.bundle)
    test = samples(trained, UNSEEN, "test")
    assert all(before.judge(s.image_id, s.uri).verdict == "unseen" for s in test)
    found = [after.judge(s.image_id, s.uri) for s in test]
    assert np.mean([v.surface == UNSEEN and v.verdict in ("good", "defect") for v in found]) > 0.7
    assert (enrolled.num_train, enrolled.num_held_out) == (5, 3)
    assert enrolled.claim.num_accepted == 0
    assert enrolled.num_recognised > enrolled.num_left_out // 2


def test_the_other_surfaces_verdicts_are_the_same_bits(trained: Trained, enrolled: Enrolled) -> None:
    before, after = Inspector(trained.bundle), Inspector(enrolled.bundle)
    for surface in SEEN:
        for sample in samples(trained, surface, "test"):
            old, new = (inspector.judge(sample.image_id, sample.uri) for inspector in (before, after))
            assert new.surface == old.surface
            for name in ("verdict", "unseen_score", "unseen_p_value", "defect_score", "class_embedding", "regions"):
                assert getattr(new, name) == getattr(old, name)


def test_the_new_surface_has_a_reference_of_images_that_were_left_out(trained: Trained, enrolled: Enrolled) -> None:
    references = enrolled.bundle.references
    assert {name: references[name] for name in SEEN} == trained.bundle.references
    own = references[UNSEEN]
    assert 0 < len(own.brightness) <= enrolled.num_held_out
    assert set(own.unseen_scores) == set(trained.bundle.router.gates)
    assert 0 < len(own.unseen_scores["plain"]) <= enrolled.num_left_out
    assert min(own.unseen_scores["plain"]) > 0


def test_every_other_file_keeps_its_bytes(trained: Trained, enrolled: Enrolled) -> None:
    parent, child = (dict(bundle.card["files"]) for bundle in (trained.bundle, enrolled.bundle))
    new = child.pop(f"detectors/{UNSEEN}.safetensors")
    assert new not in parent.values()
    assert child.pop("router.safetensors") != parent.pop("router.safetensors")
    assert child == parent
    assert {name: trained.bundle.card["detectors"][name] for name in SEEN} == {
        name: enrolled.bundle.card["detectors"][name] for name in SEEN
    }


def test_the_card_says_where_the_bundle_comes_from(trained: Trained, enrolled: Enrolled) -> None:
    provenance = enrolled.bundle.card["provenance"]
    (step,) = provenance["steps"]
    assert (step["step"], step["surface"], step["parent"]) == ("enrol", UNSEEN, trained.bundle.digest)
    assert step["images"] == {"router": 8, "detector": 5, "held_out": 3}
    assert provenance["images"] == trained.bundle.card["provenance"]["images"] | {UNSEEN: {"train": 5, "val": 3}}
    assert provenance["data_digest"] == trained.bundle.card["provenance"]["data_digest"]


@pytest.fixture(scope="module")
def lot(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Good images of a known surface out of focus and in another light, without splits: a lot it never saw."""
    folder = tmp_path_factory.mktemp("lot")
    rows = [s for split in ("train", "val", "test") for s in samples(trained, SEEN[0], split) if s.label == "benign"]
    for number, sample in enumerate(rows):
        grey = cv2.imread(sample.uri, cv2.IMREAD_UNCHANGED).astype(np.float32)
        changed = cv2.GaussianBlur(grey, (0, 0), 0.8) * 0.7 + 40
        cv2.imwrite(str(folder / f"{number}.png"), changed.astype(np.uint8))
    return [Sample(f"lot{n}", str(folder / f"{n}.png"), surface=SEEN[0], label="benign") for n in range(len(rows))]


@pytest.fixture(scope="module")
def extended(trained: Trained, lot: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Extended:
    out = str(tmp_path_factory.mktemp("extended") / "bundle")
    return extend(trained.bundle, SEEN[0], lot[:10], out, report=lambda _: None)


def test_a_new_lot_is_no_stranger_any_more(trained: Trained, extended: Extended, lot: list[Sample]) -> None:
    shares = []
    for bundle in (trained.bundle, extended.bundle):
        inspector = Inspector(bundle)
        found = [inspector.judge(sample.image_id, sample.uri) for sample in lot[10:]]
        shares.append(np.mean([v.surface == SEEN[0] and v.verdict != "unseen" for v in found]))
    assert shares[0] < 0.2
    assert shares[1] > 0.8
    assert (extended.lot.num_images, extended.num_good) == (10, 10)
    assert extended.lot.num_accepted <= 2
    assert extended.left_out.num_recognised >= 7


def test_a_new_lot_leaves_all_else_as_it_was(trained: Trained, extended: Extended) -> None:
    parent, child = (dict(bundle.card["files"]) for bundle in (trained.bundle, extended.bundle))
    assert child.pop("router.safetensors") != parent.pop("router.safetensors")
    assert child == parent
    assert extended.bundle.card["detectors"] == trained.bundle.card["detectors"]
    old, new = trained.bundle.references, extended.bundle.references
    assert {name: new[name] for name in SEEN[1:]} == {name: old[name] for name in SEEN[1:]}
    assert new[SEEN[0]].brightness[: len(old[SEEN[0]].brightness)] == old[SEEN[0]].brightness
    assert len(new[SEEN[0]].brightness) == len(old[SEEN[0]].brightness) + 10
    assert len(new[SEEN[0]].unseen_scores["plain"]) == len(old[SEEN[0]].unseen_scores["plain"]) + 10
    (step,) = extended.bundle.card["provenance"]["steps"]
    assert (step["step"], step["surface"], step["images"]) == ("extend", SEEN[0], {"router": 10})
    before, after = Inspector(trained.bundle), Inspector(extended.bundle)
    for sample in samples(trained, SEEN[1], "test"):
        one, other = (inspector.judge(sample.image_id, sample.uri) for inspector in (before, after))
        assert (other.verdict, other.unseen_score, other.defect_score) == (
            one.verdict,
            one.unseen_score,
            one.defect_score,
        )


def test_a_lot_that_is_another_surface_is_refused(trained: Trained, tmp_path: Path) -> None:
    others = [replace(sample, surface=SEEN[0]) for sample in samples(trained, SEEN[1])[:6]]
    for surface, rows, out, code in (
        (SEEN[0], others, tmp_path / "b", "surface-claimed"),
        ("nobody", others, tmp_path / "b", "bad-config"),
        (SEEN[0], others, Path(trained.bundle_url), "bundle-exists"),
        (SEEN[0], [Sample("gone", str(tmp_path / "gone.png"))], tmp_path / "b", "bad-images"),
    ):
        with pytest.raises(SbdzslError) as caught:
            extend(trained.bundle, surface, rows, str(out), report=lambda _: None)
        assert caught.value.code == code
    assert not (tmp_path / "b").exists()


def test_retiring_it_again_gives_the_parents_files_and_verdicts(
    trained: Trained, enrolled: Enrolled, tmp_path: Path
) -> None:
    retired = retire(enrolled.bundle, UNSEEN, str(tmp_path / "retired"))
    assert retired.card["files"] == trained.bundle.card["files"]
    assert retired.surfaces == trained.bundle.surfaces
    assert retired.references == trained.bundle.references
    steps = [(step["step"], step["parent"]) for step in retired.card["provenance"]["steps"]]
    assert steps == [("enrol", trained.bundle.digest), ("retire", enrolled.bundle.digest)]
    before, after = Inspector(trained.bundle), Inspector(retired)
    for sample in samples_from_table(trained.manifest)[::7]:
        old, new = (inspector.judge(sample.image_id, sample.uri) for inspector in (before, after))
        ignored = {"bundle": "", "inspected_at": old.inspected_at, "decode_ms": 0, "route_ms": 0, "detect_ms": 0}
        assert replace(new, **ignored) == replace(old, **ignored)


def test_the_parent_is_left_as_it_was(trained: Trained, enrolled: Enrolled) -> None:
    assert bundles.load(trained.bundle_url).digest == trained.bundle.digest


def test_an_attribute_table_gives_the_class_embedding(trained: Trained, tmp_path: Path) -> None:
    names = standard_attributes().names
    table = tmp_path / "attributes.csv"
    row = [1.0] + [0.25] * (len(names) - 1)
    table.write_text(f"surface,{','.join(names)}\n{UNSEEN},{','.join(map(str, row))}\n")
    fewer = [sample for sample in few(trained) if sample.label == "benign"][:4]
    found = enrol(quick(trained), UNSEEN, fewer, str(tmp_path / "b"), attributes=str(table), report=lambda _: None)
    assert found.bundle.router.reader.class_embeddings[-1].tolist() == row
    table.write_text(f"surface,{','.join(names)}\nother,{','.join(map(str, row))}\n")
    refused(trained, tmp_path, fewer, "bad-attributes", attributes=str(table))
    table.write_text("surface,shiny\nwoven_fabric,1\n")
    refused(trained, tmp_path, fewer, "bad-attributes", attributes=str(table))


def test_images_of_a_known_surface_are_refused_with_the_share(trained: Trained, tmp_path: Path) -> None:
    known = samples(trained, SEEN[0])[:10]
    said = refused(trained, tmp_path, known, "surface-claimed")
    assert f"accepted as {SEEN[0]!r}" in said
    assert "%" in said


def test_unreadable_images_are_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    rows = [*few(trained), Sample("broken", str(broken), surface=UNSEEN), Sample("gone", str(tmp_path / "gone.png"))]
    said = refused(trained, tmp_path, rows, "bad-images")
    assert "2 of 10 images" in said
    assert f"{broken}: empty" in said
    assert "gone.png: not-found" in said


def test_too_few_different_images_are_refused(trained: Trained, tmp_path: Path) -> None:
    two = [sample for sample in few(trained) if sample.label == "benign"][:2]
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(two[0].uri).read_bytes())
    lines: list[str] = []
    said = refused(trained, tmp_path, [*two, replace(two[0], image_id="c", uri=str(copy))], "too-few-images", lines)
    assert "2 different good images" in said
    assert "has the bytes of" in lines[0]


def test_a_name_that_is_taken_and_a_folder_that_is_taken(trained: Trained, tmp_path: Path) -> None:
    for surface, out, code in (
        (SEEN[0], tmp_path / "b", "surface-exists"),
        (UNSEEN, Path(trained.bundle_url), "bundle-exists"),
        (" ", tmp_path / "b", "bad-config"),
    ):
        with pytest.raises(SbdzslError) as caught:
            enrol(trained.bundle, surface, few(trained), str(out), report=lambda _: None)
        assert caught.value.code == code
    for surface, out, code in (
        ("nobody", tmp_path / "b", "bad-config"),
        (SEEN[0], Path(trained.bundle_url), "bundle-exists"),
    ):
        with pytest.raises(SbdzslError) as caught:
            retire(trained.bundle, surface, str(out))
        assert caught.value.code == code


def test_samples_of_a_folder_and_of_a_manifest(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for number, sample in enumerate(few(trained, 4)):
        (folder / f"{number}.png").write_bytes(Path(sample.uri).read_bytes())
    found = samples_of("mine", images=str(folder))
    assert [(s.surface, s.label, s.split) for s in found] == [("mine", None, None)] * 4
    own = samples_of(UNSEEN, manifests=[trained.manifest_uri])
    assert {s.surface for s in own} == {UNSEEN}
    assert {s.split for s in own} == {"train", "val"}
    nameless = pa.Table.from_pylist(
        [row | {"surface": None, "split": None} for row in trained.manifest.to_pylist()[:4]], trained.manifest.schema
    )
    lake.write_manifest(nameless, str(tmp_path / "m.parquet"))
    assert {s.surface for s in samples_of("mine", manifests=[str(tmp_path / "m.parquet")])} == {"mine"}
    for arguments, code in (
        ({"manifests": [trained.manifest_uri]}, "bad-manifest"),
        ({}, "bad-config"),
        ({"manifests": ["m"], "images": "i"}, "bad-config"),
    ):
        with pytest.raises(SbdzslError) as caught:
            samples_of("nobody", **arguments)
        assert caught.value.code == code


def test_splits_of_a_manifest_are_kept_and_one_lot_is_said(trained: Trained) -> None:
    given = [*samples(trained, UNSEEN, "train"), *samples(trained, UNSEEN, "val")]
    assert enrolment._with_splits(given, 0, pytest.fail) == given
    lines: list[str] = []
    lot = [replace(sample, group="lot7") for sample in few(trained, 5)]
    assert {sample.split for sample in enrolment._with_splits(lot, 0, lines.append)} == {"train", "val"}
    assert "lot7" in lines[0]


@pytest.mark.parametrize(("count", "held_out"), [(3, 1), (4, 2), (5, 2), (20, 8), (50, 20), (500, 50)])
def test_how_many_images_set_the_detectors_threshold(count: int, held_out: int) -> None:
    rows = [Sample(str(i), f"{i}.png", surface="a") for i in range(count)]
    split = [sample.split for sample in enrolment._with_splits(rows, 0, pytest.fail)]
    assert split.count("val") == held_out
    assert split.count("train") == count - held_out


def quick(trained: Trained) -> Bundle:
    """The bundle with settings that train a detector within a second."""
    settings = trained.bundle.settings
    small = settings.detector.model_copy(update={"epochs": 1, "width": 0.25})
    return replace(trained.bundle, settings=settings.model_copy(update={"detector": small}))


def refused(
    trained: Trained,
    folder: Path,
    rows: list[Sample],
    code: str,
    lines: list[str] | None = None,
    attributes: str | None = None,
) -> str:
    """What the refusal says; nothing has been written."""
    out, said = folder / "refused", list[str]() if lines is None else lines
    with pytest.raises(SbdzslError) as caught:
        enrol(trained.bundle, UNSEEN, rows, str(out), attributes, report=said.append)
    assert caught.value.code == code
    assert not out.exists()
    return caught.value.message
