"""`sbdzsl registry` from the command line, and bundles that other verbs are given by a registry's name for them."""

import json
from pathlib import Path
from typing import Any

import pytest

from sbdzsl import bundle as bundles
from sbdzsl import cli
from sbdzsl.cluster import jobs
from sbdzsl.registry import Registry
from tests.bundles import draw_bundle
from tests.conftest import SEEN, Trained
from tests.registry.test_gate import equal, worse  # noqa: F401  fixtures
from tests.registry.test_signing import key  # noqa: F401  fixture


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    found = cli.main(list(words))
    said = capsys.readouterr()
    assert found == code, said.err
    return said.out if code in (0, 1) and not said.err else said.out + said.err


def test_a_bundle_from_push_to_rollback(
    trained: Trained,
    equal: str,  # noqa: F811
    worse: str,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = str(tmp_path / "registry")
    where, production = ("--registry", url), ("--alias", "production")
    measured = ("--manifest", trained.manifest_uri, "--by", "anna")
    first = run(capsys, "registry", "push", *where, "--bundle", trained.bundle_url).strip()
    assert first == trained.bundle.digest
    said = run(capsys, "registry", "promote", *where, *production, "--version", first[:8], *measured)
    assert f"production -> {first[:16]}, record 1 by anna: promote" in said
    run(capsys, "registry", "promote", *where, "--alias", "candidate", "--bundle", equal, "--reason", "nightly")
    said = run(capsys, "registry", "promote", *where, *production, "--version", "candidate", *measured)
    assert "mean_ap" in said
    assert "record 2" in said

    said = run(capsys, "registry", "promote", *where, *production, "--bundle", worse, *measured, code=3)
    assert "refused" in said
    assert f"largest fall of AP on one surface, which does not decide: {SEEN[0]}" in said
    assert "gate-refused: mean_ap is worse by" in said

    said = run(capsys, "registry", "rollback", *where, *production, "--by", "emil", "--reason", "too many alarms")
    assert f"production -> {first[:16]}, record 3 by emil: rollback to record 1" in said
    table = run(capsys, "registry", "list", *where)
    assert table.count("no") >= 3
    assert "production" in table
    said = run(capsys, "registry", "show", *where, "production")
    for words in (first, trained.bundle.card["provenance"]["data_digest"], "too many alarms", "surface brushed_steel"):
        assert words in said
    assert "seed                   0" in said
    assert "3 bundles and 2 aliases are whole" in run(capsys, "registry", "verify", *where)
    assert "0 bundles would be removed" in run(capsys, "registry", "gc", *where, "--dry-run")


def test_who_decides_is_this_user_if_not_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_bundle(tmp_path / "drawn", 1)
    monkeypatch.setenv("LOGNAME", "carla")
    words = ["registry", "promote", "--registry", str(tmp_path / "r"), "--alias", "candidate"]
    assert "record 1 by carla" in run(capsys, *words, "--bundle", str(tmp_path / "drawn"))
    assert "give either --bundle or --version" in run(capsys, *words, code=2)


def test_damage_and_signatures_are_found(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: Path,  # noqa: F811
) -> None:
    draw_bundle(tmp_path / "drawn", 1)
    where = ("--registry", str(tmp_path / "registry"))
    words = ("--alias", "candidate", "--bundle", str(tmp_path / "drawn"))
    run(capsys, "registry", "promote", *where, *words)
    public = ("--public-key", str(key.with_suffix(".pub")))
    assert "aliases/candidate: unsigned" in run(capsys, "registry", "verify", *where, *public, code=1)
    assert "signature -> " in run(capsys, "registry", "sign", *where, "candidate", "--key", str(key))
    assert "each signed by this key" in run(capsys, "registry", "verify", *where, *public)
    found = Registry(where[1]).resolve("candidate")
    (Path(found.url) / "router.safetensors").write_bytes(b"other")
    said = run(capsys, "registry", "verify", *where, *public, code=1)
    assert said.count("router.safetensors is not the file") == 2
    assert "aliases/candidate: damaged-bundle" in said


@pytest.fixture
def named(trained: Trained, tmp_path: Path) -> str:
    """The trained bundle as a registry names it."""
    registry = Registry(str(tmp_path / "registry"))
    registry.promote(registry.push(trained.bundle_url), "production", "anna", "the first")
    return f"{registry.url}@production"


def test_verbs_take_a_registrys_name_for_a_bundle(
    trained: Trained, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = trained.manifest["uri"].to_pylist()[0]
    assert json.loads(run(capsys, "inspect", "--bundle", named, "--json", image))["bundle"] == trained.bundle.digest
    by_digest = named.replace("production", trained.bundle.digest[:10])
    assert json.loads(run(capsys, "inspect", "--bundle", by_digest, "--json", image))["bundle"] == trained.bundle.digest
    said = run(capsys, "inspect", "--bundle", named.replace("production", "line7"), image, code=1)
    assert "no alias 'line7'; it has: production; if the folder" in said


def test_one_registry_takes_from_another(
    trained: Trained, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ("--registry", str(tmp_path / "other"))
    assert run(capsys, "registry", "push", *other, "--bundle", named).strip() == trained.bundle.digest
    run(capsys, "registry", "promote", *other, "--alias", "candidate", "--bundle", named)
    assert Registry(other[1]).resolve("candidate").digest == trained.bundle.digest


def test_a_folder_that_is_called_like_a_name(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle@home"
    bundles.copy(trained.bundle_url, str(folder))
    image = trained.manifest["uri"].to_pylist()[0]
    assert "put a slash at its end" in run(capsys, "inspect", "--bundle", str(folder), image, code=1)
    run(capsys, "inspect", "--bundle", f"{folder}/", image)


def test_a_submitted_audit_is_of_the_bundle_that_was_meant(
    trained: Trained, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def instead(command: list[str], *_: object, **__: Any) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(jobs, "submit", instead)
    words = ["--lake", "s3://lake", "--out", "s3://out", "--submit", "http://head:8265"]
    assert cli.main(["audit", "--bundle", named, *words]) == 0
    assert named not in commands[0]
    place = commands[0].index("--bundle")
    assert commands[0][place + 1] == Registry(named.rpartition("@")[0]).bundle_url(trained.bundle.digest)
    assert commands[0].count("--bundle") == 1
