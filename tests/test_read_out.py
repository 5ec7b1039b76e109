"""Attributes and a backbone of the user's own, from training to the words that a person reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from sbdzsl import bundle as bundles
from sbdzsl import cli
from sbdzsl.inspector import Inspector
from sbdzsl.report.gallery import make_viewer
from sbdzsl.report.html import write_report
from sbdzsl.verdict import verdict_table
from tests.conftest import SEEN, UNSEEN, Trained
from tests.graphs import Tiny, write_graph
from tests.verdicts import draw_facts

ATTRIBUTES = ("finish: brushed", "finish: cast", "pierced", "is metal")
ROWS = {SEEN[0]: "1,0,0,1", SEEN[1]: "0,1,0,1", SEEN[2]: "0,0,1,1"}


@pytest.fixture(scope="module")
def own(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle by way of the command line; the files that it was made from are gone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    net, table, settings = folder / "net", folder / "mine.csv", folder / "train.yaml"
    write_graph(net, Tiny(1), 1)
    lines = [f"{surface},{values}" for surface, values in ROWS.items()]
    table.write_text("\n".join(["surface," + ",".join(ATTRIBUTES), *lines]))
    settings.write_text(
        f"attributes: {table}\n"
        "router: {stages: [two], ce_vae_steps: 200, vaegan_steps: 200, critic_steps: 1, hidden: 32}\n"
        "detector: {width: 0.25, epochs: 1}\n"
    )
    words = ["train", "--manifest", trained.manifest_uri, "--bundle", str(folder / "bundle"), "--unseen", UNSEEN]
    assert cli.main([*words, "--config", str(settings), "--backbone", str(net)]) == 0
    shutil.rmtree(net)
    table.unlink()
    return str(folder / "bundle")


def uris(trained: Trained, surface: str) -> list[str]:
    return [row["uri"] for row in trained.manifest.to_pylist() if (row["surface"], row["split"]) == (surface, "test")]


def test_the_bundle_knows_the_net_that_the_option_named(own: str) -> None:
    bundle = bundles.load(own)
    assert bundle.settings.router.backbone is not None
    assert bundle.settings.router.backbone.endswith("net")
    assert bundle.backbone.stage_names == ("two",)
    card = bundle.card["backbone"]
    assert (card["kind"], card["stages"], card["source"], card["licence"]) == ("onnx", ["two"], "net", None)
    assert bundle.router.attribute_names == ATTRIBUTES


def test_inspect_says_the_users_words(own: str, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*uris(trained, SEEN[1])[:4], *uris(trained, UNSEEN)[:4]]
    assert cli.main(["inspect", "--bundle", own, "--json", *given]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {len(row["class_embedding"]) for row in found} == {4}
    assert {len(row["nearest_scores"]) for row in found} == {3}
    assert all(row["extrapolated"] == (row["verdict"] == "unseen") for row in found)
    assert {word for row in found for word in row["attributes"]} <= set(ATTRIBUTES)
    assert all("is metal" in row["attributes"] for row in found[:4])
    brushed, cast, pierced, _ = np.mean([row["class_embedding"] for row in found[:4]], axis=0)
    assert cast > max(brushed, pierced)
    assert cli.main(["inspect", "--bundle", own, *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    unseen = [line for line, row in zip(lines, found, strict=True) if row["verdict"] == "unseen"]
    assert unseen
    assert all("× the limit)" in line and line.endswith("(extrapolated)") for line in unseen)


def test_the_report_says_them_too(own: str, trained: Trained, tmp_path: Path) -> None:
    inspector = Inspector(bundles.load(own))
    table = verdict_table([inspector.judge(uri, uri) for uri in uris(trained, UNSEEN)[:6]])
    write_report(pl.from_arrow(table).lazy(), draw_facts(table), str(tmp_path), make_viewer(inspector), 3)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<li>is metal</li>" in page
    assert "× the limit)" in page
    assert "Looks (extrapolated)" in page
    header = (tmp_path / "alerts.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"nearest_scores", "extrapolated"} <= set(header)


def test_a_table_of_the_users_own_must_have_all_surfaces(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, settings = tmp_path / "mine.csv", tmp_path / "train.yaml"
    table.write_text(f"surface,shiny\n{SEEN[0]},1\n")
    settings.write_text(f"attributes: {table}\n")
    words = ["train", "--manifest", trained.manifest_uri, "--bundle", str(tmp_path / "b"), "--config", str(settings)]
    assert cli.main(words) == 2
    assert f"no row for '{SEEN[1]}'" in capsys.readouterr().err


def test_other_runtimes_and_exports_are_refused(
    own: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = uris(trained, SEEN[0])[0]
    assert cli.main(["inspect", "--bundle", own, "--runtime", "onnxruntime", image]) == 2
    assert "kind 'onnx'" in capsys.readouterr().err
    words = ["export", "--bundle", own, "--manifest", trained.manifest_uri, "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "kind 'onnx'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
