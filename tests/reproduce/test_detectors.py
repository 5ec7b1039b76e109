import json
from pathlib import Path

import pytest

from sbdzsl import cli, datasets
from sbdzsl.config import DetectorSettings, TrainSettings
from sbdzsl.errors import ConfigError, DataError
from sbdzsl.reproduce import detectors
from sbdzsl.reproduce.sources import find
from tests.conftest import SEEN, UNSEEN, Trained

TINY = TrainSettings(detector=DetectorSettings(epochs=2))


@pytest.fixture(scope="module")
def data(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds the drawn lake, which has DAGM's layout, beside something else."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "drawn").symlink_to(Path(trained.manifest_uri).parent / "lake")
    (folder / "aside").mkdir()
    (folder / "aside" / "notes.txt").write_text("no images here")
    return str(folder)


@pytest.fixture(scope="module")
def result(data: str) -> dict[str, object]:
    return detectors.table6(data, TINY, seeds=(0, 1), report=lambda _: None)


def test_each_surface_found_gets_a_detector_and_the_missing_sets_are_named(result: dict[str, object]) -> None:
    json.dumps(result, allow_nan=False)
    sets = {one["name"]: one for one in result["sets"]}  # type: ignore[index,attr-defined]
    assert [sets[name]["folder"] for name in ("KSDD", "KSDD2", "STEEL")] == [None] * 3
    runs = sets["DAGM"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    for run in runs:
        assert set(run["detectors"]) == {*SEEN, UNSEEN}
        assert run["is_part"]
        assert run["num_images"] == 160
        assert run["pooled"]["num_good"] + run["pooled"]["num_defect"] == sum(
            one["num_good"] + one["num_defect"] for one in run["detectors"].values() if one["calibration_error"]
        )
        assert all(one["threshold_policy"] == "false-alarm-rate:0.02" for one in run["detectors"].values())
    assert runs[0]["detectors"] != runs[1]["detectors"]


def test_the_rows_say_whose_threshold_comes_from_where(result: dict[str, object]) -> None:
    rows = detectors.rows(result)
    assert {len(row) for row in rows} == {len(detectors.HEADINGS)}
    by = [(row[0], row[1], row[3]) for row in rows[:3]]
    assert by == [("DAGM", "paper", "test"), ("", "ours", "validation"), ("", "ours, in-sample", "test")]
    assert rows[0][4:] == ("0.99", "0.99", "", "0.99", "0", "0")
    assert "–" in rows[1][4]  # two seeds: mean, lowest and highest
    assert ("", "ours", "not found", *("",) * 7) in rows
    said = "\n".join(detectors.remarks(result))
    assert "DAGM: a part, 160 of 16,100 images: no result on the official data set." in said
    assert "KSDD2: not found" in said
    assert "split of our own" in said or "official test set" in said


def test_published_figures_agree_with_each_other() -> None:
    """F1 follows from the errors and the number of positives of the official test sets, as far as it is printed."""
    ksdd2 = next(one for one in detectors.TABLE6 if one.name == "KSDD2").published
    hits = 110 - ksdd2.fn
    assert 2 * hits / (2 * hits + ksdd2.fp + ksdd2.fn) == pytest.approx(ksdd2.f1, abs=0.005)


def test_an_adapter_that_is_not_there_yet_finds_nothing(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "ADAPTERS", {"folder": datasets.ADAPTERS["folder"]})
    assert find("dagm", data) is None
    with pytest.raises(DataError, match="DAGM, KSDD, KSDD2, STEEL"):
        detectors.table6(data, TINY, report=lambda _: None)


def test_the_folder_of_one_data_set_will_do(data: str, trained: Trained) -> None:
    lake = str(Path(trained.manifest_uri).parent / "lake")
    assert find("dagm", data) == f"{data}/drawn"
    assert find("dagm", lake) == lake
    assert find("kolektorsdd", data) is None


def test_a_damaged_data_set_is_an_error_and_not_missing(tmp_path: Path) -> None:
    label = tmp_path / "Class1" / "Train" / "Label"
    label.mkdir(parents=True)
    (label / "Labels.txt").write_text("1\n1\t7\t0001.PNG\t0\t0\n")
    with pytest.raises(DataError, match="expected 0 or 1"):
        find("dagm", str(tmp_path))


def test_the_command_prints_the_table_and_writes_the_figures(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tiny.yaml"
    settings.write_text("detector: {width: 0.25, epochs: 1}\n")
    words = ["reproduce", "table6", "--data", data, "--config", str(settings), "--out", str(tmp_path / "t.json")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "paper" in said
    assert "not found" in said
    assert json.loads((tmp_path / "t.json").read_text())["table"] == "table6"
    assert cli.main(["reproduce", "table7", "--data", data]) == 2
    assert "table3, table4, table5, table6" in capsys.readouterr().err
    assert cli.main(["reproduce", "table6"]) == 2
    assert "needs --data" in capsys.readouterr().err


def test_no_seed_is_an_error(data: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        detectors.table6(data, TINY, seeds=(), report=lambda _: None)
