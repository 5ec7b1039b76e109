"""Unseen images in groups: alike ones together, surfaces apart, known ones left out, files to enrol from."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sbdzsl import cli, lake
from sbdzsl.bundle import Bundle
from sbdzsl.cluster import ledger
from sbdzsl.cluster.plan import Identity, make_plan, pin_identity
from sbdzsl.cluster.selection import Selection
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.enrolment import MIN_IMAGES, samples_of
from sbdzsl.grouping import Group, Grouping, Member, group_unseen, link_alike, usual_distance
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.report import groups_page
from sbdzsl.sbad import enrolment as router_enrolment
from sbdzsl.sbad.embedding import Embedder
from tests.conftest import SEEN, UNSEEN, Trained

GONE = SEEN[2]


def drawn(count: int, centre: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)) + centre


def test_alike_points_are_one_group_and_the_middle_one_comes_first() -> None:
    points = np.concatenate([drawn(20, 0, 1), drawn(20, 6, 2), drawn(1, -40, 3)])
    numbers, centrality = link_alike(points, cut=8.0)
    assert len(set(numbers)) == 3
    assert len(set(numbers[:20])) == len(set(numbers[20:40])) == 1
    own = points[:20]
    expected = np.linalg.norm(own[:, None] - own[None], axis=2).mean(axis=1)
    np.testing.assert_allclose(centrality[:20], expected, rtol=1e-9)
    for count in (0, 1):
        assert len(link_alike(points[:count], 8.0)[0]) == count


def test_the_usual_distance_is_that_of_the_known_surfaces_pairs(trained: Trained) -> None:
    gate = trained.bundle.router.gate
    quantiles = []
    for surface in range(3):
        bank = gate.images_of(surface)
        upper = np.triu_indices(len(bank), 1)
        quantiles.append(np.quantile(np.linalg.norm(bank[:, None] - bank[None], axis=2)[upper], 0.9))
    assert usual_distance(gate) == pytest.approx(np.mean(quantiles))


@pytest.fixture(scope="module")
def two_seen(trained: Trained) -> Bundle:
    """The bundle without one of its surfaces, so that there are two unseen ones to tell apart."""
    return replace(trained.bundle, router=router_enrolment.retire(trained.bundle.router, GONE))


@pytest.fixture(scope="module")
def found(trained: Trained, two_seen: Bundle) -> Grouping:
    return group_unseen(two_seen, samples_from_table(trained.manifest), report=pytest.fail)


def test_groups_hold_one_surface_each_and_known_images_are_left_out(
    trained: Trained, found: Grouping, two_seen: Bundle
) -> None:
    majority = []
    for group in found.groups:
        surfaces = [member.sample.surface for member in group.members]
        majority.append(max(set(surfaces), key=surfaces.count))
        assert surfaces.count(majority[-1]) >= 0.9 * len(surfaces)
        assert len(group.members) >= MIN_IMAGES
        assert set(group.nearest) <= set(two_seen.router.surfaces)
    assert {GONE, UNSEEN} <= set(majority)
    sizes = [len(group.members) for group in found.groups]
    assert sizes == sorted(sizes, reverse=True)
    assert [group.name for group in found.groups[:2]] == ["group-01", "group-02"]
    assert found.num_given == found.num_read == trained.manifest.num_rows
    assert sum(sizes) + len(found.single) + found.num_known == found.num_read


def test_a_group_names_the_one_most_like_it(found: Grouping, two_seen: Bundle) -> None:
    gate, embedder = two_seen.router.gate, Embedder(two_seen.backbone, two_seen.settings.router)
    means = {}
    for group in found.groups:
        loaded = [load_image("", m.sample.uri, two_seen.settings.image, m.sample.bit_depth) for m in group.members]
        projected = [gate.project(embedder.embed(one.image.grey())) for one in loaded if one.image]
        means[group.name] = np.mean(projected, axis=0)
    for group in found.groups:
        others = {name: np.linalg.norm(mean - means[group.name]) for name, mean in means.items() if name != group.name}
        assert group.most_alike == min(others, key=lambda name: others[name])


def test_a_members_score_is_the_inspectors(found: Grouping, two_seen: Bundle) -> None:
    member = found.groups[0].members[0]
    verdict = Inspector(two_seen).judge(member.sample.image_id, member.sample.uri)
    assert (verdict.verdict, verdict.unseen_score) == ("unseen", member.unseen_score)
    assert verdict.nearest_surfaces[0] == member.nearest


def test_the_order_does_not_matter_and_a_limit_is_said(trained: Trained, two_seen: Bundle, found: Grouping) -> None:
    samples = samples_from_table(trained.manifest)
    assert group_unseen(two_seen, samples[::-1], report=pytest.fail) == found
    lines: list[str] = []
    fewer = group_unseen(two_seen, samples, max_images=30, report=lines.append)
    assert (fewer.num_given, fewer.num_read) == (len(samples), 30)
    assert "30 of them" in lines[0]


def test_unreadable_images_are_counted(trained: Trained, two_seen: Bundle, tmp_path: Path) -> None:
    gone = Sample("gone", str(tmp_path / "gone.png"))
    grouping = group_unseen(two_seen, [gone], report=pytest.fail)
    assert grouping == Grouping((), (), 1, 1, 0, 1)


def test_the_files_of_a_grouping(found: Grouping, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "group-99.parquet").write_bytes(b"of an earlier run")
    (tmp_path / "group-mine.parquet").write_bytes(b"not ours")
    (tmp_path / "groups.csv").write_text("")
    page = groups_page.write_groups(found, "plant bundle", trained.bundle.settings.image, str(tmp_path))
    with open(tmp_path / "groups.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(group.members) for group in found.groups) + len(found.single)
    first = found.groups[0]
    assert [row["image_id"] for row in rows if row["group"] == "group-01"] == [m.sample.image_id for m in first.members]
    assert sorted(path.name for path in tmp_path.glob("group-*")) == sorted(
        [f"{group.name}.parquet" for group in found.groups] + ["group-mine.parquet"]
    )
    enrollable = samples_of("cloth", manifests=[str(tmp_path / "group-01.parquet")])
    assert [s.image_id for s in enrollable] == [m.sample.image_id for m in first.members]
    assert {(s.surface, s.split) for s in enrollable} == {("cloth", None)}
    html = Path(page).read_text()
    assert html.count("<img") == sum(min(len(g.members), groups_page.MAX_PICTURES) for g in found.groups)
    assert "sbdzsl enrol --bundle &#39;plant bundle&#39; --manifest" in html
    assert "sbdzsl extend --bundle &#39;plant bundle&#39; --manifest" in html
    assert f"--surface {first.nearest[0]} --out NEW_BUNDLE" in html
    assert "script" not in html


def test_names_on_the_page_are_escaped(trained: Trained, tmp_path: Path) -> None:
    uri = samples_from_table(trained.manifest)[0].uri
    hostile = tmp_path / "<b>x.PNG"
    hostile.write_bytes(Path(uri).read_bytes())
    member = Member(Sample("x", str(hostile)), 9.0, "<i>steel")
    grouping = Grouping((Group("group-01", (member,), ("<i>steel",), (), None),), (), 1, 1, 0, 0)
    page = groups_page.write_groups(grouping, "b", trained.bundle.settings.image, str(tmp_path / "out"))
    html = Path(page).read_text()
    assert "<b>" not in html
    assert "<i>" not in html


def test_from_an_audit_to_a_command_that_enrols(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit's rows come from the inspector itself; no Ray is needed for that."""
    audit, out = str(tmp_path / "audit"), str(tmp_path / "groups")
    now = "2026-11-25T00:00:00+00:00"
    identity, pages = Identity("/lake", trained.bundle.digest), [trained.manifest]
    pin_identity(audit, identity)
    plan = make_plan(audit, identity, 1, lambda: pages, Selection(), None, now)
    assert plan is not None
    inspector = Inspector(trained.bundle)
    unseen = 0
    for shard in range(plan.num_shards):
        verdicts = [inspector.judge(ref.image_id, ref.uri) for ref in ledger.shard_images(plan, shard)]
        unseen += sum(verdict.verdict == "unseen" for verdict in verdicts)
        ledger.write_part(plan, shard, verdicts)
    assert cli.main(["groups", "--bundle", trained.bundle_url, "--audit", audit, "--out", out]) == 0
    said = capsys.readouterr().out
    assert f"{unseen} images: " in said
    assert ", 0 of known surfaces, 0 unreadable" in said
    command = next(line for line in said.splitlines() if line.startswith("sbdzsl enrol"))
    assert f"--manifest {out}/group-01.parquet" in command
    assert lake.exists(f"{out}/groups.html")
    assert cli.main(["groups", "--bundle", trained.bundle_url, "--out", out]) == 2
    assert "--audit or --images" in capsys.readouterr().err
    folder = str(Path(trained.manifest_uri).parent / "lake" / UNSEEN)
    assert cli.main(["groups", "--bundle", trained.bundle_url, "--images", folder, "--out", out]) == 0
