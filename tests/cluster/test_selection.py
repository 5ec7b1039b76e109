import polars as pl
import pyarrow as pa

from sbdzsl.cluster.selection import Selection
from tests.cluster.plans import NOTHING, manifest

PAGES = [manifest(range(start, start + 100)) for start in range(0, 1000, 100)]


def chosen(selection: Selection, judged: pl.DataFrame = NOTHING, pages: list[pa.Table] = PAGES) -> list[str]:
    return [identity for page in selection.apply(pages, judged) for identity in page["image_id"].to_pylist()]


def test_all_images_are_taken_by_default() -> None:
    assert chosen(Selection()) == [f"id{number:04d}" for number in range(1000)]


def test_a_sample_is_a_share_and_always_the_same() -> None:
    tenth, half = set(chosen(Selection(sample=0.1))), set(chosen(Selection(sample=0.5)))
    assert 60 < len(tenth) < 140
    assert 430 < len(half) < 570
    assert tenth < half, "a larger sample holds the smaller one"
    alone = {identity for page in PAGES for identity in chosen(Selection(sample=0.1), pages=[page])}
    assert alone == tenth, "whether an image is drawn depends on nothing but the image"


def test_a_limit_is_the_most_that_is_taken() -> None:
    assert chosen(Selection(limit=150)) == [f"id{number:04d}" for number in range(150)]
    assert len(chosen(Selection(limit=5000))) == 1000


def test_what_was_judged_is_left_out_before_the_limit_counts() -> None:
    judged = pl.DataFrame({"image_id": [f"id{number:04d}" for number in range(0, 1000, 2)]})
    assert chosen(Selection(limit=3), judged) == ["id0001", "id0003", "id0005"]


def test_newest_first() -> None:
    found = chosen(Selection(newest_first=True, limit=40))
    days = [int(identity[2:]) % 28 for identity in found]
    assert days == sorted(days, reverse=True)
    assert set(days) == {27, 26}
    assert len(chosen(Selection(newest_first=True))) == 1000


def test_words_say_what_was_taken() -> None:
    assert Selection().words == ()
    words = Selection(("*.png",), ("old/**",), 0.01, 1000, True).words
    assert words == ("only *.png", "without old/**", "a sample of 0.01 of them", "1,000 at most", "newest first")
