"""The page: self-contained, harmless, complete, and the same each time."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pytest

from sbdzsl.errors import ImageError, LakeError
from sbdzsl.report.html import ADVICE, write_report
from sbdzsl.report.overlay import GalleryImage
from sbdzsl.report.summary import AuditFacts, Summary
from tests.verdicts import ERROR_CODES, KINDS, draw_facts, draw_references, draw_verdicts, draw_viewer

TABLE = draw_verdicts(2000, seed=7)
VOID = {"meta", "img", "br", "path", "use", "rect"}
HOSTILE = "<script>alert(1)</script>\"><img src=https://evil.example/x onerror='alert(1)'>{{ 7 * 7 }}&lt;"


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def _picture(row: Mapping[str, Any]) -> GalleryImage | None:
    return GalleryImage(b"not looked into", "image/png", ("8 bit",))


def _report(table: pa.Table, folder: Path, **facts: Any) -> tuple[Page, Summary]:
    summary = write_report(
        pl.from_arrow(table).lazy(), draw_facts(table, **facts), str(folder), draw_viewer(_picture), 3
    )
    return Page((folder / "report.html").read_text(encoding="utf-8")), summary


def _with(table: pa.Table, **columns: object) -> pa.Table:
    """The table with whole columns set to one value."""
    for name, value in columns.items():
        field = table.schema.field(name)
        column = pa.array([value] * table.num_rows, field.type)
        table = table.set_column(table.schema.get_field_index(name), field, column)
    return table


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(out: Path) -> tuple[Page, Summary]:
    return _report(TABLE, out)


def test_nothing_comes_from_elsewhere(report: tuple[Page, Summary], out: Path) -> None:
    page, _ = report
    links = page.values("src", "href", "xlink:href", "action", "srcset", "data")
    assert all(link.startswith(("#", "data:image/png;base64,")) or link == "alerts.csv" for link in links)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|https?://|@import|@font-face", text)
    assert not page.tags.keys() & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "default-src 'none'" in text


def test_the_page_is_sound(report: tuple[Page, Summary]) -> None:
    page, _ = report
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href", "xlink:href") if link.startswith("#")} <= set(ids)
    assert (
        len([1 for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and value]) == page.tags["img"]
    )
    assert page.tags["h1"] == page.tags["main"] == 1


def test_the_page_says_what_was_counted(report: tuple[Page, Summary]) -> None:
    page, summary = report
    counted = Counter(TABLE["verdict"].to_pylist())
    assert {kind: getattr(summary.counts, kind) for kind in KINDS} == counted
    assert summary.sentence in page.text
    for expected in [f"{counted[kind]:,}" for kind in KINDS] + [s.surface for s in summary.surfaces]:
        assert expected in page.text
    assert page.tags["svg"] == 2 * len(summary.surfaces) + 2
    for fact in ("sha256-4f0c2a6be1d9", "line-3 v12", "2026-11-02 06:41:07 UTC", "41 min 07 s", "84.0"):
        assert fact in page.text


def test_every_error_code_stands_with_its_advice(report: tuple[Page, Summary]) -> None:
    page, _ = report
    for code in ERROR_CODES:
        assert code in page.words
        assert ADVICE[code][1] in page.text


def test_every_code_that_an_image_can_have_has_advice() -> None:
    assert ImageError.CODES.keys() | {"not-found", "forbidden", "unreachable"} == ADVICE.keys()


def test_summary_and_list_stand_beside_the_page(report: tuple[Page, Summary], out: Path) -> None:
    page, summary = report
    assert Summary.from_json(json.loads((out / "summary.json").read_text(encoding="utf-8"))) == summary
    listed = (out / "alerts.csv").read_bytes()
    assert listed.count(b"\n") - 1 == summary.counts.total - summary.counts.good
    assert hashlib.sha256(listed).hexdigest() in page.text
    assert sorted(path.name for path in out.iterdir()) == ["alerts.csv", "report.html", "summary.json"]


def test_same_rows_same_bytes(report: tuple[Page, Summary], out: Path, tmp_path: Path) -> None:
    del report
    _report(TABLE, tmp_path)
    for name in ("summary.json", "alerts.csv", "report.html"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    lists = {"nearest_surfaces": [HOSTILE], "attributes": [HOSTILE]}
    texts = dict.fromkeys(["uri", "surface", "threshold_policy", "error_code", "error_detail"], HOSTILE)
    names: dict[str, Any] = dict.fromkeys(["lake", "out", "bundle", "bundle_name"], HOSTILE)
    table = _with(draw_verdicts(200), **texts, **lists)
    stop: dict[str, Any] = {"stopped": HOSTILE, "stop_detail": HOSTILE, "selection": (HOSTILE,)}
    page, _ = _report(table, tmp_path, missing=(HOSTILE,), num_missing=1, **names, **stop)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.tags["script"] == 0
    assert page.tags["img"] == 3 + 3 + 1  # defects, unseen images, one group of them
    assert "<script" not in text
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert HOSTILE in page.text


def test_characters_that_hide_or_turn_text_are_written_out(tmp_path: Path) -> None:
    page, _ = _report(_with(draw_verdicts(200), uri="s3://lake/part\u202egnp.exe\x00"), tmp_path)
    assert "part\\u202egnp.exe\\u0000" in page.text
    assert "\u202e" not in page.text


def test_the_gallery_is_bounded_and_shows_what_is_gone(tmp_path: Path) -> None:
    asked: list[str] = []

    def gallery(row: Mapping[str, Any]) -> GalleryImage | None:
        asked.append(row["verdict"])
        return None

    write_report(pl.from_arrow(TABLE).lazy(), draw_facts(TABLE), str(tmp_path), draw_viewer(gallery), 4)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    num_groups = -(-min(sum(kind == "unseen" for kind in TABLE["verdict"].to_pylist()), 200) // 10)
    assert asked == ["defect"] * 4 + ["unseen"] * (4 + num_groups)
    assert page.text.count("This image can no longer be read") == 8 + num_groups
    assert page.tags["img"] == 0


def test_figures_are_written_before_pictures_are_asked_for(tmp_path: Path) -> None:
    def gallery(row: Mapping[str, Any]) -> GalleryImage | None:
        raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError):
        write_report(pl.from_arrow(TABLE).lazy(), draw_facts(TABLE), str(tmp_path), draw_viewer(gallery), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alerts.csv", "summary.json"]


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    svg = GalleryImage(b"<svg onload=alert(1)>", "image/svg+xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image/svg"):
        write_report(pl.from_arrow(TABLE).lazy(), draw_facts(TABLE), str(tmp_path), draw_viewer(lambda row: svg), 1)


@pytest.mark.parametrize("shares", [(0, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)])
@pytest.mark.parametrize("num_images", [0, 1, 30])
def test_lopsided_tables(shares: tuple[float, float, float, float], num_images: int, tmp_path: Path) -> None:
    table = draw_verdicts(num_images, surfaces=("carpet",), shares=shares)
    page, summary = _report(table, tmp_path, images_per_second=None)
    assert summary.counts.total == num_images
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text.split()
    assert "nothing was left to judge" in page.text


def test_what_is_not_given_is_a_dash(tmp_path: Path) -> None:
    missing = dict.fromkeys(
        [
            "defect_score",
            "defect_threshold",
            "defect_probability",
            "threshold_policy",
            "regions",
            "attributes",
            "unseen_score",
            "unseen_threshold",
            "unseen_p_value",
            "nearest_surfaces",
            "nearest_scores",
            "extrapolated",
            "decode_ms",
            "route_ms",
        ]
    )
    page, summary = _report(_with(TABLE, **missing), tmp_path, unseen_budget=None, defect_budget=None)
    assert summary.unseen.rate.of == 0
    assert page.tags["svg"] == 1  # defects over time need no score
    assert page.words.count("–") > 20
    assert "None" not in page.text.split()


def test_an_incomplete_audit_says_so_first(tmp_path: Path) -> None:
    page, _ = _report(TABLE, tmp_path, missing=("0123456789ab",), num_missing=12)
    assert "Not complete" in page.text
    assert "0123456789ab" in page.text
    assert "the first 1 of 12" in page.text


@pytest.mark.parametrize("code", ["deadline", "too-many-errors", "stalled", "incomplete"])
def test_a_stopped_audit_has_a_full_report_that_says_so_first(code: str, tmp_path: Path) -> None:
    stop: dict[str, Any] = {"stopped": code, "stop_detail": "after 2 h; 3 shards are left", "exit_code": 3, "run": 2}
    page, summary = _report(TABLE, tmp_path, num_manifest=2600, num_missing=600, **stop)
    assert not summary.complete
    first = page.text.index(f"Not complete: the audit was stopped ({code})")
    assert first < page.text.index("Defect scores by surface")
    assert "after 2 h; 3 shards are left" in page.text
    assert page.text.count("Run the same audit again") == 1
    figures = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (figures["complete"], figures["exit_code"], figures["facts"]["stopped"]) == (False, 3, code)
    assert figures["warnings"][0] == summary.sentence


def test_the_selection_of_an_audit_is_said(tmp_path: Path) -> None:
    page, _ = _report(TABLE, tmp_path, selection=("sample 1%", "newest first"))
    assert page.text.count("sample 1%, newest first") == 2


def test_drift_is_a_warning_in_report_and_summary(tmp_path: Path) -> None:
    references = draw_references()
    references["leather"]["brightness"] = references["leather"]["brightness"] * 1.2
    viewer = draw_viewer(_picture, references=references)
    summary = write_report(pl.from_arrow(TABLE).lazy(), draw_facts(TABLE), str(tmp_path), viewer, 1)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    (warning,) = (one for one in summary.warnings if "brightness" in one)
    assert warning in json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["warnings"]
    assert page.text.count("leather: brightness moved: median") == 2
    assert page.words.count("moved") == 1
    assert page.words.count("--promise envelope") == 2
    none = draw_viewer(_picture, references={})
    write_report(pl.from_arrow(TABLE).lazy(), draw_facts(TABLE), str(tmp_path), none, 1)
    assert "nothing to compare with" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_page_of_many_surfaces_and_folders_stays_small(tmp_path: Path) -> None:
    table = draw_verdicts(6000, seed=1, surfaces=[f"surface {i}" for i in range(300)])
    _report(table, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_a_list_of_alerts_that_is_cut_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sbdzsl.report.alerts.MAX_ALERTS", 50)
    page, summary = _report(TABLE, tmp_path)
    assert (tmp_path / "alerts.csv").read_bytes().count(b"\n") == 51
    assert f"50 of {summary.counts.total - summary.counts.good} rows" in " ".join(page.text.split())


def test_an_unseen_surface_shows_how_far_the_known_ones_are_and_that_its_words_are_extrapolated(tmp_path: Path) -> None:
    near = {"nearest_surfaces": ["leather", "sandpaper"], "nearest_scores": [1.8, 2.4], "unseen_threshold": 1.0}
    table = _with(draw_verdicts(200, shares=(0.4, 0.3, 0.3, 0)), **near)
    page, _ = _report(table, tmp_path)
    assert page.words.count("leather (1.80× the limit), sandpaper (2.40×)") == 3
    assert page.words.count("Looks (extrapolated)") == page.words.count("Looks") - 1 == 3  # one is in the glossary


def test_any_store_will_do() -> None:
    write_report(pl.from_arrow(TABLE).lazy(), draw_facts(TABLE), "memory://audits/one/", draw_viewer(_picture), 1)
    store = fsspec.filesystem("memory")
    assert store.cat_file("/audits/one/report.html").startswith(b"<!DOCTYPE html>")
    store.rm("/audits", recursive=True)


def test_a_folder_that_cannot_be_written_is_a_lake_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    facts: AuditFacts = draw_facts(TABLE)
    with pytest.raises(LakeError) as error:
        write_report(pl.from_arrow(TABLE).lazy(), facts, str(tmp_path / "file"), draw_viewer(_picture), 1)
    assert error.value.code == "unreachable"
    assert str(tmp_path / "file") in error.value.message
