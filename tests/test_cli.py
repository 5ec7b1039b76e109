import json
import subprocess
import sys
from pathlib import Path

import pytest

from sbdzsl import cli, datasets, lake
from sbdzsl.inspector import Inspector
from sbdzsl.verdict import VERDICT_SCHEMA
from tests.conftest import SEEN, UNSEEN, Trained


def test_inspect_prints_a_line_an_image(trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    uris = trained.manifest["uri"].to_pylist()[:2]
    assert cli.main(["inspect", "--bundle", trained.bundle_url, *uris, "--overlay", str(tmp_path / "o")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == uris
    assert len(list((tmp_path / "o").glob("*.png"))) == 2


def test_inspect_json_is_the_inspectors_verdict(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    uri = trained.manifest["uri"].to_pylist()[0]
    assert cli.main(["inspect", "--bundle", trained.bundle_url, "--json", uri]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = Inspector(trained.bundle).judge("x", uri)
    assert set(found) == {*VERDICT_SCHEMA.names, "result_evaluation"}
    for name in ("verdict", "unseen_score", "defect_score", "surface_margin", "class_embedding"):
        assert found[name] == json.loads(json.dumps(getattr(expected, name)))


def test_inspect_keeps_the_promise_that_is_asked_for(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    uri = trained.manifest["uri"].to_pylist()[0]
    thresholds = {}
    for promise in ("plain", "envelope"):
        assert cli.main(["inspect", "--bundle", trained.bundle_url, "--json", "--promise", promise, uri]) == 0
        thresholds[promise] = json.loads(capsys.readouterr().out)["unseen_threshold"]
        assert thresholds[promise] == trained.bundle.router.promising(promise).threshold()
    assert thresholds["plain"] != thresholds["envelope"]


def test_inspect_gives_a_broken_file_its_code_and_the_others_their_verdict(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    good = trained.manifest["uri"].to_pylist()[0]
    assert cli.main(["inspect", "--bundle", trained.bundle_url, "--json", str(broken), good]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["verdict"], first["error_code"], first["result_evaluation"]) == ("error", "empty", 0)
    assert second["verdict"] != "error"


def test_evaluate_writes_the_figures(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "metrics.json"
    words = ["evaluate", "--bundle", trained.bundle_url, "--manifest", trained.manifest_uri, "--out", str(out)]
    assert cli.main([*words, "--verdicts", str(tmp_path / "v.parquet")]) == 0
    figures = json.loads(out.read_text())
    assert {"s", "u", "h", "unseen_auroc", "surfaces"} <= set(figures)
    assert {"ap", "auroc", "f1", "fp", "fn"} <= set(figures["surfaces"][SEEN[0]])
    assert "router: S" in capsys.readouterr().out
    assert (tmp_path / "v.parquet").exists()


def test_ingest_writes_a_manifest_with_splits(
    tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(Path(trained.manifest_uri).parent / "lake")
    out = tmp_path / "m.parquet"
    words = ["ingest", "--adapter", "dagm", "--source", source, "--out", str(out), "--fold", "1", "--folds", "3"]
    assert cli.main(words) == 0
    assert f"{trained.manifest.num_rows} images" in capsys.readouterr().out
    assert set(lake.read_manifest(str(out))["split"].to_pylist()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["inspect", "--bundle", "nowhere", "x.png"], 1, "no-bundle"),
        (["ingest", "--adapter", "mvtec", "--source", ".", "--out", "m.parquet"], 2, "mvtec"),
        (["ingest", "--adapter", "dagm", "--source", "nowhere", "--out", "m.parquet"], 1, "not-found"),
        (["train", "--bundle", "b"], 2, "--manifest"),
        (["nonsense"], 2, "nonsense"),
        (["audit", "--bundle", "nowhere", "--out", "o", "--lake", "."], 1, "no-bundle"),
    ],
)
def test_exit_codes(
    words: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == code
    assert said in capsys.readouterr().err


def test_a_bad_setting_names_file_key_and_reason(
    tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "train.yaml"
    settings.write_text("detector: {epochs: many}\nrooter: {}\n")
    words = ["train", "--manifest", trained.manifest_uri, "--bundle", str(tmp_path / "b"), "--config", str(settings)]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "train.yaml: detector.epochs" in said
    assert "train.yaml: rooter" in said


def test_inspect_starts_without_ray(trained: Trained) -> None:
    uri = trained.manifest["uri"].to_pylist()[0]
    code = (
        "import sys; from sbdzsl.cli import main\n"
        f"code = main(['inspect', '--bundle', {trained.bundle_url!r}, {uri!r}])\n"
        "sys.exit(code or any(name == 'ray' or name.startswith('ray.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_what_judges_online_loads_nothing_that_only_reports_need() -> None:
    code = (
        "import sys, sbdzsl.serving.run\n"
        "print([name for name in ('matplotlib.figure', 'scipy.stats', 'jinja2', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_train_writes_a_bundle_that_inspects(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, bundle = tmp_path / "train.yaml", str(tmp_path / "bundle")
    settings.write_text("router: {ce_vae_steps: 5, vaegan_steps: 2, hidden: 16}\ndetector: {width: 0.25, epochs: 1}\n")
    words = ["train", "--manifest", trained.manifest_uri, "--bundle", bundle, "--config", str(settings), "--seed", "4"]
    left_out = [word for surface in (*SEEN[1:], UNSEEN) for word in ("--unseen", surface)]
    assert cli.main([*words, *left_out]) == 0
    said = capsys.readouterr().out
    assert SEEN[0] in said
    assert "from 20 images" in said, "training and validation images alike"
    assert cli.main(["inspect", "--bundle", bundle, trained.manifest["uri"].to_pylist()[0]]) == 0
    assert cli.main([*words, *left_out]) == 1
    assert "bundle-exists" in capsys.readouterr().err


def test_the_drawn_lake_and_the_mix_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn, manifest, out = str(tmp_path / "lake"), str(tmp_path / "m.parquet"), str(tmp_path / "mix")
    assert cli.main(["datasets", "synthetic", "--out", drawn, "--images", "200", "--size", "64"]) == 0
    assert cli.main(["ingest", "--adapter", "dagm", "--source", drawn, "--out", manifest]) == 0
    assert cli.main(["datasets", "mix", "--manifest", manifest, "--unseen", "leather", "--out", out]) == 0
    mixed = lake.read_manifest(f"{out}/manifest.parquet").to_pylist()
    assert {row["split"] for row in mixed if row["surface"] == "leather"} == {"test"}
    train = [row["label"] for row in mixed if row["surface"] == "cast_iron" and row["split"] == "train"]
    assert train.count("defect") == train.count("benign") > 0
    assert cli.main(["datasets", "list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[-len(datasets.ADAPTERS) :]} == set(
        datasets.ADAPTERS
    )
