"""The verbs by which surfaces come and go, from the command line."""

from pathlib import Path

import pytest

from sbdzsl import bundle as bundles
from sbdzsl import cli
from sbdzsl.datasets.sample import samples_from_table
from tests.conftest import SEEN, UNSEEN, Trained


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good images of the unseen surface in a folder of their own, as somebody would collect them."""
    target = tmp_path_factory.mktemp("new_cloth")
    rows = [s for s in samples_from_table(trained.manifest) if (s.surface, s.label) == (UNSEEN, "benign")]
    for sample in rows[:5]:
        (target / Path(sample.uri).name).write_bytes(Path(sample.uri).read_bytes())
    return target


def test_a_surface_comes_and_goes(
    trained: Trained, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, fewer = str(tmp_path / "more"), str(tmp_path / "fewer")
    words = ["enrol", "--bundle", trained.bundle_url, "--surface", "cloth", "--images", str(folder), "--out", more]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "router: 5 images; left out one by one, " in said
    assert "2 held-out good images support a false-alarm rate of 33.3%" in said
    assert bundles.load(more).surfaces == tuple(sorted((*SEEN, "cloth")))
    assert cli.main(words) == 1
    assert "bundle-exists" in capsys.readouterr().err
    assert cli.main(["retire", "--bundle", more, "--surface", "cloth", "--out", fewer]) == 0
    assert bundles.load(fewer).card["files"] == trained.bundle.card["files"]


def test_a_surface_grows(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "more")
    words = ["extend", "--bundle", trained.bundle_url, "--surface", SEEN[0], "--manifest", trained.manifest_uri]
    assert cli.main([*words, "--out", out]) == 0
    said = capsys.readouterr().out
    assert f"were accepted as {SEEN[0]} before, " in said
    assert "times the threshold; left out one by one, " in said
    assert "unlike a new lot" not in said
    assert "its detector stays, and calls " in said
    assert bundles.load(out).card["provenance"]["steps"][0]["step"] == "extend"


def test_strangers_as_a_new_lot_are_told_of(
    trained: Trained, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extend", "--bundle", trained.bundle_url, "--surface", SEEN[0], "--images", str(folder)]
    assert cli.main([*words, "--out", str(tmp_path / "more")]) == 0
    assert "unlike a new lot of it; if they show another surface" in capsys.readouterr().out


def test_refusals_have_their_codes(
    trained: Trained, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--bundle", trained.bundle_url, "--out", str(tmp_path / "out")]
    for words, code, said in (
        (["enrol", "--surface", SEEN[0], "--images", str(folder)], 1, "surface-exists"),
        (["enrol", "--surface", "cloth"], 2, "--images or --manifest"),
        (["enrol", "--surface", "cloth", "--images", str(tmp_path / "nowhere")], 1, "not-found"),
        (["extend", "--surface", "cloth", "--images", str(folder)], 2, "bad-config"),
        (["extend", "--surface", SEEN[0], "--images", str(tmp_path / "nowhere")], 1, "not-found"),
        (["retire", "--surface", "cloth"], 2, "bad-config"),
    ):
        assert cli.main([*words, *common]) == code
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
