"""API keys: what the file keeps, and what a key opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from sbdzsl.errors import ConfigError, ServiceError
from sbdzsl.serving.keys import KeyFile
from sbdzsl.serving.run import require_keys
from sbdzsl.serving.settings import ServeSettings


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    """A key file without keys."""
    return KeyFile(str(tmp_path / "keys.json"))


def test_the_file_never_holds_the_key(file: KeyFile, tmp_path: Path) -> None:
    secret = file.create("line7", ["infer"])
    assert secret not in (tmp_path / "keys.json").read_text()
    assert secret.split("_")[2] not in (tmp_path / "keys.json").read_text()
    assert file.find(secret).name == "line7"


def test_a_name_has_two_live_keys_at_most(file: KeyFile) -> None:
    first, _ = file.create("line7", ["infer"]), file.create("line7", ["infer"])
    with pytest.raises(ConfigError, match="revoke"):
        file.create("line7", ["infer"])
    file.revoke(first.split("_")[1])
    third = file.create("line7", ["infer"])
    assert file.find(third).is_live()
    with pytest.raises(ServiceError):
        file.find(first)


@pytest.mark.parametrize("wrong", [None, "", "sbdzsl_1_x", "ü"])
def test_a_wrong_key_is_refused(file: KeyFile, wrong: str | None) -> None:
    file.create("line7", ["infer"])
    with pytest.raises(ServiceError, match="Bearer") as caught:
        file.find(wrong)
    assert caught.value.code == "unauthorised"


def test_an_expired_key_is_refused(file: KeyFile) -> None:
    secret = file.create("line7", ["infer"], days=0)
    with pytest.raises(ServiceError):
        file.find(secret)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('[{"id": 1}]')
    with pytest.raises(ConfigError, match=r"keys\.json"):
        KeyFile(str(tmp_path / "keys.json")).find("x")


def test_other_machines_need_a_key(file: KeyFile, tmp_path: Path) -> None:
    assert require_keys("127.0.0.1", ServeSettings()) is None
    named = ServeSettings(keys=str(tmp_path / "keys.json"))
    for settings in (ServeSettings(), named):
        with pytest.raises(ConfigError, match="sbdzsl keys create"):
            require_keys("0.0.0.0", settings)
    file.create("line7", ["infer"])
    assert require_keys("0.0.0.0", named) is not None
