import pytest

from sbdzsl import cli, lake


def test_list_prints_counts_and_resumes(tmp_path, capsys):
    for name in ("a/1.png", "a/2[b].png", "b/3.png", "b/[red]notes.txt"):
        (tmp_path / "lake" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lake" / name).write_bytes(b"1234")
    words = ["list", "--lake", str(tmp_path / "lake"), "--out", str(tmp_path / "out"), "--exclude", "1.*"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "2 images, 8 bytes" in said
    assert "images/s" in said
    assert "[red]notes.txt" in said
    assert "excluded" in said
    assert sum(len(page) for page in lake.manifest_pages(str(tmp_path / "out"))) == 2
    assert cli.main(words) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "either --lake or --inventory"),
        (["--lake", ".", "--inventory", "s3://b/manifest.json"], 2, "either --lake or --inventory"),
        (["--inventory", "s3://b/folder"], 2, "manifest.json"),
        (["--lake", ".", "--partition", "month"], 2, "month"),
        (["--lake", "gone"], 1, "not-found"),
        (["--lake", "s3://user:secret@b/x"], 1, "password"),
    ],
)
def test_exit_codes(tmp_path, capsys, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list", "--out", "out", *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "secret" not in err
