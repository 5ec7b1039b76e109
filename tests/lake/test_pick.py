import pytest

from sbdzsl.errors import ConfigError
from sbdzsl.lake.folders import StoredFile
from sbdzsl.lake.pick import NOT_UTF8, Globs, Picker


@pytest.mark.parametrize(
    ("glob", "matches", "others"),
    [
        ("*.png", ["a.png", "x/y/a.png"], ["a.PNG", "a.png/b.jpg"]),
        ("a?.png", ["ab.png", "x/ac.png"], ["a.png"]),
        ("[ab]*.png", ["a1.png", "x/b.png"], ["c.png"]),
        ("line7/*.png", ["line7/a.png"], ["line7/x/a.png", "x/line7/a.png", "line77/a.png"]),
        ("line7/**", ["line7/a.png", "line7/x/a.png"], ["line7", "x/line7/a.png", "Line7/a.png"]),
        ("**/good/*.png", ["good/a.png", "x/y/good/a.png"], ["good/x/a.png", "notgood/a.png"]),
        ("line*/2026/**", ["line1/2026/a.png"], ["a/line1/2026/a.png", "line1/2025/a.png"]),
        ("**", ["a.png", "x/y/a.png"], []),
        ("lots/*.tar/**", ["lots/7.tar/img/a.png"], ["lots/7/img/a.png"]),
    ],
)
def test_what_a_glob_matches(glob, matches, others):
    assert [path for path in matches + others if Globs(include=[glob]).lists(path)] == matches
    assert [path for path in matches + others if Globs(exclude=[glob]).lists(path)] == others


def test_exclude_wins_over_include():
    globs = Globs(["*.png", "*.jpg"], ["raw/**", "thumb_*"])
    paths = ["a.png", "b.jpg", "c.bmp", "raw/a.png", "x/thumb_a.png"]
    assert [path for path in paths if globs.lists(path)] == ["a.png", "b.jpg"]


def test_folders_that_are_excluded_as_a_whole_need_not_be_looked_into():
    globs = Globs(exclude=["raw/**", "**/tmp/**", "x/*.png", "old*"])
    folders = ["raw", "raws", "a/raw", "tmp", "a/b/tmp", "x", "old", "raw/below"]
    assert [folder for folder in folders if globs.prunes(folder)] == ["raw", "tmp", "a/b/tmp"]


@pytest.mark.parametrize("glob", ["a**/b", "x/**y"])
def test_a_glob_that_is_none_is_named(glob):
    with pytest.raises(ConfigError, match="glob") as caught:
        Globs(include=[glob])
    assert glob in caught.value.message


def test_what_is_left_out_is_counted_by_reason_with_an_example():
    names = [
        "a.png",
        "b.TIFF",
        "notes.txt",
        "Thumbs.db",
        "raw/c.png",
        "d.tar.gz",
        "e.tgz",
        "raw/f.tar.gz",
        "\udcff.png",
    ]
    names += ["g.tar#1+2/h.png"]
    picker = Picker("s3://lake/", Globs(exclude=["raw/**"]))
    files = [StoredFile(f"s3://lake/{name}", 1, None, None) for name in names]
    assert [file.uri for file in picker.images(files)] == ["s3://lake/a.png", "s3://lake/b.TIFF"]
    assert picker.left_out.counts == {
        "without an image's suffix": 2,
        "excluded": 2,
        "compressed TAR (pack it without compression)": 2,
        NOT_UTF8: 1,
        "name that reads as a member of a TAR file": 1,
    }
    assert picker.left_out.examples["excluded"] == "s3://lake/raw/c.png"
    picker.left_out.describe().encode()
