import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_lab import draw_answer

from sbdzsl import config
from sbdzsl.errors import ConfigError
from sbdzsl.serving.alerts import AlertSettings, Dispatcher, Outbox
from sbdzsl.serving.alerts.settings import FileSettings, SecretSource

HOOK: dict[str, Any] = {"kind": "webhook", "url": "https://mes.example/hook", "secrets": [{"env": "KEY"}]}
MQTT: dict[str, Any] = {"kind": "mqtt", "host": "broker"}
OPCUA: dict[str, Any] = {"kind": "opcua", "users": {"scada": {"env": "PASSWORD"}}}


def read(*sinks: dict[str, Any]) -> AlertSettings:
    return config.parse(AlertSettings, {"sinks": list(sinks)}, "serve.yaml")


def test_settings_as_the_manual_has_them_are_read() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    text = manual.split("```yaml\n")[1].split("```")[0]
    settings = config.parse(AlertSettings, yaml.safe_load(text)["alerts"], "docs/alerts.md")
    assert [sink.kind for sink in settings.sinks] == ["file", "webhook", "mqtt", "opcua"]


@pytest.mark.parametrize(
    "sink",
    [
        HOOK | {"secrets": ["hunter2"]},
        HOOK | {"secrets": "hunter2"},
        HOOK | {"secrets": [{"value": "hunter2"}]},
        HOOK | {"secrets": [{"env": "KEY", "value": "hunter2"}]},
        HOOK | {"secret": "hunter2"},
        HOOK | {"url": "https://bob:hunter2@mes.example/hook"},
        HOOK | {"url": "https://mes.example/hook?token=hunter2"},
        MQTT | {"username": "bob", "password": "hunter2"},
        MQTT | {"username": "bob", "password": {"env": ["hunter2"]}},
        OPCUA | {"users": {"bob": "hunter2"}},
        {"kind": "smtp", "password": "hunter2"},
        {"password": "hunter2"},
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(sink: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"serve.yaml: sinks") as error:
        read(sink)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("sink", "reason"),
    [
        (HOOK | {"url": "ftp://mes"}, "http"),
        (HOOK | {"secrets": []}, "at least 1 item"),
        (MQTT | {"password": {"env": "P"}}, "without a username"),
        (MQTT | {"certificate": "a.pem"}, "belong together"),
        (MQTT | {"topic": "a/+/b"}, "topic"),
        (MQTT | {"verdicts": []}, "verdicts"),
        ({"kind": "opcua"}, "nobody could connect"),
        (OPCUA | {"host": "0.0.0.0"}, "in the clear"),
        (OPCUA | {"private_key": "k.pem"}, "belong together"),
        (OPCUA | {"name": "../x"}, "name"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(sink: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read(sink)


def test_two_sinks_need_two_names() -> None:
    with pytest.raises(ConfigError, match="two sinks are called webhook"):
        read(HOOK, HOOK)
    assert [sink.label for sink in read(HOOK, HOOK | {"name": "mes"}).sinks] == ["webhook", "mes"]


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "hunter2")
    (tmp_path / "key").write_text("hunter3\n")
    assert SecretSource(env="KEY").read() == "hunter2"
    assert SecretSource(file=str(tmp_path / "key")).read() == "hunter3"
    assert "hunter" not in repr(read(HOOK))


def test_a_secret_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable KEY is empty"):
        SecretSource(env="KEY").read()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        SecretSource(file=str(tmp_path / "none")).read()


@pytest.mark.parametrize(("sink", "package", "extra"), [(MQTT, "paho", "mqtt"), (OPCUA, "asyncua", "opcua")])
def test_a_package_that_is_not_installed_is_named_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: dict[str, Any], package: str, extra: str
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    settings = read(sink).model_copy(update={"folder": str(tmp_path)})
    outbox = Outbox(settings)
    with pytest.raises(ConfigError, match=rf"pip install 'sbdzsl\[{extra}\]'") as error:
        Dispatcher(outbox, settings)
    assert error.value.code == "missing-extra"
    outbox.close()


@pytest.mark.parametrize(
    ("filters", "answer", "wanted"),
    [
        ({}, draw_answer(1), True),
        ({}, draw_answer(1, "unseen"), True),
        ({}, draw_answer(1, "error"), False),
        ({}, draw_answer(1, "good"), False),
        ({"verdicts": ("good", "error")}, draw_answer(1, "good"), True),
        ({"verdicts": ("good", "error")}, draw_answer(1, "defect"), False),
        ({"surfaces": ("leather",)}, draw_answer(1), True),
        ({"surfaces": ("steel",)}, draw_answer(1), False),
        ({"surfaces": ("steel",)}, draw_answer(1, "unseen"), True),
        ({"cameras": ("camera-1",)}, draw_answer(1), True),
        ({"cameras": ("camera-2",)}, draw_answer(1), False),
        ({"cameras": ("camera-2",)}, draw_answer(1, camera=None), False),
    ],
)
def test_which_answers_are_alerts(filters: dict[str, Any], answer: dict[str, Any], wanted: bool) -> None:
    assert FileSettings(path="x", **filters).wants(answer) is wanted
